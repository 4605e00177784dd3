"""Bases and their engines: files in PEFT's format, heads, quantization, precision, full fine-tuning, bad input."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from enginelab import (
    NAMES,
    base_of,
    build_base,
    clone,
    config,
    export_now,
    finished,
    mixed_trials,
    pack_of,
    pad,
    peft_model,
    rows,
    run,
    train_by_hand,
    values,
)
from lorasweep.config.schema import ModelConfig
from lorasweep.errors import ConfigError, ModelError, StorageError
from lorasweep.models.base import base_key, load_base, load_tokenizer
from lorasweep.models.peft_format import import_adapter
from lorasweep.models.targets import resolve_targets
from lorasweep.training.forwards import cut_forwards
from lorasweep.training.slot import DataOrder
from lorasweep.training.stepping import gradient_norms, optimizer_step

PathOf = Callable[[str], str]
EXPORTS = {
    "plain": {},
    "rslora": {"adapter__rslora": True},
    "lora_only": {"adapter__bias": "lora_only"},
    "all": {"adapter__bias": "all"},
    "layers": {"adapter__layers": [1], "adapter__targets": "all-linear"},
    "no_layer": {"adapter__layers": 0},
    "head": {"adapter__kind": "head"},
}


def served_predictions(model: Any, encoded: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        left = model.config.model_type == "xlnet"
        chosen = torch.arange(len(encoded))
        return model(**pad(encoded, chosen, model.config.pad_token_id, left)).logits.softmax(-1)


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_exported_adapter_opens_in_peft_and_predicts_the_same(
    family: str, kind: str, base_path: PathOf, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    trial = config(base_path(family), train__max_steps=5, optimizer__lr=1e-2, adapter__r=4, **EXPORTS[kind])
    validation = rows(12, seed=9)
    pack = pack_of(base_of(trial), 2, rows(30), validation)
    pack.admit(0, clone(trial, train__seed=3, adapter__r=6))
    pack.admit(1, trial)
    predictions = None
    while predictions is None:
        for event in pack.advance():
            if event.number == 1 and hasattr(event, "predictions"):
                predictions = torch.as_tensor(event.predictions)
    pack.export(1, tmp_path / "adapter")
    base = AutoModelForSequenceClassification.from_pretrained(
        trial.model.path, num_labels=len(NAMES), dtype=torch.float32
    )
    base.config.pad_token_id = pack.base.model.config.pad_token_id
    served = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert float((served_predictions(served, validation) - predictions).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", ["plain", "all", "lora_only", "head"])
def test_import_is_the_inverse_of_export(kind: str, base_path: PathOf, tmp_path: Path) -> None:
    trial = config(base_path("gpt2"), train__max_steps=3, optimizer__lr=1e-2, **EXPORTS[kind])
    pack = pack_of(base_of(trial), 1, rows(30))
    pack.admit(0, trial)
    run(pack)
    folder = export_now(pack, 0, tmp_path / "adapter")
    layout = pack.engine._trial(0).layout  # type: ignore[attr-defined]
    row = import_adapter(pack.base, trial.adapter, layout, folder)
    assert torch.allclose(row, values(pack, 0), atol=1e-6)
    if kind == "head":
        return
    with pytest.raises(StorageError, match=r"lora_A.weight has shape \(8, .*another base or rank"):
        import_adapter(pack.base, clone(trial, adapter__r=5).adapter, layout, folder)
    with pytest.raises(StorageError, match="cannot be read as a PEFT adapter"):
        import_adapter(pack.base, trial.adapter, layout, tmp_path / "nowhere")


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_all_linear_is_pefts_rule(family: str, base_path: PathOf) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import _maybe_include_all_linear_layers

    trial = config(base_path(family))
    base = base_of(trial)
    theirs = _maybe_include_all_linear_layers(LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"), base.model)
    fully_trained = {"pre_classifier"}  # DistilBERT's head has two layers; PEFT would adapt the drawn one
    assert set(resolve_targets(base, trial.adapter)) == set(theirs.target_modules) - fully_trained


def test_heads_of_the_right_size_start_from_the_checkpoint_others_are_drawn(tmp_path: Path) -> None:
    path = build_base("bert", tmp_path / "classifier", classifier=True)
    trial = config(path)
    trained = base_of(trial)
    assert (trained.head_modules, trained.fresh_modules) == (["classifier"], set())
    pack = pack_of(trained, 2, rows(30))
    pack.admit(0, trial)
    weight = pack.engine._head_part("classifier", 0).weight  # type: ignore[attr-defined]
    assert torch.equal(weight, trained.model.classifier.weight)
    two = load_base(trial, "classification", NAMES[:2])
    assert two.fresh_modules == {"classifier"}
    drawn = []
    for seed in (0, 0, 1):
        other = pack_of(two, 1, rows(30, classes=2))
        other.admit(0, config(path, train__seed=seed))
        drawn.append(other.engine._head_part("classifier", 0).weight.clone())  # type: ignore[attr-defined]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_fresh_adapter_is_drawn_as_peft_draws_it(base_path: Callable[[str], str], tmp_path: Path) -> None:
    """A uniform within 1 / sqrt(inputs), which is kaiming_uniform_ at a = sqrt(5); B zero."""
    trial = config(base_path("bert"), adapter__r=16)
    pack = pack_of(base_of(trial), 1, rows(4))
    pack.admit(0, trial)
    drawn = load_file(str(export_now(pack, 0, tmp_path) / "adapter_model.safetensors"))
    pairs = {name: piece for name, piece in drawn.items() if ".lora_" in name}
    assert pairs
    for name, piece in pairs.items():
        if ".lora_B" in name:
            assert not piece.any(), name
            continue
        wanted = torch.empty_like(piece)
        torch.nn.init.kaiming_uniform_(wanted, a=math.sqrt(5))
        bound = 1 / math.sqrt(piece.shape[1])
        assert 0.9 * bound < float(piece.abs().max()) <= bound, name
        assert float(piece.std()) == pytest.approx(float(wanted.std()), rel=0.15), name


def test_modules_that_the_checkpoint_lacks_are_trained_whole(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    from enginelab import config_of, save_tokenizer

    BertForMaskedLM(config_of("bert")).save_pretrained(str(tmp_path))  # has no pooler
    save_tokenizer(tmp_path, 0, "right")
    trial = config(str(tmp_path), train__max_steps=2)
    base = base_of(trial)
    assert base.head_modules == ["classifier", "bert.pooler.dense"]
    assert base.fresh_modules == {"classifier", "bert.pooler.dense"}
    assert "bert.pooler.dense" not in resolve_targets(base, trial.adapter)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_nf4_pack_equals_peft_over_the_same_quantized_base(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BitsAndBytesConfig

    path = build_base(family, tmp_path / "wide", hidden=64)  # 4-bit blocks are 64 wide
    trials = mixed_trials(path, 3, train__max_steps=6)
    for trial in trials:
        trial.quantization.kind = "nf4"
    train = rows(30)
    base = base_of(trials[0])
    kinds = {type(base.model.get_submodule(name)).__name__ for name in base.linear_modules}
    assert "Linear4bit" in kinds
    pack = pack_of(base, 3, train)
    starts = {}
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
        starts[number] = export_now(pack, number, tmp_path / str(number))
    steps = run(pack)
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["classifier", "score", "pooler"],
    )
    for number, trial in enumerate(trials):
        model = peft_model(trial, starts[number], quantization_config=four_bit, device_map={"": "cpu"})
        monkeypatch.setattr(model, "eval", model.train)  # on a CPU, eval would repack the weights, in bfloat16
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        losses = train_by_hand(model, trial, train, DataOrder(30, trial.train.seed), trial.train.max_steps)
        assert [event.loss for event in steps[number]] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
@pytest.mark.slow
def test_bf16_is_autocast_and_packed_equals_alone(family: str, base_path: PathOf, tmp_path: Path) -> None:
    # small rates: a curve that jumps would turn rounding into other losses
    trials = mixed_trials(base_path(family), 3, train__precision="bf16", train__max_steps=6, optimizer__lr=3e-4)
    train, base = rows(30), base_of(trials[0])
    assert {base.model.get_submodule(name).weight.dtype for name in base.linear_modules} == {torch.bfloat16}
    pack = pack_of(base, 3, train)
    starts = {}
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
        starts[number] = export_now(pack, number, tmp_path / str(number))
    steps = run(pack)
    for number, trial in enumerate(trials):
        ours = [event.loss for event in steps[number]]
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            model = peft_model(trial, starts[number])
            plain = train_by_hand(model, trial, train, DataOrder(30, trial.train.seed), trial.train.max_steps)
        assert ours == pytest.approx(plain, rel=0.05)
        solo = pack_of(base, 1, train)
        solo.admit(0, trial)
        assert ours == pytest.approx([event.loss for event in run(solo)[0]], rel=0.02)


def test_fp16_scales_losses_and_tries_an_overflown_step_again(base_path: PathOf) -> None:
    trial = config(base_path("bert"), train__precision="fp16", train__max_steps=4, train__batch_size=4)
    pack = pack_of(base_of(trial), 2, rows(30))
    pack.admit(0, trial)
    pack.admit(1, clone(trial, train__seed=1))
    pack.roster.slot(0).scaler.update(2.0**40)  # overflows float16 for sure
    steps = run(pack)
    assert [event.step for event in steps[0]] == [1, 2, 3, 4]
    assert pack.roster.slot(0).loss_scale < 2.0**40
    exact = pack_of(base_of(clone(trial, train__precision="fp32")), 1, rows(30))
    exact.admit(0, clone(trial, train__precision="fp32"))
    assert [event.loss for event in steps[0]] == pytest.approx([event.loss for event in run(exact)[0]], rel=0.02)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "electra"])
def test_activation_checkpointing_changes_nothing(family: str, base_path: PathOf) -> None:
    trial = config(base_path(family), train__max_steps=5, adapter__dropout=0.2, train__base_dropout=0.1)
    curves = []
    for checkpointing in (False, True):
        it = clone(trial, train__activation_checkpointing=checkpointing)
        pack = pack_of(base_of(it), 2, rows(30))
        pack.admit(0, it)
        pack.admit(1, clone(it, train__seed=1, adapter__r=3))
        curves.append([event.loss for event in run(pack)[0]])
    assert curves[0] == curves[1]


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_full_fine_tuning_equals_plain_torch_and_exports_a_checkpoint(
    family: str, base_path: PathOf, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    trial = config(base_path(family), adapter__kind="full", train__max_steps=6, optimizer__lr=1e-3, train__batch_size=5)
    train, validation = rows(30), rows(12, seed=9)
    base = base_of(trial)
    untouched = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    pack = pack_of(base, 1, train, validation)
    pack.admit(0, trial)
    counts = pack.counts(0)
    assert counts.trainable == counts.total
    model = AutoModelForSequenceClassification.from_pretrained(trial.model.path, num_labels=3, dtype=torch.float32)
    model.load_state_dict(pack.engine.base.model.state_dict())
    model.config.pad_token_id = base.model.config.pad_token_id
    ours, predictions = [], None
    while predictions is None:
        for event in pack.advance():
            if hasattr(event, "loss"):
                ours.append(event.loss)
            if hasattr(event, "predictions"):
                predictions = torch.as_tensor(event.predictions)
    losses = train_by_hand(model, trial, train, DataOrder(30, 0), 6)
    assert ours == pytest.approx(losses, rel=1e-5)
    pack.export(0, tmp_path / "full")
    served = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "full"), dtype=torch.float32)
    assert served.config.id2label == dict(enumerate(NAMES))
    assert float((served_predictions(served, validation) - predictions).abs().max()) < 1e-5
    load_tokenizer(ModelConfig(path=str(tmp_path / "full")))
    pack.evict(0)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in base.model.state_dict().items())


def test_causal_language_model_losses_equal_transformers(base_path: PathOf) -> None:
    from transformers import AutoModelForCausalLM

    from lorasweep.data.encode import Encoded

    for family in ("gpt2", "llama"):
        trial = config(base_path(family))
        base = load_base(trial, "causal_lm", [])
        plain = rows(6)
        labels = plain.ids.clone()
        labels[plain.offsets[:-1]] = -100  # the first token of each row is not asked for
        labels[::4] = -100
        encoded = Encoded(plain.ids, plain.offsets, labels, None, 0)
        pack = pack_of(base, 2, encoded, encoded)
        pack.admit(0, config(base.path, train__batch_size=6, train__max_steps=1, adapter__r=2))
        pack.admit(1, config(base.path, train__batch_size=2, train__max_steps=1))
        assert base.head_modules == []
        loss = next(event.loss for event in _train_only(pack) if event.number == 0)
        model = AutoModelForCausalLM.from_pretrained(trial.model.path, dtype=torch.float32).eval()
        model.load_state_dict(base.model.state_dict())  # an output embedding that the checkpoint lacks is drawn
        batch = pad(plain, torch.arange(6), 0)
        padded = torch.full_like(batch["input_ids"], -100)
        for row in range(6):
            padded[row, : int(plain.lengths[row])] = labels[plain.offsets[row] : plain.offsets[row + 1]]
        assert loss == pytest.approx(float(model(**batch, labels=padded).loss), rel=1e-5)


def _train_only(pack: Any) -> list[Any]:
    slots, engine = pack.roster.training, pack.engine
    pack._train(cut_forwards(slots, pack.train, pack.limits, pack.engine)[0][0])
    norms = gradient_norms(engine, slots)
    return [optimizer_step(engine, slot, norm) for slot, norm in zip(slots, norms, strict=True)]


def test_base_keys_tell_apart_what_needs_another_base() -> None:
    trial = config("some/path")
    key = base_key(trial, "classification", NAMES)
    assert key == base_key(clone(trial, adapter__r=2, train__seed=4, optimizer__lr=1.0), "classification", NAMES)
    for change in (
        {"quantization__kind": "nf4"},
        {"train__precision": "bf16"},
        {"train__activation_checkpointing": True},
        {"adapter__kind": "full"},
        {"model__revision": "v2"},
    ):
        assert key != base_key(clone(trial, **change), "classification", NAMES)
    assert key != base_key(trial, "classification", NAMES[:2])


def test_bases_that_cannot_be_found_say_so_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    cases = {
        "no/such/folder": "no such folder",
        str(tmp_path / "nowhere"): "no such folder",
        str(tmp_path / "empty"): "no config.json",
        str(tmp_path / "file.txt"): "is a file",
        "someone/no-such-model": "neither a folder here nor in the hub's cache",
    }
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for path, message in cases.items():
        start = time.monotonic()
        with pytest.raises(ModelError, match=message) as caught:
            base_of(config(path))
        assert path in str(caught.value)
        assert time.monotonic() - start < 5
    with pytest.raises(ConfigError, match=r"model\.path is empty"):
        base_of(config(""))
    with pytest.raises(ConfigError, match=r"launcher\.device=cuda:7"):
        base_of(clone(config("x"), launcher__device="cuda:7"))


def test_an_unreachable_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refused(*_: Any, **__: Any) -> None:
        raise OfflineModeIsEnabled("no network")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refused)
    with pytest.raises(ModelError, match=r"someone/no-such-model .*cannot be reached"):
        base_of(config("someone/no-such-model"))


def test_full_over_4_bit_is_refused(base_path: PathOf) -> None:
    trial = config(base_path("bert"), adapter__kind="full")
    trial.quantization.kind = "nf4"
    with pytest.raises(ConfigError, match="quantization=none or adapter=lora"):
        base_of(trial)


def test_padding_token_falls_back_to_end_of_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    path = build_base("gpt2", tmp_path)
    raw = Tokenizer(models.WordLevel({"a": 0, "<eos>": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>").save_pretrained(path)
    assert load_tokenizer(ModelConfig(path=path)).pad_token == "<eos>"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_decoders_pool_where_transformers_does_when_rows_end_in_padding_tokens(family: str, base_path: PathOf) -> None:
    from lorasweep.data.encode import Encoded

    trial = config(base_path(family), train__max_steps=1, train__batch_size=6)
    plain = rows(6)
    ids = plain.ids.clone()
    ids[plain.offsets[1:] - 1] = 0  # the padding token as a row's own last token
    encoded = Encoded(ids, plain.offsets, plain.labels, None, 0)
    base = base_of(trial)
    pack = pack_of(base, 1, encoded)
    pack.admit(0, trial)
    loss = next(event.loss for event in pack.advance() if hasattr(event, "loss"))
    model = base.model
    model.score.weight.data.copy_(pack.engine._head_part("score", 0).weight)  # type: ignore[attr-defined]
    model.set_attn_implementation("sdpa")
    pack2 = pack_of(base, 1, encoded)  # a fresh draw of the same head, before any step
    pack2.admit(0, trial)
    model.score.weight.data.copy_(pack2.engine._head_part("score", 0).weight)  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = model(**pad(encoded, torch.arange(6), 0)).logits
    assert loss == pytest.approx(float(cross_entropy(logits, encoded.labels)), rel=1e-5)


def test_finished_events_name_what_was_kept(base_path: PathOf) -> None:
    trial = config(base_path("bert"), train__max_steps=2)
    pack = pack_of(base_of(trial), 1, rows(30))
    pack.admit(3, trial)
    (end,) = finished(pack)
    assert (end.number, end.step, end.reason, end.samples) == (3, 2, "steps", 32)
    assert {"eval/loss", "eval/accuracy"} <= end.best_metrics.keys()
