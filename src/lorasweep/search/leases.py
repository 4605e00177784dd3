"""Who trains a running trial, and whether it gives signs of life: attributes and heartbeats of trials in the study.

A trial carries the post of its worker. The worker records heartbeats (Optuna's own table; asking and telling record
none); while the last one is younger than the grace period nobody else may touch the trial. One that is older, or whose
post nobody holds, may be claimed by another worker; the old one finds its post no longer named there and lets go, so
that what it reports late changes nothing. Neighbours: `storage`; `posts` (which posts are held), `worker`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optuna.trial import TrialState

from lorasweep.errors import StorageError
from lorasweep.search.reader import POST
from lorasweep.search.storage import RunningRow, StoredStudy, read

if TYPE_CHECKING:
    from lorasweep.posts import Post
    from lorasweep.search.study import SweepStudy

BEATS_IN_GRACE = 4  # heartbeats that must fail before a worker counts as gone


class Leases:
    """The running trials of one study and their workers, seen from the post of this name; `seat` is the post itself,
    where it may be taken from a worker that was silent."""

    def __init__(self, stored: StoredStudy, post: str, heartbeat_seconds: float, seat: Post | None = None):
        self.stored, self.post, self.beat_seconds, self.seat = stored, post, heartbeat_seconds, seat
        self.grace_seconds = BEATS_IN_GRACE * heartbeat_seconds
        self._beaten_at, self._lost = time.monotonic(), set[int]()
        self._renewing = threading.Lock()

    @classmethod
    def of(cls, study: SweepStudy, post: Post) -> Leases:
        """Those of a sweep, as its launcher sets them."""
        return cls(study._stored, post.name, study.config.launcher.heartbeat_seconds, post)

    def claim(self, number: int) -> None:
        """This post trains the trial from now on.

        Raises:
            StorageError: the trial has ended.
        """
        self.stored.set(number, POST, self.post)
        self._lost.discard(number)  # it may come back from one that took it over and died
        self.beat([number])

    def posts(self) -> dict[int, str | None]:
        """Trial number -> the post that trains or trained it; None where its worker died before it could say."""
        return {frozen.number: read(frozen, POST) for frozen in self.stored.trials()}

    def holds(self, number: int) -> bool:
        """Whether the trial runs and is this post's, and the post this worker's."""
        if self.seat is not None and not self.seat.held():
            return False
        frozen = self.stored.trial(number)
        return frozen.state == TrialState.RUNNING and read(frozen, POST) in (self.post, None)

    def signs(self) -> dict[int, tuple[str | None, float | None]]:
        """Running trial -> the post that trains it, and seconds since its last heartbeat by the database's clock."""
        return {row.number: (row.attribute, row.silent_seconds) for row in self.stored.running(POST)}

    def orphans(self, dead: Iterable[str]) -> list[int]:
        """Running trials that others have left: at posts in `dead`, at none, or without a sign of life for long."""
        gone = {*dead, None}
        return [
            row.number
            for row in self.stored.running(POST)
            if row.attribute != self.post and (row.attribute in gone or self._is_silent(row))
        ]

    def elsewhere(self) -> list[int]:
        """Running trials of other posts, whoever gives signs of life."""
        return [row.number for row in self.stored.running(POST) if row.attribute != self.post]

    def _is_silent(self, row: RunningRow) -> bool:
        """Whether its last sign of life is older than the grace period, by the database's clock."""
        return row.silent_seconds is not None and row.silent_seconds > self.grace_seconds

    # -- signs of life ------------------------------------------------------------------------------------------------

    def beat(self, numbers: Iterable[int]) -> None:
        """Say that these trials are being trained."""
        self.stored.beat(numbers)

    def renew(self, numbers: Iterable[int]) -> None:
        """Beat for those of these trials that are still this post's; the others are lost."""
        numbers = list(numbers)
        with self._renewing:
            started = time.monotonic()  # before the database's time of the beats, never after
            ours = self.seat is None or self.seat.beat(self.grace_seconds)
            held = {row.number for row in self.stored.running(POST) if row.attribute in (self.post, None)}
            kept = [number for number in numbers if ours and number in held]
            self.beat(kept)
            self._lost.update(set(numbers) - set(kept))
            self._beaten_at = started

    def lost(self, numbers: Iterable[int]) -> list[int]:
        """Which of these trials others have claimed. Asks the study where so long a time has passed since the last
        heartbeat that they may have: this process was stopped, or the database could not be reached."""
        numbers = list(numbers)
        if time.monotonic() - self._beaten_at > self.grace_seconds / 2:
            self.renew(numbers)
        return [number for number in numbers if number in self._lost]

    @contextmanager
    def beating(self, numbers: Callable[[], Iterable[int]]) -> Iterator[None]:
        """Renew regularly from a thread of its own, so that a long step does not look like death."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(self.beat_seconds):
                try:
                    self.renew(list(numbers()))
                except StorageError:
                    continue  # the next beat may succeed; where none does, others take over, and the worker notices

        thread = threading.Thread(target=run, name="lorasweep heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=10)
