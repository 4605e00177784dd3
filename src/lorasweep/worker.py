"""The loop that joins search, data, training and tracking: ask, fill slots, train, log, tell, save.

One worker owns one workbench and works on one study. A trial that ends is told at once and its slot asks again.
The order at a trial's end protects the agreement of study and tracker: artifacts and the run's state first, the study
next, the checkpoint last. A checkpoint holds the whole worker and is written whenever trials came or went, and every
`train.checkpoint_every_seconds`; what happened after it is repeated to the same end (see `replay`).
Neighbours: `replay`, `checkpoint`, `search.study`, `tracking`, `workbench`, `progress`; `launchers` start it.
"""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import failpoints, replay
from lorasweep.candidates import Queue
from lorasweep.checkpoint import full_disk_in, pausing_on_full_disk
from lorasweep.config import compose
from lorasweep.config.schema import Config
from lorasweep.errors import ConfigError, LorasweepError, ObjectiveError, StorageError, TrialFailed
from lorasweep.failures import Streak
from lorasweep.posts import Post
from lorasweep.progress import Progress
from lorasweep.records import TrialRecord, TrialState
from lorasweep.replay import Candidate, RunningTrial
from lorasweep.search.leases import Leases
from lorasweep.search.requests import PAUSE

if TYPE_CHECKING:
    from lorasweep.search.study import Asked, SweepStudy
    from lorasweep.tracking import Tracker
    from lorasweep.training.pack import Pack
    from lorasweep.workbench import Workbench


LOOK_SECONDS = 0.5  # between two looks at what people ask for; a look costs a read of the study's attributes
RETRY_SECONDS = 2.0  # between tries to make a run
PATIENCE_SECONDS = 600.0  # that a worker with nothing else to do waits for MLflow


class NoRun(StorageError):
    """MLflow cannot make a trial's run at this moment."""


class Interrupted(LorasweepError):
    """Ctrl-C, SIGTERM or `lorasweep pause`: everything is on disk and the sweep can be resumed."""

    exit_code = 130


class Worker:
    """Trains trials of one study until its budget is spent."""

    def __init__(
        self,
        study: SweepStudy,
        tracker: Tracker,
        workbench: Workbench,
        composer: Callable[[dict[str, Any]], Config],
        progress: Progress,
        post: Post,
        only: Asked | None = None,
    ):
        """`composer` makes the typed config of a trial from its point; `only`: the one trial to train, None: all that
        waits and all that the study asks for."""
        self.study, self.tracker, self.workbench, self.progress = study, tracker, workbench, progress
        self.compose, self.post = composer, post
        self.leases = Leases.of(study, post.name)
        self.queue = Queue(study, self.leases, post, only)
        self.checkpoints = post.checkpoints if only is None else post.checkpoints_of_trial(only.number)
        self.stop = threading.Event()
        self.paused = False  # `stop` was set by `lorasweep pause`
        self.running: dict[int, RunningTrial] = {}
        self._changed = False  # trials came or went since the last checkpoint
        self._saved_at = self._clock = self._looked_at = time.monotonic()
        self.failures = Streak(study.name, study.config.sweep.max_failures)
        self._no_run_since: float | None = None
        self._fill_again_at = 0.0  # time.monotonic()

    def run(self) -> None:
        """Train until nothing is left to ask for.

        Raises:
            Interrupted: `stop` was set; running trials are saved, and stay open in the study and in their runs.
            ObjectiveError: the objective's metric is never logged.
            DiskFull: nothing more can be written; the sweep can be resumed once there is room.
            TooManyFailures: `sweep.max_failures` in a row of one cause.
        """
        with (
            pausing_on_full_disk(self.study.name, self.checkpoints.folder),
            self.leases.beating(lambda: self._ours),
        ):
            self._loop()

    def _loop(self) -> None:
        self._recover()
        while True:
            self._fill()
            if not self.running and self.queue.waiting:  # for MLflow
                if self.stop.wait(RETRY_SECONDS):
                    self._save_and_leave()
                continue
            if not self.running:
                self._add_seconds()
                self.checkpoints.clear()
                if self.workbench.prefixes is not None and self.workbench.prefixes.summary():
                    self.progress.note(self.workbench.prefixes.summary())
                return
            self._save_where_due()
            for pack in self.workbench.active_packs:
                for event in pack.advance():
                    self._let_go_of_lost()
                    self._handle(event)
            for number in [number for number, trial in self.running.items() if trial.ghost_is_over]:
                self._release(number)
            self._stop_where_all_fail()
            self._obey()
            if self.stop.is_set():
                self._save_and_leave()

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        for note in self.queue.recover(self.workbench, self.checkpoints.load()):
            self.progress.note(note)

    def _save_where_due(self) -> None:
        if self._changed or time.monotonic() - self._saved_at >= self.study.config.train.checkpoint_every_seconds:
            self._save()

    def _save(self) -> None:
        self.checkpoints.save(*replay.snapshot(self.workbench, self.queue.candidates, self.queue.last_asked))
        self._changed, self._saved_at = False, time.monotonic()

    # -- admission ------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while len(self.running) < self.workbench.slots and time.monotonic() >= self._fill_again_at:
            self._stop_where_all_fail()
            if self.queue.waiting:
                candidate, config = self.queue.waiting[0]
                if not self.workbench.pack(config).free:
                    return
                self.queue.waiting.popleft()
            else:
                self._add_seconds()
                found = self.queue.next(sum(trial.uncounted_samples for trial in self.running.values()))
                if found is None:  # a spent budget stays spent: asking at every turn would cost more than a tiny step
                    self._fill_again_at = time.monotonic() + LOOK_SECONDS
                    return
                candidate, self._changed = found, True
                try:
                    config = self.compose(candidate.asked.params)
                    if not self.workbench.pack(config).free:
                        self.queue.waiting.append((candidate, config))
                        return
                except (ConfigError, TrialFailed) as error:
                    self._fail_before_training(candidate, error)
                    continue
            try:
                self._admit(candidate, config)
            except NoRun as error:
                self._postpone(candidate, config, error)

    def _postpone(self, candidate: Candidate, config: Config, error: NoRun) -> None:
        """A trial whose run MLflow cannot make now waits; those in their slots go on, their metrics in the spool."""
        if self._no_run_since is None:
            self._no_run_since = time.monotonic()
            self.progress.note(f"{error}; trial {candidate.asked.number} waits for it")
        elif not self.running and time.monotonic() - self._no_run_since > PATIENCE_SECONDS:
            raise StorageError(f"{error}; gave up after {PATIENCE_SECONDS:g} s with nothing left to train") from error
        self.queue.waiting.appendleft((candidate, config))
        self._fill_again_at = time.monotonic() + RETRY_SECONDS

    def _admit(self, candidate: Candidate, config: Config) -> None:
        from lorasweep.training.schedule import total_samples

        asked, pack = candidate.asked, self.workbench.pack(config)
        try:
            if candidate.saved is None:
                pack.admit(asked.number, config, self.study.rungs(total_samples(config.train, pack.roster.rows)))
                self._warm(asked.number, pack)
            else:
                pack.load_state(asked.number, config, candidate.saved.tensors, candidate.saved.fields)
        except (ConfigError, TrialFailed) as error:
            self._fail_before_training(candidate, error)
            return
        trial = RunningTrial(asked, config, pack, "", candidate.ended)
        if candidate.saved is not None:
            done = candidate.saved.fields
            trial.last_step, trial.admitted_at = done["step"], trial.admitted_at - done["seconds"]
            trial.samples = pack.samples(asked.number)
        self.running[asked.number] = trial
        if candidate.ended is None:
            self._start_run(trial)
            self.progress.trial_started(asked.number, asked.params, pack.max_steps(asked.number))

    def _warm(self, number: int, pack: Pack) -> None:
        """Give a clone that asks for it the adapter of the trial that it was made from."""
        from lorasweep.models.packed_lora import PackedLora

        try:
            adapter = self.study.warm_from(number)
            if adapter is None:
                return
            if pack.roster.waiting(number) is not None or not isinstance(pack.engine, PackedLora):
                raise TrialFailed("config", f"trial {number} cannot start from {adapter}: no adapter slot")
            pack.engine.start_from(pack.roster.slot(number).index, adapter)
        except (StorageError, TrialFailed) as error:
            pack.evict(number)
            raise error if isinstance(error, TrialFailed) else TrialFailed("config", str(error)) from None

    def _start_run(self, trial: RunningTrial) -> None:
        from lorasweep.provenance import gather

        number, config = trial.asked.number, trial.config
        data, base = self.workbench.data(config), self.workbench.base(config)
        facts = gather(config, data.fingerprint, base.fingerprint)
        facts["lorasweep.cached_layers"] = str(trial.pack.roster.cached_blocks(number))
        yaml, counts = compose.to_yaml(config), trial.pack.counts(number)
        try:
            trial.run_id = self.tracker.start_trial(number, config, yaml, trial.asked.params, facts, data, counts)
        except StorageError as error:
            if full_disk_in(error):
                raise
            self._release(number)
            raise NoRun(str(error)) from error
        self._no_run_since = None
        failpoints.reach("run-noted")
        self.study.set_run(number, trial.run_id)

    def _fail_before_training(self, candidate: Candidate, error: LorasweepError) -> None:
        """A point that cannot be trained as it is: FAILED with its cause, and the sweep goes on."""
        if candidate.ended is not None:
            return
        asked = candidate.asked
        reason = str(error) if isinstance(error, TrialFailed) else f"config: {error}"
        record = TrialRecord(trial=asked.number, state=TrialState.FAILED, params=asked.params, reason=reason)
        record.run_id = self.tracker.start_failed(asked.number, asked.params)
        self._end(record, {})

    # -- events -----------------------------------------------------------------------------------------------------

    def _handle(self, event: Any) -> None:
        from lorasweep.training.pack import Evaluated, Failed, Finished, Stepped

        trial = self.running.get(event.number)
        if trial is None:  # it was pruned at this very turn's evaluation
            return
        if isinstance(event, Stepped):
            trial.samples, trial.last_step = event.samples, event.step
        if trial.ended is not None:
            if isinstance(event, Finished | Failed):
                self._release(event.number)
        elif isinstance(event, Stepped):
            self._on_step(trial, event)
        elif isinstance(event, Evaluated):
            self._on_evaluation(trial, event)
        elif isinstance(event, Finished):
            self._on_finish(trial, event)
        elif isinstance(event, Failed):
            self._on_failure(trial, event)

    def _on_step(self, trial: RunningTrial, event: Any) -> None:
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

    def _on_evaluation(self, trial: RunningTrial, event: Any) -> None:
        self.tracker.log(event.number, event.metrics, event.step)
        failpoints.reach("metrics-spooled")
        self.tracker.flush(event.number)
        self.progress.evaluated(event.number, event.step, event.metrics.get(self.study.metric))
        if event.rung is not None and event.step < trial.pack.max_steps(event.number):
            self._on_rung(trial, event)

    def _on_rung(self, trial: RunningTrial, event: Any) -> None:
        """Report the value there; a trial that has lost leaves at once. A replay is given the first verdict again."""
        from lorasweep.training.evaluate import row_results

        value = event.metrics[self.study.metric]
        results = None
        if self.study.config.pruner.kind == "wilcoxon":
            references = trial.pack.sheets.exam.references
            results = row_results(event.predictions, references, self.study.direction == "maximize")
        verdict = self.study.report(event.number, event.rung, value, results)
        failpoints.reach("judged")
        self._changed = True
        if not verdict.keep:
            record = trial.record(TrialState.PRUNED)
            record.value, record.metrics, record.reason = value, dict(event.metrics), verdict.reason
            self._end(record, {})

    def _on_finish(self, trial: RunningTrial, event: Any) -> None:
        number = event.number
        value = event.best_metrics[self.study.metric]
        pace = event.samples / max(event.seconds, 1e-9)
        self.tracker.log(number, {"train/samples_per_second": pace}, event.step)
        record = trial.record(TrialState.COMPLETE)
        record.value, record.metrics, record.train_seconds = value, dict(event.best_metrics), event.seconds
        problem = self.study.goals.problem(record)
        if problem is not None:
            record.state, record.value, record.reason = TrialState.FAILED, None, f"objective: {problem}"
            self._end(record, {})
            return
        self._end_with_adapter(trial, record)

    def _end_with_adapter(self, trial: RunningTrial, record: TrialRecord) -> None:
        with tempfile.TemporaryDirectory(prefix="lorasweep-") as folder:
            adapter = Path(folder) / "adapter"
            trial.pack.export(record.trial, adapter)
            self._end(record, {"adapter": adapter})

    def _on_failure(self, trial: RunningTrial, event: Any) -> None:
        record = trial.record(TrialState.FAILED)
        record.reason = f"{event.cause}: {event.message}"
        self._end(record, {})
        if event.cause == "objective":
            raise ObjectiveError(event.message)

    def _end(self, record: TrialRecord, artifacts: dict[str, Path]) -> None:
        if not self.post.alone and not self.leases.holds(record.trial):
            self._let_go(record.trial)
            return
        self.tracker.finish_trial(record.trial, record, artifacts)
        failpoints.reach("run-ended")
        if record.state is TrialState.COMPLETE and record.value is not None and math.isfinite(record.value):
            self.study.complete(record.trial, record.value, record)
        elif record.state is TrialState.PRUNED:
            self.study.prune(record.trial, record.value, record)
        else:
            self.study.fail(record.trial, record)
        failpoints.reach("told")
        self.failures.note(record)
        self._release(record.trial)
        self.progress.trial_ended(record)

    @property
    def _ours(self) -> list[int]:
        """Trials in slots here that have not ended: no ghosts."""
        return [number for number, trial in list(self.running.items()) if trial.ended is None]

    def _let_go_of_lost(self) -> None:
        """Where this process was silent for long, others may have taken its trials over: what it still has of them is
        worth nothing."""
        for number in self.leases.lost(self._ours):
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        self.tracker.let_go(number)
        self._release(number)
        self.progress.note(f"trial {number} was taken over by another worker")

    def _release(self, number: int) -> None:
        """Empty a trial's slot, where it has one."""
        trial = self.running.pop(number, None)
        if trial is not None:
            trial.pack.evict(number)
            self._changed = True

    # -- live control -----------------------------------------------------------------------------------------------

    def _obey(self) -> None:
        """Do what a person asked for from another terminal since the last look."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        for request in self.study.requests():
            if request.kind == PAUSE:
                self.paused = True
                self.stop.set()
            elif request.trial in self.running and self.running[request.trial].ended is None:
                self._stop_trial(self.running[request.trial])
                self.study.acted(request)

    def _stop_trial(self, trial: RunningTrial) -> None:
        """End a trial as pruned, with its best evaluation and that adapter where it has one."""
        number = trial.asked.number
        record = trial.record(TrialState.PRUNED)
        record.reason = f"stopped by hand after {trial.samples:,} samples"
        best = None if trial.pack.roster.waiting(number) is not None else trial.pack.roster.slot(number).best
        if best is None:
            self._end(record, {})
            return
        record.value, record.metrics = best.value, dict(best.metrics)
        self._end_with_adapter(trial, record)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def _add_seconds(self) -> None:
        now = time.monotonic()
        self.study.add_seconds(now - self._clock)
        self._clock = now

    def _stop_where_all_fail(self) -> None:
        if (error := self.failures.error) is not None:
            self._save_everything()
            raise error

    def _save_everything(self) -> None:
        for number in self._ours:
            self.tracker.flush(number)
        self._save()
        self._add_seconds()

    def _save_and_leave(self) -> None:
        self._save_everything()
        trials = ", ".join(str(number) for number in sorted(self._ours))
        how = "is paused" if self.paused else "was interrupted"
        raise Interrupted(
            f"sweep {self.study.name} {how} and saved; trials {trials or 'to come'} go on with "
            f"`lorasweep resume {self.study.name}`"
        )
