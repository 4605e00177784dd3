"""The last layer of a classifier works on pooled tokens alone: past its attention nothing else is ever read.

A head pools one token of each row, so the last layer's output projection, feed-forward and norms need those rows only:
a fifth of a small base's arithmetic, forward and backward, and the same numbers. Each family's last block is run here
on (1, rows, hidden) from its attention's output projection on; without a forward of ours it is the block it was.
Neighbours: `families` (pooling), `install` (puts it in).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

POOLS_FIRST = ("bert", "distilbert", "roberta", "xlm-roberta")


def pooled(batch: Any, model_type: str) -> torch.Tensor:
    """(rows,) places in the stream of the tokens that a head of this family pools."""
    return batch.first if model_type in POOLS_FIRST else batch.last


def block_path(model: Any) -> str:
    """Name of the list of blocks of a stream family's model."""
    kind = model.config.model_type
    inner = {"distilbert": "transformer.layer", "gpt2": "h"}
    return f"{model.base_model_prefix}.{inner.get(kind, 'encoder.layer' if kind in POOLS_FIRST else 'layers')}"


class _Gather:
    """Forward pre-hook: (1, tokens, hidden) arguments -> (1, rows, hidden)."""

    def __init__(self, model_type: str, current: Any):
        self.model_type, self.current = model_type, current

    def __call__(self, _module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        forward = self.current.forward
        if forward is None:
            return None
        return tuple(x.index_select(1, pooled(forward.batch, self.model_type)) for x in args)


class LastBlock:
    """Stands in for the forward of a decoder's or DistilBERT's last block; `after` is what follows its attention."""

    def __init__(self, block: Any, model_type: str, current: Any):
        self.frozen: Callable[..., Any] = block.forward
        self.block, self.model_type, self.current = block, model_type, current

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        forward = self.current.forward
        if forward is None:
            return self.frozen(hidden_states, *args, **kwargs)
        places, block = pooled(forward.batch, self.model_type), self.block
        kept = hidden_states.index_select(1, places)  # (1, rows, hidden)
        if self.model_type == "distilbert":
            attended, _ = block.attention(hidden_states, attention_mask=None)
            out = block.sa_layer_norm(attended + kept)
            return block.output_layer_norm(block.ffn(out) + out)
        if self.model_type == "gpt2":
            attended, _ = block.attn(block.ln_1(hidden_states), attention_mask=None)
            out = attended + kept
            out = out + block.mlp(block.ln_2(out))
            whole = hidden_states.new_zeros(hidden_states.shape)  # GPT-2 views its output as tokens afterwards
            return whole.index_copy(1, places, out.to(whole.dtype))
        attended, _ = block.self_attn(
            hidden_states=block.input_layernorm(hidden_states),
            attention_mask=None,
            position_embeddings=kwargs["position_embeddings"],
        )
        if self.model_type == "gemma2":
            out = kept + block.post_attention_layernorm(attended)
            return out + block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(out)))
        out = kept + attended
        return out + block.mlp(block.post_attention_layernorm(out))


def install_last_layer(model: Any, current: Any) -> None:
    """Make the last block of a classifier of a stream family work on pooled tokens."""
    kind, block = model.config.model_type, model.get_submodule(block_path(model))[-1]
    gather = _Gather(kind, current)
    if kind in ("bert", "roberta", "xlm-roberta"):
        block.attention.output.register_forward_pre_hook(gather)
        return
    projection = {"distilbert": lambda: block.attention.out_lin, "gpt2": lambda: block.attn.c_proj}
    projection.get(kind, lambda: block.self_attn.o_proj)().register_forward_pre_hook(gather)
    block.__dict__["forward"] = LastBlock(block, kind, current)
