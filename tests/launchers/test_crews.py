"""Several workers on this machine, as a user starts them: the same values as one gives, and whoever is killed, nothing
is lost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from torturekit import MINI, Command, Left, Nursery, check_agreement, check_same, home_with, left_by

pytestmark = pytest.mark.slow
TRIALS = 6
SLOW = MINI.replace("trials: 7", f"trials: {TRIALS}").replace("kind: tpe, startup_trials: 3", "kind: random").replace(
    "slots: 3", "slots: 1, threads: 1, heartbeat_seconds: 2"
)  # fmt: skip


@pytest.fixture(scope="module")
def alone(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Left:
    """What one worker leaves."""
    home = home_with(tmp_path_factory.mktemp("alone") / "home", SLOW)
    nursery.run(home, "sweep", "mini")
    return left_by(home)


def workers_of(nursery: Nursery, home: Path, command: Command, count: int) -> list[dict]:
    """The living workers once there are so many, each with a trial."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert command.poll() is None, command.output
        look = nursery.start(home, "workers", "mini", "--json")
        if look.wait() == 0:  # the study is there
            found = [one for one in json.loads(look.out)["workers"] if one["state"] == "training"]
            if len(found) == count:
                return found
        time.sleep(0.1)
    raise AssertionError(command.output)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not all(is_gone(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlived its command"
        time.sleep(0.1)


def test_two_workers_give_the_values_of_one_whoever_dies(nursery: Nursery, alone: Left, tmp_path: Path) -> None:
    home = home_with(tmp_path / "home", SLOW)
    command = nursery.start(home, "sweep", "mini", "launcher.workers=2")
    first, second = workers_of(nursery, home, command, 2)
    assert {first["post"], second["post"]} == {"0", "1"} and first["pid"] != second["pid"]
    assert first["device"].startswith("core") and first["silent_seconds"] is not None and first["since"]
    command.send(signal.SIGKILL)  # its workers save and leave with it
    wait_until_gone([first["pid"], second["pid"]])
    assert "No process works on sweep mini" in nursery.run(home, "workers", "mini")
    command = nursery.start(home, "resume", "mini")  # with two again
    first, second = workers_of(nursery, home, command, 2)
    os.kill(second["pid"], signal.SIGKILL)
    while "was killed by SIGKILL" not in command.output:
        assert command.poll() is None, command.output
        time.sleep(0.05)
    assert "it is started again" in command.output
    command.send(signal.SIGINT)
    assert command.wait() == 130, command.output
    assert "saved" in command.output and "lorasweep resume mini" in command.output
    assert is_gone(first["pid"])
    nursery.run(home, "resume", "mini", "launcher.workers=1")
    left = left_by(home)
    check_agreement(left, TRIALS)
    check_same(left, alone)
