"""Hydra's and OmegaConf's refusals in the user's words: the rule, the value, the nearest key or the group's options.

Knows the schema and the folders, not Hydra itself: `compose` hands over what was refused. Neighbours: `compose`
(calls), `search.space` (key hints), `docs` (the same list of keys).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lorasweep.config import hydra_words
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS, Config
from lorasweep.errors import nearest

TYPES = {  # a field's type as written in the schema -> in words
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "Any": "another value",
    "list[str]": "a list such as [a,b]",
    "dict[str, Any]": "keys with values",
    "list[dict[str, Any]]": "a list of points",
    "list[ObjectiveConfig]": "a list of {metric, direction}",
}


@cache
def keys() -> dict[str, str]:
    """Every dotted setting -> its type as written in the schema."""
    return _keys(Config, "")


def _keys(node: type, prefix: str) -> dict[str, str]:
    found: dict[str, str] = {}
    defaults = node()
    for field in fields(node):
        value = getattr(defaults, field.name)
        if is_dataclass(value):
            found |= _keys(type(value), f"{prefix}{field.name}.")
        else:
            found[f"{prefix}{field.name}"] = str(field.type)
    return found


def options(group: str, home: Home) -> list[str]:
    """Names that a group can be set to, the user's and ours."""
    folders = (home.root / "conf" / group, home.shipped / "conf" / group)
    files = ((folder, path) for folder in folders for path in folder.rglob("*.yaml"))
    return sorted({path.relative_to(folder).with_suffix("").as_posix() for folder, path in files})


def unknown_option(group: str, option: str, home: Home) -> str:
    """`group=option` names no file of the group."""
    known = options(group, home)
    hint = nearest(option, known)
    close = f"; {hint}" if hint.startswith("did you mean") else ""
    return f"`{group}={option}` is no option; {group} can be {', '.join(known)}{close}"


def refused_value(key: str, reason: str) -> str:
    """A value that could not be set: an unknown key, a group set like a value, or a wrong type."""
    known = keys()
    inside = [other for other in known if other.startswith(f"{key}.")]
    if key.startswith(("sweep.space.", "sweep.enqueue.")):
        section = ".".join(key.split(".")[:2])
        name = key.removeprefix(f"{section}.")
        return f"`{section}` holds keys with dots, which no override reaches; change `{name}` in the sweep file"
    if key in GROUPS:
        return (
            f"`{key}` is a group: choose an option with {key}=OPTION, or set one value, for example {inside[0]}=VALUE"
        )
    if inside:
        return f"`{key}` holds several settings; set one of them: {', '.join(inside)}"
    if key not in known:
        return f"there is no setting `{key}`; {nearest_key(key)}"
    return f"`{key}` must be {in_words(known[key])}{_given(reason)}"


def _given(reason: str) -> str:
    value = re.search(r"Value '(.*)' (?:of type '|is not a valid bool \(type )(\w+)", reason, re.DOTALL)
    boolean = re.match(r"Value '(.*)' is not a valid bool", reason, re.DOTALL)
    if boolean:
        return f", got {boolean.group(1)!r}"
    if value:
        return f", got {value.group(1)!r}" if value.group(2) == "str" else f", got {value.group(1)}"
    if "not Optional" in reason or "None" in reason:
        return ", got null"
    return f" ({reason})"


def in_words(type_text: str) -> str:
    """`int | None` -> `an integer or null`."""
    parts = [part.strip() for part in type_text.split("|")]
    return " or ".join("null" if part == "None" else TYPES.get(part, part) for part in parts)


def nearest_key(key: str) -> str:
    """A hint: the nearest setting in the same group, else one of the same name elsewhere, else the groups."""
    known = keys()
    group, _, name = key.rpartition(".")
    if group in known:
        return f"did you mean `{group}`?"
    inside = {other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == group}
    hint = nearest(name, inside)
    if group and hint.startswith("did you mean"):
        return hint.replace("`", f"`{group}.", 1)
    elsewhere = [other for other in known if other.endswith(f".{name}")]
    if elsewhere:
        return f"did you mean `{elsewhere[0]}`?"
    if group and inside:
        return f"`{group}` has {', '.join(sorted(inside))}"
    return _nearest_group(group, name) if group else _nearest_name(name)


def _nearest_name(name: str) -> str:
    """For a word without a group: `learning_rat` may be a group or a setting of one."""
    names = {other.rpartition(".")[2]: other for other in reversed(keys())}
    hint = nearest(name, {*GROUPS, "sweep", *names})
    if not hint.startswith("did you mean"):
        return nearest(name, {*GROUPS, "sweep"})
    word = hint.split("`")[1]
    return hint.replace(word, names.get(word, word), 1)


def _nearest_group(group: str, name: str) -> str:
    """For a setting of a group that does not exist: `optimiser.lr`."""
    hint = nearest(group, {*GROUPS, "sweep", "sweep.objective"})
    if not hint.startswith("did you mean"):
        return hint
    right = hint.split("`")[1]
    return f"did you mean `{right}.{name}`?" if f"{right}.{name}" in keys() else nearest_key(f"{right}.{name}")


_VARIABLE = re.compile(r"(?<!\\)\$\{oc\.env:\s*([A-Za-z_]\w*)\s*\}")  # without a default; `\${` is plain text


def unset_variables(composed: Any) -> str | None:
    """Which settings come from variables of the environment that hold nothing, and the repair; None where all do.

    `composed`: the settings as plain dictionaries and lists, interpolations unresolved.
    """
    places = [(key, name) for key, text in _texts(composed, "") for name in _empty(text)]
    if not places:
        return None
    named = ", ".join(f"`{key}` from {name}" for key, name in places)
    words = " ".join(f"{key}=…" for key, _ in places)
    return (
        f"a setting that comes from an environment variable needs that variable, and these are not set: {named}. Set "
        f"them, or give {words}"
    )


def _empty(text: str) -> list[str]:
    """Variables that are not set; one that is the whole value must not be empty either."""
    whole = _VARIABLE.fullmatch(text.strip())
    return [name for name in _VARIABLE.findall(text) if name not in os.environ or (whole and not os.environ[name])]


def _texts(node: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, dict | list):
        inside = node.items() if isinstance(node, dict) else enumerate(node)
        for name, value in inside:
            yield from _texts(value, f"{key}.{name}" if key else str(name))


def hydras_own(file: Path) -> str | None:
    """What a sweep file asks of Hydra itself, which composes it and does nothing else; None where it asks nothing."""
    import yaml

    try:
        text = file.read_text(encoding="utf-8")
        document = yaml.safe_load(text) if "hydra" in text else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):  # told by who composes it
        return None
    if not isinstance(document, dict):
        return None
    defaults = document.get("defaults")
    for entry in defaults if isinstance(defaults, list) else []:
        for key, value in entry.items() if isinstance(entry, dict) else []:
            name = str(key).rpartition(" ")[2].strip("/")
            if hydra_words.is_hydras(name):
                return hydra_words.ours(name, str(value))
    given = [key for key in document if hydra_words.is_hydras(str(key))]
    if not given:
        return None
    key, value = str(given[0]), document[given[0]]
    while isinstance(value, dict) and value:  # down to the first setting
        inner = next(iter(value))
        key, value = f"{key}.{inner}", value[inner]
    return hydra_words.ours(key, "" if isinstance(value, dict | list) else str(value))


def layout_problem(file: Path) -> str | None:
    """What keeps a sweep file from being settings in groups; None where its layout is good."""
    import yaml

    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return f"a sweep file must be readable UTF-8 text: {first_line(error)}"
    if not isinstance(document, dict):
        return f"a sweep file must be a mapping of settings in groups (group: {{key: value}}), got {_short(document)}"
    if not isinstance(document.get("defaults", []), list):
        return f"`defaults` must be a list such as [override /model: bert], got {_short(document['defaults'])}"
    for key, section in document.items():
        inside = [other for other in keys() if other.startswith(f"{key}.")]
        if inside and not isinstance(section, dict):
            return refused_value(str(key), "") + f", got {_short(section)}"
    sweep = document.get("sweep") or {}
    for key, kind, words in (("space", dict, "keys with values"), ("enqueue", list, "a list of points")):
        if not isinstance(sweep.get(key, kind()), kind):
            return f"`sweep.{key}` must be {words}, got {_short(sweep[key])}"
    return None


def _short(value: object) -> str:
    return text if len(text := repr(value)) <= 60 else f"{text[:57]}…"


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that describe Hydra's inside."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
