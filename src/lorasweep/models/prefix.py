"""The frozen prefix: blocks below a trial's first trained layer, whose output is a function of the row alone.

Without dropout in it, a row's hidden states past the prefix are the same for every trial and epoch, so they are
computed once (`states_of`) and forwards enter past it. Each block's forward is replaced by one that steps aside where
the running forward enters later; without a forward of ours it is the block it was. Neighbours: `forward` (the entry),
`last_layer` (pools), `prefix_cache` (keeps the states), `packed_lora` (which knows what a trial trains), `install`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.models.forward import Current, Entry, Forward
from lorasweep.models.last_layer import block_path, pooled
from lorasweep.models.stream import RowStore, Segment

if TYPE_CHECKING:
    from lorasweep.models.base import LoadedBase

LAYER_LAUNCHES_FLOP = {"cpu": 1e8, "cuda": 3e11}  # what the device computes while it starts one block, there and back


class _Reached(Exception):
    """The states were recorded: what lies above is not needed."""


class PrefixBlock:
    """Stands in for the forward of a backbone's block."""

    def __init__(self, block: Any, index: int, current: Current):
        self.frozen: Callable[..., torch.Tensor] = block.forward
        self.index, self.current = index, current

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        forward = self.current.forward
        entry = None if forward is None else forward.entry
        if entry is None or self.index >= entry.depth:
            return self.frozen(hidden_states, *args, **kwargs)
        last = self.index == entry.depth - 1
        if entry.states is not None:
            return entry.states if last else hidden_states
        out = self.frozen(hidden_states, *args, **kwargs)
        if last:
            entry.states = out
            raise _Reached
        return out


def install_blocks(base: LoadedBase) -> None:
    """Let forwards enter past any of a stream base's blocks."""
    blocks = base.model.get_submodule(block_path(base.model))
    for index, block in enumerate(blocks):
        block.__dict__["forward"] = PrefixBlock(block, index, base.current)
    base.blocks = len(blocks)


def first_block(base: LoadedBase, modules: Iterable[str]) -> int:
    """How many blocks lie below all the given modules; all of them where only modules past the blocks are named."""
    return min((_block_of(base, name) for name in modules), default=base.blocks)


def _block_of(base: LoadedBase, name: str) -> int:
    path = block_path(base.model)
    if name.startswith(f"{path}."):
        return int(name.removeprefix(f"{path}.").split(".")[0])
    backbone, container = path.split(".")[:2]
    if not name.startswith(f"{backbone}."):
        return base.blocks
    order = [child for child, _ in base.model.base_model.named_children()]
    return base.blocks if order.index(name.split(".")[1]) > order.index(container) else 0


def draws_below(base: LoadedBase, depth: int, rate: float | None) -> bool:
    """Whether the first `depth` blocks draw dropout at `train.base_dropout` = rate."""
    return any(
        (own if rate is None else rate) > 0 for name, own in base.dropouts.items() if _block_of(base, name) < depth
    )


def is_pooled(base: LoadedBase, depth: int) -> bool:
    """Whether the states past `depth` blocks are one a row: a classifier's last block works on pooled tokens alone."""
    return depth == base.blocks and base.key.head == "classification"


@torch.no_grad()
def states_of(base: LoadedBase, store: RowStore, rows: torch.Tensor, depth: int) -> torch.Tensor:
    """Hidden states past the first `depth` blocks of the given rows, end to end: (tokens, hidden), or (rows, hidden)
    where they are pooled."""
    batch, entry = base.batch(store, [Segment(0, rows)]), Entry(depth)
    forward = Forward(batch, {}, base.dtype, torch.zeros(0, device=base.device), entry=entry)
    with base.running(forward), contextlib.suppress(_Reached):
        base.logits(batch)
    assert entry.states is not None, "no block was reached"
    states = entry.states[0]
    if is_pooled(base, depth) and base.model.config.model_type == "gpt2":  # its last block answers with all tokens
        return states.index_select(0, pooled(batch, "gpt2"))
    return states


def worth_apart(base: LoadedBase, depth: int, tokens: int, saved_blocks: int) -> bool:
    """Whether rows of so many tokens that enter at `depth` should have a forward of their own, rather than one that
    enters `saved_blocks` earlier for the sake of others.

    By arithmetic: a product costs 2 FLOP a weight and token there, and once more back for the input; a further forward
    starts every block above the entry once more.
    """
    weights = sum(
        parameter.numel() for parameter in base.model.get_submodule(f"{block_path(base.model)}.0").parameters()
    )
    return 4 * weights * tokens * saved_blocks > LAYER_LAUNCHES_FLOP[base.device.type] * (base.blocks - depth + 1)
