"""Attention over a token stream: rows of like length are gathered into padded groups, and nothing else ever pads.

transformers calls `stream_attention` through its AttentionInterface. Neighbours: `stream` (the batch that is laid out),
`base` (which registers it), `decoding` (the cache of a generation).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from lorasweep.models.transfer import to_device

if TYPE_CHECKING:
    from lorasweep.models.decoding import KeyValues

ATTENTION = "lorasweep_stream"  # the name under which transformers knows `stream_attention`
# A further attention group costs about as much as this many padded tokens: on a GPU some dozen launches a layer,
# there and back, of about 8 us each, against 10 ns a token (by arithmetic, not measured)
SPLIT_SAVES_TOKENS = {"cpu": 256, "cuda": 8192}


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

    def __init__(
        self,
        lengths: torch.Tensor,
        starts: torch.Tensor,
        tokens: int,
        fill: list[tuple[int, int]],
        device: torch.device,
    ):
        """Lay the groups out on the CPU, then move them."""
        order = torch.argsort(lengths, descending=True, stable=True)
        by_length = lengths[order].tolist()
        self.groups: list[AttentionGroup] = []
        self.gather: Any = None
        self.scatter: Any = None
        self.padding: torch.Tensor | None = None  # padded places without a token
        self.fill: torch.Tensor | None = None  # stream tokens that belong to no row
        if by_length[0] == by_length[-1] and not fill:
            self.groups = [AttentionGroup(len(by_length), by_length[0], None)]
            return
        gather, real = [], []
        for first, end in _group(by_length, SPLIT_SAVES_TOKENS[device.type]):
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
        self._move(device)

    def _move(self, device: torch.device) -> None:
        for name in ("gather", "scatter", "padding", "fill"):
            index = getattr(self, name)
            setattr(self, name, None if index is None else to_device(index, device))
        for group in self.groups:
            group.real = None if group.real is None else to_device(group.real, device)


def _slot_starts(fill: list[tuple[int, int]], starts: torch.Tensor) -> list[int]:
    """For each filled range the start of the last row before it, which is of the same slot."""
    ordered = starts.sort().values
    return [int(ordered[torch.searchsorted(ordered, start) - 1]) for start, _ in fill]


def _group(lengths: list[int], worth_tokens: int) -> list[tuple[int, int]]:
    """Cut rows, longest first, into ranges (first, end) that pad little: cut where it saves the most, while that is at
    least `worth_tokens`."""
    todo, done = [(0, len(lengths))], []
    while todo:
        first, end = todo.pop()
        longest, rows = lengths[first], end - first
        saved, cut = max(
            (((end - at) * (longest - lengths[at]), at) for at in range(first + 1, end)), default=(0, first)
        )
        if saved >= max(worth_tokens, 0.1 * longest * rows):
            todo += [(cut, end), (first, cut)]
        else:
            done.append((first, end))
    return sorted(done)


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
    module: Any,
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
    forward = module.stream.forward
    if forward.cache is not None and forward.cache.stepping:
        return _attend_to_cache(forward.cache, module, query, key, value, scaling, sliding_window, softcap), None
    plan = forward.batch.attention
    causal = bool(getattr(module, "is_causal", False)) if is_causal is None else is_causal
    # (tokens, heads, dim); positions leave query and key in float32 under autocast, which attention would round anyway
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if forward.cache is not None:
        forward.cache.keep(module, k, v)
    if plan.gather is not None:
        q, k, v = _Pad.apply(q, plan), _Pad.apply(k, plan), _Pad.apply(v, plan)
    outputs, start = [], 0
    for group in plan.groups:
        end = start + group.rows * group.longest
        # (padded, heads, dim) -> (rows, heads, longest, dim)
        block = [x[start:end].unflatten(0, (group.rows, group.longest)).transpose(1, 2) for x in (q, k, v)]
        outputs.append(
            _attend(group, *block, causal=causal, scaling=scaling, window=sliding_window, softcap=softcap).flatten(0, 1)
        )
        start = end
    out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (out if plan.gather is None else _Unpad.apply(out, plan))[None], None


def _attend_to_cache(
    cache: KeyValues,
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    """One new token a row, (1, heads, rows, dim) each, against all before it -> (1, rows, heads, dim)."""
    q, k, v = (x[0].transpose(0, 1).to(value.dtype) for x in (query, key, value))
    return cache.attend(module, q, k, v, scaling=scaling, window=window, softcap=softcap)[None]


def _attend(
    group: AttentionGroup,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
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
    """Make `stream_attention` known to transformers; once is enough, again does no harm. Without a mask function of the
    same name transformers makes no mask, and looks for no packed rows, which would wait for the device."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, stream_attention)
