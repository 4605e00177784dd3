"""What a frozen base's layers do while slots train on it: per-slot adapters, heads, biases and dropout.

A layer keeps its weights and its name; only its `forward` is replaced, and with no forward of ours running it is the
layer it was. The products with A and B are one autograd node with the frozen product, which accumulates the
adapter's gradients straight into the arena: batched over slots where their ranges are equal, range by range where
they are not. No product ever mixes the tokens of two slots, so that a slot that is not finite leaves its neighbours
bit for bit as they were. Neighbours: `arena` (values), `stream` (ranges), `dropout`, `packed_lora` (who installs).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from lorasweep.models.dropout import ScaledMask, apply_mask, keep_mask, threshold
from lorasweep.models.stream import Batch

Bounds = list[tuple[int, int]]


@dataclass
class LoraPart:
    """One slot at one layer: A (r, in), B transposed (r, out) or None where it is not targeted, with gradient twins; a
    trained bias as its difference to the frozen one, or None."""

    a: torch.Tensor | None = None
    bt: torch.Tensor | None = None
    grad_a: torch.Tensor | None = None
    grad_bt: torch.Tensor | None = None
    scale: float = 1.0
    bias: torch.Tensor | None = None
    grad_bias: torch.Tensor | None = None


@dataclass
class HeadPart:
    """One slot's head layer: W (out, in), b (out,) or None, with gradient twins."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    grad_weight: torch.Tensor
    grad_bias: torch.Tensor | None


@dataclass
class Job:
    """All slots of a forward at one layer. `stacked` is one part whose tensors lead with (slots,), where all slots lie
    next to each other in the arena and take part; `scales` is then (slots, 1, 1)."""

    parts: list[Any]
    stacked: Any = None
    scales: Any = None
    has_lora: bool = True


class Current:
    """The forward that is running over one base, if any. All its layers hold this object."""

    def __init__(self) -> None:
        self.forward: Forward | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Current:
        copy = Current()  # a private copy of the base has its own forwards
        memo[id(self)] = copy
        return copy


@dataclass
class Forward:
    """One forward over a batch: whose rows, which values, which random streams.

    keys: one 32-bit dropout key a segment, None in evaluation. adapter_rates, base_rates: dropout rates a segment; a
    base rate of None is the checkpoint's own.
    """

    batch: Batch
    jobs: dict[str, Job]
    dtype: torch.dtype
    anchor: torch.Tensor
    keys: list[int] | None = None
    adapter_rates: list[float] = field(default_factory=list)
    base_rates: list[float | None] = field(default_factory=list)
    _places: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _rates: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    def flatten(
        self, x: torch.Tensor, kind: str
    ) -> tuple[torch.Tensor, Bounds, str, Callable[[torch.Tensor], torch.Tensor]]:
        """x (..., width) -> (n, width) with each segment contiguous, its bounds, "token", "row" or "" for what the
        first dimension counts, and the way back."""
        batch, lead = self.batch, x.shape[:-1]
        if kind == "second":
            flat = x.transpose(0, 1).reshape(-1, x.shape[-1])
            shape = (lead[1], lead[0])
            return flat, batch.token_bounds, "token", lambda y: y.unflatten(0, shape).transpose(0, 1)
        flat = x.reshape(-1, x.shape[-1])

        def back(y: torch.Tensor) -> torch.Tensor:
            return y.view(*lead, y.shape[-1])

        if kind in ("stream", "flat") or (kind == "grid" and len(lead) == 2 and lead[1] != 1):
            return flat, batch.token_bounds, "token", back
        if kind in ("grid", "pooled"):
            return flat, batch.row_bounds, "row", back
        return flat, [(0, len(flat))], "", back

    def mask(
        self, count: str, layer: int, width: int, rates: list[float], bounds: Bounds
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keep (n, width) bool and scale (n, 1) of a dropout layer, drawn from each slot's own stream."""
        assert self.keys is not None
        sizes = torch.tensor([end - start for start, end in bounds])
        if count not in self._places:
            places = self.batch.token_places if count == "token" else self.batch.row_places
            keys = torch.repeat_interleave(torch.tensor(self.keys, dtype=torch.int32), sizes)
            self._places[count] = (keys.to(places.device), places.to(torch.int32))
        found = (count, *rates)
        if found not in self._rates:
            device = self.batch.device
            limits = torch.tensor([threshold(rate) if rate else -(2**31) for rate in rates], dtype=torch.int32)
            scales = torch.tensor([1 / (1 - rate) for rate in rates], dtype=torch.float32)
            self._rates[found] = (
                torch.repeat_interleave(limits, sizes).to(device),
                torch.repeat_interleave(scales, sizes)[:, None].to(device),
            )
        limits, scales = self._rates[found]
        return keep_mask(*self._places[count], layer, width, limits), scales


class LoraLinear:
    """Stands in for the forward of a frozen nn.Linear, Conv1D or 4-bit linear layer."""

    def __init__(self, layer: Any, name: str, index: int, kind: str, current: Current):
        self.frozen: Callable[[torch.Tensor], torch.Tensor] = layer.forward
        self.layer, self.name, self.index, self.kind, self.current = layer, name, index, kind, current
        self.is_conv = type(layer).__name__ == "Conv1D"
        self.plain = type(layer) is nn.Linear or self.is_conv  # else the product stays the layer's own

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        forward = self.current.forward
        job = None if forward is None else forward.jobs.get(self.name)
        if forward is None or job is None:
            return self.frozen(x)
        flat, bounds, count, back = forward.flatten(x, self.kind)
        keep = scale = None
        if job.has_lora and forward.keys is not None and count and any(forward.adapter_rates):
            keep, scale = forward.mask(count, 2 * self.index, flat.shape[1], forward.adapter_rates, bounds)
        y = None if self.plain else self.frozen(flat)
        return back(_LoraProduct.apply(flat, y, forward.anchor, self, job, bounds, keep, scale, forward.dtype))


class _LoraProduct(torch.autograd.Function):
    """x (n, in) -> frozen(x) + scale * B A x, range by range. The gradients of A, B and trained biases are added to the
    arena's twin in backward; `anchor` is there so that a graph is built where x needs no gradient itself."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd takes positions alone
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor | None,
        anchor: torch.Tensor,
        at: LoraLinear,
        job: Job,
        bounds: Bounds,
        keep: torch.Tensor | None,
        scale: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        ctx.x_dtype = x.dtype
        if y is None:
            x = x.to(at.layer.weight.dtype)
            bias = at.layer.bias
            if at.is_conv:
                y = torch.mm(x, at.layer.weight) if bias is None else torch.addmm(bias, x, at.layer.weight)
            else:
                y = linear(x, at.layer.weight, bias)
        else:
            y, x = y.clone(), x.to(dtype)  # the layer's own output may be a view, which cannot be written to
        ctx.at, ctx.job, ctx.bounds, ctx.dropped = at, job, bounds, keep is not None
        dropped = x if keep is None or scale is None else apply_mask(x, keep, scale)
        stacked, hidden = job.stacked, []
        if stacked is not None and len({end - start for start, end in bounds}) == 1:
            n = len(bounds)
            if stacked.a is not None:
                h = torch.bmm(dropped.view(n, -1, x.shape[1]), stacked.a.to(x.dtype).mT).mul_(job.scales)
                y.view(n, -1, y.shape[1]).baddbmm_(h, stacked.bt.to(y.dtype))
                hidden = [h]
            if stacked.bias is not None:
                y.view(n, -1, y.shape[1]).add_(stacked.bias[:, None])
            ctx.batched = True
        else:
            for part, (start, end) in zip(job.parts, bounds, strict=True):
                if part is None:
                    continue
                if part.a is not None:
                    h = torch.mm(dropped[start:end], part.a.to(x.dtype).t()).mul_(part.scale)
                    y[start:end].addmm_(h, part.bt.to(y.dtype))
                    hidden.append(h)
                if part.bias is not None:
                    y[start:end].add_(part.bias)
            ctx.batched = False
        ctx.save_for_backward(x, keep, scale, *hidden)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        x, keep, scale, *hidden = ctx.saved_tensors
        at, job = ctx.at, ctx.job
        grad = grad.contiguous()
        grad_x = None
        if ctx.needs_input_grad[0]:
            if at.plain:
                weight = at.layer.weight
                grad_x = torch.mm(grad, weight.t() if at.is_conv else weight)
            else:
                grad_x = torch.zeros_like(x)
        dropped = x if keep is None else apply_mask(x, keep, scale)
        through = grad_x if keep is None or grad_x is None else torch.zeros_like(grad_x)
        if ctx.batched:
            _lora_backward_batched(job, len(ctx.bounds), grad=grad, x=dropped, hidden=hidden, through=through)
        else:
            _lora_backward_ranges(job, ctx.bounds, grad=grad, x=dropped, hidden=hidden, through=through)
        if through is not grad_x and through is not None and grad_x is not None:
            grad_x.add_(apply_mask(through, keep, scale))
        grad_x = None if grad_x is None else grad_x.to(ctx.x_dtype)
        return grad_x, (None if at.plain else grad), *([None] * 7)


def _lora_backward_batched(
    job: Job, n: int, *, grad: torch.Tensor, x: torch.Tensor, hidden: list[torch.Tensor], through: torch.Tensor | None
) -> None:
    """Add A's, B's and the bias's gradients of n equal ranges to the arena, and the input's to `through`."""
    part = job.stacked
    g = grad.view(n, -1, grad.shape[1])  # (slots, tokens, out)
    if part.grad_bias is not None:
        part.grad_bias.add_(g.sum(1, dtype=torch.float32))
    if part.a is None:
        return
    h = hidden[0]
    xs = x.view(n, -1, x.shape[1])
    gh = torch.bmm(g, part.bt.to(g.dtype).mT).mul_(job.scales)  # (slots, tokens, r)
    if g.dtype == torch.float32:
        part.grad_bt.baddbmm_(h.mT, g)
        part.grad_a.baddbmm_(gh.mT, xs)
    else:
        part.grad_bt.add_(torch.bmm(h.mT, g))
        part.grad_a.add_(torch.bmm(gh.mT, xs))
    if through is not None:
        through.view(n, -1, x.shape[1]).baddbmm_(gh, part.a.to(g.dtype))


def _lora_backward_ranges(
    job: Job,
    bounds: Bounds,
    *,
    grad: torch.Tensor,
    x: torch.Tensor,
    hidden: list[torch.Tensor],
    through: torch.Tensor | None,
) -> None:
    """As `_lora_backward_batched`, range by range."""
    hs = iter(hidden)
    for part, (start, end) in zip(job.parts, bounds, strict=True):
        if part is None:
            continue
        g = grad[start:end]
        if part.grad_bias is not None:
            part.grad_bias.add_(g.sum(0, dtype=torch.float32))
        if part.a is None:
            continue
        h = next(hs)
        gh = torch.mm(g, part.bt.to(g.dtype).t()).mul_(part.scale)
        if g.dtype == torch.float32:
            part.grad_bt.addmm_(h.t(), g)
            part.grad_a.addmm_(gh.t(), x[start:end])
        else:
            part.grad_bt.add_(torch.mm(h.t(), g))
            part.grad_a.add_(torch.mm(gh.t(), x[start:end]))
        if through is not None:
            through[start:end].addmm_(gh, part.a.to(g.dtype))


class HeadLinear:
    """Stands in for the forward of a head's nn.Linear: each slot has its own weight and bias."""

    def __init__(self, layer: nn.Module, name: str, kind: str, current: Current):
        self.frozen: Callable[[torch.Tensor], torch.Tensor] = layer.forward
        self.name, self.kind, self.current = name, kind, current

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        forward = self.current.forward
        job = None if forward is None else forward.jobs.get(self.name)
        if forward is None or job is None:
            return self.frozen(x)
        flat, bounds, _, back = forward.flatten(x, self.kind)
        return back(_HeadProduct.apply(flat.to(forward.dtype), forward.anchor, job, bounds))


class _HeadProduct(torch.autograd.Function):
    """x (n, in) -> x W^T + b with each range's own W and b; their gradients go to the arena's twin."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, anchor: torch.Tensor, job: Job, bounds: Bounds) -> torch.Tensor:
        ctx.job, ctx.bounds = job, bounds
        ctx.save_for_backward(x)
        ctx.batched = job.stacked is not None and len({end - start for start, end in bounds}) == 1
        if ctx.batched:
            part, xs = job.stacked, x.view(len(bounds), -1, x.shape[1])
            y = torch.bmm(xs, part.weight.to(x.dtype).mT)
            y = y if part.bias is None else y.add_(part.bias[:, None])
            return y.flatten(0, 1)
        out = [
            linear(x[start:end], part.weight.to(x.dtype), None if part.bias is None else part.bias.to(x.dtype))
            for part, (start, end) in zip(job.parts, bounds, strict=True)
        ]
        return out[0] if len(out) == 1 else torch.cat(out)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        (x,), job, bounds = ctx.saved_tensors, ctx.job, ctx.bounds
        grad, wants = grad.contiguous(), ctx.needs_input_grad[0]
        if ctx.batched:
            part, n = job.stacked, len(bounds)
            g, xs = grad.view(n, -1, grad.shape[1]), x.view(n, -1, x.shape[1])
            part.grad_weight.add_(torch.bmm(g.mT, xs))
            if part.grad_bias is not None:
                part.grad_bias.add_(g.sum(1, dtype=torch.float32))
            return (torch.bmm(g, part.weight.to(g.dtype)).flatten(0, 1) if wants else None), None, None, None
        out = torch.empty_like(x) if wants else None
        for part, (start, end) in zip(job.parts, bounds, strict=True):
            g = grad[start:end]
            part.grad_weight.add_(torch.mm(g.t(), x[start:end]))
            if part.grad_bias is not None:
                part.grad_bias.add_(g.sum(0, dtype=torch.float32))
            if out is not None:
                torch.mm(g, part.weight.to(g.dtype), out=out[start:end])
        return out, None, None, None


class BiasedNorm:
    """Stands in for the forward of a layer whose bias alone may be trained (a LayerNorm under adapter.bias=all)."""

    def __init__(self, layer: nn.Module, name: str, kind: str, current: Current):
        self.frozen: Callable[[torch.Tensor], torch.Tensor] = layer.forward
        self.name, self.kind, self.current = name, kind, current

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        forward, y = self.current.forward, self.frozen(x)
        job = None if forward is None else forward.jobs.get(self.name)
        if forward is None or job is None:
            return y
        flat, bounds, _, back = forward.flatten(y, self.kind)
        return back(_AddBias.apply(flat, forward.anchor, job, bounds))


class _AddBias(torch.autograd.Function):
    """y (n, out) plus each range's trained bias difference."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, anchor: torch.Tensor, job: Job, bounds: Bounds) -> torch.Tensor:
        ctx.job, ctx.bounds = job, bounds
        out = y.clone()
        for part, (start, end) in zip(job.parts, bounds, strict=True):
            if part is not None:
                out[start:end].add_(part.bias)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        for part, (start, end) in zip(ctx.job.parts, ctx.bounds, strict=True):
            if part is not None:
                part.grad_bias.add_(grad[start:end].sum(0, dtype=torch.float32))
        return grad, None, None, None


class SlotDropout:
    """Stands in for the forward of the base's nn.Dropout: each slot's rate, drawn from the slot's stream. Inputs in
    which rows cannot be told apart (attention's weights) pass as they are."""

    def __init__(self, layer: Any, index: int, kind: str, current: Current):
        self.rate, self.index, self.kind, self.current = layer.p, index, kind, current

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        forward = self.current.forward
        if forward is None or forward.keys is None or self.kind == "loose":
            return x
        rates = [self.rate if rate is None else rate for rate in forward.base_rates]
        if not any(rates):
            return x
        flat, bounds, count, back = forward.flatten(x, self.kind)
        keep, scale = forward.mask(count, 2 * self.index + 1, flat.shape[1], rates, bounds)
        return back(ScaledMask.apply(flat, keep, scale))
