"""What a sweep's search and its resume refuse, at the command line: the message, the exit code, and nothing stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasweep import cli
from lorasweep.config.home import Folders
from lorasweep.posts import enter
from lorasweep.search.study import SweepStudy
from test_bad_input import home, nothing_stored, refused, write_sweep

pytestmark = pytest.mark.slow  # every refusal composes a config or two

__all__ = ["home"]
TWO = "sweep.objectives=[{metric: eval/f1, direction: maximize}, {metric: samples, direction: minimize}]"

SPACES = {
    "a condition on nothing": (
        "{adapter.r: {when: adapter=lora, values: 'choice(4, 8)'}}",
        "`adapter` is not in the space; add it",
    ),
    "a condition that never holds": (
        "{adapter: 'choice(lora, full)', adapter.r: {when: adapter=loar, values: 'choice(4, 8)'}}",
        "exists when adapter is 'loar', which it never is",
    ),
    "a condition on an interval": (
        "{optimizer.lr: 'interval(0.1, 1)', adapter.r: {when: optimizer.lr=0.5, values: 'choice(4, 8)'}}",
        "depends on `optimizer.lr`, an interval",
    ),
    "conditions in a ring": (
        "{adapter.r: {when: train.seed=1, values: 'choice(4, 8)'}, "
        "train.seed: {when: adapter.r=4, values: 'choice(0, 1)'}}",
        "adapter.r, train.seed depend on each other",
    ),
    "no condition": ("{adapter.r: {when: lora, values: 'choice(4, 8)'}}", "no condition"),
    "a condition without values": ("{adapter.r: {when: adapter=lora}}", "must be text or a list"),
}
WORDS = {
    "threshold without one": (("pruner=threshold",), "needs `pruner.lower` or `pruner.upper`"),
    "thresholds crossed": (("pruner=threshold", "pruner.lower=2", "pruner.upper=1"), "must be <= `pruner.upper`"),
    "hyperband without a rung": (("pruner=hyperband", "pruner.max_samples=200"), "must be > `pruner.min_samples`"),
    "wilcoxon that never judges": (("pruner=wilcoxon", "pruner.rows=10"), "`pruner.startup_rows` (30) must be <="),
    "a factor of one": (("pruner=asha", "pruner.factor=1"), "`pruner.factor` must be >= 2"),
    "an unknown pruner": (("pruner=asah",), "did you mean `asha`"),
    "a pruner that no trial meets": (("pruner=asha",), "`pruner=asha` would never stop a trial"),
    "a pruner of several objectives": ((TWO, "pruner=asha"), "compares one objective"),
    "a sampler of several objectives": ((TWO, "sampler=cmaes"), "knows one objective"),
    "an objective twice": (("sweep.objectives=[{metric: eval/f1}, {metric: eval/f1}]",), "names a metric twice"),
    "a constraint that is none": (("sweep.constraints=['samples < 5']",), "write NAME <= NUMBER"),
    "a constraint on nothing": (("sweep.constraints=['param <= 3']",), "names 'param', which is never logged"),
    "cost without a price": (("sweep.constraints=['cost <= 3']",), "set tracking.price_per_hour"),
    "a start from nothing": (("sweep.warm_start=[other]",), "there is no sweep 'other'"),
    "a start from itself": (("sweep.warm_start=[mine]",), "names 'mine', the sweep itself"),
    "a list without points": (("sampler=list",), "sweep.enqueue"),
    "no trials": (("sweep.trials=0",), "`sweep.trials` must be > 0"),
    "no samples": (("sweep.total_samples=0",), "`sweep.total_samples` must be > 0"),
    "no time": (("sweep.timeout_seconds=0",), "`sweep.timeout_seconds` must be > 0"),
    "failures below zero": (("sweep.max_failures=-1",), "`sweep.max_failures` must be >= 0"),
    "no heartbeat": (("launcher.heartbeat_seconds=0",), "`launcher.heartbeat_seconds` must be >= 1"),
    "checkpoints all the time": (("train.checkpoint_every_seconds=0",), "`train.checkpoint_every_seconds` must be > 0"),
    "a fork of nothing": (("--fork", "finer"), "there is no sweep 'mine'"),
    "a fork out of its folder": (("--fork", "../finer"), "must start with a letter or digit"),
}
COMMANDS = {
    "resume": ("resume", "mine"),
    "resume beside others": ("resume", "mine", "--join"),
    "pause": ("pause", "mine"),
    "stop": ("stop", "mine", "0"),
    "clone": ("clone", "mine", "0", "optimizer.lr=1e-3"),
}


@pytest.mark.parametrize("name", SPACES)
def test_conditional_spaces(name: str, home: Path, capsys: pytest.CaptureFixture) -> None:
    space, message = SPACES[name]
    write_sweep(home, space)
    assert message in refused(capsys, "sweep", "mine")
    assert nothing_stored(home)


@pytest.mark.parametrize("name", WORDS)
def test_search_and_resume_settings(name: str, home: Path, capsys: pytest.CaptureFixture) -> None:
    words, message = WORDS[name]
    write_sweep(home)
    said = refused(capsys, "sweep", "mine", *words)
    assert message in said, said
    assert nothing_stored(home)


def test_a_grid_of_an_interval(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home, "{optimizer.lr: 'interval(1e-4, 1e-2)'}")
    assert "`optimizer.lr`" in refused(capsys, "sweep", "mine", "sampler=grid")
    assert nothing_stored(home)


@pytest.mark.slow
def test_a_plan_counts_the_points_that_there_are(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home, more="  enqueue: [{adapter.r: 2}, {adapter.r: 4}, {adapter.r: 2}]\n")
    for words, trials in ((("sampler=list",), 3), (("sampler=grid", "sweep.trials=9", "sweep.enqueue=[]"), 2)):
        assert cli.main(["plan", "mine", *words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["trials"] == trials


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_on_what_never_ran(name: str, home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home)
    assert "there is no sweep 'mine'" in refused(capsys, *COMMANDS[name])
    assert nothing_stored(home)


def test_trial_numbers_that_are_none(capsys: pytest.CaptureFixture) -> None:
    for words in (["stop", "mine", "first"], ["stop", "mine", "-1"], ["clone", "mine", "1.5"]):
        assert "TRIAL" in refused(capsys, *words)


def test_a_failpoint_that_is_none_is_told_before_anything_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorasweep import failpoints
    from lorasweep.errors import UsageError

    with pytest.raises(UsageError, match=r"told-twice: write NAME, NAME:N or NAME:N:SECONDS with one of asked, "):
        failpoints.arm("told-twice")
    assert UsageError.exit_code == 2


def test_a_sweep_that_another_process_holds(
    home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what a changed sweep or base, a taken name and an unknown trial are told, in one stored sweep."""
    import os

    write_sweep(home)
    assert cli.main(["sweep", "mine", "--json"]) == 0
    capsys.readouterr()
    with enter(Folders(home), "mine"):
        for command in ("sweep", "resume"):
            said = refused(capsys, command, "mine", "sweep.trials=3", rc=1)
            assert f"process {os.getpid()} is training sweep mine at this moment" in said and "--join" in said
    said = refused(capsys, "sweep", "mine", "train.max_steps=3")
    assert "was started as another sweep (was -> now)" in said and "train.max_steps: 2 -> 3" in said
    assert "--fork NEWNAME" in said and "`lorasweep resume mine`" in said
    said = refused(capsys, "resume", "mine", "sweep.name=other")
    assert "name another sweep, 'other', and resume goes on with 'mine'" in said
    with monkeypatch.context() as patch:
        patch.setattr("lorasweep.models.unchanged.base_here", lambda model: "another")
        said = refused(capsys, "resume", "mine", "sweep.trials=3")
    assert "base_fingerprints.builtin:tiny_encoder: " in said and " -> 'another'" in said
    assert SweepStudy.names(Folders(home)) == ["mine"]
    assert "there is a sweep 'mine' already" in refused(capsys, "sweep", "mine", "--fork", "mine")
    assert "has no trial 9; there are 0 to 1" in refused(capsys, "stop", "mine", "9")
    assert "trial 0 of sweep 'mine' has ended already: it is complete" in refused(capsys, "stop", "mine", "0")
    assert "has no trial 9" in refused(capsys, "clone", "mine", "9")
    assert "no process works on sweep 'mine': there is nothing to pause" in refused(capsys, "pause", "mine")


@pytest.mark.parametrize("command", ["leaderboard", "report", "ui", "workers", "pause"])
def test_an_override_that_would_change_nothing_is_refused(
    command: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, command, "mine", "adapter.r=4")
    assert f"`adapter.r=4` would change nothing: {command} is about what is stored" in said
    assert "would change nothing" not in refused(capsys, command, "mine", "tracking.dir=.")  # there is no such sweep
    assert "there is no setting" in refused(capsys, command, "mine", "adapter.rr=4")
