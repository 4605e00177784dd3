"""The cache of frozen layers on a GPU: the same numbers, states on the device, and disk where memory is short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpulab import on, on_each_device, pack_on

from enginelab import base_of, config, rows, run
from lorasweep.models.prefix_cache import GIB, PrefixBudget


@on_each_device
@pytest.mark.parametrize("memory", [2**30, 60 * 32 * 4])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_cached_equals_uncached(
    family: str, memory: int, device: str, base_path: Callable[[str], str], tmp_path: Path
) -> None:
    changes = [{"adapter__layers": 1}, {"adapter__kind": "head"}, {"adapter__layers": 1, "adapter__dropout": 0.1}]
    trials = [
        on(config(base_path(family), train__max_steps=6, optimizer__lr=1e-2, train__seed=k, **change), device)
        for k, change in enumerate(changes)
    ]
    losses = []
    budget = PrefixBudget(memory / GIB, 1.0, tmp_path)
    for prefixes in (None, budget):
        pack = pack_on(base_of(trials[0]), 3, rows(30), prefixes)
        for number, trial in enumerate(trials):
            pack.admit(number, trial)
        losses.append(torch.tensor([[event.loss for event in events] for _, events in sorted(run(pack).items())]))
    assert torch.allclose(*losses, rtol=1e-4 if device == "cuda" else 1e-5)
    assert budget.tables
    assert all(table.memory.device.type == device for table in budget.tables)
    assert 0 < budget.held <= memory
