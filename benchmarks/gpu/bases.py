"""Bases of known shapes with random weights, made on the device from a configuration: no file is read or written.

Neighbours: `ways` (what trains over them), `cells` (which are measured).
"""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lorasweep.models.base import BaseKey, LoadedBase, prepare_base

SHAPES: dict[str, dict[str, int]] = {
    "Llama-3.2-1B": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "Llama-2-7B": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "smoke": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512,
    },
}  # fmt: skip
LABELS = 2


def has_bitsandbytes() -> bool:
    """Whether 4-bit bases can be made."""
    return importlib.util.find_spec("bitsandbytes") is not None


def build_model(shape: str, quantization: str, precision: str, device: torch.device) -> Any:
    """A classifier of the shape on the device; quantization "none" or "nf4", precision "fp32" or "bf16"."""
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    settings = LlamaConfig(**SHAPES[shape], max_position_embeddings=4096, pad_token_id=0, num_labels=LABELS)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForSequenceClassification.from_config(settings, dtype=dtype)
    if quantization == "nf4":
        _quantize(model.model, dtype, device)
        model.is_loaded_in_4bit = True  # what PEFT asks
    return model.requires_grad_(False)


def _quantize(backbone: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Put bitsandbytes' 4-bit layers in the place of linear ones, one by one."""
    import bitsandbytes

    for name, layer in list(backbone.named_modules()):
        if type(layer) is not nn.Linear:
            continue
        parent, _, own = name.rpartition(".")
        four_bit = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        weight = bitsandbytes.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        four_bit.weight = weight.to(device)  # quantized on the way
        setattr(backbone.get_submodule(parent), own, four_bit)


def our_base(shape: str, quantization: str, precision: str, device: torch.device) -> LoadedBase:
    """The same model as lorasweep trains over it."""
    key = BaseKey(
        path=shape, revision=None, trust_remote_code=False, quantization=quantization, double_quant=False,
        precision=precision, head="classification", label_count=LABELS, checkpointing=False, full=False,
        device=str(device),
    )  # fmt: skip
    tokenizer = SimpleNamespace(pad_token_id=0, padding_side="right")
    model = build_model(shape, quantization, precision, device)
    return prepare_base(model, tokenizer, key, path=shape, fingerprint=shape, missing={"score.weight"})
