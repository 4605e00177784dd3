"""Packed equals solo: every trial of a pack against plain PEFT + torch AdamW, and against itself alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginelab import (
    assert_same_adapter,
    base_of,
    config,
    export_now,
    mixed_trials,
    pack_of,
    peft_model,
    peft_vector,
    rows,
    run,
    train_by_hand,
)
from lorasweep.training.slot import DataOrder

FAMILIES = ["bert", "distilbert", "roberta", "gpt2", "llama", "mistral", "qwen2", "gemma", "gemma2"]
FALLBACK = ["albert", "electra", "xlnet", "deberta-v2"]


def check_against_peft(
    trials: list, tmp_path: Path, *, pad_ranges: bool = False, train: Any = None
) -> list[list[float]]:
    train = rows(30) if train is None else train
    pack = pack_of(base_of(trials[0]), len(trials), train)
    if pad_ranges:
        pack.engine.pad_ranges = True  # type: ignore[attr-defined]
    starts = {}
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
        starts[number] = export_now(pack, number, tmp_path / f"start{number}")
    steps = run(pack)
    for number, trial in enumerate(trials):
        model = peft_model(trial, starts[number])
        losses = train_by_hand(model, trial, train, DataOrder(len(train), trial.train.seed), trial.train.max_steps)
        ours = [event.loss for event in steps[number]]
        assert ours == pytest.approx(losses, rel=1e-5, abs=0), f"trial {number}"
        theirs = peft_vector(model, tmp_path / f"theirs{number}")
        assert_same_adapter(export_now(pack, number, tmp_path / f"end{number}"), theirs)
    return [[event.loss for event in steps[number]] for number in range(len(trials))]


@pytest.mark.parametrize("family", FAMILIES + FALLBACK)
@pytest.mark.slow
def test_pack_of_three_equals_peft(family: str, base_path: Callable[[str], str], tmp_path: Path) -> None:
    path = base_path(family)
    check_against_peft(mixed_trials(path, 3), tmp_path)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.slow
def test_modules_to_save_are_a_slots_own(family: str, base_path: Callable[[str], str], tmp_path: Path) -> None:
    path, (one, two) = (
        base_path(family),
        {"bert": ("attention.output.dense", "query"), "llama": ("o_proj", "v_proj")}[family],
    )
    changes = [
        {"adapter__modules_to_save": [one]},
        {},
        {"adapter__modules_to_save": [two], "adapter__targets": [one], "adapter__bias": "all"},
        {"adapter__modules_to_save": [one, two], "adapter__layers": 1},
    ]
    trials = [config(path, train__max_steps=6, train__seed=k, adapter__r=4, **c) for k, c in enumerate(changes)]
    check_against_peft(trials, tmp_path)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.slow
def test_pack_sizes_equal_peft(count: int, base_path: Callable[[str], str], tmp_path: Path) -> None:
    path = base_path("bert")
    check_against_peft(mixed_trials(path, count), tmp_path)


@pytest.mark.slow
def test_equal_segments_go_through_batched_products(base_path: Callable[[str], str], tmp_path: Path) -> None:
    path = base_path("llama")
    trials = mixed_trials(path, 4, train__batch_size=16, train__accumulation=1)
    check_against_peft(trials, tmp_path)


@pytest.mark.slow
def test_different_targets_layers_and_biases_share_a_pack(base_path: Callable[[str], str], tmp_path: Path) -> None:
    path = base_path("bert")
    changes = [
        {"adapter__targets": ["query", "value"], "adapter__bias": "lora_only"},
        {"adapter__layers": 1},
        {"adapter__bias": "all"},
        {"adapter__layers": [0], "adapter__targets": ["attention.output.dense"]},
    ]
    trials = [config(path, train__max_steps=6, train__seed=k, adapter__r=4, **c) for k, c in enumerate(changes)]
    check_against_peft(trials, tmp_path)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.slow
def test_padded_ranges_as_on_a_gpu(family: str, base_path: Callable[[str], str], tmp_path: Path) -> None:
    """The products that a GPU uses for unequal ranges, run on the CPU; a slot that lacks a target shares the block."""
    trials = mixed_trials(base_path(family), 4)
    trials[1].adapter.layers = 1
    check_against_peft(trials, tmp_path, pad_ranges=True)


@pytest.mark.parametrize(
    ("steps", "falls_to"), [(40, 0.97), pytest.param(500, 0.4, marks=[pytest.mark.slow, pytest.mark.torture])]
)
@pytest.mark.slow
def test_runs_that_learn_for_long(steps: int, falls_to: float, tmp_path: Path) -> None:
    """Five hundred steps in `make torture`; the shorter one runs always."""
    from lorasweep.config.schema import DataConfig
    from lorasweep.data.encode import encode
    from lorasweep.data.sources import load_search_data
    from lorasweep.models.base import load_tokenizer

    common = {"train__max_steps": steps, "optimizer__schedule": "cosine", "optimizer__warmup_steps": 20}
    trials = [
        config("builtin:tiny_encoder", adapter__r=8, optimizer__lr=3e-4, train__batch_size=10, **common),
        config("builtin:tiny_encoder", adapter__r=4, optimizer__lr=2e-4, train__batch_size=8, train__seed=1, **common),
    ]
    split = load_search_data(DataConfig(demo_rows=600)).train
    train = encode(split, load_tokenizer(trials[0].model), 64, None, "")
    curves = check_against_peft(trials, tmp_path, train=train)
    for curve in curves:
        tenth = steps // 10
        assert sum(curve[-tenth:]) < falls_to * sum(curve[:tenth])
