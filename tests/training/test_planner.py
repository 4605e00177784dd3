"""The planner: slots that fit and pay, from what a probe step measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from enginelab import base_of, clone, config, pack_of, rows
from lorasweep.training import planner
from lorasweep.training.lanes import Lanes
from lorasweep.training.memory import available_bytes
from lorasweep.training.planner import Probe, automatic_slots, fitting_slots, probe

PathOf = Callable[[str], str]


def trial_of(path: str, **changes: Any) -> Any:
    return config(path, train__batch_size=8, **changes)


@pytest.mark.parametrize(
    ("sampler", "trials", "expected"), [("random", 40, 16), ("random", 5, 5), ("tpe", 24, 8), ("tpe", 2, 1)]
)
def test_slots_that_pay(sampler: str, trials: int, expected: int, base_path: PathOf) -> None:
    trial = trial_of(base_path("bert"), sampler__kind=sampler, sweep__trials=trials)
    pack = pack_of(base_of(trial), 1, rows(30))
    assert automatic_slots(pack, trial) == expected
    assert pack.active == []


def test_memory_bounds_the_slots(base_path: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = trial_of(base_path("bert"), sampler__kind="random", sweep__trials=40)
    pack = pack_of(base_of(trial), 1, rows(30))
    cost = probe(pack, trial)
    each = cost.state_bytes + cost.activation_bytes
    monkeypatch.setattr(planner, "available_bytes", lambda device: int(3.2 * each / planner.USABLE))
    assert automatic_slots(pack, trial) == 3
    monkeypatch.setattr(planner, "available_bytes", lambda device: each // 2)
    assert automatic_slots(pack, trial) == 1  # it is tried: out of memory has its own answer


def test_a_larger_trial_takes_more(base_path: PathOf) -> None:
    small = trial_of(base_path("bert"), adapter__r=2)
    pack = pack_of(base_of(small), 1, rows(60))
    costs = [probe(pack, trial) for trial in (small, clone(small, adapter__r=8), clone(small, train__batch_size=16))]
    assert costs[1].state_bytes > 2 * costs[0].state_bytes
    assert costs[2].activation_bytes > 1.5 * costs[0].activation_bytes
    assert fitting_slots(costs[0], 10**9) > fitting_slots(costs[1], 10**9)


def test_what_autograd_keeps_is_counted_whatever_the_lanes(base_path: PathOf) -> None:
    trial = trial_of(base_path("bert"))
    base, found = base_of(trial), []
    for lanes in (1, 2):
        pack = pack_of(base, 4, rows(30))
        pack.lanes = Lanes(base.device, 10**9, lanes)
        found.append(probe(pack, trial))
        assert pack.lanes.count == lanes
    assert found[0].activation_bytes == pytest.approx(found[1].activation_bytes, rel=0.2)
    assert found[0].activation_bytes > 0


def test_memory_of_the_whole_adds_up() -> None:
    cost = Probe(slots=4, base_bytes=1000, state_bytes=10, activation_bytes=20, turn_seconds=1.0)
    assert cost.memory_bytes == 1000 + 4 * 30


def test_free_memory_is_known_here() -> None:
    assert 2**24 < available_bytes(torch.device("cpu")) < 2**50
