"""Processes on one sweep: who holds which post, and who is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from lorasweep.config.home import Folders
from lorasweep.errors import StorageError
from lorasweep.locked import locked
from lorasweep.posts import enter, holders, locks, roll
from lorasweep.posts.locks import LockedPost

SPAWN = multiprocessing.get_context("spawn")


def _hold(folder: Path, taken: Any, leave: Any) -> None:
    with enter(Folders(folder), "mini", join=True) as post:
        taken.put((os.getpid(), post.name))
        leave.wait(60)


class Holder:
    """A process at a post."""

    def __init__(self, folder: Path):
        taken, self.leave = SPAWN.Queue(), SPAWN.Event()
        self.process = SPAWN.Process(target=_hold, args=(folder, taken, self.leave))
        self.process.start()
        self.pid, self.post = taken.get(timeout=60)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.process.join(20)


def test_a_second_process_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    holder = Holder(tmp_path)
    assert holder.post == "0"
    with (
        pytest.raises(StorageError, match=rf"process {holder.pid} is training sweep mini .* --join"),
        enter(Folders(tmp_path), "mini"),
    ):
        pass
    with enter(Folders(tmp_path), "mini", join=True) as post:
        assert post.name == "1" and not post.alone and post.dead() == {}
        assert post.checkpoints.folder == Folders(tmp_path).sweep("mini") / "checkpoints" / "1"
        holder.kill()
        assert list(post.dead()) == ["0"]  # at once: the kernel let go of its lock
        with pytest.raises(StorageError, match=f"process {os.getpid()} is"), enter(Folders(tmp_path), "mini"):
            pass
    with enter(Folders(tmp_path), "mini") as again:  # a dead process never blocks, and leaves its post and checkpoints
        assert again.name == "0" and list(again.dead()) == ["1"]
        assert LockedPost(Folders(tmp_path), "mini").checkpoints.folder == again.checkpoints.folder


def test_alone_until_someone_joins(tmp_path: Path) -> None:
    with enter(Folders(tmp_path), "mini") as post:
        assert post.alone
        holder = Holder(tmp_path)
        assert holder.post == "1" and not post.alone
        holder.leave.set()
        holder.process.join(20)
        assert list(post.dead()) == ["1"]


def test_the_roll_says_who_is_where_and_who_was(tmp_path: Path) -> None:
    assert roll(Folders(tmp_path), "mini") == []
    holder = Holder(tmp_path)
    with enter(Folders(tmp_path), "mini", join=True, about={"device": "core 1"}):
        holder.kill()
        dead, alive = roll(Folders(tmp_path), "mini")
    assert (dead.post, dead.alive, dead.pid) == ("0", False, holder.pid)
    assert (alive.post, alive.alive, alive.pid, alive.host) == ("1", True, os.getpid(), socket.gethostname())
    assert alive.about == {"device": "core 1"} and dead.since and alive.since and dead.since < alive.since


def test_who_only_looks_is_never_taken_for_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look is to hold a lock for a moment; nobody can enter in that moment."""
    folders = Folders(tmp_path)
    with enter(folders, "mini") as post:
        door = folders.sweep("mini") / "posts" / "door"
        looks = []

        def look(path: Path) -> bool:
            with locked(door, wait=False) as handle:
                looks.append(handle is None)
            return True

        monkeypatch.setattr(locks, "_is_held", look)
        assert holders(folders, "mini") == [str(os.getpid())]
        roll(folders, "mini")
        other = LockedPost(folders, "mini", "7")
        assert (other.dead(), other.others(), post.dead()) == ({}, [str(os.getpid())], {})
    assert looks == [True] * 4


def test_one_asks_at_a_time(tmp_path: Path) -> None:
    with enter(Folders(tmp_path), "mini") as post, post.asking():
        script = (
            "import fcntl, sys\n"
            "try:\n    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
            "except BlockingIOError:\n    print('held')\n"
        )
        import subprocess
        import sys

        words = [sys.executable, "-c", script, str(Folders(tmp_path).sweep("mini") / "asking.lock")]
        assert subprocess.run(words, capture_output=True, text=True, check=True).stdout == "held\n"
