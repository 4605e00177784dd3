"""The six shipped projects, whole, at scale=smoke and smaller: from the sweep file to the leaderboard, offline.

All run in one process, because its imports are most of what they take.
"""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorasweep import cli, sweeping
from lorasweep.models.baselines import Baseline
from trackkit import new_folders

SMALLER = ["scale=smoke", "scale.trials=2", "scale.max_steps=2", "scale.train_rows=16", "scale.eval_rows=8"]
PROJECTS = {  # sweep -> metrics that its rows must have
    "scram": {"eval/f1", "eval/precision", "eval/recall", "eval/accuracy"},
    "imdb_distilbert": {"eval/accuracy", "eval/roc_auc"},
    "imdb_baselines": {"eval/loss", "eval/accuracy", "eval/f1", "eval/precision", "eval/recall", "eval/roc_auc"},
    "llama_sst2": {"eval/accuracy", "eval/precision", "eval/recall", "eval/f1"},
    "llama_squad_v2": {"eval/exact_match", "eval/f1", "eval/best_f1", "eval/bleu", "eval/rougeL", "eval/meteor"},
    "llama2_variants": {"eval/loss", "eval/accuracy", "eval/roc_auc"},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """sweep -> rows of its leaderboard in the order of the trials, after all six have run."""
    folder = tmp_path_factory.mktemp("projects")
    found, uses, before = {}, {}, dict(os.environ)
    new_folders(folder)
    os.environ |= {"XDG_CACHE_HOME": str(folder / "cache"), "LORASWEEP_HOME": str(folder)}
    try:
        for name in PROJECTS:
            outcome = sweeping.start(
                name, [*SMALLER, f"tracking.dir={folder}", "tracking.price_per_hour=2"], quiet=True
            )
            assert outcome.board.sweep == f"{name}-smoke"
            found[name] = sorted(outcome.board.rows, key=lambda row: row["trial"])
            uses[name] = (outcome.best, outcome.uses)
    finally:
        os.environ.clear()
        os.environ.update(before)
    found["folder"] = [{"path": folder}]
    found["uses"] = [uses]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_ends_in_a_leaderboard(project: str, ran: dict[str, list[dict[str, Any]]]) -> None:
    rows = ran[project]
    assert len(rows) >= 2 and [row["state"] for row in rows] == ["complete"] * len(rows), [
        row["reason"] for row in rows
    ]
    for row in rows:
        assert set(row["metrics"]) >= PROJECTS[project], row["params"]


@pytest.mark.slow
def test_what_comes_next_is_what_the_best_trial_can_do(ran: dict[str, list[dict[str, Any]]]) -> None:
    (uses,) = ran["uses"]
    for project, (best, offered) in uses.items():
        name = f"{project}-smoke"
        if best["trainable_params"] == 0 or "bow" in best["params"].get("model", ""):  # nothing was trained
            assert offered == [], project
        elif project in ("imdb_distilbert", "imdb_baselines", "llama2_variants"):  # they classify
            assert offered == [f"lorasweep promote {name}"], project
        else:
            assert offered == [f"lorasweep export {name} DIR --trial {best['trial']}"], project


@pytest.mark.slow
def test_a_smoke_test_is_found_by_the_sweeps_own_name(
    ran: dict[str, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"tracking.dir={ran['folder'][0]['path']}"
    for words in (["scram"], ["scram", "scale=smoke"], ["scram-smoke"]):
        assert cli.main(["leaderboard", *words, place, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["sweep"] == "scram-smoke"
    assert cli.main(["leaderboard", "quickstart", place]) == 2


@pytest.mark.slow
def test_qlora_lora_and_full_count_their_parameters(ran: dict[str, list[dict[str, Any]]]) -> None:
    qlora, lora, full = ran["llama2_variants"]
    assert qlora["params"]["quantization"] == "nf4" and lora["params"]["quantization"] == "none"
    assert (qlora["trainable_params"], qlora["total_params"]) == (lora["trainable_params"], lora["total_params"])
    assert 0 < lora["trainable_params"] < lora["total_params"] / 2
    assert full["trainable_params"] == full["total_params"] > 0


@pytest.mark.slow
def test_before_and_after_fine_tuning_stand_in_one_leaderboard(ran: dict[str, list[dict[str, Any]]]) -> None:
    for project in ("llama_sst2", "llama_squad_v2", "imdb_baselines"):
        by_adapter = {row["params"].get("adapter"): row for row in ran[project]}
        before = by_adapter["none"]
        after = by_adapter.get("lora") or by_adapter["full"]
        assert (before["trainable_params"], before["samples"]) == (0, 0) and before["total_params"] > 0
        assert after["trainable_params"] > 0 and after["samples"] > 0
        assert set(before["metrics"]) >= PROJECTS[project]


@pytest.mark.slow
def test_baselines_leave_runs_with_pace_cost_and_a_file_that_opens(ran: dict[str, list[dict[str, Any]]]) -> None:
    rows = {row["params"]["model"]: row for row in ran["imdb_baselines"]}
    assert rows["bow_forest"]["samples"] == 16 and rows["majority"]["metrics"]["eval/roc_auc"] == 0.5
    with closing(sqlite3.connect(ran["folder"][0]["path"] / "mlflow.db")) as database:
        places = dict(database.execute("SELECT run_uuid, artifact_uri FROM runs"))
        logged = database.execute("SELECT run_uuid, key FROM latest_metrics WHERE value > 0").fetchall()
    kept = Path(places[rows["bow_forest"]["run_id"]].removeprefix("file://")) / "adapter"
    assert Baseline.load(kept).classes == 2
    for row in rows.values():
        keys = {key for run, key in logged if run == row["run_id"]}
        assert {"train/seconds", "train/cost", "eval/seconds", "eval/samples_per_second"} <= keys
