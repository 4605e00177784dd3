"""Studies with many trials that nobody trained, written straight into the database, and answers drawn for them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np

from lorasweep import results
from lorasweep.config.home import Folders
from lorasweep.config.schema import Config
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy
from lorasweep.stats import wilson
from lorasweep.stats.scores import Results

OPTUNAS = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "running": "RUNNING"}


def study_of(folder: Path, records: list[TrialRecord], config: Config | None = None) -> SweepStudy:
    """A stored study with these trials."""
    config = config or Config()
    config.sweep.name, config.sweep.trials = "many", len(records)
    config.sweep.space = {"optimizer.lr": "tag(log, interval(1e-5, 1e-1))", "adapter.r": "choice(2, 4, 8, 16)"}
    space = parse_space(config.sweep.space, config)
    study = SweepStudy.open(Folders(folder), config, space, {"made": "up"}, [], sweep_file="many")
    with closing(sqlite3.connect(study.folders.study_db)) as database, database:
        ((study_id,),) = database.execute("select study_id from studies where study_name = 'many'")
        ((before,),) = database.execute("select coalesce(max(trial_id), 0) from trials")
        for record in records:
            trial_id = before + 1 + record.trial
            database.execute(
                "insert into trials (trial_id, number, study_id, state) values (?, ?, ?, ?)",
                (trial_id, record.trial, study_id, OPTUNAS[record.state]),
            )
            attributes = {"params": record.params, "run_id": record.run_id}
            if record.state is not TrialState.RUNNING:
                attributes["record"] = record.to_json()
            database.executemany(
                "insert into trial_user_attributes (trial_id, key, value_json) values (?, ?, ?)",
                [(trial_id, key, json.dumps(json.dumps(value))) for key, value in attributes.items()],
            )
            if record.value is not None and record.state is TrialState.COMPLETE:
                database.execute(
                    "insert into trial_values (trial_id, objective, value, value_type) values (?, 0, ?, 'FINITE')",
                    (trial_id, record.value),
                )
    return study


def drawn_trials(count: int, rows: int = 872, seed: int = 0) -> tuple[list[TrialRecord], list[Results]]:
    """Trials of different worth and their answers on the same rows; every tenth was pruned, every twentieth failed."""
    rng = np.random.default_rng(seed)
    labels, difficulty = rng.integers(0, 2, rows), rng.normal(size=rows)
    records, answers = [], []
    for number in range(count):
        margin = rng.normal(1.0, 0.4) + difficulty + rng.normal(size=rows)  # log-odds of the right class
        chance = 1 / (1 + np.exp(-margin))
        table = np.where(labels[:, None] == [0, 1], chance[:, None], 1 - chance[:, None]).astype(np.float32)
        found = Results(labels, table, label_names=["no", "yes"], rows_id="rows")
        state = "pruned" if number % 10 == 3 else "failed" if number % 20 == 7 else "complete"
        value = float(found.correct.mean())
        record = TrialRecord(
            trial=number,
            state=TrialState(state),
            value=None if state == "failed" else value,
            metrics={} if state == "failed" else {"eval/accuracy": value, "eval/loss": float(found.unit_losses.mean())},
            params={"optimizer.lr": float(10 ** rng.uniform(-5, -1)), "adapter.r": int(rng.choice([2, 4, 8, 16]))},
            run_id=f"{number:032x}",
            samples=int(rng.integers(100, 5000)),
            train_seconds=float(rng.uniform(1, 60)),
            trainable_params=12_345,
            total_params=1_234_567,
            reason={"pruned": "rung 256 samples: not among the best", "failed": "diverged: NaN"}.get(state),
            interval=list(wilson(int(found.correct.sum()), rows)) if state == "complete" else None,
            eval_rows=rows if state == "complete" else None,
            peak_memory_bytes=2**30,
        )
        records.append(record)
        answers.append(found)
    return records, answers


def board_study(folder: Path, count: int, rows: int = 872, seed: int = 0) -> SweepStudy:
    """A stored study of drawn trials, with their answers on disk."""
    records, answers = drawn_trials(count, rows, seed)
    study = study_of(folder, records)
    for record, found in zip(records, answers, strict=True):
        if record.state is TrialState.COMPLETE:
            results.write(results.place_of(study.files), record.trial, found)
    return study
