"""What `resume` makes of workers that an earlier command has left: they may have closed the sweep, or died in it.
It never says that all is well while trials wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasweep import reporting, sweeping
from lorasweep.config.home import Folders
from lorasweep.launchers import launch
from lorasweep.launchers.oversight import Look
from lorasweep.progress import Silent
from lorasweep.search.study import SweepStudy
from made_sweep import build
from torturekit import MINI, check_agreement, home_with, left_by
from trackkit import new_folders

pytestmark = pytest.mark.slow  # MLflow

WORDS = ["launcher.slots=1", "launcher.threads=1"]


class Gone:
    """A crew that has ended when one looks, without a word why."""

    def look(self) -> Look:
        return Look(over=True)

    def stop(self) -> None: ...
    def kill(self) -> None: ...


def made(tmp_path: Path, trials: int, budget: int) -> SweepStudy:
    study = build(new_folders(tmp_path), trials, curves=False)
    study.config.sweep.trials = budget
    return study


def test_what_workers_left_open_is_closed(tmp_path: Path) -> None:
    study = made(tmp_path, 3, budget=3)
    launch.watch(study, Gone(), Silent())
    assert launch.is_over(study) and study.closed


def test_what_workers_closed_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = made(tmp_path, 3, budget=3)
    study.note_closed()
    monkeypatch.setattr(reporting, "attach", lambda *given: pytest.fail("the report is written again"))
    launch.watch(study, Gone(), Silent())
    assert study.closed


def test_a_sweep_whose_workers_died_between_two_trials_stays_open(tmp_path: Path) -> None:
    """No trial is running, and the budget is not spent."""
    study = made(tmp_path, 2, budget=3)
    launch.watch(study, Gone(), Silent())
    assert not launch.is_over(study) and not study.closed


def gone_once(monkeypatch: pytest.MonkeyPatch) -> list[Gone]:
    """One crew is there, afterwards none."""
    crews = [Gone()]
    monkeypatch.setattr(launch, "there", lambda place, sweep: crews.pop() if crews else None)
    return crews


def test_resume_goes_on_with_what_lost_workers_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = home_with(tmp_path / "home", MINI.replace("trials: 7", "trials: 2"))
    monkeypatch.setenv("LORASWEEP_HOME", str(home))
    sweeping.start("mini", WORDS, quiet=True)
    study = SweepStudy.load(Folders(home), "mini")
    study.config.sweep.trials = 3
    assert study.ask("0") is not None  # and its worker is gone
    crews = gone_once(monkeypatch)
    outcome = sweeping.resume("mini", [])
    assert not crews and outcome.counts["complete"] == 3 and not outcome.counts["running"]
    assert "its workers are gone and have left trials to train" in " ".join(capsys.readouterr().err.split())
    check_agreement(left_by(home), 3)
    watched = gone_once(monkeypatch)
    outcome = sweeping.resume("mini", ["sweep.trials=4"])  # more than the workers that it watches were told
    assert not watched and outcome.counts["complete"] == 4
    check_agreement(left_by(home), 4)
