"""Rows of all slots end to end in one token stream: how a batch is laid out, and attention that alone pads.

A slot is a contiguous range of the stream whatever its rows' lengths, so no linear layer sees padding. Attention
gathers rows of like length into padded groups inside `stream_attention`, which transformers calls through its
AttentionInterface. Neighbours: `families` (which bases can work on a stream; pooling), `packed_lora` (adapters over
the ranges), `training` (which rows).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from lorasweep.data.encode import Encoded

ATTENTION = "lorasweep_stream"  # the name under which transformers knows `stream_attention`
SPLIT_SAVES_TOKENS = 256  # a further attention group costs about as much as this many padded tokens
FILL_AT_MOST = 0.12  # segments are filled up to equal length where that adds at most this share of tokens


@dataclass
class Segment:
    """Rows of one slot in a forward. `first_row` and `first_token` count within the slot's micro-batch: they are 0
    unless the micro-batch was cut into several forwards."""

    slot: int
    rows: torch.Tensor  # (rows,) int64 indexes into the store
    first_row: int = 0
    first_token: int = 0


class RowStore:
    """Encoded rows on a device, with what collation needs of each row.

    `last` is where a decoder pools: the row's last token that is not padding (as transformers' sequence
    classification looks for it), counted from the row's first.
    """

    def __init__(self, encoded: Encoded, pad_token_id: int | None, device: torch.device):
        self.ids = encoded.ids.to(device)
        self.type_ids = None if encoded.type_ids is None else encoded.type_ids.to(device)
        self.labels = encoded.labels.to(device)
        self.offsets = encoded.offsets
        self.lengths = encoded.offsets[1:] - encoded.offsets[:-1]
        self.last = self.lengths - 1
        self.device = device
        if pad_token_id is not None and bool((encoded.ids == pad_token_id).any()):
            token = torch.arange(len(encoded.ids)) - torch.repeat_interleave(self.offsets[:-1], self.lengths)
            token = token * (encoded.ids != pad_token_id)
            row = torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)
            self.last = torch.zeros_like(self.lengths).scatter_reduce(0, row, token, "amax")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max()) if len(self) else 0


@dataclass
class AttentionGroup:
    """Rows that share one padded block (rows, longest). `real` (rows, longest) is None where nothing is padding."""

    rows: int
    longest: int
    real: torch.Tensor | None
    masks: dict[Any, torch.Tensor] = field(default_factory=dict)

    def mask(self, causal: bool, window: int | None, dtype: torch.dtype, device: torch.device) -> torch.Tensor | None:
        """Additive mask that broadcasts to (rows, heads, longest, longest), or None where none is needed."""
        key = (causal, window, dtype)
        if key not in self.masks:
            allowed = self.real[:, None, None, :] if self.real is not None and not causal else None
            if causal:  # a row's padding comes after its tokens: the causal mask hides it
                allowed = torch.ones(self.longest, self.longest, dtype=torch.bool, device=device).tril()
                if window is not None:
                    allowed = allowed.triu(1 - window)
                allowed = allowed[None, None]
            if allowed is None:
                return None
            self.masks[key] = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill_(
                ~allowed, torch.finfo(dtype).min
            )
        return self.masks[key]


class AttentionPlan:
    """Where each token of the stream lies in the padded groups, and back.

    gather (padded,): the stream token that each padded place reads; padding reads a token of its own row, so that a
    row that is not finite stays alone. scatter (tokens,): the padded place of each stream token. Both None where the
    stream is one group without padding or fill.
    """

    def __init__(self, lengths: torch.Tensor, starts: torch.Tensor, tokens: int, fill: list[tuple[int, int]]):
        order = torch.argsort(lengths, descending=True, stable=True)
        by_length = lengths[order].tolist()
        self.groups: list[AttentionGroup] = []
        self.gather: torch.Tensor | None = None
        self.scatter: torch.Tensor | None = None
        self.padding: torch.Tensor | None = None  # padded places without a token
        self.fill: torch.Tensor | None = None  # stream tokens that belong to no row
        if by_length[0] == by_length[-1] and not fill:
            self.groups = [AttentionGroup(len(by_length), by_length[0], None)]
            return
        gather, real = [], []
        for first, end in _group(by_length):
            rows, longest = order[first:end], by_length[first]
            place = torch.arange(longest)
            row_lengths = lengths[rows][:, None]
            inside = place[None] < row_lengths
            gather.append((starts[rows][:, None] + torch.minimum(place[None], row_lengths - 1)).flatten())
            real.append(inside.flatten())
            self.groups.append(AttentionGroup(end - first, longest, None if bool(inside.all()) else inside))
        self.gather, all_real = torch.cat(gather), torch.cat(real)
        places = all_real.nonzero().squeeze(1)
        self.scatter = torch.zeros(tokens, dtype=torch.int64)
        self.scatter[self.gather[places]] = places
        self.padding = None if len(places) == len(all_real) else (~all_real).nonzero().squeeze(1)
        if fill:  # fill reads its own slot's first token: finite or not, it stays in the slot
            self.fill = torch.cat([torch.arange(start, end) for start, end in fill])
            for slot_start, (start, end) in zip(_slot_starts(fill, starts), fill, strict=True):
                self.scatter[start:end] = self.scatter[slot_start]

    def to(self, device: torch.device) -> AttentionPlan:
        """Move the indexes."""
        for name in ("gather", "scatter", "padding", "fill"):
            index = getattr(self, name)
            setattr(self, name, None if index is None else index.to(device))
        for group in self.groups:
            group.real = None if group.real is None else group.real.to(device)
        return self


def _slot_starts(fill: list[tuple[int, int]], starts: torch.Tensor) -> list[int]:
    """For each filled range the start of the last row before it, which is of the same slot."""
    ordered = starts.sort().values
    return [int(ordered[torch.searchsorted(ordered, start) - 1]) for start, _ in fill]


def _group(lengths: list[int]) -> list[tuple[int, int]]:
    """Cut rows, longest first, into ranges (first, end) that pad little: cut where it saves the most, while that is
    worth a further group."""
    todo, done = [(0, len(lengths))], []
    while todo:
        first, end = todo.pop()
        longest, rows = lengths[first], end - first
        saved, cut = max(
            (((end - at) * (longest - lengths[at]), at) for at in range(first + 1, end)), default=(0, first)
        )
        if saved >= max(SPLIT_SAVES_TOKENS, 0.1 * longest * rows):
            todo += [(cut, end), (first, cut)]
        else:
            done.append((first, end))
    return sorted(done)


class Batch:
    """The rows of one forward, collated.

    Stream: ids, positions and type_ids are (1, tokens). Padded: (rows, longest), with `attention_mask`.
    token_bounds and row_bounds give each segment's (start, end); `equal_tokens` tells that all token ranges are of one
    length. labels (rows,).
    """

    def __init__(
        self, store: RowStore, segments: list[Segment], *, stream: bool, pad_token_id: int, left_pad: bool = False
    ):
        self.segments, self.store, self.is_stream = segments, store, stream
        self.rows = segments[0].rows if len(segments) == 1 else torch.cat([segment.rows for segment in segments])
        self.row_counts = [len(segment.rows) for segment in segments]
        self.lengths = store.lengths[self.rows]
        self.row_bounds = _bounds(self.row_counts)
        self.labels = store.labels[self.rows.to(store.device)]
        device = store.device
        if stream:
            self._lay_stream()
        else:
            self._lay_padded(pad_token_id, left_pad)
        self.device = device

    def _lay_stream(self) -> None:
        store, lengths = self.store, self.lengths
        tokens = [int(part.sum()) for part in lengths.split(self.row_counts)]
        longest = max(tokens)
        fill = longest * len(tokens) - sum(tokens) if len(tokens) > 1 else 0
        filled = 0 < fill <= FILL_AT_MOST * sum(tokens)
        sizes = [longest] * len(tokens) if filled else tokens
        self.token_bounds = _bounds(sizes)
        self.equal_tokens = len(set(sizes)) == 1
        starts = torch.cumsum(lengths, 0) - lengths  # of each row in the stream
        gaps: list[tuple[int, int]] = []
        if filled:
            shift = [start - sum(tokens[:slot]) for slot, (start, _) in enumerate(self.token_bounds)]
            starts = starts + torch.repeat_interleave(torch.tensor(shift), torch.tensor(self.row_counts))
            gaps = [
                (start + own, end)
                for (start, end), own in zip(self.token_bounds, tokens, strict=True)
                if start + own < end
            ]
        total = self.token_bounds[-1][1]
        self.starts, self.token_count, self.gaps = starts, total, gaps
        real = torch.repeat_interleave(starts, lengths)
        place = torch.arange(len(real)) - torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths)
        source, positions = torch.zeros(total, dtype=torch.int64), torch.zeros(total, dtype=torch.int64)
        at = real + place if gaps else slice(None)
        source[at] = torch.repeat_interleave(store.offsets[self.rows], lengths) + place
        positions[at] = place
        source = source.to(store.device)
        self.ids = store.ids[source][None]
        self.type_ids = None if store.type_ids is None else store.type_ids[source][None]
        self.positions = positions.to(store.device)[None]
        self.attention_mask = None

    def _lay_padded(self, pad_token_id: int, left_pad: bool) -> None:
        store, lengths = self.store, self.lengths
        longest = int(lengths.max())
        place = torch.arange(longest)[None] - ((longest - lengths)[:, None] if left_pad else 0)
        real = (place >= 0) & (place < lengths[:, None])
        source = (store.offsets[self.rows][:, None] + place.clamp(min=0)).where(real, 0).to(store.device)
        mask = real.to(store.device)
        self.ids = store.ids[source].where(mask, pad_token_id)
        self.type_ids = None if store.type_ids is None else store.type_ids[source].where(mask, 0)
        self.positions, self.attention_mask = None, mask.long()
        self.token_bounds = [(start * longest, end * longest) for start, end in self.row_bounds]
        self.token_count = len(lengths) * longest
        self.equal_tokens = self.equal_rows
        self.starts = torch.arange(len(lengths)) * longest + ((longest - lengths) if left_pad else 0)

    @property
    def equal_rows(self) -> bool:
        """Whether all segments hold the same number of rows."""
        return len(set(self.row_counts)) == 1

    @cached_property
    def attention(self) -> AttentionPlan:
        """The attention groups of the stream."""
        return AttentionPlan(self.lengths, self.starts, self.token_count, self.gaps).to(self.device)

    @cached_property
    def first(self) -> torch.Tensor:
        """(rows,) place of each row's first token in the stream (in the flattened padded batch)."""
        return self.starts.to(self.device)

    @cached_property
    def last(self) -> torch.Tensor:
        """(rows,) place of each row's last token that is not padding."""
        return (self.starts + self.store.last[self.rows]).to(self.device)

    @cached_property
    def token_places(self) -> torch.Tensor:
        """(tokens,) int64: each token's number within its slot's micro-batch, whatever its neighbours are. In a padded
        batch row << 16 | place, so that it does not depend on the longest row."""
        if not self.is_stream:
            rows = self.row_places.cpu()[:, None] << 16
            return (rows + torch.arange(self.token_count // len(self.rows))[None]).flatten().to(self.device)
        parts = [
            torch.arange(segment.first_token, segment.first_token + end - start)
            for segment, (start, end) in zip(self.segments, self.token_bounds, strict=True)
        ]
        return torch.cat(parts).to(self.device)

    @cached_property
    def row_places(self) -> torch.Tensor:
        """(rows,) int64: each row's number within its slot's micro-batch."""
        parts = [torch.arange(segment.first_row, segment.first_row + len(segment.rows)) for segment in self.segments]
        return torch.cat(parts).to(self.device)


def _bounds(sizes: list[int]) -> list[tuple[int, int]]:
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return bounds


class _Pad(torch.autograd.Function):
    """Stream (tokens, heads, dim) -> padded places (padded, heads, dim). Each token has one real place, and the
    gradient at padding is zero by the masks, so backward is a plain gather too."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        ctx.plan = plan
        return x.index_select(0, plan.gather)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        plan = ctx.plan
        out = grad.index_select(0, plan.scatter)
        return (out if plan.fill is None else out.index_fill_(0, plan.fill, 0)), None


class _Unpad(torch.autograd.Function):
    """Padded places (padded, heads, dim) -> stream (tokens, heads, dim). What fill reads goes nowhere."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
        ctx.plan = plan
        return x.index_select(0, plan.scatter)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        plan = ctx.plan
        out = grad.index_select(0, plan.gather)
        return (out if plan.padding is None else out.index_fill_(0, plan.padding, 0)), None


def stream_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within the rows of a stream: query (1, heads, tokens, dim), key and value (1, kv heads, tokens, dim)
    -> (1, tokens, heads, dim). Attention's inner dropout is off. `module.stream` is the base's `Current`."""
    plan = module.stream.forward.batch.attention
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, dim)
    if plan.gather is not None:
        q, k, v = _Pad.apply(q, plan), _Pad.apply(k, plan), _Pad.apply(v, plan)
    outputs, start = [], 0
    for group in plan.groups:
        end = start + group.rows * group.longest
        # (padded, heads, dim) -> (rows, heads, longest, dim)
        block = [x[start:end].unflatten(0, (group.rows, group.longest)).transpose(1, 2) for x in (q, k, v)]
        outputs.append(_attend(group, *block, causal, scaling, sliding_window, softcap).flatten(0, 1))
        start = end
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (out if plan.gather is None else _Unpad.apply(out, plan))[None], None


def _attend(
    group: AttentionGroup,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    causal: bool,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One padded group: (rows, heads, longest, dim) each -> (rows, longest, heads, dim)."""
    window = window if window is not None and window < group.longest else None
    if softcap is not None:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        scores = torch.matmul(q, k.mT) * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = torch.tanh(scores / softcap) * softcap
        mask = group.mask(causal, window, scores.dtype, scores.device)
        weights = torch.softmax(scores if mask is None else scores + mask, -1, dtype=torch.float32).to(v.dtype)
        return torch.matmul(weights, v).transpose(1, 2)
    plain_causal = causal and window is None
    out = scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if plain_causal else group.mask(causal, window, q.dtype, q.device),
        is_causal=plain_causal,
        scale=scaling,
        enable_gqa=k.shape[1] != q.shape[1],
    )
    return out.transpose(1, 2)


def register() -> None:
    """Make `stream_attention` known to transformers; once is enough, again does no harm."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(ATTENTION, stream_attention)
    AttentionMaskInterface.register(ATTENTION, lambda *_args, **_kwargs: None)
