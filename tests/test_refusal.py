"""What a command says when it fails: one screen or one JSON document, whatever was raised."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from lorasweep import cli
from lorasweep.refusal import OUR_MISTAKE
from test_bad_input import home, write_sweep

pytestmark = pytest.mark.slow  # whole commands

__all__ = ["home"]
TOKEN = "hf_" + "a1B2" * 8


def fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", fail)


def test_a_mistake_of_ours_is_one_sentence_and_a_file_for_its_user_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fails_with(RuntimeError(f"oops {TOKEN}\nsecond line"), monkeypatch)
    assert cli.main(["doctor", "--json"]) == 1
    out, err = capsys.readouterr()
    (file,) = tmp_path.iterdir()
    assert json.loads(out)["error"]["type"] == "RuntimeError"
    assert f"{OUR_MISTAKE}: RuntimeError: oops" in err and str(file) in err and "second line" not in err
    assert "Traceback" in file.read_text() and "in fail" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert TOKEN not in out + err + file.read_text()


def test_an_error_of_the_machine_names_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    fails_with(PermissionError(13, "Permission denied", "/var/x"), monkeypatch)
    assert cli.main(["doctor"]) == 1
    assert "Permission denied (/var/x)" in capsys.readouterr().err


def test_what_acts_on_a_terminal_is_shown_and_not_sent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    fails_with(cli.UsageError("a \x1b[2J b \u202e c \x07 d\ne"), monkeypatch)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "lorasweep: a \\x1b[2J b \\u202e c \\x07 d\ne\n"


def test_a_message_of_megabytes_is_cut(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    fails_with(cli.UsageError("x" * 2**20), monkeypatch)
    assert cli.main(["doctor"]) == 2
    assert len(capsys.readouterr().err) < 5000


@pytest.mark.parametrize("words", [[], ["swep"], ["sweep"], ["leaderboard", "x", "--top", "0"], ["ui", "--port", "x"]])
def test_a_command_line_that_is_none_has_its_json(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert cli.main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["type"] == "UsageError"
    assert "usage: lorasweep" in err


def test_json_says_why_no_trial_is_complete(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home)
    assert cli.main(["sweep", "mine", "optimizer.lr=1e30", "--json"]) == 1
    swept = json.loads(capsys.readouterr().out)
    assert swept["best"] is None
    assert swept["reason"].startswith("no trial is complete; 2 of 2: diverged: ")
    assert (
        cli.main(
            ["train", "model=tiny_encoder", "data.demo_rows=40", "train.max_steps=2", "optimizer.lr=1e30", "--json"]
        )
        == 1
    )
    assert json.loads(capsys.readouterr().out)["reason"].startswith("diverged: ")
