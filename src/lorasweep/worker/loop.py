"""The loop that joins search, data, training and tracking: ask, fill slots, train, log, tell, save.

One worker owns one workbench and works on one study. A trial that ends is told at once and its slot asks again.
A checkpoint holds the whole worker and is written whenever trials came or went, and every
`train.checkpoint_every_seconds`; what happened after it is repeated to the same end (see `replay`).
Neighbours: `candidates` (who comes next), `outcomes` (what becomes of what packs say), `replay`, `checkpoint`,
`tracking`, `workbench`; `launchers` start it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import failpoints
from lorasweep.checkpoint import full_disk_in, pausing_on_full_disk
from lorasweep.config import compose
from lorasweep.config.schema import Config
from lorasweep.errors import ConfigError, LorasweepError, StorageError, TrialFailed
from lorasweep.posts import Post
from lorasweep.progress import Progress
from lorasweep.search.database import StudiesAway, wait_until_back
from lorasweep.search.leases import Leases
from lorasweep.search.requests import PAUSE
from lorasweep.worker import replay
from lorasweep.worker.candidates import Queue
from lorasweep.worker.outcomes import Outcomes
from lorasweep.worker.replay import Candidate
from lorasweep.worker.running import NoRun, RunningTrial, Slots

if TYPE_CHECKING:
    import torch

    from lorasweep.search.study import Asked, SweepStudy
    from lorasweep.tracking.tracker import Tracker
    from lorasweep.training.snapshot import AnyPack
    from lorasweep.workbench import Workbench


LOOK_SECONDS = 0.5  # between two looks at what people ask for; a look costs a read of the study's attributes
LOOK_SHARE = 0.02  # of a worker's time that looks for further trials may cost once there was none
LOOK_AT_LATEST_SECONDS = 10.0
COUNT_SECONDS = 1.0  # of sweep after which they are counted in the study
RETRY_SECONDS = 2.0  # between tries to make a run
PATIENCE_SECONDS = 600.0  # that a worker with nothing else to do waits for MLflow, or for the studies' database


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
        self.leases = Leases.of(study, post)
        self.queue = Queue(study, self.leases, post, only)
        self.checkpoints = post.checkpoints if only is None else post.checkpoints_of_trial(only.number)
        self.checkpoints.kept = study.config.train.checkpoints_kept
        self.stop = threading.Event()
        self.paused = False  # `stop` was set by `lorasweep pause`
        self.slots = Slots()
        self.outcomes = Outcomes(study, tracker, progress, self.slots, self.leases, post, workbench.rows_id)
        self.outcomes.goes_on = lambda: not self.stop.is_set()
        self._saved_at = self._counted_at = self._looked_at = time.monotonic()
        self._no_run_since: float | None = None
        self._fill_again_at = 0.0  # time.monotonic()
        self._stands_by = False  # a person knows that this worker waits for others

    def run(self) -> None:
        """Train until nothing is left to ask for.

        Raises:
            Interrupted: `stop` was set; running trials are saved, and stay open in the study and in their runs.
            DiskFull: nothing more can be written; the sweep can be resumed once there is room.
            TooManyFailures: `sweep.max_failures` in a row of one cause.
        """
        with (
            pausing_on_full_disk(self.study.name, self.checkpoints.folder or self.study.folders.tracking),
            self.leases.beating(lambda: [*self.slots.ours, *self.queue.numbers]),
        ):
            while True:
                try:
                    return self._loop()
                except StudiesAway as error:
                    self._begin_again(error)

    def _begin_again(self, error: StudiesAway) -> None:
        """Wait for the studies' database, then go on from the last checkpoint as after a kill: what was asked of the
        database when it broke off may or may not have happened, and recovering tells."""
        self.progress.note(
            f"{error.args[0].partition('. Nothing')[0]}. Waiting for it; training goes on from the last checkpoint"
        )
        for number in list(self.slots.trials):
            self.tracker.let_go(number)
        self.slots.clear()
        self.workbench.rebuild([])
        self.queue.clear()
        if not wait_until_back(self.study.folders, PATIENCE_SECONDS, self.stop.is_set):
            raise error
        self.progress.note("the database answers again")

    def _loop(self) -> None:
        self._recover()
        while True:
            self._fill()
            if not self.slots:
                if not self._waits():
                    return
                continue
            self._save_where_due()
            for pack in self.workbench.active_packs:
                for event in self.outcomes.in_order(pack.advance()):
                    self.outcomes.let_go_of_lost()
                    self.outcomes.handle(event)
            for number in self.slots.ghosts_that_are_over():
                self.slots.release(number)
            self._stop_where_all_fail()
            self._obey()
            if self.stop.is_set():
                self._save_and_leave()

    def _waits(self) -> bool:
        """With all slots empty: wait a moment for MLflow or for other workers; False where nothing is left."""
        others = [] if self.queue.waiting else self.queue.elsewhere()
        if not self.queue.waiting and not others:
            self._add_seconds()
            self.checkpoints.clear()
            if self.workbench.prefixes is not None and self.workbench.prefixes.summary():
                self.progress.note(self.workbench.prefixes.summary())
            return False
        if others and not self._stands_by:
            self._stands_by = True
            process = ", ".join(self.post.others()) or "?"
            self.progress.note(
                f"nothing is left to start here; {numbered(others)} train in process {process}. Waiting for its end, "
                "to take them over should it die"
            )
        self.stop.wait(RETRY_SECONDS if self.queue.waiting else LOOK_SECONDS)
        if others:
            self._counted_at = time.monotonic()  # time spent for nothing is none of the sweep's
        self._obey()
        if self.stop.is_set():
            self._save_and_leave()
        return True

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        for note in self.queue.recover(self.workbench, self.checkpoints.load()):
            self.progress.note(note)

    def _save_where_due(self) -> None:
        if self.slots.changed or time.monotonic() - self._saved_at >= self.study.config.train.checkpoint_every_seconds:
            self._save()

    def _save(self) -> bool:
        """Whether there is a checkpoint of this moment now."""
        if not self.post.held():
            raise self.post.lost()
        if not self.checkpoints.save_where_possible(self._snapshot):
            return False
        self.slots.changed, self._saved_at = False, time.monotonic()
        return True

    def _snapshot(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        return replay.snapshot(self.workbench, self.queue.candidates, self.queue.last_asked, self.tracker.unsent)

    # -- admission ------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        while len(self.slots) < self.workbench.slots and (not self.slots or time.monotonic() >= self._fill_again_at):
            self._stop_where_all_fail()
            config: Config | None = None
            if self.queue.waiting:
                candidate, config = self.queue.waiting[0]
                if config is not None and not self.workbench.pack(config).free:
                    return
                self.queue.waiting.popleft()
                if self.leases.lost([candidate.asked.number]):  # waited here while this process was silent
                    self.outcomes.let_go(candidate.asked.number)
                    continue
            else:
                began = time.monotonic()
                if began - self._counted_at >= COUNT_SECONDS:
                    self._add_seconds()
                found = self.queue.next(self.slots.uncounted_samples)
                if found is None:  # a spent budget stays spent: asking at every turn would cost more than a tiny step
                    now = time.monotonic()
                    wait = min(max(LOOK_SECONDS, (now - began) / LOOK_SHARE), LOOK_AT_LATEST_SECONDS)
                    self._fill_again_at = now + wait
                    return
                candidate, self.slots.changed = found, True
                self._welcome(candidate)
            try:
                if not self._place(candidate, config):
                    return
            except NoRun as error:
                self._postpone(candidate, config, error)
                return

    def _welcome(self, candidate: Candidate) -> None:
        if candidate.taken_over:
            step = candidate.saved.fields["step"] if candidate.saved is not None else 0
            number = candidate.asked.number
            self.progress.note(f"trial {number} was left by its worker; it goes on here from step {step}")

    def _place(self, candidate: Candidate, config: Config | None) -> bool:
        """Into a slot of its pack, or FAILED where it cannot be trained; False where that pack has no free slot."""
        try:
            config = config or self.compose(candidate.asked.params)
            if not self.workbench.pack(config).free:
                self.queue.waiting.append((candidate, config))
                return False
        except (ConfigError, TrialFailed) as error:
            self.outcomes.fail_before_training(candidate, error)
            return True
        self._admit(candidate, config)
        return True

    def _postpone(self, candidate: Candidate, config: Config | None, error: NoRun) -> None:
        """A trial whose run MLflow cannot make now waits; those in their slots go on, their metrics in the spool."""
        if self._no_run_since is None:
            self._no_run_since = time.monotonic()
            self.progress.note(f"{error}; trial {candidate.asked.number} waits for it")
        elif not self.slots and time.monotonic() - self._no_run_since > PATIENCE_SECONDS:
            raise StorageError(f"{error}; gave up after {PATIENCE_SECONDS:g} s with nothing left to train") from error
        self.queue.waiting.appendleft((candidate, config))
        self._fill_again_at = time.monotonic() + RETRY_SECONDS

    def _admit(self, candidate: Candidate, config: Config) -> None:
        from lorasweep.training.schedule import trial_samples

        asked, pack, before = candidate.asked, self.workbench.pack(config), {}
        try:
            if candidate.saved is None:
                pack.admit(asked.number, config, self.study.rungs(trial_samples(config, pack.rows)))
                before = self.workbench.before(config, pack, asked.number) if candidate.ended is None else {}
                self._warm(asked.number, pack)
            else:
                pack.load_state(asked.number, config, candidate.saved.tensors, candidate.saved.fields)
        except (ConfigError, TrialFailed) as error:
            self.outcomes.fail_before_training(candidate, error)
            return
        trial = RunningTrial(asked, config, pack, "", candidate.ended)
        if candidate.saved is not None:
            done = candidate.saved.fields
            trial.last_step, trial.admitted_at = done["step"], trial.admitted_at - done["seconds"]
            trial.samples = pack.samples(asked.number)
        self.slots.put(trial)
        if candidate.ended is None:
            self._start_run(trial, candidate)
            if asked.number in self.leases.lost(self.slots.ours):  # MLflow took so long that others have it
                self.outcomes.let_go(asked.number)
                return
            self.study.set_run(asked.number, trial.run_id)
            self.tracker.log(asked.number, before, 0)
            self.progress.trial_started(asked.number, asked.params, pack.max_steps(asked.number))

    def _warm(self, number: int, pack: AnyPack) -> None:
        """Give a clone that asks for it the adapter of the trial that it was made from."""
        from lorasweep.models.packed_lora import PackedLora
        from lorasweep.training.pack import Pack

        origin = self.study.warm_from(number)
        if origin is None:
            return
        try:
            if not isinstance(pack, Pack) or not isinstance(pack.engine, PackedLora) or pack.roster.waiting(number):
                raise TrialFailed("config", f"trial {number} cannot start from another's adapter: no adapter slot")
            with tempfile.TemporaryDirectory(prefix="lorasweep-") as folder:
                adapter = self.tracker.artifact(origin, "adapter", Path(folder))
                pack.engine.start_from(pack.roster.slot(number).index, adapter)
        except (StorageError, TrialFailed) as error:
            pack.evict(number)
            raise error if isinstance(error, TrialFailed) else NoRun(str(error)) from error

    def _start_run(self, trial: RunningTrial, candidate: Candidate) -> None:
        from lorasweep.provenance import gather

        number, config = trial.asked.number, trial.config
        data = self.workbench.data(config)
        facts = gather(config, data.fingerprint, self.workbench.model_fingerprint(config))
        facts["lorasweep.cached_layers"] = str(trial.pack.cached_blocks(number))
        if (origin := self.study.cloned_from(number)) is not None:
            facts["lorasweep.clone_of"] = str(origin)
        yaml, counts = compose.to_yaml(config), trial.pack.counts(number)
        noted = self.study.run_id(number) if self.study.folders.shared else None
        left = candidate.saved.unsent if candidate.saved is not None else []
        try:
            trial.run_id = self.tracker.start_trial(
                number, config, yaml, trial.asked.params, facts, data, counts, noted, left
            )
        except StorageError as error:
            if full_disk_in(error):
                raise
            self.slots.release(number)
            raise NoRun(str(error)) from error
        self._no_run_since = None
        failpoints.reach("run-noted")

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
            elif request.trial in self.slots.ours:
                self.outcomes.stop(self.slots.trials[request.trial])
                self.study.acted(request)

    # -- leaving ------------------------------------------------------------------------------------------------------

    def _add_seconds(self) -> None:
        now = time.monotonic()
        self.study.add_seconds(now - self._counted_at)
        self._counted_at = now

    def _stop_where_all_fail(self) -> None:
        if (error := self.outcomes.failures.error) is not None:
            self._save_everything()
            raise error

    def _save_everything(self) -> bool:
        for number in self.slots.ours:
            self.tracker.flush(number)
        saved = self._save()
        self._add_seconds()
        return saved

    def _save_and_leave(self) -> None:
        lost = "and could not be saved: what came after its last checkpoint is repeated"
        saved = "and saved" if self._save_everything() else lost
        how = "is paused" if self.paused else "was interrupted"
        raise Interrupted(
            f"sweep {self.study.name} {how} {saved}; {numbered([*self._unfinished()])} go on with "
            f"`lorasweep resume {self.study.name}`"
        )

    def _unfinished(self) -> set[int]:
        """Trials that wait for somebody once this worker has left: its own, and those of dead ones."""
        left = [] if self.queue.only is not None or self.post.alone else self.leases.orphans(self.post.dead())
        return {*self.slots.ours, *self.queue.numbers, *left}


def numbered(trials: list[int]) -> str:
    """`trials 0, 3` as people read it; `trials to come` for none."""
    return f"trials {', '.join(str(number) for number in sorted(trials)) or 'to come'}"
