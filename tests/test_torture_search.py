"""Killed sweeps that prune, stop and clone: they end like the same sweep that was never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasweep.config.home import Folders
from lorasweep.search.study import SweepStudy
from test_torture import TRIALS, finish, kill_after, kill_at, run_whole
from torturekit import MINI, Nursery, check_agreement, check_same, home_with, left_by

PRUNED = MINI.replace("sampler:", "pruner: {kind: asha, min_samples: 16, factor: 2, eval_rows: 8}\nsampler:")


@pytest.mark.slow
def test_a_pruned_sweep_killed_at_the_worst_places_ends_like_one_that_was_not(nursery: Nursery, tmp_path: Path) -> None:
    whole = run_whole(nursery, tmp_path / "whole", PRUNED)
    states = [trial["state"] for trial in whole.left.trials.values()]
    assert 0 < states.count("pruned") < TRIALS
    home, killed = home_with(tmp_path / "home", PRUNED), []
    for failpoint in ("judged:1", "judged:3", "asked:4", "run-ended:1", "told:1", "checkpoint-half:3", "judged:2"):
        kill_at(nursery, home, failpoint, killed)
    kill_after(nursery, home, whole.seconds_to_training * 0.5 + 0.4, killed, whole.spooled // 2)
    assert sum("reached" not in kill for kill in killed[:-1]) >= 5, killed
    finish(nursery, home, whole, killed)


@pytest.mark.torture  # its short twin: the pruned sweep above; clones: test_control.py
def test_a_warm_clone_killed_in_the_middle_ends_like_one_that_was_not(nursery: Nursery, tmp_path: Path) -> None:
    homes = [home_with(tmp_path / name) for name in ("whole", "killed")]
    for home in homes:
        nursery.run(home, "sweep", "mini")
        complete = [record.trial for record in SweepStudy.load(Folders(home), "mini").records() if record.value]
        nursery.run(home, "clone", "mini", str(complete[0]), "--warm", "train.max_steps=13")
        nursery.run(home, "clone", "mini", str(complete[1]), "optimizer.lr=2e-3", "train.max_steps=13")
    nursery.run(homes[0], "resume", "mini")
    killed: list[str] = []
    for failpoint in ("asked:1", "asked:2", "checkpoint-whole:2"):
        kill_at(nursery, homes[1], failpoint, killed)
    nursery.run(homes[1], "resume", "mini")
    left, whole = left_by(homes[1]), left_by(homes[0])
    check_agreement(left, TRIALS + 2)
    check_same(left, whole)


@pytest.mark.torture  # its short twin: worker/test_loop.py
def test_pause_stops_a_sweep_of_another_process_and_resume_goes_on(nursery: Nursery, tmp_path: Path) -> None:
    home = home_with(tmp_path / "home", MINI.replace("range(5, 17, 4)", "range(200, 208, 4)"))
    running = nursery.start(home, "sweep", "mini")
    while len(list(home.glob("mlruns/lorasweep/sweeps/mini/spool/*.jsonl"))) < 3:
        nursery.listen(0.05)
    assert "Trial 1 ends as pruned at its worker's next turn." in nursery.run(home, "stop", "mini", "1")
    assert "saves its trials and leaves" in nursery.run(home, "pause", "mini")
    assert running.wait() == 130, running.output
    assert "sweep mini is paused and saved" in running.output and "Traceback" not in running.output
    records = SweepStudy.load(Folders(home), "mini").records()
    assert {record.trial for record in records if record.state == "running"} >= {0, 2}
    assert records[1].state == "pruned" and records[1].reason is not None
    assert "no process works on sweep 'mini'" in nursery.run(home, "pause", "mini", code=2)
    nursery.run(home, "resume", "mini", "sweep.trials=3")
    left = left_by(home)
    check_agreement(left, len(left.trials))
    assert {trial["state"] for trial in left.trials.values()} == {"complete", "pruned"}
