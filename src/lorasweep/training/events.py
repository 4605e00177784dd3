"""What a pack tells its worker. Each event names its trial by `number`."""

from __future__ import annotations

from dataclasses import dataclass

from lorasweep.tasks.base import Predictions, References


@dataclass(frozen=True)
class Stepped:
    """One optimizer step. step counts from 1; samples are rows seen; loss is the mean over the step's micro-batches;
    grad_norm is before clipping."""

    number: int
    step: int
    samples: int
    loss: float
    lr: float
    grad_norm: float


@dataclass(frozen=True)
class Evaluated:
    """One evaluation over all validation rows. predictions: as `tasks.base` says, in the rows' order."""

    number: int
    step: int
    samples: int
    metrics: dict[str, float]
    predictions: Predictions
    is_best: bool


@dataclass(frozen=True)
class Rated:
    """What a trial is worth at a rung, in training samples. metrics: over all validation rows, or, where there is an
    `Evaluated` of its own for those, over the fixed part that rungs are judged by (`over_part`); predictions and
    references are those rows'."""

    number: int
    step: int
    samples: int
    rung: int
    metrics: dict[str, float]
    predictions: Predictions
    references: References
    over_part: bool


@dataclass(frozen=True)
class Finished:
    """The trial's end. best_metrics are those of the kept checkpoint; reason is "steps" or "early_stopping"; seconds
    are wall time since admission, earlier processes included; eval_seconds that of the last evaluation, of one that
    was shared the trial's part."""

    number: int
    step: int
    samples: int
    best_step: int
    best_metrics: dict[str, float]
    reason: str
    seconds: float
    eval_seconds: float = 0.0


@dataclass(frozen=True)
class Failed:
    """The trial cannot go on; its neighbours do. cause is one of TrialFailed.CAUSES."""

    number: int
    cause: str
    message: str


Event = Stepped | Evaluated | Rated | Finished | Failed
