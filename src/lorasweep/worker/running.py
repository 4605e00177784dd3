"""The trials that are in a worker's slots, and what each leaves if it ends now.

Neighbours: `worker` (fills the slots), `outcomes` (empties them); `replay` says what a ghost is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorasweep.config.schema import Config
from lorasweep.errors import StorageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.study import Asked

if TYPE_CHECKING:
    from lorasweep.training.snapshot import AnyPack


class NoRun(StorageError):
    """MLflow cannot make a trial's run at this moment."""


@dataclass
class RunningTrial:
    """What the worker knows of a trial in a slot. `samples` and `last_step` are those of its last optimizer step."""

    asked: Asked
    config: Config
    pack: AnyPack
    run_id: str
    ended: TrialRecord | None = None  # a ghost: how it ended before the kill
    samples: int = 0
    last_step: int = 0
    admitted_at: float = field(default_factory=time.monotonic)

    def record(self, state: TrialState) -> TrialRecord:
        """What the trial leaves if it ends now."""
        from lorasweep.training.memory import peak_bytes

        counts = self.pack.counts(self.asked.number)
        return TrialRecord(
            trial=self.asked.number,
            state=state,
            params=self.asked.params,
            run_id=self.run_id,
            samples=self.samples,
            train_seconds=time.monotonic() - self.admitted_at,
            trainable_params=counts.trainable,
            total_params=counts.total,
            peak_memory_bytes=peak_bytes(self.pack.device),
        )

    @property
    def ghost_is_over(self) -> bool:
        """Whether a ghost is where its trial ended. A failure came in the step after the last that was counted."""
        if self.ended is None:
            return False
        if self.ended.state is TrialState.FAILED:
            return self.samples > self.ended.samples
        return self.samples >= self.ended.samples

    @property
    def uncounted_samples(self) -> int:
        """Samples that the study's count of ended trials lacks now, and would lack had the kill never come."""
        return self.samples - (self.ended.samples if self.ended else 0)


class Slots:
    """A worker's running trials by number, those of all its packs. `changed`: some came or went since the last
    checkpoint."""

    def __init__(self) -> None:
        self.trials: dict[int, RunningTrial] = {}
        self.changed = False

    def put(self, trial: RunningTrial) -> None:
        """A trial that its pack has admitted."""
        self.trials[trial.asked.number] = trial
        self.changed = True

    def release(self, number: int) -> None:
        """Empty a trial's slot, where it has one."""
        trial = self.trials.pop(number, None)
        if trial is not None:
            trial.pack.evict(number)
            self.changed = True

    def clear(self) -> None:
        """Forget all of them; their packs are made anew."""
        self.trials.clear()
        self.changed = True

    def __len__(self) -> int:
        return len(self.trials)

    @property
    def ours(self) -> list[int]:
        """Trials that have not ended: no ghosts."""
        return [number for number, trial in list(self.trials.items()) if trial.ended is None]

    @property
    def uncounted_samples(self) -> int:
        """Samples of all of them that the study's count of ended trials lacks."""
        return sum(trial.uncounted_samples for trial in self.trials.values())

    def ghosts_that_are_over(self) -> list[int]:
        """Ghosts that are where their trials ended."""
        return [number for number, trial in self.trials.items() if trial.ghost_is_over]
