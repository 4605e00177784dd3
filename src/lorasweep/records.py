"""What one trial leaves behind, in the words that study, tracker, leaderboard and registry share.

Pure data at the bottom of the tree: no neighbours but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class TrialState(StrEnum):
    """A trial's state. Optuna and MLflow agree with it: see `search.study` and `tracking`."""

    RUNNING = "running"
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


STYLES = {"complete": "green", "pruned": "yellow", "failed": "red", "running": "cyan"}  # the colour of each state


def at_rung(metric: str) -> str:
    """What a metric over the part of the validation rows that rungs are judged by is logged as."""
    return f"rung/{metric.removeprefix('eval/')}"


@dataclass
class TrialRecord:
    """One trial as a row of the leaderboard; `metrics` are those of the kept checkpoint.

    `value` is the objective (None unless complete or pruned), `params` maps swept override keys to values,
    `samples` counts training rows seen, `reason` says why a trial was pruned or failed. `interval` is that of `value`
    over `eval_rows` evaluation rows, at 95%; that of a pruned trial may be over a part of them, as `reason` says.
    `peak_memory_bytes`: the most that its process had taken of the device (of a CPU: of main memory) by the trial's
    end; trials of a pack share it.
    """

    trial: int
    state: TrialState
    value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)
    run_id: str = ""
    samples: int = 0
    train_seconds: float = 0.0
    trainable_params: int = 0
    total_params: int = 0
    reason: str | None = None
    interval: list[float] | None = None
    eval_rows: int | None = None
    peak_memory_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types, every field by its name."""
        copies = {"state": str(self.state), "metrics": dict(self.metrics), "params": dict(self.params)}
        return {**vars(self), **copies}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> TrialRecord:
        """The inverse of `to_json`."""
        return cls(**{**fields, "state": TrialState(fields["state"])})
