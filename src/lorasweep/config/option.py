"""How a setting of `schema` says what it means: its default, doc, choices and bounds, as metadata of a dataclass field.

Neighbours: `schema` (the settings), `checks` (holds them to their bounds), `docs` (writes them down).
"""

from __future__ import annotations

from dataclasses import MISSING, field
from typing import Any


def option(
    default: Any,
    doc: str,
    *,
    choices: tuple[str, ...] | None = None,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """A setting with its meaning and bounds; lists and dicts are copied into each instance."""
    limits = {"choices": choices, "above": above, "at_least": at_least, "below": below, "at_most": at_most}
    metadata = {"doc": doc, **{name: limit for name, limit in limits.items() if limit is not None}}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)
