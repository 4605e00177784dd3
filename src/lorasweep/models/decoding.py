"""What comes after a prompt: responses that are given, to score them, and tokens that are chosen, one at a time.

A prompt is read once, and its keys and values are kept for all that follows it.

On a token stream the rows of all slots take their steps together, (1, rows), and attention looks into `KeyValues`;
bases without a stream are padded on the left and keep transformers' own cache. Frozen layers are computed anew: what
the prefix cache holds are hidden states, not keys. Neighbours: `attention` (which reads and writes the cache),
`families` (logits), `training.generate` (which rows, and when to stop).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from lorasweep.models.stream import Batch, Segment
from lorasweep.models.transfer import to_device

if TYPE_CHECKING:
    from lorasweep.models.base import LoadedBase


@dataclass
class StepBatch:
    """New tokens behind what a cache holds, as `Batch` says it. One for each row: ids and positions are (1, rows), or
    (rows, 1) where padded; of branches (1, tokens). token_bounds and row_bounds are the same: each segment's tokens."""

    segments: list[Segment]
    ids: torch.Tensor
    positions: torch.Tensor
    row_bounds: list[tuple[int, int]]
    device: torch.device
    is_stream: bool
    attention_mask: torch.Tensor | None = None
    type_ids: torch.Tensor | None = None
    supervised: torch.Tensor | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)

    @property
    def token_bounds(self) -> list[tuple[int, int]]:
        """Each segment's tokens."""
        return self.row_bounds


class KeyValues:
    """Keys and values of a stream's rows at every attention layer, (rows, kv heads, room, dim). `lengths` (rows,)
    counts the tokens that each row has; during a step it is the place of the new one."""

    def __init__(self, batch: Batch, new_tokens: int):
        """Room for the rows of a prompt batch and so many tokens more."""
        self.lengths = to_device(batch.lengths, batch.device)
        self.width = int(batch.lengths.max())  # of what is looked at
        self.room = self.width + new_tokens
        row = torch.repeat_interleave(torch.arange(len(batch.lengths)), batch.lengths)
        starts = torch.cumsum(batch.lengths, 0) - batch.lengths
        place = torch.arange(len(row)) - torch.repeat_interleave(starts, batch.lengths)
        self.rows, self.places = to_device(row, batch.device), to_device(place, batch.device)
        self.tokens = to_device(batch.token_at, batch.device) if batch.gaps else None
        self.stepping = False
        self.branches: Branches | None = None
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._masks: dict[Any, torch.Tensor] = {}

    def keep(self, layer: Any, key: torch.Tensor, value: torch.Tensor) -> None:
        """Keep what a layer made of the prompts: key and value (tokens, kv heads, dim)."""
        found = []
        for states in (key, value):
            own = states if self.tokens is None else states.index_select(0, self.tokens)
            kept = states.new_zeros(len(self.lengths), states.shape[1], self.room, states.shape[2])
            kept[self.rows, :, self.places] = own
            found.append(kept)
        self._layers[id(layer)] = (found[0], found[1])

    def attend(
        self,
        layer: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """Add each row's new token and let it look at all before it: query (rows, heads, dim), key and value (rows, kv
        heads, dim) -> (rows, heads, dim). Of branches likewise, (tokens, …)."""
        keys, values = self._layers[id(layer)]
        if self.branches is not None:
            branches, width = self.branches, self.width
            k, v = (
                torch.cat([kept[:, :, :width].index_select(0, branches.parents), branches.pad(own)], 2)
                for kept, own in ((keys, key), (values, value))
            )
            mask = branches.mask(width, window, query.dtype)
            out = _attend(branches.pad(query), k, v, mask=mask, scaling=scaling, softcap=softcap)
            return out.transpose(1, 2).flatten(0, 1).index_select(0, branches.scatter)
        at = torch.arange(len(keys), device=keys.device)
        keys[at, :, self.lengths], values[at, :, self.lengths] = key, value
        mask = self._mask(window, query.dtype)
        width = mask.shape[-1]
        k, v = keys[:, :, :width], values[:, :, :width]
        return _attend(query[:, :, None], k, v, mask=mask, scaling=scaling, softcap=softcap)[:, :, 0]

    def _mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Additive (rows, 1, 1, longest): what each row's new token may look at."""
        key = (window, dtype)
        if key not in self._masks:
            place = torch.arange(self.width, device=self.lengths.device)[None]
            allowed = place <= self.lengths[:, None]
            if window is not None:
                allowed &= place > self.lengths[:, None] - window
            mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
            self._masks[key] = mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None, None]
        return self._masks[key]

    def begin_step(self, width: int) -> None:
        """A new token comes for every row; `width`: tokens of the longest row with it."""
        self.stepping, self.width = True, width
        self._masks.clear()

    def begin_branches(self, parents: torch.Tensor, lengths: torch.Tensor) -> Branches:
        """Given responses come: see `Branches`. They leave nothing behind."""
        self.stepping = True
        self.branches = Branches(self, parents, lengths)
        return self.branches

    def end_branches(self) -> None:
        """The responses have been read."""
        self.stepping, self.branches = False, None

    def end_step(self) -> None:
        """All layers have seen the new tokens."""
        self.lengths = self.lengths + 1

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows alone, (n,) int64 on the device."""
        self.lengths = self.lengths.index_select(0, rows)
        self._layers = {
            layer: (key.index_select(0, rows), value.index_select(0, rows))
            for layer, (key, value) in self._layers.items()
        }


class Branches:
    """Given responses behind the prompts of a cache, all at once: each sees its prompt and itself alone.

    parents (branches,): the cached row that each follows; lengths (branches,): its tokens, at least one. The tokens of
    all branches lie end to end in the stream, in `positions` (tokens,) of their rows.
    """

    def __init__(self, cache: KeyValues, parents: torch.Tensor, lengths: torch.Tensor):
        device = cache.lengths.device
        longest = int(lengths.max())
        place = torch.arange(longest)[None]
        starts = torch.cumsum(lengths, 0) - lengths
        inside = place < lengths[:, None]
        self.gather = to_device((starts[:, None] + torch.minimum(place, (lengths - 1)[:, None])).flatten(), device)
        self.scatter = to_device(inside.flatten().nonzero().squeeze(1), device)
        self.parents, self.longest = to_device(parents, device), longest
        self.before = cache.lengths.index_select(0, self.parents)  # (branches,) tokens of each prompt
        within = to_device(place.expand(len(lengths), -1)[inside], device)
        self.positions = torch.repeat_interleave(self.before, to_device(lengths, device)) + within
        self._masks: dict[Any, torch.Tensor] = {}

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """(tokens, heads, dim) -> (branches, heads, longest, dim); padding reads a token of its own branch."""
        return x.index_select(0, self.gather).unflatten(0, (-1, self.longest)).transpose(1, 2)

    def mask(self, width: int, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Additive (branches, 1, longest, width + longest): of the prompt what is there, of itself what came before."""
        key = (width, window, dtype)
        if key not in self._masks:
            device = self.before.device
            own = torch.arange(self.longest, device=device)
            at = self.before[:, None] + own[None]  # (branches, longest) positions
            place = torch.arange(width, device=device)[None].expand(len(self.before), -1)
            keys = torch.cat([place, at], 1)[:, None]  # (branches, 1, width + longest) positions
            there = torch.cat([place < self.before[:, None], torch.ones_like(at, dtype=torch.bool)], 1)[:, None]
            allowed = there & (keys <= at[:, :, None])
            if window is not None:
                allowed &= keys > at[:, :, None] - window
            mask = torch.zeros(allowed.shape, dtype=dtype, device=device)
            self._masks[key] = mask.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
        return self._masks[key]


class PaddedCache:
    """What a base without a stream keeps: transformers' own cache over rows that are padded on the left."""

    def __init__(self) -> None:
        self.theirs: Any = None
        self.mask: torch.Tensor | None = None  # (rows, tokens so far)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """q (rows, heads, new, dim), k and v (rows, kv heads, all, dim) -> (rows, heads, new, dim)."""
    if softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=k.shape[1] != q.shape[1])
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.matmul(q, k.mT) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap + mask
    return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype), v)


def bytes_per_token(base: LoadedBase) -> int:
    """What keys and values of one token take at all layers, by arithmetic."""
    config = base.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = torch.finfo(base.dtype).bits // 8
    return int(2 * config.num_hidden_layers * heads * dim * size)


def bounds_of(counts: list[int]) -> list[tuple[int, int]]:
    """(start, end) of consecutive ranges."""
    ends = list(accumulate(counts))
    return [(end - count, end) for end, count in zip(ends, counts, strict=True)]
