"""Packed equals plain PEFT and equals solo on the device, in fp32, bf16 and nf4; dropout's masks are the CPU's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpulab import on, on_each_device, pack_on, plain_loss, plain_model, relative_difference, start_away_from_zero
from safetensors.torch import load_file

from enginelab import base_of, build_base, clone, config, export_now, mixed_trials, rows, run
from lorasweep.models.dropout import column_hash, keep_mask, row_hashes, threshold
from lorasweep.models.prefix_cache import PrefixBudget
from lorasweep.training.slot import DataOrder

# Relative differences allowed. bf16 has 8 bits of mantissa: each product is off by up to 0.4%, and over two layers
# the gradients of these bases by 1% to 3% (fp32: 1e-6, on the CPU); a wrong scale, neighbour or row is off by half.
GRADIENT = {"fp32": 1e-4, "bf16": 8e-2, "nf4": 8e-2}
LOSS = {"fp32": 1e-4, "bf16": 3e-2, "nf4": 3e-2}
PRECISIONS = ["fp32", "bf16", "nf4"]
FAMILIES = ["bert", "gpt2", "llama"]


@pytest.fixture(scope="module")
def wide_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """family -> a base whose 4-bit blocks, 64 wide, fit."""
    built: dict[str, str] = {}

    def path_of(family: str) -> str:
        if family not in built:
            built[family] = build_base(family, tmp_path_factory.mktemp(f"wide-{family}"), hidden=64)
        return built[family]

    return path_of


def slot_gradients(pack: Any, number: int, folder: Path) -> dict[str, torch.Tensor]:
    """A half accumulated step's gradients under PEFT's names."""
    index = pack.roster.slot(number).index
    pack.engine.export(index, {"values": pack.engine.state(index, gradients=True)["gradients"]}, folder)
    return load_file(str(folder / "adapter_model.safetensors"))


def plain_gradients(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The gradients of a PEFT model, saved as if they were its adapter."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    model.save_pretrained(str(folder))
    return load_file(str(folder / "adapter_model.safetensors"))


@on_each_device
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_and_losses_are_plain_pefts(
    family: str, precision: str, device: str, wide_path: Callable[[str], str], tmp_path: Path
) -> None:
    trials = mixed_trials(
        wide_path(family), 3, train__accumulation=2, train__max_steps=4, optimizer__lr=3e-4, optimizer__warmup_steps=0
    )
    trials = [on(trial, device, precision) for trial in trials]
    train = rows(30)
    pack = pack_on(base_of(trials[0]), 3, train)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
        start_away_from_zero(pack, number)
        export_now(pack, number, tmp_path / f"start{number}")
    pack.advance()
    mine = [slot_gradients(pack, number, tmp_path / f"mine{number}") for number in range(3)]
    losses = {number: [event.loss for event in events] for number, events in run(pack).items()}
    for number, trial in enumerate(trials):
        order = DataOrder(30, trial.train.seed)
        model = plain_model(trial, tmp_path / f"start{number}")
        loss = plain_loss(model, trial, train, order.draw(trial.train.batch_size)) / 2
        loss.backward()
        second = plain_loss(model, trial, train, order.draw(trial.train.batch_size)) / 2
        assert losses[number][0] == pytest.approx(loss.item() + second.item(), rel=LOSS[precision])
        theirs = plain_gradients(model, tmp_path / f"theirs{number}")
        shared = mine[number].keys() & theirs.keys()
        assert len(shared) > 4
        whole = [torch.cat([part[name].flatten() for name in sorted(shared)]) for part in (mine[number], theirs)]
        assert relative_difference(*whole) < GRADIENT[precision], f"trial {number}"


@on_each_device
@pytest.mark.parametrize("precision", PRECISIONS)
def test_packed_equals_alone_with_dropout(precision: str, device: str, wide_path: Callable[[str], str]) -> None:
    """Neighbours of other ranks, lengths and dropouts; one of them leaves midway, another one enters."""
    path, train = wide_path("llama"), rows(30)
    trials = mixed_trials(path, 4, adapter__dropout=0.2, train__max_steps=6, optimizer__lr=3e-4)
    trials = [on(trial, device, precision) for trial in trials]
    base = base_of(trials[0])
    pack = pack_on(base, 3, train)
    steps: dict[int, list[Any]] = {}

    def advance(turns: int | None) -> None:
        for number, events in run(pack, turns).items():
            steps.setdefault(number, []).extend(events)

    for number in range(3):
        pack.admit(number, trials[number])
    advance(3)
    pack.evict(1)
    advance(1)
    pack.admit(3, trials[3])
    advance(None)
    for number in (0, 2, 3):
        alone = pack_on(base, 1, train)
        alone.admit(number, trials[number])
        expected = [event.loss for event in run(alone)[number]]
        assert [event.loss for event in steps[number]] == pytest.approx(expected, rel=LOSS[precision])


@on_each_device
def test_dropout_draws_what_the_cpu_draws(device: str, base_path: Callable[[str], str]) -> None:
    """Whole runs with dropout, and the masks themselves, are those of a CPU with products range by range."""
    train = rows(30)
    trials = mixed_trials(base_path("bert"), 3, adapter__dropout=0.3, train__base_dropout=0.2, train__max_steps=5)

    def train_on(where: str, pad_ranges: bool) -> dict[int, list[float]]:
        placed = [on(clone(trial), where) for trial in trials]
        pack = pack_on(base_of(placed[0]), 3, train)
        pack.engine.pad_ranges = pad_ranges  # type: ignore[attr-defined]
        for number, trial in enumerate(placed):
            pack.admit(number, trial)
        return {number: [event.loss for event in events] for number, events in run(pack).items()}

    there, here = train_on(device, True), train_on("cpu", False)
    for number in here:
        assert there[number] == pytest.approx(here[number], rel=1e-3)  # one other mask is off by 1e-2 and more


def reference_hash(key: int, place: int, layer: int, column: int) -> int:
    """`keep_mask`'s hash in Python's own integers, unsigned and then signed."""
    word, golden, mix_1, mix_2 = 2**32 - 1, 0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35

    def shift(value: int, by: int) -> int:  # arithmetic, as int32 shifts
        return ((value - 2**32 if value >> 31 else value) >> by) & word

    def mix(value: int) -> int:
        value = ((value ^ shift(value, 16)) * mix_1) & word
        value = ((value ^ shift(value, 13)) * mix_2) & word
        return value ^ shift(value, 16)

    row = mix((mix((key + layer * golden) & word) + place * golden) & word)
    value = ((row ^ mix((column * mix_2 + golden) & word)) * mix_1) & word
    value = ((value ^ shift(value, 15)) * mix_2) & word
    return value - 2**32 if value >> 31 else value


@on_each_device
def test_masks_are_a_pure_function_of_integers(device: str) -> None:
    n, width, layer, limit = 300, 256, 23, threshold(0.3)
    keys = torch.randint(-(2**31), 2**31 - 1, (n,), generator=torch.Generator().manual_seed(3)).to(torch.int32)

    def mask_on(where: str) -> torch.Tensor:
        places, limits = torch.arange(n, dtype=torch.int32), torch.full((n, 1), limit, dtype=torch.int32)
        hashes = row_hashes(keys.to(where), places.to(where), range(20, 30))[layer - 20]
        return keep_mask(hashes, column_hash(width, torch.device(where)), limits.to(where)).cpu()

    on_cpu = mask_on("cpu")
    assert torch.equal(mask_on(device), on_cpu)
    assert float(on_cpu.float().mean()) == pytest.approx(0.7, abs=0.01)
    for row, column in ((0, 0), (7, 255), (299, 128), (150, 1)):
        expected = reference_hash(int(keys[row]) & (2**32 - 1), row, layer, column) >= limit
        assert bool(on_cpu[row, column]) == expected


@on_each_device
def test_state_is_restored_on_the_device(device: str, base_path: Callable[[str], str]) -> None:
    """A pack saved in the middle of an accumulation goes on as if it had not stopped."""
    train = rows(30)
    trials = [
        on(config(base_path("llama"), train__max_steps=6, train__seed=k, train__accumulation=2), device)
        for k in range(2)
    ]
    base = base_of(trials[0])
    whole, again = pack_on(base, 2, train), pack_on(base, 2, train)
    for number, trial in enumerate(trials):
        whole.admit(number, trial)
    run(whole, 5)
    saved = [whole.state(number) for number in range(2)]
    rest = run(whole)
    for number, trial in enumerate(trials):
        again.load_state(number, trial, *saved[number])
    resumed = run(again)
    for number in range(2):
        assert [event.loss for event in resumed[number]] == pytest.approx([e.loss for e in rest[number]], rel=1e-5)


@on_each_device
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cached_prefix_changes_nothing(family: str, device: str, base_path: Callable[[str], str]) -> None:
    """Trials that adapt the top layer alone enter past the lower one, whose states are computed once a row."""
    train = rows(30)
    trials = mixed_trials(base_path(family), 3, adapter__layers=1, train__max_steps=6)
    trials = [on(trial, device) for trial in trials]
    base, curves = base_of(trials[0]), list[dict[int, list[float]]]()
    budget = PrefixBudget(1.0)
    for prefixes in (None, budget):
        pack = pack_on(base, 3, train, prefixes)
        for number, trial in enumerate(trials):
            pack.admit(number, trial)
        curves.append({number: [event.loss for event in events] for number, events in run(pack).items()})
    assert budget.summary(), "nothing was cached"
    for number in range(3):
        assert curves[1][number] == pytest.approx(curves[0][number], rel=1e-4)
