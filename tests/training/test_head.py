"""adapter=head: the head alone over a frozen base, packed beside adapters, against a loop of plain torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginelab import (
    NAMES,
    base_of,
    build_base,
    config,
    export_now,
    pack_of,
    rows,
    run,
    train_by_hand,
)
from lorasweep.models.base import load_base
from lorasweep.models.prefix_cache import PrefixBudget
from lorasweep.training.slot import DataOrder

PathOf = Callable[[str], str]


def with_trained_head(model: Any, folder: Path) -> list[str]:
    """Give a model the head of an adapter folder, freeze all else; the head's parameters."""
    from safetensors.torch import load_file

    stored = {
        name.removeprefix("base_model.model."): it
        for name, it in load_file(folder / "adapter_model.safetensors").items()
    }
    told = model.load_state_dict(stored, strict=False)
    assert not told.unexpected_keys
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in stored)
    return sorted(stored)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_head_equals_plain_torch(family: str, cached: bool, base_path: PathOf, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    path, train = base_path(family), rows(30)
    heads = [
        config(
            path,
            adapter__kind="head",
            train__max_steps=10,
            train__batch_size=6 + 2 * k,
            train__seed=k,
            optimizer__lr=2e-2,
            optimizer__weight_decay=0.1,
            optimizer__schedule="cosine",
        )
        for k in range(2)
    ]
    lora = config(path, train__max_steps=10, optimizer__lr=1e-2)
    pack = pack_of(base_of(lora), 3, train, prefixes=PrefixBudget(1.0) if cached else None)
    starts = []
    for number, trial in enumerate([heads[0], lora, heads[1]]):
        pack.admit(number, trial)
        starts.append(export_now(pack, number, tmp_path / f"start{number}"))
    steps = run(pack)
    for number, trial in ((0, heads[0]), (2, heads[1])):
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(NAMES))
        model.config.pad_token_id = pack.base.model.config.pad_token_id
        names = with_trained_head(model, starts[number])
        losses = train_by_hand(model, trial, train, DataOrder(len(train), trial.train.seed), 10)
        assert [event.loss for event in steps[number]] == pytest.approx(losses, rel=1e-5)
        begun = load_file(starts[number] / "adapter_model.safetensors")
        moved = [float((model.state_dict()[name] - begun[f"base_model.model.{name}"]).abs().max()) for name in names]
        assert min(moved) > 0.01
        ours = AutoModelForSequenceClassification.from_pretrained(path, num_labels=len(NAMES))
        with_trained_head(ours, export_now(pack, number, tmp_path / f"end{number}"))
        for name in names:
            assert torch.allclose(ours.state_dict()[name], model.state_dict()[name], atol=1e-4), name
        counts = pack.counts(number)
        assert counts.adapter == 0
        assert counts.trainable == counts.head == sum(model.state_dict()[name].numel() for name in names)
        assert counts.total == pack.base.total_params + counts.head  # as PEFT: the trained head is a copy


def test_a_head_that_the_checkpoint_has_starts_from_it(tmp_path: Path) -> None:
    path = build_base("bert", tmp_path, classifier=True)
    trial = config(path, adapter__kind="head")
    base = base_of(trial)
    pack = pack_of(base, 1, rows(30))
    pack.admit(0, trial)
    assert torch.equal(pack.engine._head_part("classifier", 0).weight, base.model.classifier.weight)  # type: ignore[attr-defined]


def test_a_language_model_has_no_head_to_train(base_path: PathOf) -> None:
    from lorasweep.errors import ModelError
    from lorasweep.models.packed_lora import PackedLora

    trial = config(base_path("gpt2"), adapter__kind="head")
    engine = PackedLora(load_base(trial, "causal_lm", []), 1)
    with pytest.raises(ModelError, match="nothing would be trained: adapter=head and the task has no head"):
        engine.admit(0, trial)
