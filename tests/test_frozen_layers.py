"""The cache of frozen layers as a user meets it: a sweep with it and without it; adapter=head up to a prediction."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from test_main_job import client_of, lorasweep, rows_by_trial
from torturekit import MINI, Nursery, check_agreement, check_same, home_with, left_by
from trackkit import new_folders

SWEEP = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: demo_reviews
  - override /sampler: list
data: {demo_rows: 240}
train: {max_steps: 10, batch_size: 8, base_dropout: 0}
sweep:
  trials: 4
  space: {adapter: "choice(lora, head)", adapter.layers: {when: adapter=lora, values: "choice(1, 2)"}}
  enqueue:
    - {adapter: lora, adapter.layers: 1}
    - {adapter: head}
    - {adapter: lora, adapter.layers: 2}
    - {adapter: head}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    new_folders(folder)
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "mini.yaml").write_text(SWEEP)
    return folder


@pytest.mark.slow
def test_a_sweep_is_the_same_with_and_without_the_cache(home: Path, tmp_path: Path) -> None:
    document = json.loads(lorasweep(home, "sweep", "mini", "launcher.slots=4", "--json"))
    assert document["counts"]["complete"] == 4, document
    cached = rows_by_trial(home)
    files = list((home / "mlruns" / "lorasweep" / "cache").glob("prefix-*.states"))
    assert files
    client = client_of(home)
    runs = client.search_runs([client.get_experiment_by_name("mini").experiment_id], "tags.`lorasweep.kind` = 'trial'")
    layers = {int(run.data.tags["lorasweep.trial"]): int(run.data.tags["lorasweep.cached_layers"]) for run in runs}
    assert layers[1] == layers[3] > layers[0] > layers[2] >= 0
    other = tmp_path / "without"
    new_folders(other)
    (other / "sweeps").mkdir(parents=True)
    (other / "sweeps" / "mini.yaml").write_text(SWEEP)
    lorasweep(other, "sweep", "mini", "launcher.slots=4", "launcher.prefix_cache_gib=0", "--json")
    assert not list((other / "mlruns" / "lorasweep" / "cache").glob("prefix-*"))
    for number, row in rows_by_trial(other).items():
        assert row["metrics"] == pytest.approx(cached[number]["metrics"], abs=1e-4)


@pytest.mark.slow
def test_a_trained_head_is_promoted_and_predicts(home: Path) -> None:
    if not (home / "mlruns").exists():
        lorasweep(home, "sweep", "mini", "launcher.slots=4", "--json")
    lorasweep(home, "promote", "mini", "--trial", "1", "--as", "heads", "--force")
    answers = json.loads(lorasweep(home, "predict", "models:/heads@champion", "a fine film", "--json"))
    assert answers


@pytest.mark.torture  # its short twin: test_torture.py; models/test_prefix.py
def test_a_killed_sweep_over_frozen_layers_goes_on_bit_for_bit(nursery: Nursery, tmp_path: Path) -> None:
    frozen = MINI.replace("  space:\n", "  space:\n    adapter.layers: choice(1, 2)\n").replace(
        "train: {", "train: {base_dropout: 0, "
    )
    whole = home_with(tmp_path / "whole", frozen)
    started = time.monotonic()
    nursery.run(whole, "sweep", "mini")
    seconds = time.monotonic() - started
    expected = left_by(whole)
    home = home_with(tmp_path / "killed", frozen)
    for share in (0.5, 0.6, 0.7):
        command = nursery.start(home, "sweep", "mini")
        time.sleep(share * seconds)
        command.send(signal.SIGKILL)
        command.wait()
    nursery.run(home, "sweep", "mini")
    left = left_by(home)
    check_agreement(left, 7)
    check_same(left, expected)
    assert list((home / "mlruns" / "lorasweep" / "cache").glob("prefix-*.states"))
