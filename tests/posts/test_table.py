"""Posts as rows of a real PostgreSQL: who is alive, who is gone, whose post another has taken."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from clusterkit import Postgres, postgres
from lorasweep.config.home import Folders
from lorasweep.database import StudiesAway
from lorasweep.errors import StorageError
from lorasweep.posts import enter, holders, roll

HOLDER = """
    import sys
    from pathlib import Path
    from lorasweep.config.home import Folders
    from lorasweep.posts import enter
    with enter(Folders(Path(sys.argv[1]), studies=sys.argv[2]), "mini", join=True) as post:
        assert post.beat(float(sys.argv[3]))
        print(post.name, flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def folders(postgres_server: Postgres, tmp_path: Path) -> Folders:
    return Folders(tmp_path, studies=postgres_server.make_database(f"posts_{secrets.token_hex(4)}"))


class Holder:
    """A process at a post, which counts as alive for so many seconds after its last sign."""

    def __init__(self, folders: Folders, grace_seconds: float = 60.0):
        words = [sys.executable, "-c", textwrap.dedent(HOLDER), str(folders.tracking), folders.studies or ""]
        self.process = subprocess.Popen(
            [*words, str(grace_seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.post = self.process.stdout.readline().strip()

    def leave(self) -> None:
        self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate(timeout=60)


def test_one_sweep_has_one_process_unless_it_joins(folders: Folders) -> None:
    holder = Holder(folders)
    with (
        pytest.raises(StorageError, match=rf"process {holder.process.pid} on \S+ is training sweep mini .* --join"),
        enter(folders, "mini"),
    ):
        pass
    with enter(folders, "mini", join=True) as post, enter(folders, "other") as elsewhere:
        assert (holder.post, post.name) == ("0", "1") and not post.alone and post.dead() == {}
        assert elsewhere.alone  # another sweep's posts are none of its
        assert [words.partition(" ")[0] for words in post.others()] == [str(holder.process.pid)]
        assert len(holders(folders, "mini")) == 2
        holder.leave()
        assert list(post.dead()) == ["0"] and post.others() == []
        assert post.dead()["0"].checkpoints.folder == folders.sweep("mini") / "checkpoints" / "0"
    assert holders(folders, "mini") == []
    with enter(folders, "mini") as again:
        assert again.name == "0" and list(again.dead()) == ["1"]


def test_a_killed_process_is_gone_after_its_grace(folders: Folders) -> None:
    holder = Holder(folders, grace_seconds=1.0)
    with enter(folders, "mini", join=True) as post:
        holder.kill()
        assert post.dead() == {}  # it may only be slow
        while not post.dead():
            time.sleep(0.05)
        assert list(post.dead()) == ["0"]
        with enter(folders, "mini", join=True) as heir:
            assert heir.name == "0" and post.dead() == {}


def test_a_killed_process_of_this_host_blocks_nobody(folders: Folders) -> None:
    holder = Holder(folders, grace_seconds=600.0)
    holder.kill()
    with enter(folders, "mini") as post:  # the same command again, at once
        assert post.name == "0" and post.dead() == {}


def test_a_zombie_finds_its_post_taken(folders: Folders) -> None:
    with enter(folders, "mini") as zombie:
        assert zombie.alone and zombie.beat(0.0)  # as if its last sign were long ago
        with enter(folders, "mini") as heir:
            assert heir.name == zombie.name
            assert heir.held() and not zombie.held() and not zombie.beat(60.0)
            assert not zombie.alone  # so that it looks who trains its trials
            with pytest.raises(StorageError, match="another worker took its post"), zombie.asking():
                pass
            with heir.asking():
                pass
    assert holders(folders, "mini") == []


def test_one_asks_at_a_time(folders: Folders) -> None:
    with enter(folders, "mini") as post, enter(folders, "mini", join=True) as other:
        code = (
            "import sys; from pathlib import Path; from lorasweep.database import one_at_a_time;"
            "from lorasweep.config.home import Folders\n"
            "with one_at_a_time(Folders(Path('.'), studies=sys.argv[1]), 'ask mini'): print('in', flush=True)"
        )
        with post.asking():
            asks = subprocess.Popen(
                [sys.executable, "-c", code, folders.studies or ""], stdout=subprocess.PIPE, text=True
            )
            with pytest.raises(subprocess.TimeoutExpired):
                asks.wait(2)
        assert asks.communicate(timeout=30)[0] == "in\n"
        with other.asking():
            pass


@pytest.mark.slow
def test_a_database_that_goes_and_comes_back(tmp_path: Path) -> None:
    with postgres() as server:
        folders = Folders(tmp_path, studies=server.url)
        with enter(folders, "mini") as post:
            server.stop()
            for asked in (post.held, post.others, lambda: post.beat(1.0)):
                with pytest.raises(StudiesAway, match=r"does not answer.*start the server"):
                    asked()
            with pytest.raises(StudiesAway), post.asking():
                pass
            server.start()
            assert post.held() and post.beat(60.0)
            with pytest.raises(StudiesAway), post.asking():
                server.restart()  # the lock is gone, and with it the certainty that nobody else asked
            assert post.held()


def test_the_roll_says_who_is_where(folders: Folders) -> None:
    assert roll(folders, "mini") == []
    holder = Holder(folders)
    with enter(folders, "mini", join=True, about={"device": "core 1"}) as post:
        assert post.name == "1"
        holder.leave()
        gone, here = roll(folders, "mini")
    assert (gone.post, gone.alive, gone.pid) == ("0", False, holder.process.pid)
    assert (here.post, here.alive, here.pid, here.host) == ("1", True, os.getpid(), socket.gethostname())
    assert here.about == {"device": "core 1"} and here.since and here.silent_seconds is not None
