"""What a GPU is asked for does not grow with the slots; slots side by side stay apart in shared blocks."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpulab import even_rows, on, on_each_device, pack_on

from enginelab import base_of, config, rows, run
from lorasweep.models.dropout import stream_key
from lorasweep.models.stream import Segment
from lorasweep.training.pack import Failed


def launches(pack: Any, slots: list[int], rows_of: list[int]) -> int:
    """Kernels (on a CPU: operators) of one forward and backward of the given slots, from the batch's logits on."""
    cuda = pack.base.device.type == "cuda"
    activity = torch.profiler.ProfilerActivity
    segments = [Segment(slot, torch.arange(count)) for slot, count in zip(slots, rows_of, strict=True)]
    keys = [stream_key(slot, 0, 0) for slot in slots]

    def work() -> None:
        batch = pack.base.batch(pack.train, segments)
        with pack.base.running(pack.engine.forward(batch, keys)):
            logits = pack.base.logits(batch)
            pack.task.unit_losses(logits, batch.labels).sum().backward()
        if cuda:
            torch.cuda.synchronize()

    work()  # what is built at the first use
    with torch.profiler.profile(activities=[activity.CPU, activity.CUDA] if cuda else [activity.CPU]) as profiler:
        work()
    if cuda:
        kind = torch.autograd.DeviceType.CUDA
        return sum(event.device_type == kind and not event.name.startswith("Mem") for event in profiler.events())
    parents = [event.cpu_parent for event in profiler.events() if event.name.startswith("aten::")]
    return sum(parent is None or not parent.name.startswith("aten::") for parent in parents)


@on_each_device
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_launches_do_not_grow_with_the_slots(dropout: float, device: str, base_path: Callable[[str], str]) -> None:
    path, train = base_path("llama"), even_rows(16, 6)
    trials = [
        on(config(path, adapter__r=2 + k % 3, adapter__dropout=dropout, train__seed=k), device) for k in range(12)
    ]
    pack = pack_on(base_of(trials[0]), 12, train)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    uneven = [1 + k % 4 for k in range(12)]
    few, many = launches(pack, [0, 1], uneven[:2]), launches(pack, list(range(12)), uneven)
    layers = len(pack.base.linear_modules)
    # laying out the batch: a handful of operators a slot, none a layer; on a GPU a library may cut a product in two.
    # A loop over the slots would add eighty a layer
    slack = 4 * 12 + (8 * layers if device == "cuda" else 0)
    assert few <= many + slack
    assert many <= few + slack
    assert many < 120 * layers  # the base's own included
    for number in (1, 4, 5, 9):
        pack.evict(number)
    left = [0, 2, 3, 6, 7, 8, 10, 11]
    with_gaps = launches(pack, left, [uneven[slot] for slot in left])
    assert with_gaps <= many + slack + 4 * layers  # the padding of idle slots is zeroed


@on_each_device
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_idle_slots_between_others_change_nothing(family: str, device: str, base_path: Callable[[str], str]) -> None:
    """Slots 0 and 2 train on past an idle one; poison in a neighbour stays there."""
    path, train = base_path(family), rows(30)
    trials = [
        on(config(path, train__seed=k, train__max_steps=8, train__batch_size=3 + k, adapter__r=2 + k), device)
        for k in range(3)
    ]
    base = base_of(trials[0])
    pack = pack_on(base, 3, train)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    steps = run(pack, 2)
    pack.evict(1)
    pack.engine._jobs.clear()  # type: ignore[attr-defined]
    for number, events in run(pack).items():
        steps[number] += events
    assert any(job.places == (0, 2) for job in pack.engine._jobs[0, 2].values())  # type: ignore[attr-defined]
    for number in (0, 2):
        alone = pack_on(base, 1, train)
        alone.admit(number, trials[number])
        expected = [event.loss for event in run(alone)[number]]
        assert [event.loss for event in steps[number]] == pytest.approx(expected, rel=1e-4)


@on_each_device
def test_poison_does_not_cross_an_idle_slot(device: str, base_path: Callable[[str], str]) -> None:
    path, train = base_path("llama"), rows(30)
    trials = [on(config(path, train__seed=k, train__max_steps=6, train__batch_size=3 + k), device) for k in range(4)]
    base = base_of(trials[0])
    pack = pack_on(base, 4, train)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    pack.advance()
    pack.evict(1)
    pack.engine.arena.row(0).fill_(math.nan)  # type: ignore[attr-defined]
    failed = [event for event in pack.advance() if isinstance(event, Failed)]
    assert [event.number for event in failed] == [0]
    for number in (2, 3):
        assert bool(torch.isfinite(pack.engine.save(pack.roster.slot(number).index)["values"]).all())
    pack.evict(0)
    assert len(run(pack)[2]) == 4


@on_each_device
def test_recomputed_activations_see_their_forward(
    device: str, base_path: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA runs backward, and what it recomputes, in a thread of its own; on the CPU the test makes one."""
    path, train = base_path("llama"), rows(30)

    def losses(checkpointing: bool) -> list[float]:
        trial = on(config(path, train__max_steps=4, train__activation_checkpointing=checkpointing), device)
        pack = pack_on(base_of(trial), 1, train)
        pack.admit(0, trial)
        return [event.loss for event in run(pack)[0]]

    expected = losses(False)
    backward, raised = torch.Tensor.backward, list[BaseException]()

    def elsewhere(self: torch.Tensor) -> None:
        def work() -> None:
            try:
                backward(self)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    if device == "cpu":
        monkeypatch.setattr(torch.Tensor, "backward", elsewhere)
    assert losses(True) == pytest.approx(expected, rel=1e-5)
    assert not raised
