"""Going on with something changed is refused with the difference, or a new sweep with --fork; failing on stops."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasweep import sweeping
from lorasweep.cli import main
from lorasweep.config.home import Folders
from lorasweep.errors import TooManyFailures, UsageError
from lorasweep.search.study import SweepStudy
from test_main_job import SWEEP
from trackkit import new_folders

pytestmark = pytest.mark.slow
WORDS = ["launcher.slots=2", "data.demo_rows=80", "sweep.trials=2", "sampler=tpe"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    new_folders(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mini.yaml").write_text(SWEEP)
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    return tmp_path


def test_a_changed_sweep_is_refused_or_forked(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from test_main_job import client_of

    sweeping.start("mini", WORDS, quiet=True)
    changed = [*WORDS, "train.eval_every_steps=2"]
    assert main(["sweep", "mini", *changed, "--json"]) == 2
    message = capsys.readouterr().err
    assert "train.eval_every_steps: 4 -> 2" in message and "--fork NEWNAME" in message
    outcome = sweeping.start("mini", changed, quiet=True, fork="finer")
    assert outcome.board.sweep == "finer" and outcome.counts["complete"] == 2  # its own budget
    old, new = SweepStudy.load(Folders(home), "mini"), SweepStudy.load(Folders(home), "finer")
    assert old.counts()["complete"] == 2 and old.config.train.eval_every_steps == 4
    assert new.config.train.eval_every_steps == 2 and new.config.sweep.forked_from == "mini"
    assert new.seeded_from == {}  # evaluated otherwise: the old values say nothing of it
    client = client_of(home)
    experiment = client.get_experiment_by_name("finer")
    (own,) = client.search_runs([experiment.experiment_id], "tags.`lorasweep.kind` = 'sweep'")
    assert own.data.tags["lorasweep.forked_from"] == "mini"
    assert sweeping.resume("finer", ["sweep.trials=3"], quiet=True).counts["complete"] == 3
    with pytest.raises(UsageError, match="there is a sweep 'finer' already; continue it with `lorasweep resume finer`"):
        sweeping.start("mini", changed, quiet=True, fork="finer")


def test_a_fork_that_only_searches_otherwise_starts_from_the_old_trials(home: Path) -> None:
    sweeping.start("mini", WORDS, quiet=True)
    outcome = sweeping.start("mini", [*WORDS, "sampler.seed=7"], quiet=True, fork="again")
    assert outcome.counts["complete"] == 2
    assert SweepStudy.load(Folders(home), "again").seeded_from == {"mini": 2}


def test_there_must_be_something_to_fork(home: Path) -> None:
    with pytest.raises(UsageError, match="no sweep 'mini'"):
        sweeping.start("mini", WORDS, quiet=True, fork="new")


def test_a_cause_that_fails_every_trial_stops_the_sweep_and_is_told(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "sweeps" / "bad.yaml").write_text(SWEEP.replace("tag(log, interval(1e-4, 1e-2))", "choice(1e36, 2e36)"))
    words = ["launcher.slots=2", "data.demo_rows=80", "sweep.trials=9", "sweep.max_failures=3"]
    assert main(["sweep", "bad", *words, "--json"]) == 1
    message = capsys.readouterr().err
    assert "sweep bad stopped: its last 3 trials all failed of one cause" in message and "diverged: " in message
    study = SweepStudy.load(Folders(home), "bad")
    assert 3 <= study.counts()["failed"] <= 4
    with pytest.raises(TooManyFailures):
        sweeping.resume("bad", [], quiet=True)
    assert sweeping.resume("bad", ["sweep.max_failures=0"], quiet=True).counts["failed"] == 9
