"""A sweep in MLflow: one experiment, one flat run per trial, one run of the sweep's own; metrics by way of the spool.

Order protects two promises. A metric is in the spool before MLflow hears of it, so a process that dies loses none; and
it is sent again with its first timestamp until MLflow has confirmed it, which MLflow recognises, so none is stored
twice. A trial's end is in the spool before MLflow hears of it too: where MLflow cannot be reached, training goes
on, and runs are ended when it can, by this process or the next. Run states: COMPLETE is FINISHED, PRUNED is FINISHED
with the tag lorasweep.state=pruned, FAILED is FAILED with the cause in lorasweep.reason.
Neighbours: `writer` (one trial's run), `runs`, `spool`, `provenance`; `worker` calls, and `readers` for others. One
thread at a time.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import checksums, failpoints
from lorasweep.checkpoint import full_disk_in
from lorasweep.config.schema import Config
from lorasweep.errors import StorageError, TrialFailed
from lorasweep.provenance import redact
from lorasweep.records import TrialRecord, TrialState
from lorasweep.tracking import spool as spools
from lorasweep.tracking.entities import (
    clean_tags,
    dataset_input,
    flatten,
    metric_entities,
    tag_entities,
    text_of,
)
from lorasweep.tracking.files import Artifacts, artifacts_of, fetch
from lorasweep.tracking.histories import stored_points
from lorasweep.tracking.patience import RETRY_SECONDS, Patience
from lorasweep.tracking.publish import store_views
from lorasweep.tracking.runs import RUNNING, Runs, Series, who
from lorasweep.tracking.spool import Point, Spool
from lorasweep.tracking.store import open_client, open_experiment, place_of, readable_errors
from lorasweep.tracking.views import USUAL_KEYS, Shown, param_name
from lorasweep.tracking.writer import RunWriter

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from lorasweep.config.home import Folders

log = logging.getLogger(__name__)

FINISHED, FAILED = "FINISHED", "FAILED"
END_SECONDS = 600.0  # that the end of a trial waits for MLflow where it must be there before it is told
Unsent = Sequence[Any]  # [step, milliseconds, {key: value}] each


class Tracker:
    """Writes one sweep to MLflow. `flush` makes metrics durable at once; MLflow gets them at most every
    `send_every_seconds` and at each trial's end, because a batch costs it several milliseconds.

    Raises, from every method that speaks to MLflow:
        StorageError: the database or the server cannot be read or written. Metrics stay in the spool and are sent at
            the next start.
    """

    def __init__(self, folders: Folders, sweep: str, send_every_seconds: float = 2.0, series: Series | None = None):
        """`series`: which of the sweep's runs to write; None: those of its search."""
        self.folders, self.sweep, self.send_every_seconds = folders, sweep, send_every_seconds
        self.series = series or Series("trial", folders.spool(sweep))
        self.experiment_id = ""
        self.sweep_run_id = ""
        self._runs: Runs | None = None
        self._open: dict[int, RunWriter] = {}
        self._ending: dict[int, RunWriter] = {}  # ended here, not yet in MLflow
        self._patience = Patience(folders, self.series.spool)

    @property
    def runs(self) -> Runs:
        """The sweep's runs in MLflow; opened with the sweep."""
        if self._runs is None:
            raise StorageError("the tracker is used before open_sweep; call open_sweep first")
        return self._runs

    @property
    def client(self) -> MlflowClient:
        """The MLflow client; opened with the sweep."""
        return self.runs.client

    def connect(self) -> None:
        """Open MLflow and the sweep's experiment, which is made where there is none."""
        client = open_client(self.folders)
        self.experiment_id = open_experiment(self.folders, client, self.sweep)
        self._runs = Runs(client, self.experiment_id, self.sweep, self.series)

    # -- the sweep --------------------------------------------------------------------------------------------------

    def open_sweep(self, config: Config, config_yaml: str, space_keys: list[str]) -> None:
        """Create or continue the experiment, the sweep's own run and the views. Once, before any worker starts."""
        objective = config.sweep.objective
        self.connect()
        with readable_errors(f"open the run of sweep {self.sweep}"):
            goals = [(one.metric, one.direction) for one in config.sweep.objectives or [objective]]
            store_views(self.client, self.experiment_id, Shown(goals, space_keys or list(USUAL_KEYS)), missing=True)
            tags = {
                "lorasweep.kind": "sweep",
                "lorasweep.sweep": self.sweep,
                "lorasweep.state": "running",
                "lorasweep.objective": f"{objective.direction} {objective.metric}",
                "lorasweep.space": ", ".join(space_keys),
                "lorasweep.forked_from": config.sweep.forked_from,
                **who(),
            }
            run = self.runs.find("sweep")
            if run is None:
                run = self.runs.create(tags, f"sweep {self.sweep}")
            else:
                self.client.update_run(run.info.run_id, status=RUNNING)
                self.client.log_batch(run.info.run_id, tags=tag_entities(tags), synchronous=True)
            self.sweep_run_id = run.info.run_id
            self._artifacts(run, "sweep").write_text("config.yaml", redact(config_yaml))
        self.take_up_ends()
        self._settle(insist=True)

    def close_sweep(self, summary: dict[str, Any]) -> None:
        """Store the summary (a JSON-able dict) in the sweep's own run, and end that run as FINISHED."""
        ended = sum(summary.get("counts", {}).values())
        numbers = {f"sweep/{key}": value for key, value in summary.items() if isinstance(value, int | float)}
        numbers |= {f"sweep/trials_{state}": count for state, count in summary.get("counts", {}).items()}
        best = summary.get("best") or {}
        if best.get("value") is not None:
            numbers["sweep/best_value"] = best["value"]
        with readable_errors(f"close sweep {self.sweep}"):
            if self.folders.shared:  # all ends are in MLflow by now
                self.runs.delete_strays()
            run = self.client.get_run(self.sweep_run_id)
            text = redact(json.dumps(summary, indent=2, default=str))
            self._artifacts(run, "sweep").write_text("summary.json", text)
            there = run.data.metrics  # also where a kill came before the run's end
            fresh = {key: float(value) for key, value in numbers.items() if there.get(key) != value}
            tags = {"lorasweep.state": "complete", "lorasweep.best_trial": str(best.get("trial", "none"))}
            metrics = metric_entities([Point(fresh, ended, now_ms(), 0)])
            self.client.log_batch(self.sweep_run_id, metrics=metrics, tags=tag_entities(tags), synchronous=True)
            self.client.set_terminated(self.sweep_run_id, FINISHED)

    def tag_runs(self, tags: dict[str, dict[str, str]]) -> None:
        """Set tags of runs that may have ended, by run id."""
        with readable_errors(f"tag runs of sweep {self.sweep}"):
            for run_id, own in tags.items():
                if self.runs.living(run_id) is not None:
                    self.client.log_batch(run_id, tags=tag_entities(own), synchronous=True)

    def close(self) -> None:
        """Send what waits and close the spools. Runs of trials that have not ended stay RUNNING, to be continued."""
        try:
            self.flush(send=True)
            self._settle(insist=True)
        finally:
            for trial in [*self._open.values(), *self._ending.values()]:
                trial.spool.close()
            self._open.clear()
            self._ending.clear()

    # -- a trial ----------------------------------------------------------------------------------------------------

    def start_trial(
        self,
        number: int,
        config: Config,
        config_yaml: str,
        params: dict[str, Any],
        provenance: dict[str, str],
        data: Any,
        counts: Any,
        noted: str | None = None,
        left: Unsent = (),
    ) -> str:
        """Open the trial's run, new or the one that a dead process left, and return its id.

        `params` are the swept values by override key; `data` has train, validation, label_names, fingerprint and source
        as `data.sources.SearchData`; `counts` has adapter, head, trainable and total parameters. Over several hosts,
        where this one may have no spool of the trial: `noted`: the run that the study names, `left`: the `unsent` of
        the checkpoint that it goes on from.
        """
        if not self._patience.is_up():
            state = "does not answer" if self.folders.server else "is busy"
            raise StorageError(
                f"MLflow could not start trial {number} of sweep {self.sweep}: {place_of(self.folders)} {state}"
            )
        settings = {**flatten(config), **{param_name(key): text_of(value) for key, value in params.items()}}
        with readable_errors(f"start trial {number} of sweep {self.sweep}"):
            run, is_new = self._open_run(
                number,
                {**provenance, "mlflow.source.git.commit": provenance.get("lorasweep.git.commit", "")},
                noted,
                left,
            )
            self.runs.log_params(run, settings, is_new)
            sizes = {
                f"parameters/{name}": float(getattr(counts, name)) for name in ("adapter", "head", "trainable", "total")
            }
            self._open[number].spool.append(sizes, 0, now_ms())
            self.client.log_inputs(run.info.run_id, datasets=[dataset_input(config.data, data)])
            self._open[number].artifacts.write_text("config.yaml", redact(config_yaml))
        return str(run.info.run_id)

    def start_failed(self, number: int, params: dict[str, Any], noted: str | None = None) -> str:
        """Open the run of a point that cannot be trained, with its swept values alone, and return its id."""
        with readable_errors(f"start trial {number} of sweep {self.sweep}"):
            run, is_new = self._open_run(number, {}, noted)
            self.runs.log_params(run, {param_name(key): text_of(value) for key, value in params.items()}, is_new)
        return str(run.info.run_id)

    def log(self, number: int, metrics: dict[str, float], step: int) -> None:
        """Report metrics at an optimizer step. From here on they outlive this process; the first value of a
        (metric, step) is kept."""
        self._open[number].spool.append(metrics, step, now_ms())

    def unsent(self, number: int) -> list[Any]:
        """What a checkpoint must hold of an open trial, so that whoever goes on with it elsewhere loses no metric, as
        JSON types; empty where no other host can."""
        if not self.folders.shared or number not in self._open:
            return []
        return [[point.step, point.time_ms, point.metrics] for point in self._open[number].spool.waiting()]

    def flush(self, number: int | None = None, send: bool = False) -> None:
        """Return once the trial's metrics (None: all trials') are on the disk; pass them on to MLflow where it is due,
        or at once with `send`. A database that fails is warned of once and tried again later, except with `send`."""
        if not send:
            self._settle()
        for key in [number] if number is not None else list(self._open):
            trial = self._open[key]
            trial.spool.sync()
            if not send and (time.monotonic() - trial.sent_at < self.send_every_seconds or not self._patience.is_up()):
                continue
            began = time.monotonic()
            try:
                trial.send()
            except StorageError as error:
                if send:
                    raise
                self._patience.failed(error, began)
            else:
                if not self._ending:  # an end may still fail where metrics do not
                    self._patience.succeeded()

    def finish_trial(
        self,
        number: int,
        record: TrialRecord,
        artifacts: dict[str, Path],
        ours: Callable[[], bool] = lambda: True,
        goes_on: Callable[[], bool] = lambda: True,
    ) -> bool:
        """End the trial's run in the record's state, with everything it holds.

        `artifacts` maps a name to a folder or file that becomes the run's artifact of that name. The newest value of
        each of the record's metrics becomes that of the kept checkpoint: where another evaluation came last, a
        closing point follows it.

        On one host a run that MLflow cannot end now ends later. Where several share the sweep this disk may be gone by
        then: it returns once MLflow has all of the trial, or False where the trial is not `ours` any more, and waits
        for that as long as it `goes_on`, ten minutes at most.

        Raises:
            StorageError: MLflow took it in none of that time. The trial stays open.
        """
        trial = self._open[number]
        closing = {
            key: value for key, value in record.metrics.items() if not spools.same_value(trial.spool.newest(key), value)
        }
        if closing:
            trial.spool.append(closing, trial.spool.last_step + 1, now_ms())
        trial.spool.sync()
        tags = {"lorasweep.state": str(record.state), "lorasweep.params": json.dumps(record.params, default=str)}
        if record.value is not None:
            tags["lorasweep.value"] = repr(record.value)
        if record.reason:
            tags["lorasweep.reason"] = record.reason
        with readable_errors(f"finish trial {number} of sweep {self.sweep}"):
            for name, source in artifacts.items():
                tags[checksums.TAG + name] = checksums.folder_checksum(source)
                trial.artifacts.put(name, source)
        failpoints.reach("artifacts-placed")
        trial.spool.set_end(FAILED if record.state is TrialState.FAILED else FINISHED, clean_tags(tags))
        failpoints.reach("end-spooled")
        if self.folders.shared:
            return self._end_before_it_is_told(number, trial, ours, goes_on)
        self._ending[number] = self._open.pop(number)
        self._settle()
        return True

    def _end_before_it_is_told(
        self, number: int, trial: RunWriter, ours: Callable[[], bool], goes_on: Callable[[], bool]
    ) -> bool:
        until, waits = time.monotonic() + END_SECONDS, False
        while ours():
            try:
                trial.end()
            except StorageError as error:
                if full_disk_in(error):
                    raise
                if time.monotonic() > until or not goes_on():
                    raise StorageError(
                        f"{error}. Trial {number} stays open, to go on from its last checkpoint"
                    ) from error
                if not waits:
                    log.warning("%s. Trial %s waits for it: its end must be there before it is told", error, number)
                waits = True
            else:
                self._patience.succeeded()
                del self._open[number]
                return True
            time.sleep(RETRY_SECONDS)
        return False

    def artifact(self, run_id: str, name: str, into: Path) -> Path:
        """An artifact of a run as a local path; one that a server keeps is copied below `into`.

        Raises:
            TrialFailed: it is gone.
            StorageError: MLflow cannot be read at this moment.
        """
        with readable_errors(f"read run {run_id}"):
            run = self.runs.living(run_id)
            found = None if run is None else fetch(self.client, run, name, into)
        if found is None:
            raise TrialFailed("config", f"run {run_id} has no artifact {name} any more")
        return found

    def let_go(self, number: int) -> None:
        """Write nothing more of a trial that another process has taken over."""
        trial = self._open.pop(number, None)
        if trial is not None:
            trial.spool.close()

    def _settle(self, insist: bool = False) -> None:
        """End the runs of trials that have ended. What MLflow does not take now waits, or with `insist` is raised."""
        if not insist and not self._patience.is_up():
            return
        for number, trial in list(self._ending.items()):
            began = time.monotonic()
            try:
                trial.end()
            except StorageError as error:
                if insist:
                    raise
                self._patience.failed(error, began)
                return
            del self._ending[number]
            self._patience.succeeded()

    def take_up_ends(self) -> None:
        """Find the ends that a dead process could not pass on; `close` passes them on. Where several hosts share the
        sweep there are none: such a trial is still open, and another worker may train it by now."""
        if self.folders.shared:
            return
        folder = self.series.spool
        for number in spools.trials_in(folder):
            if spools.is_settled(folder, number) or spools.unsent_end(spools.path_of(folder, number)) is None:
                continue
            spool = Spool(folder, number)
            with readable_errors(f"find the run of trial {number} of sweep {self.sweep}"):
                run = self.runs.living(spool.run_id)
            if run is None:  # deleted in MLflow
                spool.close()
            else:
                self._ending[number] = self._open_trial(number, run, spool)

    # -- below ------------------------------------------------------------------------------------------------------

    def _open_run(
        self, number: int, tags: dict[str, str], noted: str | None = None, left: Unsent = ()
    ) -> tuple[Run, bool]:
        """The trial's run, open for writing, and whether it is new."""
        spool, shared = Spool(self.series.spool, number), self.folders.shared
        spool.ending = None  # it trains on
        run, is_new = self.runs.open_trial(number, noted or spool.run_id, spool.existed or shared, tags)
        spool.set_run(run.info.run_id)
        if shared and (left or not is_new):
            stored = [] if is_new else stored_points(self.client, run.info.run_id, run.data.metrics)
            spool.take_up(stored, [Point(metrics, step, time_ms, 0) for step, time_ms, metrics in left])
        self._open[number] = self._open_trial(number, run, spool)
        return run, is_new

    def _open_trial(self, number: int, run: Run, spool: Spool) -> RunWriter:
        artifacts = self._artifacts(run, spools.path_of(Path(), number).stem)
        return RunWriter(self.client, self.sweep, number, run.info.run_id, spool, artifacts)

    def _artifacts(self, run: Run, name: str) -> Artifacts:
        return artifacts_of(self.folders, self.client, run, self.series.spool / f"{name}.artifacts")


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000
