"""Posts on one host: a lock file each, which the kernel lets go of however its process ends.

A post whose lock is free is that of a dead worker: the next process takes it with its checkpoints and goes on. A worker
that hangs keeps its lock, but gives no sign of life in the study (`search.leases`), and loses its trials all the same.
Neighbour: `table`, which reaches over hosts.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.checkpoint import Checkpoints, checkpoints_of
from lorasweep.config.home import Folders
from lorasweep.errors import StorageError
from lorasweep.locked import locked

if TYPE_CHECKING:
    from lorasweep.posts import Worker

FIRST = "0"


class LockedPost:
    """See `posts.Post`. `part` names what of the sweep is worked on where that is not the search."""

    def __init__(self, folders: Folders, sweep: str, name: str = FIRST, part: str = ""):
        self.folders, self.sweep, self.name, self.part = folders, sweep, name, part
        self.folder = folders.sweep(sweep)

    def at(self, name: str) -> LockedPost:
        """See `posts.Post`."""
        return LockedPost(self.folders, self.sweep, name, self.part)

    def on(self, part: str) -> LockedPost:
        """See `posts.Post`."""
        return LockedPost(self.folders, self.sweep, self.name, part)

    @property
    def checkpoints(self) -> Checkpoints:
        """See `posts.Post`."""
        return checkpoints_of(self.folders, self.sweep, self.part, self.name)

    def checkpoints_of_trial(self, number: int) -> Checkpoints:
        """See `posts.Post`."""
        return checkpoints_of(self.folders, self.sweep, f"trial-{number:05d}")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """See `posts.Post`."""
        with asking(self.folders, self.sweep):
            yield

    def dead(self) -> dict[str, LockedPost]:
        """See `posts.Post`."""
        with _looking(self.folder):
            free = [path.stem for path in _lock_files(self.folder) if path.stem != self.name and not _is_held(path)]
        return {name: self.at(name) for name in free}

    def others(self) -> list[str]:
        """See `posts.Post`."""
        with _looking(self.folder):
            return [_holder(path) for path in _lock_files(self.folder) if path.stem != self.name and _is_held(path)]

    @property
    def alone(self) -> bool:
        """See `posts.Post`."""
        return all(path.stem == self.name for path in _lock_files(self.folder))

    def held(self) -> bool:
        """See `posts.Post`: the kernel gives a lock to nobody else."""
        return True

    def lost(self) -> StorageError:
        """See `posts.Post`."""
        return StorageError(f"another process took the post of this one on sweep {self.sweep}")

    def beat(self, grace_seconds: float) -> bool:
        """See `posts.Post`: the lock is the sign."""
        return True


@contextmanager
def enter(folders: Folders, sweep: str, join: bool, about: Mapping[str, Any] | None = None) -> Iterator[LockedPost]:
    """See `posts.enter`: the first post that is free."""
    folder = folders.sweep(sweep)
    places = folder / "posts"
    places.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        with locked(places / "door"):  # one process looks around at a time
            busy = _holders(folder)
            if busy and not join:
                raise refusal(sweep, busy)
            number = 0
            while (handle := held.enter_context(locked(places / f"{number}.lock", wait=False))) is None:
                number += 1
            handle.truncate(0)
            said = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "about": dict(about or {})}
            handle.write(json.dumps(said))
            handle.flush()
        yield LockedPost(folders, sweep, str(number))


def refusal(sweep: str, busy: list[str]) -> StorageError:
    """The error of one that would work beside `busy` processes without `join`."""
    return StorageError(
        f"process {' and process '.join(busy)} is training sweep {sweep} at this moment; wait until it "
        f"ends or stop it, watch it with `lorasweep leaderboard {sweep}`, or work on it too with --join"
    )


@contextmanager
def asking(folders: Folders, sweep: str) -> Iterator[None]:
    """See `posts.asking`."""
    folders.sweep(sweep).mkdir(parents=True, exist_ok=True)  # a study may be there without its files
    with locked(folders.sweep(sweep) / "asking.lock"):
        yield


def holders(folder: Path) -> list[str]:
    """Ids of the processes that work on a sweep now. `folder` is the sweep's own. Empty where locks cannot tell."""
    with _looking(folder):
        return _holders(folder)


def _holders(folder: Path) -> list[str]:
    return [_holder(path) for path in _lock_files(folder) if _is_held(path)]


def roll(folder: Path) -> list[Worker]:
    """See `posts.roll`. `folder` is the sweep's own."""
    from lorasweep.posts import Worker

    found = []
    with _looking(folder):
        for path in sorted(_lock_files(folder), key=lambda path: int(path.stem)):
            alive, said = _is_held(path), _said(path)
            host, pid, since = said.get("host", socket.gethostname()), said.get("pid"), said.get("since")
            found.append(Worker(path.stem, alive, host, pid, since, None, said.get("about", {})))
    return found


@contextmanager
def _looking(folder: Path) -> Iterator[None]:
    """Hold the door meanwhile: to look whether a lock is held is to hold it for a moment, and a process that enters at
    that moment would take whoever looks for a worker."""
    if not _lock_files(folder):
        yield
        return
    with locked(folder / "posts" / "door"):
        yield


def _lock_files(folder: Path) -> list[Path]:
    return sorted((folder / "posts").glob("*.lock"))


def _is_held(path: Path) -> bool:
    with locked(path, wait=False) as handle:
        return handle is None


def _holder(path: Path) -> str:
    return str(_said(path).get("pid", "?"))


def _said(path: Path) -> dict[str, Any]:
    """What the holder of a post wrote into its lock; empty where it is about to."""
    try:
        said = json.loads(path.read_text())
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {"pid": said}  # a process of an older version wrote its id alone
