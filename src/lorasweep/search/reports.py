"""What trials reported at their rungs, and the verdicts, as attributes of the trials in the study.

A value, the verdict on it and what the pruner noted are one attribute, so a kill leaves all or nothing. Asked again,
the stored verdict is the answer, whatever neighbours have reported since. Neighbours: `pruners` (judges), `study`
(stores).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

PREFIX = "report."  # attribute of a trial: report.SAMPLES


@dataclass(frozen=True)
class Verdict:
    """Whether a trial trains on after a rung. `reason` is "" where it does."""

    keep: bool
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """One value of the objective at a rung. `marks` are attributes that Optuna's pruner set on the trial, `results` one
    number a validation row where the pruner compares rows."""

    value: float
    keep: bool = True
    reason: str = ""
    marks: dict[str, Any] = field(default_factory=dict)
    results: list[float] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The stored verdict."""
        return Verdict(self.keep, self.reason)

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return asdict(self)


def attribute(samples: int) -> str:
    """Name of the attribute of the report at this rung."""
    return f"{PREFIX}{samples}"


def reports_of(frozen: FrozenTrial) -> dict[int, Report]:
    """Rung in training samples -> what was reported there, ascending."""
    found = {
        int(key.removeprefix(PREFIX)): Report(**json.loads(text))
        for key, text in frozen.user_attrs.items()
        if key.startswith(PREFIX)
    }
    return dict(sorted(found.items()))
