"""Arguments of the Python functions, as the commands take them: overrides as words, numpy's numbers as plain ones, and
what is of the wrong type refused in words instead of failing somewhere below.

Each function raises UsageError. Neighbours: `api` (the only user), `config.words` (how a value is written).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from lorasweep.errors import UsageError

Overrides: TypeAlias = Iterable[str] | Mapping[str, Any] | None


def words(overrides: Overrides) -> list[str]:
    """Overrides as words; nested mappings are groups: {"optimizer": {"lr": 1e-3}}.

    Raises:
        UsageError: one word alone, which would be read letter by letter.
        ConfigError: a value of a type that no override holds.
    """
    from lorasweep.config.words import override_string

    if overrides is None:
        return []
    if isinstance(overrides, str):
        raise UsageError(
            f"overrides are a list of words or a mapping, got the text {overrides!r}; write [{overrides!r}]"
        )
    if not isinstance(overrides, Mapping):
        return texts_of("overrides", overrides)
    found = []
    for key, value in overrides.items():
        if isinstance(value, Mapping) and _is_section(str(key)):
            found += words({f"{key}.{inner}": one for inner, one in value.items()})
        else:
            plain = value.item() if hasattr(value, "dtype") and hasattr(value, "item") else value  # numpy's 8 is 8
            found.append(override_string(str(key), plain))
    return found


def text_of(what: str, value: Any) -> str:
    """One text; `what`: the argument's name."""
    if not isinstance(value, str):
        raise UsageError(f"`{what}` must be text, got {value!r}")
    return value


def texts_of(what: str, value: Any) -> list[str]:
    """One text or several, such as a column of a pandas frame."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable) or isinstance(value, bytes):
        raise UsageError(f"`{what}` must be a list of texts, got {value!r}")
    return [text_of(what, one) for one in value]


def number_of(what: str, value: Any) -> int:
    """Any kind of integer, numpy's too: a notebook takes it from a frame."""
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise UsageError(f"`{what}` must be an integer >= 0, got {value!r}")
    return number


def trial_of(trial: Any) -> int | str:
    """A trial's number, or `best`."""
    from lorasweep.exporting import BEST

    try:
        return BEST if isinstance(trial, str) and trial == BEST else number_of("trial", trial)
    except UsageError:
        raise UsageError(f"`trial` must be a trial's number, or 'best', got {trial!r}") from None


def _is_section(key: str) -> bool:
    from lorasweep.config.explain import keys

    return any(known.startswith(f"{key}.") for known in keys())
