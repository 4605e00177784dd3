"""Forwards that enter past the frozen prefix: the same numbers as from the embeddings on, for every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginelab import (
    assert_same_adapter,
    base_of,
    clone,
    config,
    export_now,
    pack_of,
    peft_model,
    peft_vector,
    rows,
    run,
    train_by_hand,
)
from lorasweep.models.forward import Forward
from lorasweep.models.prefix import first_block, states_of, worth_apart
from lorasweep.models.prefix_cache import PrefixBudget
from lorasweep.models.stream import RowStore, Segment
from lorasweep.training.pack import Evaluated, Stepped
from lorasweep.training.slot import DataOrder

PathOf = Callable[[str], str]
FAMILIES = ["bert", "distilbert", "roberta", "gpt2", "llama", "mistral", "qwen2", "gemma", "gemma2"]


def curves(trials: list[Any], budget: PrefixBudget | None) -> tuple[torch.Tensor, torch.Tensor]:
    """All losses and all predictions of a pack that runs to its end."""
    pack = pack_of(base_of(trials[0]), len(trials), rows(30), prefixes=budget)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    losses: dict[int, list[float]] = {number: [] for number in range(len(trials))}
    predictions: dict[int, torch.Tensor] = {}
    while pack.roster.training:
        for event in pack.advance():
            if isinstance(event, Stepped):
                losses[event.number].append(event.loss)
            elif isinstance(event, Evaluated):
                predictions[event.number] = torch.as_tensor(event.predictions)
    return (
        torch.tensor([loss for number in sorted(losses) for loss in losses[number]]),
        torch.cat([predictions[number] for number in sorted(predictions)]),
    )


@pytest.mark.parametrize("layers", [1, 0])
@pytest.mark.parametrize("family", FAMILIES)
def test_cached_equals_uncached(family: str, layers: int, base_path: PathOf) -> None:
    """Top layer adapted, and only the head trained; slots of other batch sizes, seeds and adapter dropout."""
    common = {"adapter__layers": layers, "optimizer__lr": 1e-2, "train__max_steps": 6, "train__eval_every_steps": 3}
    trials = [
        config(base_path(family), train__batch_size=4 + k, train__seed=k % 2, adapter__dropout=0.1 * k, **common)
        for k in range(3)
    ]
    budget = PrefixBudget(1.0)
    plain, cached = curves(trials, None), curves(trials, budget)
    table_depths = {table.depth for table in budget.tables}
    assert table_depths <= {2 - layers}
    for ours, theirs in zip(cached, plain, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-6


def test_slots_of_different_layers_equal_peft(base_path: PathOf, tmp_path: Path) -> None:
    """PEFT with layers_to_transform, written out; one slot adapts everything, so the pack's slots enter at 2, 1, 0."""
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    path, train = base_path("bert"), rows(30)
    common = {"adapter__r": 4, "train__max_steps": 8, "optimizer__lr": 5e-3, "train__batch_size": 5}
    trials = [config(path, adapter__layers=layers, train__seed=3, **common) for layers in (None, 1, [1], 0)]
    budget = PrefixBudget(1.0)
    pack = pack_of(base_of(trials[0]), 4, train, prefixes=budget)
    starts = {}
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
        starts[number] = export_now(pack, number, tmp_path / f"start{number}")
    assert [pack.engine.depth(index, True) for index in range(4)] == [0, 1, 1, 2]
    steps = run(pack)
    reached = []
    for number in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            base = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
        model = get_peft_model(
            base,
            LoraConfig(
                r=4, lora_alpha=16, target_modules=["query", "key", "value", "dense"], layers_to_transform=[1],
                modules_to_save=["classifier"], task_type="SEQ_CLS",
            ),
        )  # fmt: skip
        from peft import set_peft_model_state_dict

        loaded = set_peft_model_state_dict(model, load_file(str(starts[number] / "adapter_model.safetensors")))
        assert not loaded.unexpected_keys
        losses = train_by_hand(model, trials[number], train, DataOrder(len(train), 3), 8)
        assert [event.loss for event in steps[number]] == pytest.approx(losses, rel=1e-5)
        theirs = peft_vector(model, tmp_path / f"theirs{number}")
        assert_same_adapter(export_now(pack, number, tmp_path / f"end{number}"), theirs)
        reached.append(losses)
    assert reached[0] == pytest.approx(reached[1])
    model = peft_model(trials[0], starts[0])
    losses = train_by_hand(model, trials[0], train, DataOrder(len(train), 3), 8)
    assert [event.loss for event in steps[0]] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("apart", [True, False])
def test_slots_enter_together_or_apart(apart: bool, base_path: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorasweep.models import packed_lora

    monkeypatch.setattr(packed_lora, "worth_apart", lambda *_: apart)
    path = base_path("gpt2")
    trials = [config(path, adapter__layers=layers, train__max_steps=4) for layers in (1, None, 1, 0)]
    budget = PrefixBudget(1.0)
    forwards: list[int] = []
    original = packed_lora.PackedLora.forward

    def counted(self: Any, batch: Any, keys: Any) -> Forward:
        forward = original(self, batch, keys)
        if keys is not None:
            forwards.append(0 if forward.entry is None else forward.entry.depth)
        return forward

    with monkeypatch.context() as patch:
        patch.setattr(packed_lora.PackedLora, "forward", counted)
        cached = curves(trials, budget)
    assert forwards == ([2, 1, 0] * 4 if apart else [0] * 4)
    for ours, theirs in zip(cached, curves(trials, None), strict=True):
        assert float((ours - theirs).abs().max()) < 1e-5  # other neighbours, other shapes, other rounding


def test_a_random_prefix_is_not_cached_in_training(base_path: PathOf) -> None:
    path = base_path("bert")  # its checkpoint has dropout 0.1
    trials = [config(path, adapter__layers=1, train__base_dropout=rate, train__max_steps=4) for rate in (None, 0.2)]
    budget = PrefixBudget(1.0)
    pack = pack_of(base_of(trials[0]), 3, rows(30), prefixes=budget)
    for number, trial in enumerate([*trials, clone(trials[0], train__base_dropout=0.0)]):
        pack.admit(number, trial)
    assert [pack.engine.depth(index, True) for index in range(3)] == [0, 0, 1]
    assert [pack.engine.depth(index, False) for index in range(3)] == [1, 1, 1]
    for ours, theirs in zip(curves(trials, budget), curves(trials, None), strict=True):
        assert float((ours - theirs).abs().max()) < 1e-6
    llama = config(base_path("llama"), adapter__layers=1, train__base_dropout=0.2)  # has no dropout to draw
    other = pack_of(base_of(llama), 1, rows(30), prefixes=PrefixBudget(1.0))
    other.admit(0, llama)
    assert other.engine.depth(0, True) == 1


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "distilbert"])
def test_depth_is_that_of_the_lowest_trained_module(family: str, base_path: PathOf) -> None:
    trial = config(base_path(family), adapter__layers=[1])
    pack = pack_of(base_of(trial), 1, rows(30), prefixes=PrefixBudget(1.0))

    def depth(**changes: Any) -> int:
        pack.admit(0, clone(trial, **changes))
        found = pack.engine.depth(0, False)
        pack.evict(0)
        return found

    assert depth() == 1
    assert depth(adapter__layers=[0]) == 0
    assert depth(adapter__layers=None) == 0
    assert depth(adapter__layers=0) == 2
    assert depth(adapter__bias="lora_only") == 1
    has_bias = family != "llama"
    assert depth(adapter__bias="all") == (0 if has_bias else 1)
    names = [name for name, _ in pack.base.model.named_modules()]
    embeddings = [name for name in names if "embed" in name or name.endswith((".wte", ".wpe"))]
    assert embeddings
    assert {first_block(pack.base, [name]) for name in embeddings if "rotary" not in name} == {0}


@pytest.mark.parametrize("family", ["albert", "electra", "deberta-v2"])
def test_other_families_go_without(family: str, base_path: PathOf) -> None:
    trial = config(base_path(family), adapter__layers=0, train__max_steps=2)
    budget = PrefixBudget(1.0)
    curves([trial], budget)
    assert not budget.tables


@pytest.mark.parametrize("cached", [True, False])
def test_no_gradient_below_the_first_adapted_layer(cached: bool, base_path: PathOf) -> None:
    trial = config(base_path("llama"), adapter__layers=1)
    base = base_of(trial)
    pack = pack_of(base, 1, rows(30), prefixes=PrefixBudget(1.0) if cached else None)
    pack.admit(0, trial)
    store = pack.train
    wanted: list[bool] = []
    for block in base.model.model.layers:
        block.register_forward_hook(lambda _block, _args, out: wanted.append(out.requires_grad))
    batch = base.batch(store, [Segment(0, torch.arange(6), 6)])
    forward = pack.engine.forward(batch, [0])
    wanted.clear()
    with base.running(forward):
        logits = base.logits(batch)
        assert wanted == [False, True]
        logits.sum().backward()
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert float(pack.engine.gradients(0)[0].abs().max()) > 0


def test_the_frozen_prefix_runs_once_a_row(base_path: PathOf) -> None:
    """Eight epochs of three trials: below the adapters each row is computed once, beside one to learn the width."""
    trials = [config(base_path("bert"), adapter__layers=1, train__epochs=8.0, train__seed=k) for k in range(3)]
    base = base_of(trials[0])
    pack = pack_of(base, 3, rows(30), prefixes=PrefixBudget(1.0))
    seen = [0]
    base.model.bert.encoder.layer[0].intermediate.register_forward_hook(
        lambda _module, args, _out: seen.__setitem__(0, seen[0] + args[0].shape[1])
    )
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    run(pack)
    train, validation = pack.train, pack.sheets.rows
    shortest = int(train.lengths.min() + validation.lengths.min())
    assert seen[0] == int(train.offsets[-1] + validation.offsets[-1]) + shortest


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_states_past_every_block_are_one_a_row(family: str, base_path: PathOf) -> None:
    base, encoded = base_of(config(base_path(family))), rows(9)
    store = RowStore(encoded, base.pad_token_id, base.device)
    assert len(states_of(base, store, torch.arange(9), 2)) == 9
    assert len(states_of(base, store, torch.arange(9), 1)) == int(encoded.offsets[-1])


def test_forwards_split_where_the_saved_blocks_outweigh_a_further_forward(base_path: PathOf) -> None:
    base = base_of(config(base_path("bert")))
    assert not worth_apart(base, 1, 100, 1)
    assert worth_apart(base, 1, 1_000_000, 1)


@pytest.mark.parametrize("precision", ["bf16"])
def test_mixed_precision(precision: str, base_path: PathOf) -> None:
    """bf16 rounds products by their shapes, so numbers agree to its precision only; states are kept as they are."""
    trials = [config(base_path("bert"), adapter__layers=1, train__max_steps=4, train__precision=precision)]
    budget = PrefixBudget(1.0)
    for ours, theirs in zip(curves(trials, budget), curves(trials, None), strict=True):
        assert float((ours - theirs).abs().max()) < 2e-2


def test_nf4(base_path: PathOf) -> None:
    pytest.importorskip("bitsandbytes")
    from lorasweep.models.base import load_base

    trial = config(base_path("llama"), adapter__layers=1, train__max_steps=4, quantization__kind="nf4")
    losses = []
    for budget in (None, PrefixBudget(1.0)):
        pack = pack_of(load_base(trial, "classification", ["no", "yes", "maybe"]), 1, rows(30), prefixes=budget)
        pack.admit(0, trial)
        losses.append([event.loss for event in run(pack)[0]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_recomputed_activations_enter_past_the_prefix_too(family: str, base_path: PathOf) -> None:
    common = {"adapter__layers": 1, "train__max_steps": 4, "adapter__dropout": 0.2}
    plain = curves([config(base_path(family), **common)], None)
    recomputed = config(base_path(family), train__activation_checkpointing=True, **common)
    budget = PrefixBudget(1.0)
    for ours, theirs in zip(curves([recomputed], budget), plain, strict=True):
        assert float((ours - theirs).abs().max()) < 1e-6
