"""Which processes work on a sweep: each holds a post, a numbered place with a lock file and its own checkpoints.

The kernel lets go of a lock however its process ends, so a post whose lock is free is that of a dead worker: the next
process takes it with its checkpoints and goes on, or a living worker takes over its trials one by one. A worker that
hangs keeps its lock, but gives no sign of life in the study (`search.leases`), and loses its trials all the same.
One host: file locks do not reach further. Neighbours: `sweep` (enters), `worker` (asks and takes over).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from lorasweep.checkpoint import Checkpoints
from lorasweep.errors import StorageError

FIRST = "0"


class Post:
    """A worker's place on one sweep, held while its process lives. `folder` is the sweep's own; `part` names what of
    the sweep is worked on where that is not the search, with checkpoints of its own."""

    def __init__(self, folder: Path, name: str = FIRST, part: str = ""):
        self.folder, self.name, self.part = folder, name, part

    def at(self, name: str) -> Post:
        """Another post of the same part."""
        return Post(self.folder, name, self.part)

    def on(self, part: str) -> Post:
        """The same post, for another part of the sweep."""
        return Post(self.folder, self.name, part)

    @property
    def checkpoints(self) -> Checkpoints:
        """What the worker at this post saves."""
        return Checkpoints(self.folder / "checkpoints" / self.part / self.name)

    def checkpoints_of_trial(self, number: int) -> Checkpoints:
        """Those of a trial that trains alone (`lorasweep train`)."""
        return Checkpoints(self.folder / "checkpoints" / f"trial-{number:05d}")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Hold while a trial is asked for or taken over: budgets stay exact, and no trial goes to two workers."""
        with _locked(self.folder / "asking.lock", wait=True):
            yield

    def dead(self) -> dict[str, Post]:
        """Other posts that nobody holds, by name."""
        found = {}
        for path in _lock_files(self.folder):
            if path.stem != self.name:
                with _locked(path, wait=False) as handle:
                    if handle is not None:
                        found[path.stem] = Post(self.folder, path.stem)
        return found

    def others(self) -> list[str]:
        """Ids of the other processes that work on the sweep now."""
        return [_holder(path) for path in _lock_files(self.folder) if path.stem != self.name and _is_held(path)]

    @property
    def alone(self) -> bool:
        """Whether no other post was ever held."""
        return all(path.stem == self.name for path in _lock_files(self.folder))


@contextmanager
def enter(sweep: str, folder: Path, join: bool = False) -> Iterator[Post]:
    """Take a post on a sweep: the first that is free. `folder` is the sweep's own.

    Raises:
        StorageError: another process works on the sweep, and `join` is not set.
    """
    places = folder / "posts"
    places.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with _locked(places / "door", wait=True):  # one process looks around at a time
            busy = holders(folder)
            if busy and not join:
                raise StorageError(
                    f"process {' and process '.join(busy)} is training sweep {sweep} at this moment; wait until it "
                    f"ends or stop it, watch it with `lorasweep leaderboard {sweep}`, or work on it too with --join"
                )
            number = 0
            while (handle := held.enter_context(_locked(places / f"{number}.lock", wait=False))) is None:
                number += 1
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        yield Post(folder, str(number))


def holders(folder: Path) -> list[str]:
    """Ids of the processes that work on a sweep now. `folder` is the sweep's own. Empty where locks cannot tell."""
    return [_holder(path) for path in _lock_files(folder) if _is_held(path)]


def _lock_files(folder: Path) -> list[Path]:
    return sorted((folder / "posts").glob("*.lock"))


def _is_held(path: Path) -> bool:
    with _locked(path, wait=False) as handle:
        return handle is None


def _holder(path: Path) -> str:
    return path.read_text().strip() or "?"


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[IO[str] | None]:
    """Hold a lock file; None where another process does and `wait` is not set."""
    with path.open("a+") as handle:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
        yield handle
