"""Whether a sweep that is continued is still the same one. Pure. Neighbour: `study`, which refuses otherwise.

Optuna itself would go on with a changed range or an opposite direction and mix two searches in one table.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lorasweep.config.explain import keys
from lorasweep.config.schema import Config
from lorasweep.errors import UsageError

SINGLE = "single trials"  # the kind of what `lorasweep train` collects
BASES = "base_fingerprints"  # base -> fingerprint of its files, of those that were there to look at
SWEPT_DATA = "swept_data_fingerprints"  # of the rows that trials have instead of the sweep's own
SHOWN = 12  # differences in a message


def check_same(name: str, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare two identities, both of JSON types.

    Raises:
        UsageError: what differs, key by key.
    """
    changed = differences(was, now)
    if not changed:
        return
    lines = [f"  {key}: {_show(before)} -> {_show(after)}" for key, before, after in changed[:SHOWN]]
    if len(changed) > SHOWN:
        lines.append(f"  … and {len(changed) - SHOWN} more")
    if now.get("kind") == SINGLE and was.get("kind") == SINGLE:
        raise UsageError(
            f"the single trials of {name!r} are compared by another objective (theirs -> this one's):\n"
            + "\n".join(lines)
            + "\nName another collection with sweep.name=NAME, or their objective with sweep.objective.metric=NAME"
        )
    raise UsageError(
        f"sweep {name!r} was started as another sweep (was -> now):\n"
        + "\n".join(lines)
        + f"\nUndo the change in sweeps/ or in the overrides (`lorasweep resume {name}` takes the old ones), "
        "or go on with it as a new sweep with --fork NEWNAME"
    )


def differences(was: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, before, after) of what differs; one marker stands for a key that one of them lacks.

    A setting that a newer lorasweep added, at its default, is no difference: sweeps stay resumable over upgrades. Nor
    is a base that was looked at once alone: its files were not on this machine then, or are not now.
    """
    before, after = _flat(was), _flat(now)
    changed = []
    for key in sorted({*before, *after}):
        old, new = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if old is _ABSENT and key in keys() and new == _flat(asdict(Config())).get(key, _ABSENT):
            continue
        if key.startswith((BASES, SWEPT_DATA)) and _ABSENT in (old, new):
            continue
        if old != new:
            changed.append((key, old, new))
    return changed


class _Absent:
    def __repr__(self) -> str:
        return "not set"


_ABSENT = _Absent()


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: node}
