"""What a frozen base's layers do while slots train on it: per-slot adapters, heads, biases and dropout.

A layer keeps its weights and its name; only its `forward` is replaced, and with no forward of ours running it is the
layer it was. The products with A and B are one autograd node with the frozen product, which accumulates the
adapter's gradients straight into the arena: batched over slots where their ranges are equal, range by range where
they are not. No product ever mixes the tokens of two slots, so that a slot that is not finite leaves its neighbours
bit for bit as they were. Neighbours: `forward` (ranges, values, streams), `dropout`, `install` (who puts them in).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from lorasweep.models.dropout import ScaledMask, apply_mask
from lorasweep.models.forward import Bounds, Current, Forward, HeadPart, Job, PaddedRanges


class LoraLinear:
    """Stands in for the forward of a frozen nn.Linear, Conv1D or 4-bit linear layer, adapted or trained whole."""

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
        low = forward.lowered(x, flat)
        if job.has_whole:
            return back(self._range_by_range(forward, job, flat, low, bounds, keep, scale))
        y = None if self.plain else self.frozen(flat)
        blocks = forward.blocks(job, bounds)
        return back(_LoraProduct.apply(flat, low, y, forward.anchor, self, job, bounds, blocks, keep, scale))

    def _range_by_range(
        self,
        forward: Forward,
        job: Job,
        flat: torch.Tensor,
        low: torch.Tensor,
        bounds: Bounds,
        keep: torch.Tensor | None,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        """As `__call__`, where some slots train this layer whole and others adapt it or leave it as it is."""
        out = []
        for part, (start, end) in zip(job.parts, bounds, strict=True):
            x, own, alone = flat[start:end], Job([part], has_lora=job.has_lora), [(0, end - start)]
            if isinstance(part, HeadPart):
                out.append(_HeadProduct.apply(x.to(forward.dtype), forward.anchor, own, alone, False))
                continue
            masks = (None, None) if keep is None or scale is None else (keep[start:end], scale[start:end])
            out.append(_LoraProduct.apply(x, low[start:end], None, forward.anchor, self, own, alone, False, *masks))
        return torch.cat(out)


class _LoraProduct(torch.autograd.Function):
    """x (n, in) -> frozen(x) + scale * B A x, range by range. `low` is x in the type of the products, and `y` what a
    frozen layer that is not plain answers. The gradients of A, B and trained biases are added to the arena's twin in
    backward; `anchor` is there so that a graph is built where x needs no gradient itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        low: torch.Tensor,
        y: torch.Tensor | None,
        anchor: torch.Tensor,
        at: LoraLinear,
        job: Job,
        bounds: Bounds,
        blocks: PaddedRanges | bool,
        keep: torch.Tensor | None,
        scale: torch.Tensor | None,
    ) -> torch.Tensor:
        ctx.x_dtype, ctx.y_dtype = x.dtype, None if y is None else y.dtype
        x = low
        if y is None:
            bias = at.layer.bias
            if at.is_conv:
                y = torch.mm(x, at.layer.weight) if bias is None else torch.addmm(bias, x, at.layer.weight)
            else:
                y = linear(x, at.layer.weight, bias)
        else:
            # a copy, for the layer's own output may be a view; in one type, for 4-bit layers answer in their input's
            y = y.to(low.dtype, copy=True)
        ctx.at, ctx.job, ctx.bounds, ctx.dropped = at, job, bounds, keep is not None
        dropped = x if keep is None or scale is None else apply_mask(x, keep, scale)
        ctx.blocks = blocks
        if blocks is False:
            hidden = _add_ranges(job, bounds, dropped, y)
        else:
            hidden = _add_blocks(job, len(bounds), blocks, dropped, y)
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
        if ctx.blocks is not False:
            _lora_backward_blocks(job, ctx, grad=grad, x=dropped, hidden=hidden, through=through)
        else:
            _lora_backward_ranges(job, ctx.bounds, grad=grad, x=dropped, hidden=hidden, through=through)
        if through is not grad_x and through is not None and grad_x is not None:
            grad_x.add_(apply_mask(through, keep, scale))
        grad_x = None if grad_x is None else grad_x.to(ctx.x_dtype)
        return grad_x, None, (None if at.plain else grad.to(ctx.y_dtype)), *([None] * 7)


def _add_ranges(job: Job, bounds: Bounds, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """Add each range's scale * B A x and bias to y (n, out); its x A^T (tokens, r) of every range that has an A."""
    hidden = []
    for part, own_x, own_y in zip(job.parts, *_split(bounds, x, y), strict=True):
        if part is None:
            continue
        if part.a is not None:
            h = torch.mm(own_x, part.a_t if x.dtype == torch.float32 else part.a.to(x.dtype).t())
            own_y.addmm_(h, part.bt.to(y.dtype), alpha=part.scale)
            hidden.append(h)
        if part.bias is not None:
            own_y.add_(part.bias)
    return hidden


def _split(bounds: Bounds, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Each tensor's views of the ranges: one call a tensor, for calls are what small products cost."""
    sizes = [end - start for start, end in bounds]
    return [tensor.split(sizes) for tensor in tensors]


def _add_blocks(job: Job, n: int, blocks: PaddedRanges | bool, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """As `_add_ranges`, all n ranges in one product; its scaled x A^T (slots, tokens, r)."""
    part, hidden = job.stacked, []
    padded = None if isinstance(blocks, bool) else blocks
    if part.a is not None:
        xs = x.view(n, -1, x.shape[1]) if padded is None else padded.pad(x)
        h = torch.bmm(xs, part.a.to(x.dtype).mT).mul_(job.scales)
        if padded is None:
            y.view(n, -1, y.shape[1]).baddbmm_(h, part.bt.to(y.dtype))
        else:
            y.add_(padded.unpad(torch.bmm(h, part.bt.to(y.dtype))))
        hidden.append(h)
    if part.bias is not None and padded is None:
        y.view(n, -1, y.shape[1]).add_(part.bias[:, None])
    elif part.bias is not None and padded is not None:
        y.add_(padded.unpad(part.bias[:, None].expand(-1, len(padded.gather) // padded.count, y.shape[1])))
    return hidden


def _lora_backward_blocks(
    job: Job, ctx: Any, *, grad: torch.Tensor, x: torch.Tensor, hidden: list[torch.Tensor], through: torch.Tensor | None
) -> None:
    """Add A's, B's and the bias's gradients of all ranges to the arena, and the input's to `through`."""
    part, blocks, n = job.stacked, ctx.blocks, len(ctx.bounds)
    g = grad.view(n, -1, grad.shape[1]) if blocks is True else blocks.pad_zero(grad)  # (slots, tokens, out)
    if part.grad_bias is not None:
        part.grad_bias.add_(g.sum(1, dtype=torch.float32))
    if part.a is None:
        return
    h = hidden[0]
    xs = x.view(n, -1, x.shape[1]) if blocks is True else blocks.pad(x)
    gh = torch.bmm(g, part.bt.to(g.dtype).mT).mul_(job.scales)  # (slots, tokens, r)
    if g.dtype == torch.float32:
        part.grad_bt.baddbmm_(h.mT, g)
        part.grad_a.baddbmm_(gh.mT, xs)
    else:
        part.grad_bt.add_(torch.bmm(h.mT, g))
        part.grad_a.add_(torch.bmm(gh.mT, xs))
    if through is not None and blocks is True:
        through.view(n, -1, x.shape[1]).baddbmm_(gh, part.a.to(g.dtype))
    elif through is not None:
        through.add_(blocks.unpad(torch.bmm(gh, part.a.to(g.dtype))))


def _lora_backward_ranges(
    job: Job,
    bounds: Bounds,
    *,
    grad: torch.Tensor,
    x: torch.Tensor,
    hidden: list[torch.Tensor],
    through: torch.Tensor | None,
) -> None:
    """As `_lora_backward_blocks`, range by range."""
    hs, full = iter(hidden), grad.dtype == torch.float32
    throughs = [None] * len(bounds) if through is None else _split(bounds, through)[0]
    for part, g, own_x, own_through in zip(job.parts, *_split(bounds, grad, x), throughs, strict=True):
        if part is None:
            continue
        if part.grad_bias is not None:
            part.grad_bias.add_(g.sum(0, dtype=torch.float32))
        if part.a is None:
            continue
        h = next(hs)
        gh, scale = torch.mm(g, part.b if full else part.bt.to(g.dtype).t()), part.scale
        if full:
            part.grad_bt.addmm_(h.t(), g, alpha=scale)
            part.grad_a.addmm_(gh.t(), own_x, alpha=scale)
        else:
            part.grad_bt.add_(torch.mm(h.t(), g), alpha=scale)
            part.grad_a.add_(torch.mm(gh.t(), own_x), alpha=scale)
        if own_through is not None:
            own_through.addmm_(gh, part.a.to(g.dtype), alpha=scale)


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
        blocks = forward.blocks(job, bounds)
        return back(_HeadProduct.apply(flat.to(forward.dtype), forward.anchor, job, bounds, blocks))


class _HeadProduct(torch.autograd.Function):
    """x (n, in) -> x W^T + b with each range's own W and b; their gradients go to the arena's twin."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, anchor: torch.Tensor, job: Job, bounds: Bounds, blocks: PaddedRanges | bool
    ) -> torch.Tensor:
        ctx.job, ctx.bounds, ctx.blocks = job, bounds, blocks
        ctx.save_for_backward(x)
        if blocks is not False:
            part = job.stacked
            xs = x.view(len(bounds), -1, x.shape[1]) if blocks is True else blocks.pad(x)
            y = torch.bmm(xs, part.weight.to(x.dtype).mT)
            y = y if part.bias is None else y.add_(part.bias[:, None])
            return y.flatten(0, 1) if blocks is True else blocks.unpad(y)
        out = [
            linear(x[start:end], part.weight.to(x.dtype), None if part.bias is None else part.bias.to(x.dtype))
            for part, (start, end) in zip(job.parts, bounds, strict=True)
        ]
        return out[0] if len(out) == 1 else torch.cat(out)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        (x,), job, bounds, blocks = ctx.saved_tensors, ctx.job, ctx.bounds, ctx.blocks
        grad, wants, out = grad.contiguous(), ctx.needs_input_grad[0], None
        if blocks is not False:
            part, n = job.stacked, len(bounds)
            g = grad.view(n, -1, grad.shape[1]) if blocks is True else blocks.pad_zero(grad)
            xs = x.view(n, -1, x.shape[1]) if blocks is True else blocks.pad(x)
            part.grad_weight.add_(torch.bmm(g.mT, xs))
            if part.grad_bias is not None:
                part.grad_bias.add_(g.sum(1, dtype=torch.float32))
            if wants:
                gx = torch.bmm(g, part.weight.to(g.dtype))
                out = gx.flatten(0, 1) if blocks is True else blocks.unpad(gx)
            return out, None, None, None, None
        out = torch.empty_like(x) if wants else None
        for part, (start, end) in zip(job.parts, bounds, strict=True):
            g = grad[start:end]
            part.grad_weight.add_(torch.mm(g.t(), x[start:end]))
            if part.grad_bias is not None:
                part.grad_bias.add_(g.sum(0, dtype=torch.float32))
            if out is not None:
                torch.mm(g, part.weight.to(g.dtype), out=out[start:end])
        return out, None, None, None, None


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
