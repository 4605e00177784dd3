"""The loop that joins search, data, training and tracking: ask, fill slots, train, log, tell.

One worker owns one workbench and works on one study. A trial that ends is told at once and its slot asks again.
The order at a trial's end protects the agreement of study and tracker: artifacts and the run's state first, the
study last; a kill in between leaves the trial RUNNING in the study, and the next start trains it again into the
same run. Neighbours: `search.study`, `tracking`, `workbench`, `progress`; `launchers` start it.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.config import compose
from lorasweep.config.schema import Config
from lorasweep.errors import ConfigError, LorasweepError, ObjectiveError, TrialFailed
from lorasweep.progress import Progress
from lorasweep.records import TrialRecord, TrialState

if TYPE_CHECKING:
    from lorasweep.search.study import Asked, SweepStudy
    from lorasweep.tracking import Tracker
    from lorasweep.training.pack import Pack
    from lorasweep.workbench import Workbench


class Interrupted(LorasweepError):
    """Ctrl-C or SIGTERM: everything reported is on disk and the sweep can be resumed."""

    exit_code = 130


@dataclass
class RunningTrial:
    """What the worker knows of a trial in a slot."""

    asked: Asked
    config: Config
    pack: Pack
    run_id: str
    metrics: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    last_step: int = 0
    admitted_at: float = field(default_factory=time.monotonic)


class Worker:
    """Trains trials of one study until its budget is spent."""

    def __init__(
        self,
        study: SweepStudy,
        tracker: Tracker,
        workbench: Workbench,
        composer: Callable[[dict[str, Any]], Config],
        progress: Progress,
        only: list[Asked] | None = None,
    ):
        """`composer` makes the typed config of a trial from its point; `only`: what to train, None: all that waits."""
        self.study, self.tracker, self.workbench, self.progress = study, tracker, workbench, progress
        self.compose = composer
        self.stop = threading.Event()
        self.running: dict[int, RunningTrial] = {}
        self.waiting: deque[tuple[Asked, Config]] = deque()  # asked, but their pack had no free slot
        self.interrupted: deque[Asked] = deque(study.interrupted() if only is None else only)
        self._clock = time.monotonic()

    def run(self) -> None:
        """Train until nothing is left to ask for.

        Raises:
            Interrupted: `stop` was set; running trials stay open in the study and in their runs.
            ObjectiveError: the objective's metric is never logged.
        """
        while True:
            self._fill()
            if not self.running:
                self._add_seconds()
                return
            for pack in self.workbench.active_packs:
                for event in pack.advance():
                    self._handle(event)
            if self.stop.is_set():
                self._save_and_leave()

    # -- admission ------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while len(self.running) < self.workbench.slots:
            if self.waiting:
                asked, config = self.waiting[0]
                if not self.workbench.pack(config).free:
                    return
                self.waiting.popleft()
            else:
                candidate = self._next()
                if candidate is None:
                    return
                asked = candidate
                try:
                    config = self.compose(asked.params)
                    if not self.workbench.pack(config).free:
                        self.waiting.append((asked, config))
                        return
                except (ConfigError, TrialFailed) as error:
                    self._fail_before_training(asked, error)
                    continue
            self._admit(asked, config)

    def _next(self) -> Asked | None:
        """The next trial to train: first those that a dead process left, then new ones while the budget lasts."""
        if self.interrupted:
            return self.interrupted.popleft()
        self._add_seconds()
        in_training = sum(trial.samples for trial in self.running.values())
        return None if self.study.budget_spent(in_training) else self.study.ask()

    def _admit(self, asked: Asked, config: Config) -> None:
        from lorasweep.provenance import gather

        number, pack = asked.number, self.workbench.pack(config)
        try:
            pack.admit(number, config)
        except (ConfigError, TrialFailed) as error:
            self._fail_before_training(asked, error)
            return
        data, base = self.workbench.data(config), self.workbench.base(config)
        run_id = self.tracker.start_trial(
            number,
            config,
            compose.to_yaml(config),
            asked.params,
            gather(config, data.fingerprint, base.fingerprint),
            data,
            pack.counts(number),
        )
        self.study.set_run(number, run_id)
        self.running[number] = RunningTrial(asked, config, pack, run_id)
        self.progress.trial_started(number, asked.params, pack.max_steps(number))

    def _fail_before_training(self, asked: Asked, error: LorasweepError) -> None:
        """A point that cannot be trained as it is: FAILED with its cause, and the sweep goes on."""
        reason = str(error) if isinstance(error, TrialFailed) else f"config: {error}"
        record = TrialRecord(trial=asked.number, state=TrialState.FAILED, params=asked.params, reason=reason)
        record.run_id = self.tracker.start_failed(asked.number, asked.params)
        self._end(record, {})

    # -- events -----------------------------------------------------------------------------------------------------

    def _handle(self, event: Any) -> None:
        from lorasweep.training.pack import Evaluated, Failed, Finished, Stepped

        trial = self.running[event.number]
        if isinstance(event, Stepped):
            self._on_step(trial, event)
        elif isinstance(event, Evaluated):
            self.tracker.log(event.number, event.metrics, event.step)
            self.tracker.flush(event.number)
            value = event.metrics.get(self.study.metric)
            self.progress.evaluated(event.number, event.step, value)
        elif isinstance(event, Finished):
            self._on_finish(trial, event)
        elif isinstance(event, Failed):
            self._on_failure(trial, event)

    def _on_step(self, trial: RunningTrial, event: Any) -> None:
        trial.samples, trial.last_step = event.samples, event.step
        every, last = trial.config.train.log_every_steps, trial.pack.max_steps(event.number)
        if event.step % every == 0 or event.step in (1, last):
            metrics = {
                "train/loss": event.loss,
                "train/lr": event.lr,
                "train/grad_norm": event.grad_norm,
                "train/samples": float(event.samples),
            }
            self.tracker.log(event.number, metrics, event.step)
        self.progress.stepped(event.number, event.step, event.loss)

    def _on_finish(self, trial: RunningTrial, event: Any) -> None:
        number = event.number
        value = event.best_metrics[self.study.metric]
        seconds = max(event.seconds, 1e-9)
        self.tracker.log(number, {"train/samples_per_second": event.samples / seconds}, event.step)
        record = self._record(trial, TrialState.COMPLETE, seconds)
        record.value, record.metrics, record.samples = value, dict(event.best_metrics), event.samples
        with tempfile.TemporaryDirectory(prefix="lorasweep-") as folder:
            adapter = Path(folder) / "adapter"
            trial.pack.export(number, adapter)
            trial.pack.evict(number)
            self._end(record, {"adapter": adapter})

    def _on_failure(self, trial: RunningTrial, event: Any) -> None:
        record = self._record(trial, TrialState.FAILED, time.monotonic() - trial.admitted_at)
        record.reason = f"{event.cause}: {event.message}"
        if event.number in trial.pack.active:
            trial.pack.evict(event.number)
        self._end(record, {})
        if event.cause == "objective":
            raise ObjectiveError(event.message)

    def _record(self, trial: RunningTrial, state: TrialState, seconds: float) -> TrialRecord:
        counts = trial.pack.counts(trial.asked.number)
        return TrialRecord(
            trial=trial.asked.number,
            state=state,
            params=trial.asked.params,
            run_id=trial.run_id,
            samples=trial.samples,
            train_seconds=seconds,
            trainable_params=counts.trainable,
            total_params=counts.total,
        )

    def _end(self, record: TrialRecord, artifacts: dict[str, Path]) -> None:
        self.tracker.finish_trial(record.trial, record, artifacts)
        if record.state is TrialState.COMPLETE and record.value is not None and math.isfinite(record.value):
            self.study.complete(record.trial, record.value, record)
        else:
            self.study.fail(record.trial, record)
        self.running.pop(record.trial, None)
        self.progress.trial_ended(record)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def _add_seconds(self) -> None:
        now = time.monotonic()
        self.study.add_seconds(now - self._clock)
        self._clock = now

    def _save_and_leave(self) -> None:
        for number in self.running:
            self.tracker.flush(number)
        self._add_seconds()
        trials = ", ".join(str(number) for number in sorted(self.running))
        raise Interrupted(
            f"sweep {self.study.name} was interrupted; trials {trials} go on with `lorasweep resume {self.study.name}`"
        )
