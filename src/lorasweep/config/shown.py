"""A composed config as Hydra's own applications show it: `--cfg job`, `--package`, `--resolve`, and `--info`.

As written, a config is what files and overrides say, merged: `${…}` unresolved, what is missing as `???`. Resolved, it
is what lorasweep works with: checked, `scale=smoke` applied. Neighbours: `compose` (composes), `cli` (prints).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorasweep.config import address
from lorasweep.config.compose import compose, composing
from lorasweep.config.explain import nearest_key
from lorasweep.config.home import Home
from lorasweep.errors import UsageError

GLOBAL = "_global_"
SECRET = {  # settings whose text may hold a login -> the text without it
    address.KEY: address.keep_login_apart,
    address.STUDIES: address.keep_password_apart,
    address.FILES: address.settled_files,
}


@dataclass(frozen=True)
class Default:
    """One config that was merged, in the order of merging. `parent`: the config whose defaults list named it."""

    config: str
    package: str
    is_self: bool
    parent: str


def config(overrides: Iterable[str], sweep: str | None, package: str | None = None, resolve: bool = False) -> Any:
    """The config as plain dictionaries and lists, or what lies at `package` in it (a dotted key).

    Raises:
        ConfigError, UsageError: as `compose`; there is nothing at `package`.
    """
    home, words = Home.find(), address.without_logins(list(overrides))
    found: Any = asdict(compose(words, sweep, home)) if resolve else _as_written(words, sweep, home)
    if package is None or package == GLOBAL:
        return found
    for part in package.split("."):
        if isinstance(found, list) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            raise UsageError(f"--package {package}: the config has nothing of this name; {nearest_key(package)}")
    return found


def to_text(found: Any, package: str | None = None) -> str:
    """What `config` returned as YAML, under Hydra's line about its package; a single value as it is."""
    import yaml

    if not isinstance(found, dict | list):
        return "null" if found is None else str(found).lower() if isinstance(found, bool) else str(found)
    head = "" if package in (None, GLOBAL) else f"# @package {package}\n"
    return head + yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=120).rstrip("\n")


def defaults(overrides: Iterable[str], sweep: str | None) -> list[Default]:
    """The final defaults list: which files were merged, in their order; a later one wins.

    Raises:
        ConfigError, UsageError: as `compose`.
    """
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    with composing(Home.find(), sweep, address.without_logins(list(overrides))) as work:
        loader = GlobalHydra.instance().config_loader()
        merged = loader.compute_defaults_list("config", work.words, RunMode.RUN).defaults
        return [
            Default(one.config_path or "", one.package or "", bool(one.is_self), one.parent or "")
            for one in merged
            if not (one.config_path or "").startswith("hydra/") and one.parent != "hydra/config"
        ]


def search_path() -> list[tuple[str, str]]:
    """(whose, folder) where the files of groups are looked for, then those of sweeps; the first that has one wins."""
    home = Home.find()
    folders = list(dict.fromkeys((("yours", home.root), ("shipped", home.shipped))))
    if home.root == home.shipped:
        folders = [("yours", home.root)]
    return [(whose, str(folder / name)) for name in ("conf", "sweeps") for whose, folder in folders]


def defaults_text(found: list[Default]) -> str:
    """Hydra's table of a defaults list."""
    rows = [("Config path", "Package", "_self_", "Parent")]
    rows += [(one.config, one.package, str(one.is_self), one.parent) for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join(["Defaults List", rule, lines[0], rule, *lines[1:], rule])


def tree_text(found: list[Default]) -> str:
    """Hydra's tree of a defaults list: what each config drew in, below it."""

    def below(parent: str, indent: str) -> Iterator[str]:
        for one in found:
            if (one.config if one.is_self else one.parent) != parent:
                continue
            if one.is_self:
                yield f"{indent}_self_"
                continue
            inside = list(below(one.config, f"{indent}  "))
            only_self = inside == [f"{indent}  _self_"]
            yield f"{indent}{one.config}" + (":" if inside and not only_self else "")
            yield from () if only_self else inside

    return "\n".join(["Defaults Tree", "config:", *below("config", "  ")])


def search_path_text(found: list[tuple[str, str]]) -> str:
    """The folders, one a line, with those that do not exist marked."""
    lines = [f"{whose:<8} {folder}{'' if Path(folder).is_dir() else '   (not there)'}" for whose, folder in found]
    return "\n".join(["Config search path (the first that has a file wins)", *lines])


def info(kind: str, overrides: list[str], sweep: str | None) -> Any:
    """What `--info KIND --json` prints.

    Raises:
        ConfigError, UsageError: as `compose`.
    """
    document: dict[str, Any] = {}
    if kind in ("all", "config", "searchpath"):
        document["searchpath"] = [{"whose": whose, "folder": folder} for whose, folder in search_path()]
    if kind in ("all", "config", "defaults", "defaults-tree"):
        document["defaults"] = [asdict(one) for one in defaults(overrides, sweep)]
    if kind in ("all", "config"):
        document["config"] = config(overrides, sweep)
    return document


def info_text(kind: str, overrides: list[str], sweep: str | None) -> str:
    """What `--info KIND` prints.

    Raises:
        ConfigError, UsageError: as `compose`.
    """
    parts = []
    if kind in ("all", "config", "searchpath"):
        parts.append(search_path_text(search_path()))
    merged = [] if kind == "searchpath" else defaults(overrides, sweep)
    if kind in ("all", "config", "defaults-tree"):
        parts.append(tree_text(merged))
    if kind in ("all", "config", "defaults"):
        parts.append(defaults_text(merged))
    if kind in ("all", "config"):
        parts.append("Config\n" + to_text(config(overrides, sweep)))
    return "\n\n".join(parts)


def _as_written(overrides: list[str], sweep: str | None, home: Home) -> dict[str, Any]:
    from omegaconf import OmegaConf

    with composing(home, sweep, overrides) as work:
        found: Any = OmegaConf.to_container(work.compose(), resolve=False)
    for key, without_login in SECRET.items():
        group, _, name = key.partition(".")
        text = found.get(group, {}).get(name)
        if isinstance(text, str) and "${" not in text:
            found[group][name] = without_login(text)
    return dict(found)
