"""Out of memory loses nothing; what the planner says a pack needs is what it takes."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from gpulab import even_rows, little_memory, on, on_each_device, pack_on
from memorylab import large_base, measured_peak

from enginelab import base_of, build_base, clone, config, rows, run, values
from lorasweep.training.planner import probe


@pytest.fixture(scope="module")
def deep_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A base whose activations are large beside its weights."""
    return build_base("llama", tmp_path_factory.mktemp("deep"), hidden=64)


@on_each_device
def test_out_of_memory_shrinks_forwards_and_loses_nothing(device: str, deep_path: str) -> None:
    wide = 1 if device == "cpu" else 64  # on a GPU: blocks of many MiB, which the allocator's rounding does not hide
    train = rows(60, longest=20)
    trials = [
        on(
            config(
                deep_path, train__batch_size=6 * wide, train__max_steps=4, train__seed=k, adapter__dropout=0.1,
                adapter__r=4 + k,
            ),
            device,
        )
        for k in range(3)
    ]  # fmt: skip
    base = base_of(trials[0])

    def train_all(pack: Any) -> dict[int, list[float]]:
        return {number: [event.loss for event in events] for number, events in run(pack).items()}

    def admitted() -> Any:
        pack = pack_on(base, 3, train)
        for number, trial in enumerate(trials):
            pack.admit(number, clone(trial))
        return pack

    free, expected = admitted(), dict[int, list[float]]()
    train_all(free)  # also takes what a first use costs: handles, workspaces
    small = admitted()
    with little_memory(small, lambda: expected.update(train_all(admitted())), tokens=45) as refused:
        steps = train_all(small)
    if not expected:
        expected = train_all(admitted())
    assert refused, "no forward ran out of memory"
    assert small.limits.tokens <= max(refused) // 2
    for number in range(3):
        assert steps[number] == pytest.approx(expected[number], rel=1e-4)
        difference = float((values(small, number) - values(free, number)).norm() / values(free, number).norm())
        assert difference < (1e-3 if device == "cpu" else 1e-2)  # AdamW's first steps make rounding larger


@on_each_device
@pytest.mark.parametrize("slots", [1, 4])
def test_the_planner_says_what_a_pack_takes(slots: int, device: str) -> None:
    """Within 15% of the most that is allocated while the pack trains, the base included. On a CPU nothing counts what
    is allocated: the planner adds up what autograd keeps, without what comes and goes beside it."""
    gc.collect()
    if device == "cpu":
        torch.set_num_threads(1)  # one lane: the profiler does not see what the threads of others allocate
    base, before = large_base(device)
    trial = on(config("a base from a config", train__batch_size=4, train__max_steps=10**6, adapter__r=8), device)
    trial.train.precision = base.key.precision
    train = even_rows(64, 60 if device == "cpu" else 250)
    pack = pack_on(base, slots, train)
    estimate = probe(pack, trial).memory_bytes
    for number in range(slots):
        pack.admit(number, clone(trial, train__seed=number))
    run(pack, 2)
    peak = measured_peak(lambda: run(pack, 4), device) - before
    assert estimate == pytest.approx(peak, rel=0.15 if device == "cuda" else 0.4)
