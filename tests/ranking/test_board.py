"""Ranks, ties, order, the JSON shape, and a table that fits."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lorasweep.config.home import Folders
from lorasweep.config.schema import Config
from lorasweep.errors import UsageError
from lorasweep.ranking.board import Leaderboard, load, rank, table
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy

C, F, P, R = TrialState.COMPLETE, TrialState.FAILED, TrialState.PRUNED, TrialState.RUNNING


def board(records: list[TrialRecord], direction: str = "maximize") -> Leaderboard:
    return Leaderboard("quick", "eval/accuracy", direction, rank(records, direction))


def render(shown: Leaderboard, width: int, top: int | None = None) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table(shown, top, width))
    return out.getvalue()


def trials(count: int) -> list[TrialRecord]:
    return [
        TrialRecord(
            trial=i,
            state=F if i == 5 else C,
            value=None if i == 5 else 0.5 + (i * 7 % 24) / 50,
            metrics={} if i == 5 else {"eval/accuracy": 0.5, "eval/loss": 0.6, "eval/f1": 0.4, "eval/roc_auc": 0.77},
            params={"optimizer.lr": 1.23e-4 * (i + 1), "adapter.r": 8, "train.batch_size": 16, "train.max_steps": 150},
            run_id="0" * 32,
            samples=2400,
            train_seconds=1.234,
            trainable_params=12_345,
            total_params=1_234_567,
            reason="diverged: the loss is NaN at step 31 with a learning rate of 0.01, batch size 8"
            if i == 5
            else None,
        )
        for i in range(count)
    ]


def test_order_ranks_and_ties() -> None:
    records = [
        TrialRecord(0, C, 0.7),
        TrialRecord(1, F, None, reason="diverged"),
        TrialRecord(2, C, 0.9),
        TrialRecord(3, P, 0.8, reason="rung 1"),
        TrialRecord(4, C, 0.9),
        TrialRecord(5, R),
        TrialRecord(6, C, 0.5),
        TrialRecord(7, P, 0.85),
    ]
    shown = board(records)
    assert [(row["trial"], row["rank"]) for row in shown.rows] == [
        (2, 1),
        (4, 1),
        (0, 3),
        (6, 4),
        (5, None),
        (7, None),
        (3, None),
        (1, None),
    ]
    assert shown.best is not None and shown.best["trial"] == 2
    down = board(records, "minimize")
    assert [row["trial"] for row in down.rows] == [6, 0, 2, 4, 5, 3, 7, 1]


def test_no_complete_trial_has_no_best() -> None:
    assert board([]).best is None
    assert board([TrialRecord(0, F, reason="x")]).best is None
    assert "no trials yet" in render(board([]), 100)


def test_json_is_exactly_the_designs_shape() -> None:
    document = json.loads(json.dumps(board(trials(3)).to_json(), allow_nan=False))
    assert set(document) == {"sweep", "objective", "rows"}
    assert document["objective"] == {"metric": "eval/accuracy", "direction": "maximize"}
    wanted = {
        "rank": int,
        "trial": int,
        "state": str,
        "value": float,
        "metrics": dict,
        "params": dict,
        "run_id": str,
        "samples": int,
        "train_seconds": float,
        "trainable_params": int,
        "total_params": int,
    }
    for row in document["rows"]:
        assert set(row) >= {*wanted, "reason"}
        assert all(isinstance(row[key], kind) for key, kind in wanted.items())
    assert len(board(trials(9)).to_json(top=4)["rows"]) == 4


@given(st.lists(st.tuples(st.sampled_from([C, F, P, R]), st.floats(allow_nan=True)), max_size=30))
def test_ranks_follow_values_whatever_they_are(drawn: list[tuple[TrialState, float]]) -> None:
    rows = rank([TrialRecord(i, state, value) for i, (state, value) in enumerate(drawn)], "maximize")
    json.dumps(rows, allow_nan=False)
    assert sorted(row["trial"] for row in rows) == list(range(len(drawn)))
    ranked = [row for row in rows if row["rank"] is not None]
    assert rows[: len(ranked)] == ranked
    assert len(ranked) == sum(state is C and math.isfinite(value) for state, value in drawn)
    for row in ranked:
        assert row["rank"] == 1 + sum(other["value"] > row["value"] for other in ranked)


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_the_table_fits_and_keeps_what_matters(width: int) -> None:
    text = render(board(trials(24)), width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "eval/accuracy" in text and "★ 1" in text and "…" not in text
    assert "diverged:" in text
    if width >= 100:
        assert "lr" in text and "batch_size" in text and "max_steps" in text
    if width == 200:
        assert "1,234,567" in text and "eval/roc_auc" in text


def test_top_shows_the_first_rows_alone() -> None:
    text = render(board(trials(24)), 100, top=3)
    assert "24 trials" not in text and "23 complete, 1 failed" in text
    assert text.count("0.9") >= 1 and "diverged" not in text


def test_keys_with_the_same_ending_are_told_apart() -> None:
    text = render(board([TrialRecord(0, C, 0.5, params={"a.lr": 0.1, "b.lr": 0.2})]), 100)
    assert "a.lr" in text and "b.lr" in text


def test_a_stored_sweep_is_loaded_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    config = Config()
    config.sweep.name, config.sweep.trials = "quick", 3
    config.sweep.space = {"optimizer.lr": "interval(1e-4, 1e-2)"}
    space = parse_space(config.sweep.space, config)
    study = SweepStudy.open(Folders(tmp_path), config, space, {"objective": "x"}, [], sweep_file="quick")
    for value in (0.5, 0.75):
        asked = study.ask()
        assert asked is not None
        study.complete(asked.number, value, TrialRecord(asked.number, C, value, params=asked.params))
    overrides = [f"tracking.dir={tmp_path}"]
    found = load("quick", overrides)
    assert (found.sweep, found.metric, found.direction) == ("quick", "eval/accuracy", "maximize")
    assert [(row["rank"], row["trial"], row["value"]) for row in found.rows] == [(1, 1, 0.75), (2, 0, 0.5)]
    with pytest.raises(UsageError, match="quick"):
        load("qick", overrides)


def test_the_leaderboard_needs_no_mlflow_and_no_torch() -> None:
    code = "import sys, lorasweep.ranking.board, lorasweep.search.study; print({'mlflow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
