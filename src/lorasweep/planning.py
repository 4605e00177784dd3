"""The command `plan`: what a sweep would run, what memory and time it would take; trains nothing that is kept.

Neighbours: `prechecks` (the same as a sweep's), `training.planner` (the probe), `search.space`.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass
from typing import Any

from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.config.schema import TRANSFORMER, Config
from lorasweep.errors import readable
from lorasweep.live import format_seconds
from lorasweep.prechecks import (
    check_overrides,
    check_trainable,
    given_slots,
    planned_trials,
    probe_points,
    settle_slots,
)
from lorasweep.search.space import Space, parse_space
from lorasweep.workbench import Workbench

DRAWS = 64  # random points over which the expected number of samples is averaged


@dataclass(frozen=True)
class Plan:
    """What would run. `train_samples` is the expected number of training rows over all trials."""

    sweep: str
    space: dict[str, Any]
    trials: int
    slots: int
    memory_bytes: int
    base_bytes: int
    slot_bytes: int
    train_samples: int
    train_seconds: float
    trainable_params: int
    total_params: int
    finalist_runs: int = 0  # repeats of the best at the end, beside the trials

    def to_json(self) -> dict[str, Any]:
        """The document of `plan --json`."""
        return {
            "sweep": self.sweep,
            "space": self.space,
            "trials": self.trials,
            "slots": self.slots,
            "memory_bytes": self.memory_bytes,
            "train_samples": self.train_samples,
            "train_seconds": round(self.train_seconds, 1),
            "trainable_params": self.trainable_params,
            "total_params": self.total_params,
            "finalist_runs": self.finalist_runs,
        }


def plan(name: str, overrides: list[str]) -> Plan:
    """Check a sweep as `sweep` would, probe one turn of its first point that takes steps, and add up.

    Raises:
        ConfigError, DataError, ModelError, UsageError: as `sweep.start`.
    """
    from lorasweep.training.pack import Pack
    from lorasweep.training.planner import probe
    from lorasweep.worker.here import prepare

    home = Home.find()
    home.find_sweep(name)
    config = compose.compose(overrides, sweep=name, home=home)
    prepare(config.launcher)
    space = parse_space(config.sweep.space, config)
    check_overrides(space, overrides)
    config.sweep.trials = planned_trials(config, space)
    points = probe_points(space, config)
    trials = [compose.compose_trial(overrides, name, point, home) for point in points]
    workbench = Workbench(home.folders(config.tracking), config.sweep.objective, given_slots(config) or 1)
    first = compose.compose_trial(overrides, name, {**points[0], **(config.sweep.enqueue or [{}])[0]}, home)
    check_trainable(first, workbench)
    if given_slots(config) is None:
        settle_slots(workbench, first, [first, *trials])
    samples = expected_samples(config, space, overrides, name, home, len(workbench.data(first).train))
    measured = next((trial for trial in [first, *trials] if is_trained(trial)), None)
    if measured is None:  # baselines, and models as they are: seconds, and no base to share
        return Plan(config.sweep.name, space.to_json(), config.sweep.trials, 1, 0, 0, 0, samples, 0.0, 0, 0)
    pack = workbench.pack(measured)
    assert isinstance(pack, Pack)
    pack.admit(-1, measured)
    counts = pack.counts(-1)
    pack.evict(-1)
    cost = probe(pack, measured)
    turn_samples = cost.slots * measured.train.batch_size
    return Plan(
        sweep=config.sweep.name,
        space=space.to_json(),
        trials=config.sweep.trials,
        slots=cost.slots,
        memory_bytes=cost.memory_bytes,
        base_bytes=cost.base_bytes,
        slot_bytes=cost.state_bytes + cost.activation_bytes,
        train_samples=samples,
        train_seconds=samples * cost.turn_seconds / turn_samples,
        trainable_params=counts.trainable,
        total_params=counts.total,
        finalist_runs=min(config.sweep.finalists.top, config.sweep.trials) * config.sweep.finalists.seeds,
    )


def is_trained(trial: Config) -> bool:
    """Whether a trial takes optimizer steps."""
    return trial.model.kind == TRANSFORMER and trial.adapter.kind != "none"


def expected_samples(config: Config, space: Space, overrides: list[str], name: str, home: Home, rows: int) -> int:
    """Training rows that all trials would see, averaged over random points of the space."""
    from lorasweep.training.schedule import trial_samples

    seen = []
    drawn = random.Random(config.sampler.seed)
    points = [space.point(lambda dimension: dimension.at(drawn.random())) for _ in range(DRAWS)]
    for point in config.sweep.enqueue if config.sampler.kind == "list" else points:
        seen.append(trial_samples(compose.compose_trial(overrides, name, point, home), rows))
    return round(statistics.mean(seen) * config.sweep.trials)


def show(plan: Plan) -> None:
    """Print a plan for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"Sweep {plan.sweep}: {plan.trials} trials, {plan.slots} at a time", title_justify="left")
    for heading in ("key", "kind", "values"):
        table.add_column(heading)
    for key, entry in plan.space.items():
        if "choices" in entry:
            values = ", ".join(str(choice) for choice in entry["choices"])
        else:
            values = f"{entry['low']} to {entry['high']}"
            values += f", step {entry['step']}" if entry.get("step") else ""
            values += ", logarithmic" if entry.get("log") else ""
        for parent, needed in entry.get("when", {}).items():
            values += f", when {parent} is {' or '.join(str(value) for value in needed)}"
        table.add_row(key, entry["kind"], Text(readable(values)))  # its brackets are no markup
    Console().print(table)
    if not plan.total_params:
        print("No trial takes optimizer steps: baselines, and models as they are, take seconds to minutes.")
        return
    share = plan.trainable_params / plan.total_params
    print(f"One trial trains {plan.trainable_params:,} of {plan.total_params:,} parameters ({share:.2%}).")
    memory = f"{plan.memory_bytes / 2**20:,.0f} MiB"
    print(f"Memory: about {memory}: the base {plan.base_bytes / 2**20:,.0f}, a slot {plan.slot_bytes / 2**20:,.1f}.")
    time_text = format_seconds(plan.train_seconds)
    print(f"Training: about {plan.train_samples:,} samples, {time_text} at the first point's pace, without evaluation.")
    if plan.finalist_runs:
        print(f"Then {plan.finalist_runs} runs of finalists: the best trials over fresh seeds.")
