"""stop, clone and pause as commands: what they refuse, what they print, and that a sweep acts on them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from lorasweep import sweeping
from lorasweep.cli import main
from lorasweep.config.home import Folders
from lorasweep.search.study import SweepStudy
from test_main_job import SWEEP
from trackkit import new_folders

WORDS = ["launcher.slots=2", "launcher.threads=1", "sweep.trials=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose sweep `mini` has had two trials; a module's tests only add to it."""
    home = tmp_path_factory.mktemp("home")
    new_folders(home)
    (home / "sweeps").mkdir()
    (home / "sweeps" / "mini.yaml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORASWEEP_HOME", str(home))
        sweeping.start("mini", WORDS, quiet=True)
    return home


@pytest.fixture
def home(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORASWEEP_HOME", str(finished))
    return finished


def first_loss(home: Path, trial: int) -> float:
    lines = (Folders(home).spool("mini") / f"trial-{trial:05d}.jsonl").read_text().splitlines()
    points = [line for line in map(json.loads, lines) if "train/loss" in line.get("m", {})]
    return float(points[0]["m"]["train/loss"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stop", "mini", "0"], "trial 0 of sweep 'mini' has ended already: it is complete"),
        (["stop", "mini", "99"], "has no trial 99; there are 0 to"),
        (["stop", "mimi", "0"], "did you mean `mini`"),
        (["pause", "mini"], "no process works on sweep 'mini': there is nothing to pause"),
        (["clone", "mini", "99"], "has no trial 99"),
        (["clone", "mini", "0", "sampler.seed=3"], "`sampler.seed` is one for the whole sweep"),
        (["clone", "mini", "0", "optimizer.lr=-1"], "`optimizer.lr` must be > 0"),
        (["clone", "mini", "0", "optimizer.rl=1"], "there is no setting `optimizer.rl`"),
        (["clone", "mini", "0", "adapter.r=16", "--warm"], "`adapter.r` changes which weights there are"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    words: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(SweepStudy.load(Folders(home), "mini").records())
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert len(SweepStudy.load(Folders(home), "mini").records()) == before


def test_clones_train_beside_the_budget_and_warm_ones_go_on_from_the_adapter(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["clone", "mini", "0", "train.max_steps=4", "--warm", "--json"]) == 0
    warm = json.loads(capsys.readouterr().out)
    assert main(["clone", "mini", "0", "train.max_steps=4"]) == 0
    assert f"Trial {warm['trial'] + 1} waits for the next free slot" in capsys.readouterr().out
    outcome = sweeping.resume("mini", [], quiet=True)
    rows = {row["trial"]: row for row in outcome.board.rows}
    source, continued, afresh = rows[0], rows[warm["trial"]], rows[warm["trial"] + 1]
    assert continued["params"] == afresh["params"] == {**source["params"], "train.max_steps": 4}
    assert {row["state"] for row in rows.values()} == {"complete"} and len(rows) == 4
    losses = {row["trial"]: first_loss(home, row["trial"]) for row in rows.values()}
    assert losses[afresh["trial"]] == pytest.approx(losses[0], abs=1e-4)  # the same seed, rows and start
    assert losses[continued["trial"]] < losses[0] - 1e-3
    tags = MlflowClient(f"sqlite:///{Folders(home).mlflow_db}").get_run(continued["run_id"]).data.tags
    assert tags["lorasweep.clone_of"] == "0"


def test_an_override_of_a_swept_key_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("sweep", "plan"):
        assert main([command, "mini", "optimizer.lr=0.1"]) == 2
        assert (
            "`optimizer.lr` is swept by `sweep.space`, so its override would change nothing" in capsys.readouterr().err
        )


def test_a_pruner_that_no_trial_would_meet_is_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "mini", "sweep.name=other", "pruner=asha", "pruner.min_samples=96"]) == 2
    message = "`pruner=asha` would never stop a trial: none trains on over 96 samples"
    assert message in capsys.readouterr().err
    assert "other" not in SweepStudy.names(Folders(home))


def test_a_swept_adapter_that_the_base_lacks_is_found_before_anything_is_stored(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "    adapter.targets: choice([query], [nope])\n    adapter.r: choice(2, 4)\n"
    (home / "sweeps" / "wrong.yaml").write_text(SWEEP.replace("    adapter.r: choice(2, 4)\n", space))
    assert main(["sweep", "wrong", "launcher.threads=1"]) == 2
    said = capsys.readouterr().err
    assert "adapter.targets names `nope`" in said and "adapter.targets=['nope']" in said
    assert "wrong" not in SweepStudy.names(Folders(home))


def test_resume_puts_an_override_in_the_place_of_the_old_one(home: Path) -> None:
    sweeping.resume("mini", ["launcher.threads=1", "launcher.slots=1"], quiet=True)
    words = SweepStudy.load(Folders(home), "mini").overrides
    assert [word for word in words if word.startswith("launcher.")] == ["launcher.threads=1", "launcher.slots=1"]
