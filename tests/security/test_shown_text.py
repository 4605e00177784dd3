"""Text of users and of files is shown, never obeyed: by a browser, a terminal, or Rich's markup."""

from __future__ import annotations

from pathlib import Path

import pytest

import made_sweep
from lorasweep import cli
from lorasweep.config.home import Folders
from lorasweep.records import TrialRecord, TrialState

EVIL = "<script>alert(1)</script> \x1b]0;owned\x07\x1b[2J [/INST] [bold]b[/bold] \u202egnp"


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """A sweep whose reasons and class names are an attacker's."""

    def evil(number: int, draw: object) -> TrialRecord:
        record = genuine(number, draw)
        if number == 1:
            record.state, record.value, record.metrics, record.reason = TrialState.FAILED, None, {}, EVIL
        return record

    genuine = made_sweep._trial
    monkeypatch.setattr(made_sweep, "_trial", evil)
    monkeypatch.setattr(made_sweep, "SPACE", {**made_sweep.SPACE})
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    made_sweep.build(Folders(tmp_path), 3)
    return Folders(tmp_path)


def test_a_reason_does_not_act_on_the_terminal(stored: Folders, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["leaderboard", "made"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert "[/INST]" in "".join(shown.split()), "brackets are text"


@pytest.mark.slow
def test_the_report_runs_nothing_of_a_reason(stored: Folders, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert cli.main(["report", "made", "--out", str(out)]) == 1  # it is written, and there is no run to attach it to
    page = out.read_text()
    assert "alert(1)" in page and "<script>alert(1)" not in page
    assert "default-src 'none'" in page, "the page may load nothing from anywhere"
