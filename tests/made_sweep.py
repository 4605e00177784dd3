"""A sweep that never trained: records, rungs and curves drawn from a formula, in the shape that real ones leave."""

from __future__ import annotations

import json
import math
import random
import sqlite3
from contextlib import closing

from optuna.distributions import BaseDistribution, distribution_to_json

from lorasweep.config.home import Folders
from lorasweep.config.schema import Config, ObjectiveConfig
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.reports import Report, attribute
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy
from lorasweep.tracking import spool

SPACE = {
    "optimizer.lr": "tag(log, interval(1e-4, 1e-1))",
    "adapter.r": "choice(2, 4, 8, 16)",
    "optimizer.schedule": "choice(linear, cosine)",
    "train.max_steps": "range(50, 201, 50)",
}
RUNGS = (256, 1024)


def config_of(name: str, several: bool) -> Config:
    config = Config()
    config.sweep.name, config.sweep.space = name, dict(SPACE)
    config.model.path, config.model.name = "builtin:tiny_encoder", "tiny_encoder"
    config.pruner.kind, config.tracking.price_per_hour = "asha", 2.5
    if several:
        config.sweep.objectives = [
            ObjectiveConfig("eval/accuracy", "maximize"),
            ObjectiveConfig("trainable_params", "minimize"),
        ]
    return config


def build(folders: Folders, trials: int, name: str = "made", several: bool = False, curves: bool = True) -> SweepStudy:
    """A stored study of so many trials, written straight into its database, and the spools of theirs."""
    config, draw = config_of(name, several), random.Random(7)
    space = parse_space(config.sweep.space, config)
    distributions = {dimension.key: dimension.distribution for dimension in space.dimensions}
    study = SweepStudy.open(folders, config, space, {"made": "up"}, [], sweep_file=name)
    study.add_seconds(trials * 0.7)
    study.keep_slots(8)
    with closing(sqlite3.connect(folders.study_db)) as database, database:
        ((study_id,),) = database.execute("select study_id from studies where study_name = ?", (name,))
        ((before,),) = database.execute("select coalesce(max(trial_id), 0) from trials")
        for number in range(trials):
            record = _trial(number, draw)
            _insert(database, study_id, before + 1 + number, record, distributions, several)
            if curves:
                _write_spool(folders, name, record)
    return SweepStudy.load(folders, name)


def _trial(number: int, draw: random.Random) -> TrialRecord:
    lr, rank = 10 ** draw.uniform(-4, -1), draw.choice((2, 4, 8, 16))
    steps = draw.choice((50, 100, 150, 200))
    params = {
        "optimizer.lr": lr,
        "adapter.r": rank,
        "optimizer.schedule": draw.choice(("linear", "cosine")),
        "train.max_steps": steps,
    }
    quality = 0.93 - 0.12 * abs(math.log10(lr) + 2.6) + 0.004 * rank + draw.gauss(0, 0.01)
    state = TrialState.COMPLETE
    if number % 17 == 3:
        state = TrialState.FAILED
    elif quality < 0.86 and number % 3:
        state = TrialState.PRUNED
    samples = {TrialState.COMPLETE: steps * 16, TrialState.PRUNED: 256, TrialState.FAILED: 64}[state]
    value = round(min(0.99, max(0.4, quality)), 4)
    metrics = {"eval/accuracy": value, "eval/loss": 1 - value, "eval/f1": value - 0.01, "eval/roc_auc": value + 0.01}
    record = TrialRecord(
        number, state, None if state is TrialState.FAILED else value, metrics if state is not TrialState.FAILED else {},
        params, f"{number:032x}", samples, samples / 300, 1000 * rank + 130, 400_000 + 1000 * rank,
    )  # fmt: skip
    if state is TrialState.FAILED:
        record.reason = f"diverged: the loss is nan at step {number % 40 + 2}"
    elif state is TrialState.PRUNED:
        record.reason = f"rung 256 samples: eval/accuracy {value} is not the best there"
    return record


def _insert(
    database: sqlite3.Connection,
    study_id: int,
    trial_id: int,
    record: TrialRecord,
    distributions: dict[str, BaseDistribution],
    several: bool,
) -> None:
    attributes = {"params": record.params, "run_id": record.run_id, "record": record.to_json()}
    if record.value is not None:
        reached = [rung for rung in RUNGS if rung <= record.samples]
        for rung in reached:
            keep = record.state is TrialState.COMPLETE or rung != reached[-1]
            attributes[attribute(rung)] = Report(record.value, keep).to_json()
    values = [record.value, float(record.trainable_params)][: 2 if several else 1]
    if record.state is not TrialState.COMPLETE:
        values = []
    state = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}[str(record.state)]
    database.execute(
        "insert into trials (trial_id, number, study_id, state) values (?, ?, ?, ?)",
        (trial_id, record.trial, study_id, state),
    )
    database.executemany(
        "insert into trial_user_attributes (trial_id, key, value_json) values (?, ?, ?)",
        [(trial_id, key, json.dumps(json.dumps(value))) for key, value in attributes.items()],
    )
    database.executemany(
        "insert into trial_params (trial_id, param_name, param_value, distribution_json) values (?, ?, ?, ?)",
        [
            (trial_id, key, distribution.to_internal_repr(record.params[key]), distribution_to_json(distribution))
            for key, distribution in distributions.items()
        ],
    )
    database.executemany(
        "insert into trial_values (trial_id, objective, value, value_type) values (?, ?, ?, 'FINITE')",
        [(trial_id, place, value) for place, value in enumerate(values)],
    )


def _write_spool(folders: Folders, name: str, record: TrialRecord) -> None:
    steps, goal = max(1, record.samples // 16), record.value or 0.5
    lines: list[dict] = [{"trial": record.trial}, {"run": record.run_id}]
    lines.append({"s": 0, "t": 1, "m": {"eval/accuracy_before": 0.5, "eval/loss_before": 0.7}})
    for step in range(5, steps + 1, 5):
        done = 1 - math.exp(-step / 40)
        metrics = {"train/loss": 0.7 - 0.5 * goal * done, "train/samples": step * 16.0}
        if step % 25 == 0 or step == steps:
            accuracy = 0.5 + (goal - 0.5) * done
            metrics |= {"eval/accuracy": accuracy, "eval/loss": 0.75 - goal * done / 2, "eval/roc_auc": accuracy + 0.01}
        lines.append({"s": step, "t": step, "m": metrics})
    lines.append({"s": steps + 1, "t": steps + 1, "m": {"eval/accuracy": goal}})
    path = spool.path_of(folders.spool(name), record.trial)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
