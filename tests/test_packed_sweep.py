"""A whole sweep with eight slots gives, trial by trial, what it gives with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torturekit import Nursery, home_with

SWEEP = """# @package _global_
defaults:
  - override /sampler: random
  - override /adapter: lora
data: {demo_rows: 240, max_length: 32}
train: {eval_every_steps: 6}
sweep:
  trials: 9
  space:
    optimizer.lr: tag(log, interval(1e-4, 1e-2))
    optimizer.schedule: choice(linear, cosine)
    adapter.r: choice(2, 4, 8)
    adapter.dropout: choice(0.0, 0.1)
    adapter.bias: choice(none, all)
    adapter.layers: [null, 1]
    train.batch_size: choice(4, 8, 16)
    train.accumulation: choice(1, 2)
    train.max_steps: range(8, 20, 4)
"""


def rows_of(nursery: Nursery, home: Path, *words: str) -> dict[int, dict]:
    """trial -> row of the leaderboard, after the sweep has run in a process of its own."""
    home = home_with(home, SWEEP)
    nursery.run(home, "sweep", "mini", *words)
    return {row["trial"]: row for row in json.loads(nursery.run(home, "leaderboard", "mini", "--json"))["rows"]}


@pytest.mark.slow
def test_eight_slots_give_the_leaderboard_of_one(nursery: Nursery, tmp_path: Path) -> None:
    """Ranks, dropouts, batches, accumulations, steps, schedules, biases and layers differ between neighbours; the
    eight slots run in two lanes, the one slot in one."""
    alone = rows_of(nursery, tmp_path / "one", "launcher.slots=1", "launcher.threads=1")
    packed = rows_of(nursery, tmp_path / "eight", "launcher.slots=8", "launcher.threads=2")
    assert packed.keys() == alone.keys() == set(range(9))
    values = [row["value"] for row in alone.values()]
    assert max(values) > min(values) + 0.1, "the trials should differ, or the comparison says little"
    for trial, row in alone.items():
        assert packed[trial]["params"] == row["params"]
        assert packed[trial]["state"] == row["state"] == "complete"
        assert packed[trial]["value"] == pytest.approx(row["value"], abs=1e-4), f"trial {trial}"
        for metric, value in row["metrics"].items():
            assert packed[trial]["metrics"][metric] == pytest.approx(value, abs=1e-4), f"trial {trial}, {metric}"
