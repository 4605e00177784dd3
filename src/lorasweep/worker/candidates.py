"""Which trial comes next into a slot: what an earlier process left here, what a dead worker left, then new points.

Neighbours: `replay` (what was left), `posts` and `search.leases` (whose it is), `search.study` (asks); `worker` takes.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from lorasweep import failpoints
from lorasweep.checkpoint import NotRead, again_at
from lorasweep.config.schema import Config
from lorasweep.posts import Post
from lorasweep.worker import replay
from lorasweep.worker.replay import Candidate

if TYPE_CHECKING:
    from lorasweep.checkpoint import Checkpoint
    from lorasweep.search.leases import Leases
    from lorasweep.search.study import Asked, SweepStudy
    from lorasweep.workbench import Workbench

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0  # between two looks for trials that others have left, while new ones may be asked for


class Queue:
    """The trials of one worker that are on their way into slots. `waiting`: asked for, but their pack had no free slot
    or MLflow no run; with their configs, None where none can be made. `only`: the one trial to train; None: whatever
    the study has."""

    def __init__(self, study: SweepStudy, leases: Leases, post: Post, only: Asked | None):
        self.study, self.leases, self.post, self.only = study, leases, post, only
        self.waiting: deque[tuple[Candidate, Config | None]] = deque()
        self.last_asked = -1  # the highest trial number that this post has taken up
        self._returning: deque[Candidate] = deque()
        self._looked_at = -LOOK_SECONDS  # time.monotonic() of the last look at what others left
        self._not_before = 0.0  # the same of the next; 0: checkpoints could always be read

    def clear(self) -> None:
        """Forget what is on its way; `recover` finds it again."""
        self.waiting.clear()
        self._returning.clear()
        self.last_asked = -1

    def recover(self, workbench: Workbench, checkpoint: Checkpoint | None) -> list[str]:
        """Take up what an earlier process left at this post; returns what a person should know."""
        only = None if self.only is None else [self.only]
        with self.post.asking():
            found = replay.recover(self.study, self.leases, workbench, checkpoint, only)
        self._returning.extend(found.queue)
        self.last_asked = found.last_asked
        return found.notes

    def next(self, samples_in_training: int) -> Candidate | None:
        """The next trial, None where there is none or a budget is spent."""
        if self._returning:
            candidate: Candidate | None = self._returning.popleft()
        elif self.only is not None:
            return None
        else:
            candidate = self._left_by_others(LOOK_SECONDS) or self._ask(samples_in_training) or self._left_by_others(0)
        if candidate is not None:
            self.last_asked = max(self.last_asked, candidate.asked.number)
        return candidate

    def _left_by_others(self, every_seconds: float) -> Candidate | None:
        if time.monotonic() - self._looked_at < every_seconds or time.monotonic() < self._not_before:
            return None
        self._looked_at = began = time.monotonic()
        try:
            return replay.take_over(self.study, self.leases, self.post)
        except NotRead as error:
            if not self._not_before:
                log.warning("%s. What dead workers left is taken over when they can be", error)
            self._not_before = again_at(began)
            return None

    def _ask(self, samples_in_training: int) -> Candidate | None:
        with self.post.asking():
            asked = self.study.ask(self.post.name, samples_in_training)
            if asked is None:
                return None
            failpoints.reach("asked")
            if not asked.claimed:  # a clone or a finalist, which was there before anybody was to train it
                self.leases.claim(asked.number)
        return Candidate(asked)

    def elsewhere(self) -> list[int]:
        """Trials that other workers train now: they come here should their workers die."""
        return [] if self.only is not None or self.post.alone else self.leases.elsewhere()

    @property
    def candidates(self) -> list[Candidate]:
        """All of them, in order."""
        return [*(candidate for candidate, _ in list(self.waiting)), *list(self._returning)]

    @property
    def numbers(self) -> list[int]:
        """Those that have not ended, which others must leave to this worker. Any thread may ask."""
        return [candidate.asked.number for candidate in self.candidates if candidate.ended is None]
