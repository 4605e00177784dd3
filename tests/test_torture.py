"""Sweeps that are killed with SIGKILL again and again, against the same sweep that was never stopped.

The short version runs with the other tests; `make torture` runs the long one. A failure names its kills and its seed.
"""

from __future__ import annotations

import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorasweep.checkpoint import Checkpoints
from lorasweep.failpoints import NAMES, VARIABLE
from lorasweep.tracking.spool import is_settled
from smalldisk import small_disk
from torturekit import MINI, OWN, Command, Left, Nursery, check_agreement, check_same, home_with, left_by

TRIALS = 7
ALONE = MINI.replace("slots: 3", "slots: 1")
# two bases in turn, so that packs come and go, with trials that wait for a free slot of theirs
TWO_BASES = MINI.replace("  space:\n", "  space:\n    model: choice(tiny_encoder, tiny_gpt2)\n")
# losers leave at rungs that lie between evaluations
PRUNED = MINI.replace("sampler:", "pruner: {kind: asha, min_samples: 20, factor: 2}\nsampler:")


@dataclass
class Whole:
    """A sweep that was never stopped, the characters that it spooled, and the seconds that it took: in all, and until
    it trained."""

    left: Left
    spooled: int
    seconds: float
    seconds_to_training: float


def spooled(home: Path) -> str:
    return "".join(path.read_text() for path in home.glob("mlruns/lorasweep/sweeps/*/spool/*.jsonl"))


def trains(home: Path) -> bool:
    return '"train/loss"' in spooled(home)


def run_whole(nursery: Nursery, folder: Path, sweep: str) -> Whole:
    home = home_with(folder, sweep)
    started = time.monotonic()
    command = nursery.start(home, "sweep", "mini")
    while command.poll() is None and not trains(home):
        time.sleep(0.02)
    to_training = time.monotonic() - started
    assert command.wait() == 0, command.output
    left = left_by(home)
    check_agreement(left, TRIALS)
    return Whole(left, len(spooled(home)), time.monotonic() - started, to_training)


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return run_whole(nursery, tmp_path_factory.mktemp("whole") / "home", MINI)


def finish(nursery: Nursery, home: Path, whole: Whole, killed: list[str]) -> None:
    """Let it end, and compare."""
    print("killed:", ", ".join(killed))  # shown where the test fails
    nursery.run(home, "sweep", "mini")
    left = left_by(home)
    check_agreement(left, TRIALS)
    check_same(left, whole.left)
    assert not list(home.glob("mlruns/lorasweep/sweeps/mini/checkpoints/*/*")), "the checkpoints of an ended sweep stay"
    assert not list(home.rglob("*.part"))


def kill_at(nursery: Nursery, home: Path, failpoint: str, killed: list[str]) -> None:
    code = nursery.start(home, "sweep", "mini", **{VARIABLE: failpoint}).wait()
    assert code in (0, -signal.SIGKILL), f"{failpoint}: {code}"
    killed.append(failpoint if code else f"{failpoint} (not reached)")


def kill_after(
    nursery: Nursery, home: Path, seconds: float, killed: list[str], most: int, training: bool = False
) -> None:
    """Kill so many seconds after the start, or with `training` after something new was reported; earlier where `most`
    characters of it were: whatever else the machine does, much is left for the next kill."""
    before = len(spooled(home))
    command = nursery.start(home, "sweep", "mini")
    while training and command.poll() is None and len(spooled(home)) == before:
        time.sleep(0.01)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and len(spooled(home)) < before + most:
        time.sleep(0.002)
    command.send(signal.SIGKILL)
    code = command.wait()
    assert code in (0, -signal.SIGKILL), command.output
    moment = f"{'training + ' if training else ''}{seconds:.3f} s"
    killed.append(moment if code else f"{moment} (had ended)")


def test_a_sweep_killed_at_the_worst_places_ends_like_one_that_was_not(
    nursery: Nursery, whole: Whole, tmp_path: Path
) -> None:
    home, killed = home_with(tmp_path / "home"), []
    for failpoint in ("run-created:2", "asked:4", "checkpoint-half:3", "run-ended:1", "told:1"):
        kill_at(nursery, home, failpoint, killed)
    assert not any("reached" in kill for kill in killed), killed
    finish(nursery, home, whole, killed)


@pytest.mark.slow
def test_a_kill_after_the_last_trial_leaves_the_sweeps_own_end_to_the_next_start(
    nursery: Nursery, whole: Whole, tmp_path: Path
) -> None:
    home, killed = home_with(tmp_path / "home"), []
    for failpoint in ("trials-told:1", "sweep-ended:1"):
        kill_at(nursery, home, failpoint, killed)
        left = left_by(home)
        assert {trial["state"] for trial in left.trials.values()} == {"complete"} and not left.report
        assert left.runs[OWN][0]["status"] == ("RUNNING" if failpoint == "trials-told:1" else "FINISHED")
    finish(nursery, home, whole, killed)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same(
    nursery: Nursery, whole: Whole, tmp_path: Path
) -> None:
    home = home_with(tmp_path / "home")
    killed: list[str] = []
    kill_at(nursery, home, "told:2", killed)
    kill_at(nursery, home, "checkpoint-whole:3", killed)
    newest = max(home.glob("mlruns/lorasweep/sweeps/mini/checkpoints/0/*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-100])
    command = nursery.start(home, "resume", "mini")
    assert command.wait() == 0
    said = command.output.replace("\n", " ").replace("  ", " ")  # wrapped to a terminal's width
    assert newest.name[:40] in said.replace(" ", "") and "the one before it is taken" in said
    left = left_by(home)
    check_agreement(left, TRIALS)
    check_same(left, whole.left)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_ctrl_c_and_sigterm_save_everything_and_leave_with_130(
    nursery: Nursery, whole: Whole, tmp_path: Path, number: signal.Signals
) -> None:
    home = home_with(tmp_path / "home")
    random_moments = random.Random(int(number))
    killed = []
    for _ in range(2 if number == signal.SIGINT else 1):
        before = len(spooled(home))
        command = nursery.start(home, "sweep", "mini")
        while command.poll() is None and len(spooled(home)) == before:
            time.sleep(0.02)
        time.sleep((whole.seconds - whole.seconds_to_training) / 5 * random_moments.random())
        command.send(number)
        if command.wait() == 0:
            break
        killed.append(command.output)
        assert command.poll() == 130, command.output
        assert "Traceback" not in command.output
        if "interrupted and saved" in command.output:
            assert "`lorasweep resume mini`" in command.output
    assert killed
    finish(nursery, home, whole, [])


@pytest.mark.slow
def test_a_second_ctrl_c_stops_inside_the_save_and_the_checkpoint_before_it_is_whole(
    nursery: Nursery, tmp_path: Path
) -> None:
    long = MINI.replace("trials: 7", "trials: 3").replace("range(5, 17, 4)", "range(100, 108, 4)")
    home = home_with(tmp_path / "home", long.replace("checkpoint_every_seconds: 0.2", "checkpoint_every_seconds: 1000"))
    saved = home / "mlruns/lorasweep/sweeps/mini/checkpoints/0"
    command = nursery.start(home, "sweep", "mini", **{VARIABLE: "checkpoint-half:2:300"})
    wait_for(lambda: trains(home), command)  # what is saved before that is the start of all three trials
    command.send(signal.SIGINT)
    wait_for((saved / "new.part").exists, command)
    time.sleep(0.2)  # into the middle of it
    command.send(signal.SIGINT)
    assert command.wait(30) == 130, command.output
    assert "stopped at once" in command.output and "Traceback" not in command.output
    assert [path.name[:6] for path in saved.iterdir()] == ["000001"]  # no half file
    found = Checkpoints(saved).load()
    assert found is not None and found.notes == [] and found.state["last_asked"] == 2
    nursery.run(home, "resume", "mini")
    check_agreement(left_by(home), 3)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 40 MiB."""
    with small_disk(tmp_path / "disk", "40m") as mounted:
        if not mounted:
            pytest.skip("needs to mount a file system; tests/test_checkpoint.py fills one without")
        yield tmp_path / "disk"


def wait_for(condition: Callable[[], bool], command: Command) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert command.poll() is None and time.monotonic() < deadline, command.output
        time.sleep(0.01)


@pytest.mark.slow
def test_a_full_disk_pauses_the_sweep_and_leaves_no_half_file(nursery: Nursery, whole: Whole, disk: Path) -> None:
    home = home_with(disk / "home")
    command = nursery.start(home, "sweep", "mini")
    wait_for(lambda: trains(home), command)
    with (disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(b"x" * 4096)
    assert command.wait() == 1, command.output
    assert "sweep mini is paused" in command.output and "Make room" in command.output
    assert "`lorasweep resume mini`" in command.output and "Traceback" not in command.output
    assert not list(home.glob("mlruns/lorasweep/sweeps/mini/checkpoints/*/*.part"))
    (disk / "filler").unlink()
    finish(nursery, home, whole, ["full disk"])


@pytest.mark.slow
def test_a_database_that_is_locked_for_a_while_stops_no_training(
    nursery: Nursery, whole: Whole, tmp_path: Path
) -> None:
    home = home_with(tmp_path / "home")
    command = nursery.start(home, "sweep", "mini")
    wait_for(lambda: trains(home), command)
    spool = home / "mlruns" / "lorasweep" / "sweeps" / "mini" / "spool"
    with closing(sqlite3.connect(home / "mlflow.db", timeout=60, isolation_level=None)) as other:
        other.execute("begin immediate")
        wait_for(lambda: any('"end"' in path.read_text() for path in spool.glob("*.jsonl")), command)
        ended = [path for path in spool.glob("*.jsonl") if '"end"' in path.read_text()]
        assert not all(is_settled(spool, int(path.stem[-5:])) for path in ended)  # MLflow does not know yet
        other.execute("rollback")
    assert command.wait() == 0, command.output
    left = left_by(home)
    check_agreement(left, TRIALS)


@pytest.mark.torture  # waits for MLflow's own patience; the shorter one above runs always
@pytest.mark.slow
def test_a_database_that_stays_locked_gets_everything_at_the_next_start(nursery: Nursery, tmp_path: Path) -> None:
    home = home_with(tmp_path / "home", MINI.replace("trials: 7", "trials: 3"))  # as many as slots: no run to make
    command = nursery.start(home, "sweep", "mini")
    spool = home / "mlruns" / "lorasweep" / "sweeps" / "mini" / "spool"
    wait_for(lambda: sum('"train/loss"' in path.read_text() for path in spool.glob("*.jsonl")) == 3, command)
    with closing(sqlite3.connect(home / "mlflow.db", timeout=60, isolation_level=None)) as other:
        other.execute("begin immediate")
        assert command.wait() == 1, command.output
        assert "database is locked" in command.output
        other.execute("rollback")
    assert {trial["state"] for trial in left_by(home).trials.values()} == {"complete"}  # training went on to its end
    assert "All is done" in nursery.run(home, "resume", "mini")
    check_agreement(left_by(home), 3)


MANY = MINI.replace("trials: 7", "trials: 9").replace("slots: 3", "slots: 2")


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed(nursery: Nursery, tmp_path: Path) -> None:
    home = home_with(tmp_path / "home", MANY)
    first = nursery.start(home, "sweep", "mini")
    wait_for(lambda: trains(home), first)
    refused = nursery.run(home, "sweep", "mini", code=1)
    assert f"process {first.pid} is training sweep mini" in refused and "--join" in refused
    second = nursery.start(home, "sweep", "mini", "--join")
    wait_for((home / "mlruns/lorasweep/sweeps/mini/checkpoints/1").is_dir, second)
    first.send(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert second.wait() == 0, second.output
    left = left_by(home)
    check_agreement(left, 9)  # those of the dead one too
    assert {trial["state"] for trial in left.trials.values()} == {"complete"}
    assert "All is done" in nursery.run(home, "resume", "mini")
    assert left_by(home) == left


@pytest.mark.slow
def test_a_worker_with_nothing_to_start_takes_over_what_one_that_dies_later_leaves(
    nursery: Nursery, tmp_path: Path
) -> None:
    home = home_with(tmp_path / "home", MANY.replace("trials: 9", "trials: 3"))
    first = nursery.start(home, "sweep", "mini", **{VARIABLE: "metrics-spooled:1:100"})  # halts with trials 0 and 1
    wait_for(lambda: '"eval/loss"' in spooled(home), first)
    second = nursery.start(home, "sweep", "mini", "--join")
    wait_for(lambda: "nothing is left to start here" in second.output, second)
    assert f"trials 0, 1 train in process {first.pid}" in second.output.replace("\n", " ")
    assert [trial["state"] for trial in left_by(home).trials.values()] == ["running", "running", "complete"]
    first.send(signal.SIGKILL)
    assert second.wait() == 0, second.output
    said = second.output.replace("\n", " ")
    assert all(f"trial {number} was left by its worker; it goes on here from step" in said for number in (0, 1))
    left = left_by(home)
    check_agreement(left, 3)
    assert {trial["state"] for trial in left.trials.values()} == {"complete"}


@pytest.mark.torture  # its short twin: search/test_leases.py
def test_a_worker_that_hangs_loses_its_trials_and_changes_nothing_when_it_wakes(
    nursery: Nursery, tmp_path: Path
) -> None:
    """Not a signal: GNU timeout and others above a stopped process let it go on. The failpoint halts all threads."""
    home = home_with(tmp_path / "home", MANY.replace("{slots: 2}", "{slots: 2, heartbeat_seconds: 1}"))
    hung = nursery.start(home, "sweep", "mini", **{VARIABLE: "metrics-spooled:1:25"})
    wait_for(lambda: '"eval/loss"' in spooled(home), hung)
    held = {number for number, trial in left_by(home).trials.items() if trial["state"] == "running"}
    time.sleep(5)  # longer than four heartbeats
    other = nursery.start(home, "sweep", "mini", "--join")
    assert other.wait(200) == 0, other.output
    assert hung.wait(200) == 0, hung.output
    said = hung.output.replace("\n", " ")
    assert held == {0, 1} and all(f"trial {number} was taken over by another worker" in said for number in held)
    left = left_by(home)
    check_agreement(left, 9)
    assert {trial["state"] for trial in left.trials.values()} == {"complete"}


# -- the long version: make torture ---------------------------------------------------------------------------------

KILLS = 20  # of one sweep, at random moments
SEEDS = (1, 2)


def varied(base: str, slots: int, seed: int) -> str:
    """A sweep that prunes, over a base, with so many slots and a seed for points and training."""
    text = PRUNED.replace("tiny_encoder", base).replace("slots: 3", f"slots: {slots}")
    return text.replace("sampler: {", f"sampler: {{seed: {seed}, ").replace("train: {", f"train: {{seed: {seed}, ")


@pytest.fixture(scope="module")
def whole_pruned(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return run_whole(nursery, tmp_path_factory.mktemp("pruned") / "home", PRUNED)


@pytest.mark.torture
@pytest.mark.parametrize("failpoint", NAMES)
def test_torture_at_every_failpoint(nursery: Nursery, whole_pruned: Whole, tmp_path: Path, failpoint: str) -> None:
    home, killed = home_with(tmp_path / "home", PRUNED), []
    for times in (1, 2, 3, 1, 4):
        kill_at(nursery, home, f"{failpoint}:{times}", killed)
    assert any("not reached" not in kill for kill in killed), killed
    finish(nursery, home, whole_pruned, killed)


@pytest.mark.torture
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("base", ["tiny_encoder", "tiny_gpt2"])
def test_torture_at_random_moments(nursery: Nursery, tmp_path: Path, base: str, slots: int, seed: int) -> None:
    torture(nursery, tmp_path, varied(base, slots, seed), seed)


@pytest.mark.torture
@pytest.mark.parametrize("sweep", [MINI, ALONE, TWO_BASES], ids=["packed", "alone", "two bases"])
def test_torture_without_pruning(nursery: Nursery, tmp_path: Path, sweep: str) -> None:
    torture(nursery, tmp_path, sweep, seed=0)


def torture(nursery: Nursery, folder: Path, sweep: str, seed: int) -> None:
    """Kill a sweep KILLS times at random moments and compare it with one that was never stopped."""
    whole = run_whole(nursery, folder / "whole", sweep)
    home, killed = home_with(folder / "home", sweep), []
    moments = random.Random(seed)
    training = whole.seconds - whole.seconds_to_training
    for _ in range(KILLS):
        most = whole.spooled // (2 * KILLS)
        if moments.random() < 0.3:
            kill_after(nursery, home, whole.seconds_to_training * moments.random(), killed, most)
        else:
            kill_after(nursery, home, moments.random() * training / (2 * KILLS), killed, most, training=True)
    assert not any("had ended" in kill for kill in killed), killed
    finish(nursery, home, whole, killed)
