"""Which processes work on a sweep: each holds a post, with checkpoints of its own that outlive it.

A post that nobody holds any more is that of a dead worker: living workers take over its trials one by one, as its
checkpoints have them. On one host a post is a lock file (`locks`), over hosts a row with a heartbeat in the database of
the studies (`table`). Neighbours: `sweeping` and `launchers` (enter), `worker` (asks and takes over), `search.leases`
(which post a trial is at).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from lorasweep.checkpoint import Checkpoints
from lorasweep.config.home import Folders
from lorasweep.errors import StorageError
from lorasweep.posts import locks, table


@dataclass(frozen=True)
class Worker:
    """Who holds a post, or held it last. `since`: seconds since 1970 when it took the post, None where nobody noted it;
    `silent_seconds` since the post's last heartbeat, None where posts have none: a lock is held or it is not. `about`:
    what it said of itself, such as `device`."""

    post: str
    alive: bool
    host: str
    pid: int | None
    since: float | None = None
    silent_seconds: float | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


class Post(Protocol):
    """A worker's place on one sweep, held while its process lives."""

    name: str

    def at(self, name: str) -> Post:
        """Another post of the same part of the sweep."""

    def on(self, part: str) -> Post:
        """The same post, for another part of the sweep: its finalists."""

    @property
    def checkpoints(self) -> Checkpoints:
        """What the worker at this post saves."""

    def checkpoints_of_trial(self, number: int) -> Checkpoints:
        """Those of a trial that trains alone (`lorasweep train`)."""

    def asking(self) -> AbstractContextManager[None]:
        """Hold while a trial is asked for or taken over: budgets stay exact, and no trial goes to two workers."""

    def dead(self) -> Mapping[str, Post]:
        """Other posts that nobody holds, by name."""

    def others(self) -> list[str]:
        """The other processes that work on the sweep now, in words."""

    @property
    def alone(self) -> bool:
        """Whether no other process ever held a post."""

    def held(self) -> bool:
        """Whether nobody else has taken the post, because this process was silent for long."""

    def lost(self) -> StorageError:
        """The error to end with where it is not."""

    def beat(self, grace_seconds: float) -> bool:
        """Give a sign of life; the post counts as held for so long from now on. False where it is another's."""


def enter(
    folders: Folders, sweep: str, join: bool = False, about: Mapping[str, Any] | None = None
) -> AbstractContextManager[Post]:
    """Take a post on a sweep. `about`: JSON types that `roll` shows of this worker.

    Raises:
        StorageError: another process works on the sweep, and `join` is not set.
    """
    if folders.shared:
        return table.enter(folders, sweep, join, about)
    return locks.enter(folders, sweep, join, about)


def asking(folders: Folders, sweep: str) -> AbstractContextManager[None]:
    """Keep every worker from asking for a trial, for a process that holds no post."""
    return table.asking(folders, sweep) if folders.shared else locks.asking(folders, sweep)


def holders(folders: Folders, sweep: str) -> list[str]:
    """The processes that work on a sweep now, in words. Empty where locks cannot tell."""
    return table.holders(folders, sweep) if folders.shared else locks.holders(folders.sweep(sweep))


def roll(folders: Folders, sweep: str) -> list[Worker]:
    """Every post that was ever held on a sweep, with who holds it or held it last."""
    return table.roll(folders, sweep) if folders.shared else locks.roll(folders.sweep(sweep))
