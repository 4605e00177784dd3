"""What packs say of their trials, and what becomes of it: metrics, verdicts at rungs, and every way that a trial ends.

The order at a trial's end protects the agreement of study and tracker: artifacts and the run's state first, the study
next, the checkpoint (the worker's) last. Neighbours: `running` (the trials), `tracking`, `search.study`; `worker` hands
over each event.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import failpoints, results
from lorasweep.checkpoint import full_disk_in
from lorasweep.config.schema import Config
from lorasweep.errors import LorasweepError, StorageError, TrialFailed
from lorasweep.posts import Post
from lorasweep.progress import Progress
from lorasweep.provenance import redact
from lorasweep.records import TrialRecord, TrialState, at_rung
from lorasweep.search.leases import Leases
from lorasweep.stats import Results, interval, value_of
from lorasweep.worker.failures import Streak
from lorasweep.worker.replay import Candidate
from lorasweep.worker.running import NoRun, RunningTrial, Slots

if TYPE_CHECKING:
    from lorasweep.search.study import SweepStudy
    from lorasweep.tracking.tracker import Tracker


class Outcomes:
    """Hands on what the trials in `slots` do, to the study, to MLflow and to whoever watches."""

    def __init__(
        self,
        study: SweepStudy,
        tracker: Tracker,
        progress: Progress,
        slots: Slots,
        leases: Leases,
        post: Post,
        rows_id: Callable[[Config], str],
    ):
        """`rows_id`: the fingerprint of a trial's validation rows."""
        self.study, self.tracker, self.progress = study, tracker, progress
        self.slots, self.leases, self.post, self.rows_id = slots, leases, post, rows_id
        self.failures = Streak(study.name, study.config.sweep.max_failures)
        self._rated_now: dict[int, tuple[int, float]] = {}  # number -> rung and value of this turn
        self.goes_on: Callable[[], bool] = lambda: True  # False: whoever waits here should give up

    def in_order(self, events: list[Any]) -> list[Any]:
        """What a pack says of one turn, in the order to handle it: trials that are at a rung together come last, each
        to be judged beside all of them. Which slot a trial sits in must not decide whom it is compared with."""
        from lorasweep.training.pack import Rated

        rated = [event for event in events if isinstance(event, Rated)]
        self._rated_now = {event.number: (event.rung, event.metrics[self.study.metric]) for event in rated}
        return [event for event in events if not isinstance(event, Rated)] + rated

    def handle(self, event: Any) -> None:
        """One event of a pack."""
        from lorasweep.training.pack import Evaluated, Failed, Finished, Rated, Stepped

        trial = self.slots.trials.get(event.number)
        if trial is None:  # it was pruned at this very turn's evaluation
            return
        if isinstance(event, Stepped | Finished):
            trial.samples, trial.last_step = event.samples, event.step
        if trial.ended is not None:
            if isinstance(event, Finished | Failed):
                self.slots.release(event.number)
        elif isinstance(event, Stepped):
            self._on_step(trial, event)
        elif isinstance(event, Evaluated):
            self._on_evaluation(trial, event)
        elif isinstance(event, Rated):
            self._on_rung(trial, event)
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
        self._log(event.number, event.metrics, event.step)
        self.progress.evaluated(event.number, event.step, event.metrics.get(self.study.metric))

    def _log(self, number: int, metrics: dict[str, float], step: int) -> None:
        self.tracker.log(number, metrics, step)
        failpoints.reach("metrics-spooled")
        self.tracker.flush(number)

    def _on_rung(self, trial: RunningTrial, event: Any) -> None:
        """Report the value there; a trial that has lost leaves at once. A replay is given the first verdict again."""
        from lorasweep.training.evaluate import row_results

        value, metrics = event.metrics[self.study.metric], dict(event.metrics)
        if event.over_part:
            metrics = {at_rung(name): metric for name, metric in metrics.items()}
            self._log(event.number, metrics, event.step)
        rows = None
        if self.study.config.pruner.kind == "wilcoxon":
            rows = row_results(event.predictions, event.references, self.study.direction == "maximize")
        verdict = self.study.report(event.number, event.rung, value, rows, self._rated_now)
        failpoints.reach("judged")
        self.slots.changed = True
        if not verdict.keep:
            record = trial.record(TrialState.PRUNED)
            record.value, record.metrics, record.reason = value, metrics, verdict.reason
            self._end(record, {})

    def _on_finish(self, trial: RunningTrial, event: Any) -> None:
        number = event.number
        value = event.best_metrics[self.study.metric]
        self.tracker.log(number, self._pace(trial, event), event.step)
        record = trial.record(TrialState.COMPLETE)
        record.value, record.metrics, record.train_seconds = value, dict(event.best_metrics), event.seconds
        problem = self.study.goals.problem(record)
        if problem is not None:
            record.state, record.value, record.reason = TrialState.FAILED, None, f"objective: {problem}"
            self._end(record, {})
            return
        self._end_with_adapter(trial, record)

    def _pace(self, trial: RunningTrial, event: Any) -> dict[str, float]:
        """Rows a second in training (its evaluations included) and in the last evaluation, and what the trial cost."""
        paces = {
            "train/seconds": event.seconds,
            "train/samples_per_second": event.samples / max(event.seconds, 1e-9),
            "eval/seconds": event.eval_seconds,
            "eval/samples_per_second": len(trial.pack.references) / max(event.eval_seconds, 1e-9),
        }
        price = self.study.config.tracking.price_per_hour
        return paces if price is None else {**paces, "train/cost": price * event.seconds / 3600}

    def _on_failure(self, trial: RunningTrial, event: Any) -> None:
        record = trial.record(TrialState.FAILED)
        record.reason = f"{event.cause}: {event.message}"
        self._end(record, {})

    # -- ends -------------------------------------------------------------------------------------------------------

    def _end(self, record: TrialRecord, artifacts: dict[str, Path], answered: Results | None = None) -> None:
        if not self._ours(record.trial):
            self.let_go(record.trial)
            return
        if record.reason:  # it may quote what a library said
            record.reason = redact(record.reason)
        if answered is not None:
            results.write(results.place_of(self.study.files), record.trial, answered)
        if not self.tracker.finish_trial(
            record.trial, record, artifacts, lambda: self._ours(record.trial), self.goes_on
        ):
            self.let_go(record.trial)
            return
        failpoints.reach("run-ended")
        if record.state is TrialState.COMPLETE and record.value is not None and math.isfinite(record.value):
            self.study.complete(record.trial, record.value, record)
        elif record.state is TrialState.PRUNED:
            self.study.prune(record.trial, record.value, record)
        else:
            self.study.fail(record.trial, record)
        failpoints.reach("told")
        self.failures.note(record)
        self.slots.release(record.trial)
        self.progress.trial_ended(record)

    def _ours(self, number: int) -> bool:
        return self.post.alone or self.leases.holds(number)

    def _end_with_adapter(self, trial: RunningTrial, record: TrialRecord) -> None:
        answered = self._answered(trial, record)
        with tempfile.TemporaryDirectory(prefix="lorasweep-") as folder:
            adapter = Path(folder) / "adapter"
            trial.pack.export(record.trial, adapter)
            self._end(record, {"adapter": adapter}, answered)

    def _answered(self, trial: RunningTrial, record: TrialRecord) -> Results | None:
        """What the kept checkpoint answered on each row; notes in the record how sure its value therefore is."""
        best, metric, task = trial.pack.best(record.trial), self.study.metric, trial.pack.task
        if best is None or best.sheet is None:  # saved by an older version
            return None
        found = best.sheet.results(task, trial.pack.references, metric, self.rows_id(trial.config))
        record.eval_rows = len(found)
        average = trial.config.task.average
        if record.value is not None and found.knows(metric):
            agrees = math.isclose(value_of(found, metric, average), record.value, rel_tol=1e-4, abs_tol=1e-4)
            bounds = interval(found, metric, average) if agrees else None
            record.interval = None if bounds is None else list(bounds)
        return found

    def fail_before_training(self, candidate: Candidate, error: LorasweepError) -> None:
        """A point that cannot be trained as it is: FAILED with its cause, and the sweep goes on.

        Raises:
            NoRun: MLflow cannot make the run that says so; nothing has changed.
        """
        if candidate.ended is not None:
            return
        asked = candidate.asked
        reason = str(error) if isinstance(error, TrialFailed) else f"config: {error}"
        record = TrialRecord(trial=asked.number, state=TrialState.FAILED, params=asked.params, reason=reason)
        try:
            noted = self.study.run_id(asked.number) if self.study.folders.shared else None
            record.run_id = self.tracker.start_failed(asked.number, asked.params, noted)
        except StorageError as trouble:
            if full_disk_in(trouble):
                raise
            raise NoRun(str(trouble)) from trouble
        self._end(record, {})

    def stop(self, trial: RunningTrial) -> None:
        """End a trial as pruned, with its best evaluation and that adapter where it has one."""
        number = trial.asked.number
        record = trial.record(TrialState.PRUNED)
        record.reason = f"stopped by hand after {trial.samples:,} samples"
        best = trial.pack.best(number)
        if best is None:
            self._end(record, {})
            return
        record.value, record.metrics = best.value, dict(best.metrics)
        self._end_with_adapter(trial, record)

    def let_go_of_lost(self) -> None:
        """Where this process was silent for long, others may have taken its trials over: what it still has of them is
        worth nothing."""
        for number in self.leases.lost(self.slots.ours):
            self.let_go(number)

    def let_go(self, number: int) -> None:
        """Forget a trial that another worker has claimed."""
        self.tracker.let_go(number)
        self.slots.release(number)
        self.progress.note(f"trial {number} was taken over by another worker")
