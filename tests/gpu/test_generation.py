"""Scoring and writing on each device, with the products that a GPU takes: unequal ranges in one padded block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gpulab import on, on_each_device

from enginelab import export_now, run
from lorasweep.training.evaluate import continue_prompts, read_rows, shared_responses
from tasklab import build_causal, pack_of, peft_causal, texts, trial


def trained(path: str, device: str, precision: str) -> Any:
    common = {"train__max_steps": 3, "optimizer__lr": 2e-2, "task__predict": "generate", "task__max_new_tokens": 10}
    trials = [
        on(trial(path, **common, train__seed=k, adapter__r=2 + 2 * k, data__max_length=60), device, precision)
        for k in range(3)
    ]
    trials[1].adapter.layers = 1  # a slot that lacks a target shares the block
    pack = pack_of(trials, texts(30), texts(9, seed=9))
    pack.engine.pad_ranges = True
    # no exam at the end: the machine that runs `make gpu` may lack what metrics need
    pack._evaluate = lambda due: [setattr(slot, "over", "steps") for slot in due] and []  # type: ignore[method-assign]
    run(pack)
    return pack, trials


@on_each_device
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_pack_writes_and_scores_as_transformers_does(family: str, device: str, tmp_path: Path) -> None:
    pack, trials = trained(build_causal(family, tmp_path / "base"), device, "fp32")
    slots, task, split = pack.roster.held, pack.task, texts(9, seed=9)
    shared = shared_responses(pack.engine, pack.sheets, slots)
    assert shared is not None
    whole = read_rows(pack.engine, task, pack.sheets.rows, slots, 500, pack.lanes)
    outcomes = continue_prompts(pack.engine, task, pack.sheets, slots, 300, pack.lanes, shared)
    tokenizer = pack.base.tokenizer
    for number, (outcome, sitting) in enumerate(zip(outcomes, whole, strict=True)):
        np.testing.assert_allclose(outcome.losses, sitting.losses, atol=1e-4)
        model = peft_causal(trials[number], export_now(pack, number, tmp_path / f"adapter{number}")).eval().to(device)
        for text, written in zip(split.texts, outcome.written, strict=True):
            ids = torch.tensor([tokenizer(f"w4 w20 w21 w5 {text} w6")["input_ids"]], device=device)
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10)
            new = out[0, ids.shape[1] :].tolist()
            assert written == (new[: new.index(1)] if 1 in new else new)


@on_each_device
@pytest.mark.parametrize("precision", ["bf16", "nf4"])
def test_lower_precision_writes_and_scores(precision: str, device: str, tmp_path: Path) -> None:
    pack, _ = trained(build_causal("llama", tmp_path / "base"), device, precision)
    slots, task = pack.roster.held, pack.task
    shared = shared_responses(pack.engine, pack.sheets, slots)
    whole = read_rows(pack.engine, task, pack.sheets.rows, slots, 500, pack.lanes)
    outcomes = continue_prompts(pack.engine, task, pack.sheets, slots, 300, pack.lanes, shared)
    for outcome, sitting in zip(outcomes, whole, strict=True):
        assert float(np.abs(outcome.losses.numpy() - sitting.losses).mean()) < 0.05
        assert all(len(written) <= 10 for written in outcome.written) and any(outcome.written)
