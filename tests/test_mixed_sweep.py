"""Baselines, a model as it is, adapters and full fine-tuning as trials of one study, in one leaderboard."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from enginelab import build_base
from lorasweep.models.baselines import Baseline

SWEEP = """# @package _global_
defaults:
  - override /model: hf
model: {{path: {base}}}
data: {{demo_rows: 200, max_length: 32}}
train: {{max_steps: 4, eval_every_steps: 2, base_dropout: 0.0}}
tracking: {{price_per_hour: 2.0}}
sweep:
  trials: 8
  objective: {{metric: eval/f1}}
  space:
    model: choice(bow_forest, tfidf_logistic, majority, hf)
    model.bag.trees: {{when: model=bow_forest, values: "range(5, 15, 5)"}}
    adapter: {{when: model=hf, values: "choice(none, head, lora, full)"}}
    quantization: {{when: adapter=lora, values: "choice(none, nf4)"}}
  enqueue:
    - {{model: bow_forest, model.bag.trees: 5}}
    - {{model: tfidf_logistic}}
    - {{model: majority}}
    - {{model: hf, adapter: none}}
    - {{model: hf, adapter: head}}
    - {{model: hf, adapter: lora, quantization: none}}
    - {{model: hf, adapter: lora, quantization: nf4}}
    - {{model: hf, adapter: full}}
"""


@pytest.mark.slow
def test_all_kinds_of_trials_share_a_leaderboard(tmp_path: Path) -> None:
    base = build_base("bert", tmp_path / "base", classifier=True, classes=2)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mixed.yaml").write_text(SWEEP.format(base=base))
    environment = {**os.environ, "LORASWEEP_HOME": str(tmp_path)}
    for words in (["sweep", "mixed", "--json"], ["leaderboard", "mixed", "--json"]):
        command = [sys.executable, "-m", "lorasweep.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
        assert done.returncode == 0, done.stderr
    rows = {row["trial"]: row for row in json.loads(done.stdout)["rows"]}
    assert [row["state"] for row in rows.values()] == ["complete"] * 8, [row["reason"] for row in rows.values()]
    assert len({frozenset(row["metrics"]) for row in rows.values()}) == 1  # the same metrics, whatever it is
    forest, _, _, as_it_is, head, lora, nf4, full = (rows[number] for number in range(8))
    assert (forest["samples"], as_it_is["samples"], lora["samples"]) == (200, 0, 4 * 16)
    assert as_it_is["trainable_params"] == 0 < head["trainable_params"] < lora["trainable_params"]
    assert nf4["trainable_params"] == lora["trainable_params"] < full["trainable_params"] == full["total_params"]
    assert nf4["total_params"] == lora["total_params"] == as_it_is["total_params"] + lora["trainable_params"]
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        kept = dict(database.execute("SELECT run_uuid, artifact_uri FROM runs"))
        paces = database.execute("SELECT run_uuid, key FROM latest_metrics WHERE value > 0").fetchall()
    artifacts = Path(kept[forest["run_id"]].removeprefix("file://"))
    assert Baseline.load(artifacts / "adapter").classes == 2
    for row in rows.values():
        logged = {key for run, key in paces if run == row["run_id"]}
        assert {"train/seconds", "train/cost", "eval/seconds", "eval/samples_per_second"} <= logged
