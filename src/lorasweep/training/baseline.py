"""Baselines as trials: fitted, evaluated and ended in one turn, with the events and metrics of every other trial.

Answers to the calls of a `pack.Pack` that `worker` makes; there is nothing to step, and nothing to save in between: a
baseline that a kill interrupts is fitted again, to the same end. Neighbours: `models.baselines` (what is fitted),
`tasks` (metrics), `workbench` (makes one for each data set).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorasweep.config.schema import Config, ObjectiveConfig
from lorasweep.errors import ConfigError, TrialFailed, UsageError
from lorasweep.models.baselines import Baseline
from lorasweep.models.counts import ParameterCounts
from lorasweep.training.events import Evaluated, Event, Failed, Finished
from lorasweep.training.memory import describe, is_out_of_memory
from lorasweep.training.sheet import Sheet
from lorasweep.training.slot import Best

if TYPE_CHECKING:
    import torch

    from lorasweep.data.sources import SearchData
    from lorasweep.tasks import Task
    from lorasweep.tasks.base import References

STEP = 1  # a fit counts as one step


@dataclass
class _Trial:
    number: int
    config: Config
    started: float = field(default_factory=time.monotonic)
    fitted: Baseline | None = None
    best: Best | None = None


class BaselinePack:
    """At most one baseline at a time, over the rows of one data set.

    Raises:
        ConfigError: the task's answers are not classes.
    """

    engine = None

    def __init__(self, task: Task, data: SearchData, objective: ObjectiveConfig):
        if task.answers != "classes":
            raise ConfigError(
                "baselines of words (model.kind=bag_of_words, majority) predict classes, and the task's answers are "
                "texts; leave them out, or compare with adapter=none, the pretrained model as it is"
            )
        self.task, self.data, self.objective = task, data, objective
        self._trial: _Trial | None = None

    # -- who is in it ---------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Always the CPU."""
        import torch

        return torch.device("cpu")

    @property
    def rows(self) -> int:
        """Training rows."""
        return len(self.data.train)

    @property
    def references(self) -> References:
        """The right answers of the validation rows."""
        return self.task.references(self.data.validation)

    @property
    def active(self) -> list[int]:
        """The trial's number, where there is one."""
        return [] if self._trial is None else [self._trial.number]

    @property
    def free(self) -> int:
        """1 while no trial is here."""
        return int(self._trial is None)

    def admit(self, number: int, config: Config, rungs: Sequence[int] = ()) -> None:
        """Take a trial; it is fitted at the next turn. UsageError: another is here. `rungs` do not apply."""
        if self._trial is not None:
            raise UsageError(f"trial {number} cannot enter: trial {self._trial.number} is being fitted")
        self._trial = _Trial(number, config)

    def evict(self, number: int) -> None:
        """Drop the trial."""
        self._held(number)
        self._trial = None

    def _held(self, number: int) -> _Trial:
        if self._trial is None or self._trial.number != number:
            raise UsageError(f"trial {number} is not in this pack (trials {self.active} are)")
        return self._trial

    def max_steps(self, number: int) -> int:
        """One: the fit."""
        return STEP

    def samples(self, number: int) -> int:
        """Training rows that the fit has seen."""
        return 0 if self._held(number).fitted is None else self.rows

    def counts(self, number: int) -> ParameterCounts:
        """None are counted: a forest's splits and a vocabulary's weights are not parameters of a network."""
        return ParameterCounts(0, 0, 0, 0)

    def best(self, number: int) -> Best | None:
        """The evaluation, once there is one."""
        return self._held(number).best

    def has_begun(self, number: int) -> bool:
        """Never: there is no state between the start and the end that a checkpoint could hold."""
        return False

    def cached_blocks(self, number: int) -> int:
        """There are no blocks."""
        return 0

    # -- training -------------------------------------------------------------------------------------------------

    def advance(self) -> list[Event]:
        """Fit and evaluate the trial, and say how that went; nothing once it has ended."""
        trial = self._trial
        if trial is None or trial.fitted is not None:
            return []
        try:
            return self._fit(trial)
        except TrialFailed as error:
            return [Failed(trial.number, error.cause, error.message)]
        except Exception as error:
            cause = "out_of_memory" if isinstance(error, MemoryError) or is_out_of_memory(error) else "exception"
            return [Failed(trial.number, cause, describe(error))]

    def _fit(self, trial: _Trial) -> list[Event]:
        import torch

        train, validation, config = self.data.train, self.data.validation, trial.config
        classes = len(self.data.label_names)
        fitted = Baseline.fit(config.model, config.train.seed, train, classes, torch.get_num_threads())
        began = time.monotonic()
        predictions = fitted.probabilities(validation)
        references = self.references
        right = predictions[np.arange(len(references)), references].astype(np.float64)
        losses = -np.log(np.maximum(right, np.finfo(np.float64).eps))
        metrics = self.task.metrics(predictions, references, losses)
        problem = self.objective.problem(metrics)
        if problem is not None:
            raise TrialFailed("objective", f"{problem} at step {STEP}")
        trial.fitted = fitted
        trial.best = Best(
            STEP, metrics[self.objective.metric], dict(metrics), {}, Sheet(predictions, losses.astype(np.float32))
        )
        now = time.monotonic()
        return [
            Evaluated(trial.number, STEP, self.rows, metrics, predictions, is_best=True),
            Finished(trial.number, STEP, self.rows, STEP, dict(metrics), "steps", now - trial.started, now - began),
        ]

    # -- what a trial leaves --------------------------------------------------------------------------------------

    def export(self, number: int, folder: Path) -> None:
        """Write the fitted baseline.

        Raises:
            TrialFailed: it is not fitted yet.
        """
        fitted = self._held(number).fitted
        if fitted is None:
            raise TrialFailed("exception", f"trial {number} is not fitted yet, so that there is nothing to keep")
        fitted.save(folder)

    def state(self, number: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Never asked for: see `has_begun`."""
        raise TrialFailed("exception", f"trial {number} is a baseline, which has no state to save")

    def load_state(self, number: int, config: Config, tensors: dict[str, torch.Tensor], fields: dict[str, Any]) -> None:
        """Fit again from the start: a trial that was saved as another kind of model has nothing to go on with."""
        self.admit(number, config)
