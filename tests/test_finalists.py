"""Finalists of real sweeps: repeated once each over fresh seeds, whatever gets killed, and unknown to the search."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from lorasweep import finalists, sweeping
from lorasweep.config.home import Folders
from lorasweep.failpoints import VARIABLE
from lorasweep.outcome import Outcome
from lorasweep.search.study import SweepStudy
from lorasweep.stats import mean_interval
from test_main_job import SWEEP
from torturekit import MINI, Left, Nursery, check_agreement, check_same, home_with, left_by
from trackkit import new_folders

pytestmark = pytest.mark.slow
TRIALS, REPEATS = 4, 6
FINAL = MINI.replace("trials: 7", f"trials: {TRIALS}\n  finalists: {{top: 2, seeds: 3}}")
WORDS = ["launcher.slots=2", "launcher.threads=1", "sweep.trials=3", "sweep.finalists.top=2", "sweep.finalists.seeds=2"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    new_folders(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mini.yaml").write_text(SWEEP)
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    return tmp_path


def test_the_best_are_repeated_and_ranked_by_their_mean(home: Path) -> None:
    outcome = sweeping.start("mini", WORDS, quiet=True)
    assert outcome.counts == {"running": 0, "complete": 3, "pruned": 0, "failed": 0}
    found = [row["finalist"] for row in outcome.board.rows if row["finalist"]]
    assert [len(one["values"]) for one in found] == [2, 2] and all(one["seeds"] == [1, 2] for one in found)
    first = outcome.board.rows[0]
    assert first["finalist"]["mean"] == max(one["mean"] for one in found)
    assert first["finalist"]["interval"] == pytest.approx(list(mean_interval(first["finalist"]["values"]) or ()))
    assert first["finalist"]["overstated"] == pytest.approx(first["value"] - first["finalist"]["mean"])
    study = SweepStudy.load(Folders(home), "mini")
    best = finalists.best(study)
    assert best is not None and best.record.trial == first["trial"] and "fresh seeds" in best.why
    left = left_by(home, kind="finalist")
    for number, runs in left.runs.items():
        if number >= 0:
            assert [(run["status"], run["state"]) for run in runs] == [("FINISHED", "complete")]
    for one in found:
        for run_id in one["runs"]:
            assert list(home.glob(f"mlruns/*/{run_id}/artifacts/adapter/adapter_config.json"))
    # one of them is the trial with another seed and nothing else
    point = [f"{key}={value!r}" for key, value in first["params"].items()]
    plain = ["data.demo_rows=240", "train.eval_every_steps=4", "train.log_every_steps=2", "launcher.threads=1"]
    alone = sweeping.train(["model=tiny_encoder", "data=demo_reviews", *plain, *point, "train.seed=2"], quiet=True)
    assert alone.best is not None
    assert alone.best["value"] == pytest.approx(first["finalist"]["values"][1], abs=1e-6)
    again = sweeping.start("mini", WORDS, quiet=True)
    assert again.nothing_to_do and again.board.rows[0]["finalist"] == first["finalist"]
    more = sweeping.start("mini", [*WORDS[:-1], "sweep.finalists.seeds=3"], quiet=True)
    assert not more.nothing_to_do and len(more.board.rows[0]["finalist"]["values"]) == 3


def test_the_search_goes_on_as_if_there_were_none(home: Path) -> None:
    """A larger budget afterwards proposes what it would have proposed."""
    words = ["launcher.slots=1", "launcher.threads=1", "sampler=tpe", "sampler.startup_trials=2", "sweep.trials=3"]
    sweeping.start("mini", [*words, *WORDS[3:]], quiet=True)
    with_them = sweeping.start("mini", [*words[:-1], "sweep.trials=5"], quiet=True)
    plain = sweeping.start("mini", [*words, "sweep.name=plain"], quiet=True)
    plain = sweeping.start("mini", [*words[:-1], "sweep.trials=5", "sweep.name=plain"], quiet=True)

    def points(outcome: Outcome) -> dict[int, tuple[object, float]]:
        return {row["trial"]: (row["params"], row["value"]) for row in outcome.board.rows}

    assert points(with_them) == points(plain) and len(points(plain)) == 5


@pytest.fixture(scope="module")
def whole_home(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = home_with(tmp_path_factory.mktemp("whole") / "home", FINAL)
    nursery.run(home, "sweep", "mini")
    return home


@pytest.fixture(scope="module")
def whole(whole_home: Path) -> tuple[Left, Left]:
    return check(whole_home)


def check(home: Path) -> tuple[Left, Left]:
    """Search and finalists agree each with their runs."""
    search, finals = left_by(home), left_by(home, kind="finalist")
    check_agreement(search, TRIALS)
    assert sorted(finals.trials) == list(range(REPEATS)) == sorted(number for number in finals.runs if number >= 0)
    for number, trial in finals.trials.items():
        (run,) = finals.runs[number]
        assert run["id"] == trial["run_id"] and (run["status"], run["state"]) == ("FINISHED", "complete")
        for points in finals.metrics[number].values():
            assert len({step for step, _ in points}) == len(points)
    return search, finals


def same(left: tuple[Left, Left], whole: tuple[Left, Left]) -> None:
    for one, wanted in zip(left, whole, strict=True):
        check_same(one, Left(wanted.trials, wanted.runs, wanted.metrics, wanted.report))


# the search tells 4 trials and creates 4 runs; what is counted after them is the finalists'
@pytest.mark.torture  # its short twin: test_torture.py; search/test_finals.py
def test_killed_among_its_finalists_a_sweep_ends_like_one_that_was_not(
    nursery: Nursery, whole: tuple[Left, Left], tmp_path: Path
) -> None:
    home = home_with(tmp_path / "home", FINAL)
    for failpoint in ("asked:5", "told:2", "checkpoint-half:2"):
        assert nursery.start(home, "sweep", "mini", **{VARIABLE: failpoint}).wait() == -signal.SIGKILL, failpoint
        assert left_by(home, kind="finalist").trials, "it died in the search"
    nursery.run(home, "sweep", "mini")
    same(check(home), whole)
    assert not list(home.glob("mlruns/lorasweep/sweeps/mini/checkpoints/finalists/*/*"))


def test_two_workers_share_the_finalists(nursery: Nursery, tmp_path: Path) -> None:
    home = home_with(tmp_path / "home", FINAL.replace("slots: 3", "slots: 1"))
    first = nursery.start(home, "sweep", "mini")
    while first.poll() is None and not list(home.glob("mlruns/lorasweep/sweeps/mini/spool/*.jsonl")):
        time.sleep(0.02)
    second = nursery.start(home, "sweep", "mini", "--join")
    assert (first.wait(), second.wait()) == (0, 0), first.output + second.output
    check(home)
    told = [command.output.count("finalist ") for command in (first, second)]
    assert sum(told) >= REPEATS, told


def test_the_leaderboard_says_what_the_first_look_overstated(
    nursery: Nursery, whole: tuple[Left, Left], whole_home: Path
) -> None:
    home = whole_home
    shown = nursery.run(home, "leaderboard", "mini")
    words = " ".join(shown.split())
    assert "seeds' mean" in words and "fresh seeds" in words and "its first look" in words
    document = json.loads(nursery.run(home, "leaderboard", "mini", "--json"))
    assert document["rows"][0]["finalist"]["seeds"] == [1, 2, 3]
    assert "overstated" in nursery.run(home, "leaderboard", "mini", "--csv").splitlines()[0]
