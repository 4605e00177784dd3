"""Who stops a losing trial: rungs in training samples, and verdicts that a replay finds again.

A verdict and the value that it judges are one attribute of the trial, so a kill leaves both or neither; asked again,
the stored verdict is the answer, whatever neighbours have reported since. Neighbour: `study`, which stores them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from lorasweep.config.schema import PrunerConfig

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

REPORT = "report."  # attribute of a trial: report.SAMPLES


@dataclass(frozen=True)
class Verdict:
    """Whether a trial trains on after a rung. `reason` is "" where it does."""

    keep: bool
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """One value of the objective at a rung, with the verdict on it."""

    value: float
    keep: bool
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """The stored verdict."""
        return Verdict(self.keep, self.reason)

    def to_json(self) -> dict[str, object]:
        """A dict of JSON types."""
        return asdict(self)


def reports_of(frozen: FrozenTrial) -> dict[int, Report]:
    """Samples -> what was reported there, ascending."""
    found = {
        int(key.removeprefix(REPORT)): Report(**json.loads(text))
        for key, text in frozen.user_attrs.items()
        if key.startswith(REPORT)
    }
    return dict(sorted(found.items()))


def rungs_of(settings: PrunerConfig, max_samples: int) -> tuple[int, ...]:
    """Training samples at which a trial that trains `max_samples` at most is judged, ascending; its end is none."""
    return ()
