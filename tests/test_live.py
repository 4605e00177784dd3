"""The live table and the plain lines show the same facts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lorasweep.live import LiveProgress, PlainProgress, Tally, format_params, format_seconds, screen, show
from lorasweep.records import TrialRecord, TrialState


def record(trial: int, value: float | None, state: TrialState = TrialState.COMPLETE, reason: str | None = None):
    return TrialRecord(trial, state, value=value, params={"optimizer.lr": 0.00123456, "adapter.r": 8}, reason=reason)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (47, "47 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_seconds_read_as_people_say_them(seconds, text):
    assert format_seconds(seconds) == text


def test_params_are_short():
    assert format_params({"optimizer.lr": 0.00123456, "adapter.r": 8, "model": "gpt2"}) == "lr=0.00123 r=8 model=gpt2"


@pytest.mark.parametrize(("maximize", "best"), [(True, 0.9), (False, 0.5)])
def test_tally_keeps_the_best_complete_trial(maximize, best):
    tally = Tally(total=5, maximize=maximize)
    assert tally.seconds_left() is None
    for number, value in enumerate([0.7, 0.9, 0.5]):
        tally.end(record(number, value))
    tally.end(record(3, None, TrialState.FAILED, "diverged: loss is nan"))
    assert tally.best is not None
    assert tally.best.value == best
    assert tally.ended == 4
    assert tally.seconds_left() is not None


def test_clones_beside_the_budget_are_never_more_than_there_are():
    tally = Tally(total=1, maximize=True)
    for number in range(3):
        tally.end(record(number, 0.5))
    assert (tally.ended, tally.total) == (3, 3)


def test_time_left_counts_only_trials_of_this_start():
    tally = Tally(total=10, maximize=True, ended=9, ended_before=9)
    assert tally.seconds_left() is None


def test_plain_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with show(Tally(total=2, maximize=True), Console(file=out, width=200), "sweep x", "eval/accuracy") as progress:
        assert isinstance(progress, PlainProgress)
        progress.note("loading")
        progress.trial_started(0, {}, 10)
        progress.trial_ended(record(0, 0.75))
        progress.trial_ended(record(1, None, TrialState.FAILED, "diverged: loss is nan at step 3"))
    lines = out.getvalue().splitlines()
    assert lines[0] == "loading"
    assert "trial 0 complete 0.7500" in lines[1]
    assert "best so far" in lines[1]
    assert "failed (diverged: loss is nan at step 3)" in lines[2]


def test_live_table_shows_running_ended_and_best():
    out = io.StringIO()
    console = Console(file=out, width=140, force_terminal=True)
    with show(Tally(total=3, maximize=True), console, "sweep x", "eval/accuracy") as progress:
        assert isinstance(progress, LiveProgress)
        progress.trial_started(0, {"adapter.r": 8}, 100)
        progress.stepped(0, 40, 0.3333)
        progress.evaluated(0, 40, 0.81)
        progress.evaluated(0, 50, 0.79)
        progress.trial_started(1, {"adapter.r": 2}, 50)
        progress.trial_ended(record(1, 0.9))
        picture = Console(width=140, record=True, file=io.StringIO())
        picture.print(progress)
    text = picture.export_text()
    assert "1/3 trials" in text
    assert "best eval/accuracy 0.9000 (trial 1)" in text
    running = next(line for line in text.splitlines() if "running" in line)
    assert "40/100" in running
    assert "0.3333" in running
    assert "0.7900" in running  # the last evaluation
    assert "0.8100" in running  # the best one


def test_live_table_keeps_all_running_trials_and_few_ended_ones():
    view = LiveProgress(Tally(total=100, maximize=True), Console(file=io.StringIO()), "t", "m")
    for number in range(40):
        view.trial_started(number, {}, 5)
    for number in range(30):
        view.trial_ended(record(number, 0.5))
    states = [row.state for row in view.rows.values()]
    assert states.count(TrialState.RUNNING) == 10
    assert len(states) == 18


def test_a_trial_that_breaks_a_constraint_is_never_the_best():
    tally = Tally(total=2, maximize=True, broken=lambda ended: "breaks x <= 1" if ended.trial == 0 else None)
    assert not tally.end(record(0, 0.9))
    assert tally.end(record(1, 0.5))
    assert tally.best is not None and tally.best.trial == 1


def test_a_notebook_gets_plain_lines_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with show(Tally(total=2, maximize=True), screen(), "sweep s", "eval/accuracy") as progress:
        progress.note("loading")
        progress.trial_ended(record(0, 0.5))
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out.splitlines()[0] == "loading"
    assert captured.out.splitlines()[1].startswith("[1/2] trial 0 complete 0.5000")
