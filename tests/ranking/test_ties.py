"""Ties of stored sweeps, CSV, and that thousands of trials cost a bounded number of reads."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from boardkit import board_study, drawn_trials, study_of
from lorasweep import results
from lorasweep.cli import main
from lorasweep.ranking import board as leaderboard
from lorasweep.ranking import ties as leaderboard_ties
from lorasweep.ranking.board import Leaderboard, rank
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.study import SweepStudy
from lorasweep.stats import Results, mcnemar
from statslab import with_right

PRUNED = TrialState.PRUNED


def board_of(rights: list[np.ndarray | None], blocks: int = 100) -> tuple[Leaderboard, list[int]]:
    """A board of trials with these right answers (None: no file), and the trials whose answers were read."""
    records = [
        TrialRecord(n, TrialState.COMPLETE, 0.1 if right is None else float(right.mean()))
        for n, right in enumerate(rights)
    ]
    rows, asked = rank(records, "maximize"), []

    def read(trial: int) -> Results | None:
        asked.append(trial)
        return None if rights[trial] is None else with_right(rights[trial])

    ties = leaderboard_ties.mark(rows, read, "eval/accuracy", "macro")
    return Leaderboard("s", "eval/accuracy", "maximize", rows, ties=ties), asked


def test_the_first_its_ties_and_the_worse() -> None:
    base = np.arange(300) < 270
    near, far = base & (np.arange(300) > 3), np.arange(300) < 150
    board, _ = board_of([base, near, far, None])
    marks = {row["trial"]: (row["tied"], row["p_tied"]) for row in board.rows}
    assert marks[0] == (True, None) and marks[1][0] is True and marks[2][0] is False and marks[3] == (None, None)
    assert marks[1][1] == pytest.approx(min(1, mcnemar(4, 0) * 3))  # the worst was rejected: three pairs are left
    assert board.ties is not None and (board.ties.first, board.ties.tied, board.ties.compared) == (0, 1, 2)


def test_the_worse_are_read_no_further_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaderboard_ties, "BLOCK", 5)
    best, worse = np.arange(400) < 380, np.arange(400) < 200
    board, asked = board_of([best, *[worse] * 40])
    assert asked == [0, 1, 2, 3, 4, 5]
    assert [row["tied"] for row in board.rows] == [True] + [False] * 40
    monkeypatch.setattr(leaderboard_ties, "MOST", 10)
    board, asked = board_of([best] * 41)
    assert len(asked) == 11 and [row["tied"] for row in board.rows] == [True] * 11 + [None] * 30


def test_nothing_to_compare() -> None:
    assert board_of([])[0].ties is None
    assert board_of([np.arange(9) < 5])[0].ties is None
    assert board_of([None, None])[0].ties is None
    rows = rank([TrialRecord(0, PRUNED, 0.5)], "maximize")
    assert leaderboard_ties.mark(rows, lambda trial: None, "eval/accuracy", "macro") is None
    assert rows[0]["tied"] is None


def test_finalists_are_compared_over_their_seeds() -> None:
    rows = rank([TrialRecord(n, TrialState.COMPLETE, 0.9) for n in range(3)], "maximize")
    for row, values in zip(rows, ([0.9, 0.91, 0.92], [0.89, 0.91, 0.92], [0.5, 0.51, 0.52]), strict=True):
        row["finalist"] = {"values": values, "mean": np.mean(values)}
    ties = leaderboard_ties.mark(rows, lambda trial: None, "eval/accuracy", "macro")
    assert [row["tied"] for row in rows] == [True, True, False]
    assert ties is not None and ties.test == "Welch's t test over seeds"


def test_one_that_looks_better_than_the_first_is_tied_with_it() -> None:
    """It came after the finalists were chosen, or a seed of it failed."""
    rights = [np.arange(400) < 300, np.arange(400) < 390, np.arange(400) < 200]
    rows = rank(
        [TrialRecord(n, TrialState.COMPLETE, float(right.mean())) for n, right in enumerate(rights)],
        "maximize",
        finalists={0: {"mean": 0.8, "values": [0.8, 0.81], "failed": {}}},
    )
    assert [row["trial"] for row in rows] == [0, 1, 2]
    leaderboard_ties.mark(rows, lambda trial: with_right(rights[trial]), "eval/accuracy", "macro")
    assert [row["tied"] for row in rows] == [True, True, False]
    least = rank([TrialRecord(n, TrialState.COMPLETE, n / 10) for n in range(2)], "minimize")
    for row, values in zip(least, ([0.3, 0.301], [0.1, 0.101]), strict=True):
        row["finalist"] = {"values": values}
    leaderboard_ties.mark(least, lambda trial: None, "eval/loss", "macro", "minimize")
    assert least[1]["tied"] is True
    leaderboard_ties.mark(least, lambda trial: None, "eval/loss", "macro", "maximize")
    assert least[1]["tied"] is False


@pytest.mark.parametrize("count", [40, 400])
def test_a_board_takes_as_many_queries_for_many_trials_as_for_few(tmp_path: Path, count: int) -> None:
    records, _ = drawn_trials(count, rows=20)
    study = study_of(tmp_path, records)
    loaded = SweepStudy.load(study.folders, "many")
    asked: list[str] = []
    engine: Any = loaded._stored.storage
    event.listen(
        getattr(engine, "_backend", engine).engine, "before_cursor_execute", lambda *event: asked.append(event[2])
    )
    board = Leaderboard.of(loaded)
    about_trials = [query for query in asked if "from trials" in query.lower() or "trial_user" in query.lower()]
    assert len(board.rows) == count and len(about_trials) == 2 and len(asked) <= 5, asked


def test_records_read_at_once_are_those_that_optuna_holds(tmp_path: Path) -> None:
    records, _ = drawn_trials(30, rows=20)
    running = TrialRecord(30, TrialState.RUNNING, params={"adapter.r": 4}, run_id="x" * 32)
    study = study_of(tmp_path, [*records, running])
    one_by_one = study._records(study._stored.trials())
    assert study.records() == one_by_one == [*records, running]
    study.records()[0].metrics.clear()
    changed = study.records()[0]
    changed.value = 0.0
    assert study.records()[0].value == records[0].value


@pytest.mark.slow
def test_a_stored_board_in_json_and_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = board_study(tmp_path, 40, rows=300)
    where = ["leaderboard", "many", f"tracking.dir={tmp_path}"]
    assert main([*where, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ties"]["first"] == document["rows"][0]["trial"] and document["rows"][0]["tied"] is True
    complete = [row for row in document["rows"] if row["state"] == "complete"]
    assert all(row["interval"][0] < row["value"] < row["interval"][1] for row in complete)
    assert {row["tied"] for row in complete} == {True, False}
    assert main([*where, "--csv", "--where", "state=complete,tied=true", "--sort", "train_seconds"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    tied = sorted((row for row in complete if row["tied"]), key=lambda row: row["train_seconds"])
    assert [int(one["trial"]) for one in table] == [row["trial"] for row in tied]
    assert float(table[0]["optimizer.lr"]) == tied[0]["params"]["optimizer.lr"]
    assert float(table[0]["high"]) == tied[0]["interval"][1] and table[0]["tied"] == "True"
    assert main([*where, "--top", "3", "--where", "r=8"]) == 0
    shown = capsys.readouterr().out
    assert "of them asked for" in shown and "≈ tied:" in shown
    assert main([*where, "--json", "--csv"]) == 2 and main([*where, "--where", "nonsense"]) == 2
    results.place_of(study.files).write(results.name_of(document["rows"][1]["trial"]), b"broken")
    capsys.readouterr()
    assert main([*where, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"][1]["tied"] is None and "is not what lorasweep wrote" in document["notes"][0]


def test_a_cost_stands_where_there_is_a_price(tmp_path: Path) -> None:
    from lorasweep.config.schema import Config

    config = Config()
    config.tracking.price_per_hour = 3.6
    records, _ = drawn_trials(3, rows=20)
    board = leaderboard.Leaderboard.of(study_of(tmp_path, records, config))
    assert [row["cost"] for row in board.rows] == [pytest.approx(row["train_seconds"] / 1000) for row in board.rows]
