"""Parameter counts of the real models, laid out on torch's meta device, equal the published ones. No weights, no hub.

The configurations are those of the checkpoints' own config.json, as far as they decide shapes.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DistilBertConfig,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
)

from lorasweep.config.schema import Config
from lorasweep.models.base import BaseKey, LoadedBase
from lorasweep.models.counts import count_parameters
from lorasweep.models.forward import Current
from lorasweep.models.install import _is_linear, _linear_shape, _trainable_layers, find_heads, inside
from lorasweep.models.packed_lora import counts_of

LLAMA_2_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    tie_word_embeddings=False,
    num_labels=3,
)
LLAMA_32_1B = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    tie_word_embeddings=True,
)
GEMMA_2_2B = Gemma2Config(
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
)
GPT_2 = GPT2Config(num_labels=3)
DISTILBERT = DistilBertConfig(num_labels=2)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj"]


def on_meta(loader: Any, config: Any) -> Any:
    with torch.device("meta"):
        return loader.from_config(config)


def laid_out(model: Any, classes: int) -> LoadedBase:
    """A base as `prepare_base` makes it, but for the probe forward, which needs values."""
    key = BaseKey("", None, False, "none", False, "fp32", "classification", classes, False, False, "meta")
    heads, fresh = find_heads(model, "classification", {"score.weight"})
    base = LoadedBase(
        key=key,
        path="",
        model=model,
        tokenizer=SimpleNamespace(),
        device=torch.device("meta"),
        current=Current(),
        fingerprint="",
        stream=True,
        head_modules=heads,
        head_layers=[name for name, it in model.named_modules() if _is_linear(it) and inside(name, heads)],
        fresh_modules=fresh,
        total_params=count_parameters(model),
    )
    backbone = ((name, it) for name, it in _trainable_layers(base) if _is_linear(it) and name not in base.head_layers)
    base.linear_modules = {name: _linear_shape(it) for name, it in backbone}
    return base


@pytest.mark.parametrize(
    ("loader", "config", "published"),
    [
        (AutoModelForCausalLM, LLAMA_32_1B, 1_235_814_400),
        (AutoModelForCausalLM, GEMMA_2_2B, 2_614_341_888),
        (AutoModelForSequenceClassification, GPT_2, 124_442_112),
        (AutoModelForSequenceClassification, DISTILBERT, 66_955_010),
    ],
    ids=["Llama-3.2-1B", "Gemma-2-2b", "GPT-2, 3 classes", "DistilBERT, 2 classes"],
)
def test_total(loader: Any, config: Any, published: int) -> None:
    assert count_parameters(on_meta(loader, config)) == published


def test_llama_2_7b_with_three_classes_and_the_published_lora() -> None:
    """One public report printed 12,288 trainable: that is the head alone."""
    trial = Config()
    trial.adapter.r, trial.adapter.alpha, trial.adapter.dropout = 16, 64.0, 0.1
    trial.adapter.targets = list(PROJECTIONS)
    model = on_meta(AutoModelForSequenceClassification, LLAMA_2_7B)
    counts = counts_of(laid_out(model, classes=3), trial)
    assert (counts.total, counts.trainable, counts.head) == (6_647_345_152, 39_989_248, 12_288)
    assert round(100 * counts.trainable / counts.total, 2) == 0.60
    lora = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=64, lora_dropout=0.1, target_modules=PROJECTIONS)
    with torch.device("meta"):
        theirs = get_peft_model(model, lora)
    assert theirs.get_nb_trainable_parameters() == (counts.trainable, counts.total)


@pytest.mark.parametrize(
    ("config", "classes"), [(GPT_2, 3), (DISTILBERT, 2)], ids=["GPT-2, 3 classes", "DistilBERT, 2 classes"]
)
def test_full_fine_tuning_trains_all_that_there_is(config: Any, classes: int) -> None:
    model = on_meta(AutoModelForSequenceClassification, config)
    assert laid_out(model, classes).total_params == sum(p.numel() for p in model.parameters())
