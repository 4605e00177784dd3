"""The end of a sweep that doubts its luck: its best trials, again over fresh seeds; and which trial is best, and why.

Repeats train as trials do, by the same worker, packs and checkpoints, so they are as cheap and as exactly resumable;
they are no trials of the search. Workers that share a sweep share its finalists: each waits until no trial of the
search is running, one plans them, all take from those that wait. Packs start afresh, so that a repeat's numbers do not
depend on the search before it. Neighbours: `search.finals` (where they are kept), `worker`, `ranking`; `sweeping` runs
them, `promotion` asks for the best.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.errors import LorasweepError, StorageError
from lorasweep.ranking.board import Leaderboard, rank
from lorasweep.records import TrialRecord, TrialState
from lorasweep.registry.candidate import unserved, untrained
from lorasweep.search.finals import SEED_KEY, FinalsStudy

if TYPE_CHECKING:
    from lorasweep.config.schema import Config
    from lorasweep.posts import Post
    from lorasweep.progress import Progress
    from lorasweep.search.study import SweepStudy
    from lorasweep.tracking.tracker import Tracker
    from lorasweep.workbench import Workbench

PART = "finalists"  # of a sweep's checkpoints


@dataclass(frozen=True)
class Best:
    """The best trial of a sweep and, in a sentence, why. `row` is its row of the leaderboard."""

    record: TrialRecord
    row: dict[str, Any]
    why: str


def uses(study: SweepStudy, best: dict[str, Any] | None) -> list[str]:
    """Commands that take the best trial, a row of the leaderboard, further: a baseline none, one of another task than
    classify no promotion."""
    if best is None:
        return []
    try:
        config = compose.compose_trial(study.overrides, study.sweep_file, best["params"], Home.find())
    except LorasweepError:  # the sweep's files were changed since; what they can do is said when they are asked
        return []
    if not unserved(config):
        return [f"lorasweep promote {study.name}"]
    return [] if untrained(config) else [f"lorasweep export {study.name} DIR --trial {best['trial']}"]


def best(study: SweepStudy) -> Best | None:
    """The trial that leads the leaderboard: by its mean over fresh seeds where finalists were trained, else by its
    value, the earliest of equals. None where no trial is complete and keeps the constraints."""
    board = Leaderboard.of(study)
    row = board.best
    if row is None:
        return None
    record = next(record for record in study.records() if record.trial == row["trial"])
    return Best(record, row, _why(board, row))


def _why(board: Leaderboard, row: dict[str, Any]) -> str:
    found, metric = row["finalist"], board.metric
    sure = "" if row["interval"] is None else f" (95% {row['interval'][0]:.4f} to {row['interval'][1]:.4f})"
    if found is not None and found["mean"] is not None:
        others = sum(bool(other["finalist"]) for other in board.rows)
        seeds = len(found["values"])
        why = f"the best mean of {metric} over {seeds} fresh seed{'s' * (seeds > 1)}, {found['mean']:.4f}"
        if found["interval"] is not None:
            why += f" (95% {found['interval'][0]:.4f} to {found['interval'][1]:.4f})"
        why += f", among {others} finalists; its first look was {row['value']:.4f}{sure}"
    else:
        ranked = sum(other["rank"] is not None for other in board.rows)
        way = "highest" if board.direction == "maximize" else "lowest"
        why = f"the {way} {metric}, {row['value']:.4f}{sure}, of {ranked} ranked trials"
    tied = board.ties.tied if board.ties is not None else 0
    return why + (f"; {tied} more {'is' if tied == 1 else 'are'} tied with it" if tied else "")


def left(study: SweepStudy) -> bool:
    """Whether a sweep whose search has ended still has finalists to train."""
    finals = FinalsStudy.of(study)
    if finals is not None and finals.unfinished:
        return True
    settings = study.config.sweep.finalists
    if not settings.top:
        return False
    there = {} if finals is None else finals.found()
    wanted = chosen(study, settings.top)
    return any(
        record.trial not in there or len(there[record.trial].seeds) + len(there[record.trial].failed) < settings.seeds
        for record in wanted
    )


def chosen(study: SweepStudy, top: int) -> list[TrialRecord]:
    """The best trials by their first look, so many different points of them: two that differ in the seed alone are one
    finalist."""
    records = {record.trial: record for record in study.records()}
    found: dict[str, TrialRecord] = {}
    for row in rank(list(records.values()), study.direction, study.goals):
        if row["rank"] is None or len(found) == top:
            break
        point = {key: value for key, value in row["params"].items() if key != SEED_KEY}
        found.setdefault(repr(sorted(point.items())), records[row["trial"]])
    return list(found.values())


def run(
    study: SweepStudy,
    tracker: Tracker,
    workbench: Workbench,
    composer: Callable[[dict[str, Any]], Config],
    progress: Progress,
    post: Post,
    stop: threading.Event | None = None,
) -> None:
    """Plan and train what `sweep.finalists` asks for, and what an earlier process left of it. No trial of the search
    may be running. `tracker` is the open one of the search; `stop`: save and leave once it is set.

    Raises:
        Interrupted: as a worker; what was trained is saved.
    """
    if not left(study):
        return
    from lorasweep.tracking.runs import Series
    from lorasweep.tracking.tracker import Tracker
    from lorasweep.worker import here
    from lorasweep.worker.loop import Worker

    finals = FinalsStudy.of(study, create=True)
    assert finals is not None
    settings = study.config.sweep.finalists
    with post.asking():
        finals.plan(chosen(study, settings.top), settings.seeds)
    found = finals.found()
    repeated = [record for record in study.records() if record.trial in found]
    tags = {record.run_id: {"lorasweep.finalist": str(record.trial)} for record in repeated}
    with suppress(StorageError):  # MLflow is busy: training need not wait for it, and at the end they are set again
        tracker.tag_runs(tags)
    waiting = sum(one.waiting for one in found.values())
    progress.note(f"finalists: trials {', '.join(map(str, sorted(found)))} over fresh seeds, {waiting} runs to go")

    def tags_of(number: int) -> dict[str, str]:
        of, seed = finals.origin(number)
        return {"lorasweep.finalist": str(of), "lorasweep.finalist_of": str(of), "lorasweep.seed": str(seed)}

    def name_of(number: int) -> str:
        return "finalist {} seed {}".format(*finals.origin(number))

    series = Series("finalist", study.folders.finalists_spool(study.name), tags_of, name_of)
    workbench.rebuild([])
    repeats = Tracker(study.folders, study.name, series=series)
    try:
        repeats.connect()
        repeats.take_up_ends()
        worker = Worker(finals, repeats, workbench, composer, _Repeats(progress, finals), post.on(PART))
        worker.stop = stop or worker.stop
        here.launch(worker, study.config.launcher)
    except Exception:  # not where Ctrl-C came twice: that stops at once, and what waits in the spool is kept there
        with suppress(LorasweepError, OSError):  # what happened first is what is told
            repeats.close()
        raise
    repeats.close()
    tracker.tag_runs(tags)


class _Repeats:
    """Tells of finalists as lines of their own: their numbers are none of the search's."""

    def __init__(self, progress: Progress, finals: FinalsStudy):
        self.progress, self.finals = progress, finals

    def note(self, text: str) -> None:
        self.progress.note(text)

    def trial_started(self, number: int, params: dict[str, Any], max_steps: int) -> None: ...
    def stepped(self, number: int, step: int, loss: float) -> None: ...
    def evaluated(self, number: int, step: int, value: float | None) -> None: ...

    def trial_ended(self, record: TrialRecord) -> None:
        """One line with what the seed gave."""
        of, seed = self.finals.origin(record.trial)
        known = record.state is TrialState.COMPLETE and record.value is not None
        gave = f"{self.finals.metric} {record.value:.4f}" if known else f"{record.state}: {record.reason}"
        self.progress.note(f"finalist {of}, seed {seed}: {gave} in {record.train_seconds:.1f} s")
