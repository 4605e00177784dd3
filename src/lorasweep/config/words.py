"""`key=value` words in Hydra's override grammar: read with the keys checked, and written so that any value survives.

Neighbours: `compose` (composes them), `explain` (unknown keys), `search.space` (the same grammar for what varies).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lorasweep.config import explain, hydra_words
from lorasweep.config.schema import GROUPS
from lorasweep.errors import ConfigError

_BARE = re.compile(r"[A-Za-z_/][\w./@:-]*", re.ASCII)  # text that Hydra's grammar reads as itself without quotes
_KEYWORDS = {"null", "true", "false", "nan", "inf"}


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """`key=value` words as values of Python types.

    Raises:
        ConfigError: a word that is no override, one of an unknown key, or one that adds, deletes or sweeps (`a,b`).
    """
    words = list(overrides)
    if not words:
        return {}  # Hydra's parser takes 0.1 s to import
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed = OverridesParser.create(), {}
    for word in words:
        if "=" not in word:
            raise ConfigError(f"`{word}` is no override; write key=value")
        key, _, value = word.lstrip("+~").partition("=")
        if hydra_words.is_hydras(key):
            raise ConfigError(hydra_words.ours(key, value))
        if word[0] in "+~":
            raise ConfigError(
                f"`{word}`: every setting exists already, nothing is added or taken away; write key=value"
            )
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise ConfigError(_syntax(word, error)) from None
        if override.is_sweep_override():
            raise ConfigError(f"`{word}` holds several values; `sweep.space` of a file in sweeps/ is where values vary")
        key = override.key_or_group + (f"@{override.package}" if override.package else "")
        if not key:
            raise ConfigError(f"`{word}` is no override; write key=value")
        if key == "sweeps":
            raise ConfigError(f"`{word}`: a sweep file is named by its command, `lorasweep sweep {override.value()}`")
        if key not in (*GROUPS, *explain.keys()):
            raise ConfigError(explain.refused_value(key, ""))
        parsed[key] = _plain(override.value())
    return parsed


def override_string(key: str, value: Any) -> str:
    """`key=value` that Hydra reads back as this very value: quoted where it must be, interpolations kept as text.

    Raises:
        ConfigError: the text `???`, or a value of a type that an override cannot hold.
    """
    return f"{key}={text_of(value)}"


def _syntax(word: str, error: BaseException) -> str:
    reason = re.sub(r"^Error parsing override '.*'$", "not key=value", explain.first_line(error))
    return f"cannot read the override `{word}`: {reason}. Quote text with commas, spaces or brackets: key=\"'a b'\""


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return getattr(value, "text", value)  # QuotedString


PLAIN_KEY = re.compile(r"(?!(?:null|true|false|nan|inf)$)[A-Za-z_][A-Za-z0-9_]*|0|[1-9][0-9]*", re.IGNORECASE)


def literal(value: Any) -> Any:
    """The value with `${` escaped, so that OmegaConf does not take text for an interpolation."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found.group(1) * 2 + "\\${", value)
    if isinstance(value, list | tuple):
        return [literal(item) for item in value]
    if isinstance(value, dict):
        return {key: literal(item) for key, item in value.items()}
    return value


def text_of(value: Any) -> str:
    """One value in the grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(int(value) if isinstance(value, int) else float(value))  # numpy's floats are floats, too
    if isinstance(value, list | tuple):
        return "[" + ",".join(text_of(item) for item in value) + "]"
    if isinstance(value, dict) and all(PLAIN_KEY.fullmatch(str(key)) for key in value):  # Hydra quotes no keys
        return "{" + ",".join(f"{key}:{text_of(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str):
        raise ConfigError(
            "an override holds text, numbers, true, false, null, lists, and dictionaries with keys of letters and "
            f"digits, got {type(value).__name__} {value!r}"
        )
    if value == "???":
        raise ConfigError("the text `???` means that a value is missing; it cannot be a value")
    if _BARE.fullmatch(value) and value.lower() not in _KEYWORDS:
        return value
    # in quotes a backslash is plain unless a quote follows it, or the end
    escaped = re.sub(
        r"(\\*)(\"|\Z)", lambda m: m.group(1) * 2 + ("\\" + m.group(2) if m.group(2) else ""), literal(value)
    )
    return f'"{escaped}"'
