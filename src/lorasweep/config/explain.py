"""Hydra's and OmegaConf's refusals in the user's words: the rule, the value, the nearest key or the group's options.

Knows the schema and the folders, not Hydra itself: `compose` hands over what was refused. Neighbours: `compose`
(calls), `search.space` (key hints), `docs` (the same list of keys).
"""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from functools import cache

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
    return sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})


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
    value = re.search(r"Value '(.*)' of type '(\w+)'", reason, re.DOTALL)
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
    inside = {other.rpartition(".")[2] for other in known if other.rpartition(".")[0] == group}
    if group and inside:
        hint = nearest(name, inside)
        if hint.startswith("did you mean"):
            return hint.replace("`", f"`{group}.", 1)
        elsewhere = [other for other in known if other.endswith(f".{name}")]
        return f"did you mean `{elsewhere[0]}`?" if elsewhere else f"`{group}` has {', '.join(sorted(inside))}"
    elsewhere = [other for other in known if other.endswith(f".{name}")]
    if elsewhere:
        return f"did you mean `{elsewhere[0]}`?"
    if not group:
        names = {other.rpartition(".")[2]: other for other in reversed(known)}
        hint = nearest(name, {*GROUPS, "sweep", *names})
        close = re.search(r"`(\w+)`", hint)
        if hint.startswith("did you mean") and close and close.group(1) in names:
            return f"did you mean `{names[close.group(1)]}`?"
        return hint if hint.startswith("did you mean") else nearest(name, {*GROUPS, "sweep"})
    hint = nearest(group, {*GROUPS, "sweep", "sweep.objective"})
    close = re.search(r"`([\w.]+)`", hint)
    return f"did you mean `{close.group(1)}.{name}`?" if close and hint.startswith("did you mean") else hint


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that describe Hydra's inside."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
