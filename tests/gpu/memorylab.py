"""A base that is large enough to weigh, and what a piece of work takes at its highest, on CUDA and on the CPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from enginelab import NAMES
from lorasweep.models.base import BaseKey, LoadedBase, prepare_base


def large_base(device: str) -> tuple[LoadedBase, int]:
    """A Llama with random weights, made on the device, and the bytes that were allocated there before it. On CUDA 330
    million parameters in bf16, beside which a library's workspaces are small; on the CPU 2 million in fp32."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    cuda = device == "cuda"
    hidden = 2048 if cuda else 128
    settings = LlamaConfig(
        vocab_size=4096, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=6,
        num_attention_heads=16 if cuda else 8, num_key_value_heads=4, max_position_embeddings=512, pad_token_id=0,
        num_labels=len(NAMES),
    )  # fmt: skip
    gc.collect()
    before = torch.cuda.memory_allocated() if cuda else 0
    dtype = torch.bfloat16 if cuda else torch.float32
    with torch.random.fork_rng(devices=[]), torch.device(device):
        model = LlamaForSequenceClassification._from_config(settings, dtype=dtype)
    key = BaseKey(
        path="random", revision=None, trust_remote_code=False, quantization="none", double_quant=False,
        precision="bf16" if cuda else "fp32", head="classification", label_count=len(NAMES), checkpointing=False,
        full=False, device=device,
    )  # fmt: skip
    tokenizer = SimpleNamespace(pad_token_id=0, padding_side="right")
    return prepare_base(model, tokenizer, key, path="random", fingerprint="random", missing={"score.weight"}), before


def measured_peak(work: Callable[[], Any], device: str) -> int:
    """Bytes allocated at the highest while `work` runs, with what was allocated before. On the CPU, where nothing
    counts them, those that live tensors hold at the start and what the profiler sees come and go."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    resting = {
        thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes()
        for thing in gc.get_objects()
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu"
    }
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    now = highest = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    return sum(resting.values()) + highest
