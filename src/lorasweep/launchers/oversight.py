"""Watches the workers of a sweep for the person at the command: one view for all, and a clean end however it comes.

What trials did is read in the study, which holds it whoever trained them; where they are between two evaluations comes
as news from their workers. Neighbours: `local` and `ray` (crews), `live` (shows), `sweeping` (calls).
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lorasweep.errors import StorageError
from lorasweep.launchers.news import News, Standing, Trouble
from lorasweep.records import TrialState
from lorasweep.search.requests import PAUSE
from lorasweep.worker.here import stop_on_signals
from lorasweep.worker.loop import Interrupted, numbered

if TYPE_CHECKING:
    from lorasweep.progress import Progress
    from lorasweep.search.study import SweepStudy

TURN_SECONDS = 0.25
LOOK_SECONDS = 1.0  # between two looks into the study, and more where a look is slow:
LOOK_SHARE = 0.05  # of the command's time at most


@dataclass
class Look:
    """What a crew says of itself: news by worker, notes of the crew, whether all of it has ended, how many train, and
    why one could not go on."""

    news: list[News] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    over: bool = False
    at_work: int = 0
    troubles: list[Trouble] = field(default_factory=list)


class Crew(Protocol):
    """The workers of one sweep. One thread calls."""

    def look(self) -> Look:
        """What happened since the last look; starts again what has died."""

    def stop(self) -> None:
        """Ask all workers to save and leave."""

    def kill(self) -> None:
        """End at once what still runs; harmless where nothing does."""


def oversee(crew: Crew, study: SweepStudy, progress: Progress, until_at_work: bool = False) -> None:
    """Watch until all workers have ended; with `until_at_work` until one trains, and leave them to it. The first
    Ctrl-C or SIGTERM lets them save and leave, the second kills them.

    Raises:
        Interrupted: they were asked to leave; all is saved.
        LorasweepError: why a worker could not go on; the others have saved and left.
    """
    stop, asked = threading.Event(), False
    trouble: Trouble | None = None
    paused = leave = False
    try:
        view = View(study, progress)
        with stop_on_signals(stop):
            while True:
                look = crew.look()
                for note in [*look.notes, *(note for news in look.news for note in news.notes)]:
                    progress.note(note)
                view.look(look.news)
                for one in look.troubles:
                    paused = paused or one.is_interruption
                    trouble = trouble or (None if one.is_interruption else one)
                if look.over:
                    break
                if until_at_work and look.at_work and not asked and trouble is None:
                    leave = True
                    break
                paused = paused or view.pause_asked
                if not asked and (stop.is_set() or paused or trouble is not None):
                    asked = True
                    progress.note("all workers save their trials and leave")
                    crew.stop()
                time.sleep(TURN_SECONDS)
        view.look([], last=True)
    finally:
        if not leave:
            crew.kill()
    if trouble is not None:
        raise trouble.error()
    if asked or paused:
        how = "was interrupted" if stop.is_set() else "is paused"
        raise Interrupted(
            f"sweep {study.name} {how} and saved; {numbered(view.running)} go on with `lorasweep resume {study.name}`"
        )


class View:
    """Shows the study's trials: each start and end once, as the study has them."""

    def __init__(self, study: SweepStudy, progress: Progress):
        """Trials that have ended by now were shown before."""
        self.study, self.progress = study, progress
        self.running: list[int] = []
        self.pause_asked = False
        self._ended = {record.trial for record in study.records() if record.state is not TrialState.RUNNING}
        self._steps: dict[int, int] = {}  # trials that are shown as running: their `max_steps`, 0 unknown
        self._shown: dict[int, Standing] = {}
        self._standing: dict[int, Standing] = {}
        self._look_at = 0.0  # time.monotonic()
        self._lost_sight = False

    def look(self, news: list[News], last: bool = False) -> None:
        """Show what is new; into the study only where it is due, or with `last`."""
        for one in news:
            self._standing |= one.trials
        if last or time.monotonic() >= self._look_at:
            began = time.monotonic()
            try:
                self._read()
            except StorageError as error:
                if not self._lost_sight:
                    self.progress.note(f"{error}. The workers wait for it too; this view goes on when it is back")
                self._lost_sight = True
            else:
                self._lost_sight = False
            took = time.monotonic() - began
            self._look_at = time.monotonic() + max(LOOK_SECONDS, took / LOOK_SHARE)
        self._show_standing()

    def _read(self) -> None:
        records = self.study.records()
        running = [record for record in records if record.state is TrialState.RUNNING and record.reason is None]
        self.running = [record.trial for record in running]
        for record in running:
            steps = self._standing[record.trial].max_steps if record.trial in self._standing else 0
            if self._steps.get(record.trial, -1) < steps:
                self._steps[record.trial] = steps
                self.progress.trial_started(record.trial, record.params, steps)
                self._shown.pop(record.trial, None)
        for record in records:
            if record.state is not TrialState.RUNNING and record.trial not in self._ended:
                self._ended.add(record.trial)
                self._steps.pop(record.trial, None)
                self._standing.pop(record.trial, None)
                self.progress.trial_ended(record)
        self.pause_asked = self.pause_asked or any(one.kind == PAUSE for one in self.study.requests())

    def _show_standing(self) -> None:
        for number, standing in self._standing.items():
            if number not in self._steps or self._shown.get(number) == standing:
                continue
            before = self._shown.get(number)
            if standing.loss is not None:
                self.progress.stepped(number, standing.step, standing.loss)
            if standing.value is not None and (before is None or before.value != standing.value):
                self.progress.evaluated(number, standing.step, standing.value)
            self._shown[number] = Standing(**vars(standing))
