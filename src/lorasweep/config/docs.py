"""docs/config.md from the schema: `python -m lorasweep.config.docs` writes it, a test says when it is stale.

Neighbours: `schema` (what is written down), `explain` (types in words).
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from lorasweep.config.explain import in_words, options
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS, Config

BOUNDS = {"above": ">", "at_least": "≥", "below": "<", "at_most": "≤"}
INTRODUCTION = """\
# Settings

Every setting of lorasweep with its type, default and meaning. This page is generated from
`src/lorasweep/config/schema.py`: edit that file, then run `python -m lorasweep.config.docs`.

Set a value with `group.key=value`, choose a file of a group with `group=option`:

    lorasweep sweep quickstart optimizer.lr=3e-4 model=tiny_gpt2 adapter.layers=[0,1]

The defaults below are the schema's. The files of conf/ stand over them, a file of sweeps/ stands over those, and the
command line over all. A `conf/` or `sweeps/` folder of yours comes before ours, file by file.
In a file, `${oc.env:NAME}` is the value of an environment variable; one that is not set is named with its setting.
"""


def render(home: Home) -> str:
    """The page; options are those in `home.shipped`."""
    sections = [INTRODUCTION]
    defaults = Config()
    for field in fields(Config):
        sections.append(_section(field.name, getattr(defaults, field.name), home))
    return "\n".join(sections)


def _section(name: str, node: Any, home: Home) -> str:
    lines = [f"## {name}", "", f"{(type(node).__doc__ or '').strip()}", ""]
    if name in GROUPS:
        shipped = Home(home.shipped, home.shipped)
        lines += [
            _option(name, option, home.shipped / "conf" / name / f"{option}.yaml") for option in options(name, shipped)
        ]
        lines.append("")
    lines += ["| setting | type | default | meaning |", "|---|---|---|---|"]
    lines += [row for field in fields(node) for row in _rows(f"{name}.{field.name}", field, getattr(node, field.name))]
    return "\n".join([*lines, ""])


def _option(group: str, option: str, file: Path) -> str:
    """One option with the comment at the head of its file, else with what it sets."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.lstrip("# ") for line in itertools.takewhile(lambda line: line.startswith("#"), lines))
    values = ", ".join(f"`{line.partition('#')[0].strip()}`" for line in lines if line and not line.startswith("#"))
    return f"- `{group}={option}`: {comment or values}"


def _rows(key: str, field: Field[Any], default: Any) -> list[str]:
    if is_dataclass(default):
        return [
            row
            for inner in fields(default)
            for row in _rows(f"{key}.{inner.name}", inner, getattr(default, inner.name))
        ]
    kind = in_words(str(field.type))
    if "choices" in field.metadata:
        kind = " or ".join(f"`{choice}`" for choice in field.metadata["choices"])
    limits = [f"{sign} {field.metadata[name]}" for name, sign in BOUNDS.items() if name in field.metadata]
    cells = [f"`{key}`", ", ".join([kind, *limits]), f"`{_show(default)}`", str(field.metadata.get("doc", ""))]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if value != "" else '""'


def main(arguments: list[str] | None = None) -> int:
    """Write docs/config.md, or the file that is named."""
    words = sys.argv[1:] if arguments is None else arguments
    home = Home.find()
    path = Path(words[0]) if words else home.shipped / "docs" / "config.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(home), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
