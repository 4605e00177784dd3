"""One block of memory for the trained values of K slots: flat[K, P] float32 and a gradient twin.

A slot's row reads: what is never decayed (head biases, trained biases) | head weights | its LoRA matrices, rank by
rank: A's first row and B's first column of every layer, then the second ones, and so on. So a slot of rank r uses
a prefix of its row, whatever the largest rank of the pack is, and one optimizer over two slices of that prefix
serves it; the stacked A and B of a layer over all slots are strided views, and what lies behind a slot's own rank is
never written. Rows of the arena are of the union layout: a slot that does not target a module has zeros there.
Neighbour: `packed_lora`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

ALIGN = 16  # floats; each piece starts on a 64-byte line


def _round_up(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


@dataclass(frozen=True)
class RowLayout:
    """Where each piece of a row lies. Names are module paths.

    vectors: (name, size), never decayed; matrices: (name, rows, columns); loras: (name, inputs, outputs).
    """

    vectors: tuple[tuple[str, int], ...]
    matrices: tuple[tuple[str, int, int], ...]
    loras: tuple[tuple[str, int, int], ...]

    @cached_property
    def undecayed(self) -> int:
        """Floats at the row's start that weight decay leaves alone."""
        return sum(_round_up(size) for _, size in self.vectors)

    @cached_property
    def fixed(self) -> int:
        """Floats before the LoRA part."""
        return self.undecayed + sum(_round_up(rows * columns) for _, rows, columns in self.matrices)

    @cached_property
    def stride(self) -> int:
        """Floats of one rank over all layers."""
        return sum(_round_up(inputs) + _round_up(outputs) for _, inputs, outputs in self.loras)

    @cached_property
    def places(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(kind, name) -> (start, end): within the row for "vector" and "matrix", within one rank for "a" and "b"."""
        found, start = {}, 0
        for name, size in self.vectors:
            found["vector", name] = (start, start + size)
            start += _round_up(size)
        for name, rows, columns in self.matrices:
            found["matrix", name] = (start, start + rows * columns)
            start += _round_up(rows * columns)
        start = 0
        for name, inputs, outputs in self.loras:
            found["a", name] = (start, start + inputs)
            start += _round_up(inputs)
            found["b", name] = (start, start + outputs)
            start += _round_up(outputs)
        return found

    def size(self, rank: int) -> int:
        """Floats that a slot of this rank uses."""
        return self.fixed + rank * self.stride

    def vector(self, row: torch.Tensor, name: str) -> torch.Tensor:
        """A bias: row (..., P) -> (..., size)."""
        start, end = self.places["vector", name]
        return row[..., start:end]

    def matrix(self, row: torch.Tensor, name: str, columns: int) -> torch.Tensor:
        """A head's weight: row (..., P) -> (..., rows, columns)."""
        start, end = self.places["matrix", name]
        return row[..., start:end].unflatten(-1, (-1, columns))

    def lora(self, row: torch.Tensor, name: str, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A (..., rank, inputs) and B transposed (..., rank, outputs), both views of row (..., P)."""
        block = row[..., self.fixed : self.size(rank)].unflatten(-1, (rank, self.stride))
        (a, a_end), (b, b_end) = self.places["a", name], self.places["b", name]
        return block[..., a:a_end], block[..., b:b_end]

    def union(self, other: RowLayout) -> RowLayout:
        """Both layouts' pieces: this one's first, then what the other adds."""
        return RowLayout(
            self.vectors + tuple(piece for piece in other.vectors if piece not in self.vectors),
            self.matrices + tuple(piece for piece in other.matrices if piece not in self.matrices),
            self.loras + tuple(piece for piece in other.loras if piece not in self.loras),
        )

    def holds(self, other: RowLayout) -> bool:
        """Whether every piece of the other layout is in this one."""
        return self.union(other) == self


def carry(row: torch.Tensor, old: RowLayout, new: RowLayout, rank: int) -> torch.Tensor:
    """A slot's prefix moved to another layout, value by value: (old.size(rank),) -> (new.size(rank),).

    What the new layout lacks is left behind, what the old one lacks is zero. The result is a copy.
    """
    if old == new:
        return row[: old.size(rank)].clone()
    out = row.new_zeros(new.size(rank))
    for name, _ in new.vectors:
        if ("vector", name) in old.places:
            new.vector(out, name).copy_(old.vector(row, name))
    for name, _, columns in new.matrices:
        if ("matrix", name) in old.places:
            new.matrix(out, name, columns).copy_(old.matrix(row, name, columns))
    for name, _, _ in new.loras:
        if rank and ("a", name) in old.places:
            for mine, theirs in zip(new.lora(out, name, rank), old.lora(row, name, rank), strict=True):
                mine.copy_(theirs)
    return out


class ArenaSlot:
    """One slot's share of the arena: its own layout and rank, its parameters and their AdamW.

    `layout` is what the slot would have alone; checkpoints are written in it, so they do not depend on neighbours.
    """

    def __init__(self, layout: RowLayout, rank: int):
        self.layout, self.rank = layout, rank
        self.undecayed, self.decayed = nn.Parameter(torch.empty(0)), nn.Parameter(torch.empty(0))
        self.optimizer: torch.optim.Optimizer | None = None


class Arena:
    """flat[K, P], grad[K, P] and the slots in it. `version` grows whenever views of it become stale."""

    def __init__(self, slots: int, device: torch.device):
        self.device, self.version = device, 0
        self.layout = RowLayout((), (), ())
        self.rank = 0
        self.flat = torch.zeros(slots, 0, device=device)
        self.grad = torch.zeros(slots, 0, device=device)
        self.slots: list[ArenaSlot | None] = [None] * slots

    def take(self, index: int, layout: RowLayout, rank: int) -> ArenaSlot:
        """Make room for a slot and zero its row; neighbours keep every value, gradient and moment."""
        if not self.layout.holds(layout) or rank > self.rank:
            self._lay_anew(self.layout.union(layout), max(rank, self.rank))
        self.flat[index].zero_()
        self.grad[index].zero_()
        self.version += 1
        slot = self.slots[index] = ArenaSlot(layout, rank)
        self._point(index, slot)
        return slot

    def lay(self, layout: RowLayout, rank: int) -> None:
        """Exactly this layout and largest rank, while all slots are empty."""
        assert not any(self.slots), "an arena is laid out while it is empty"
        self._lay_anew(layout, rank)
        self.version += 1

    def release(self, index: int) -> None:
        """Forget a slot. Its row is zeroed, so that nothing of it (a NaN, say) meets what comes next."""
        self.slots[index] = None
        self.flat[index].zero_()
        self.grad[index].zero_()
        self.version += 1

    def row(self, index: int) -> torch.Tensor:
        """The used prefix of a slot's values."""
        return self.flat[index, : self.layout.size(self._held(index).rank)]

    def grad_row(self, index: int) -> torch.Tensor:
        """The used prefix of a slot's gradients."""
        return self.grad[index, : self.layout.size(self._held(index).rank)]

    def read(self, index: int, row: torch.Tensor) -> torch.Tensor:
        """A prefix in the arena's layout as a copy in the slot's own."""
        slot = self._held(index)
        return carry(row, self.layout, slot.layout, slot.rank)

    def write(self, index: int, own: torch.Tensor, row: torch.Tensor) -> None:
        """The inverse of `read`, into `row`."""
        slot = self._held(index)
        row.copy_(carry(own.to(row.device), slot.layout, self.layout, slot.rank))

    def moments(self, index: int) -> dict[str, torch.Tensor]:
        """The optimizer's state in the slot's own layout; empty before its first step."""
        slot = self._held(index)
        if slot.optimizer is None:  # nothing of it is trained
            return {}
        states = [slot.optimizer.state.get(parameter, {}) for parameter in (slot.undecayed, slot.decayed)]
        if not any(states):
            return {}
        out = {"step": next(state["step"] for state in states if state).clone()}
        for name in ("exp_avg", "exp_avg_sq"):
            parts = [
                state[name] if state else torch.zeros_like(parameter)
                for state, parameter in zip(states, (slot.undecayed, slot.decayed), strict=True)
            ]
            out[name] = self.read(index, torch.cat(parts))
        return out

    def zero_moments(self, index: int) -> None:
        """The optimizer's state before its first step: what it would make then is made now, where out of memory can
        still be answered."""
        slot = self._held(index)
        assert slot.optimizer is not None
        for parameter in (slot.undecayed, slot.decayed):
            if parameter.numel():
                slot.optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=self.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }

    def load_moments(self, index: int, moments: dict[str, torch.Tensor]) -> None:
        """The inverse of `moments`; tensors are copied."""
        slot = self._held(index)
        if slot.optimizer is None:
            return
        slot.optimizer.state.clear()
        if not moments:
            return
        whole = {
            name: carry(moments[name].to(self.device), slot.layout, self.layout, slot.rank)
            for name in ("exp_avg", "exp_avg_sq")
        }
        cut = self.layout.undecayed
        for parameter, part in ((slot.undecayed, slice(0, cut)), (slot.decayed, slice(cut, None))):
            if parameter.numel():
                slot.optimizer.state[parameter] = {
                    "step": moments["step"].to(self.device, copy=True),
                    **{name: values[part].clone() for name, values in whole.items()},
                }

    def _held(self, index: int) -> ArenaSlot:
        slot = self.slots[index]
        assert slot is not None, f"slot {index} is empty"
        return slot

    def _lay_anew(self, layout: RowLayout, rank: int) -> None:
        """A larger arena; every slot's values, gradients and moments are carried over exactly."""
        old_layout, old_flat, old_grad = self.layout, self.flat, self.grad
        saved: list[Any] = [None if slot is None else self.moments(index) for index, slot in enumerate(self.slots)]
        flat = torch.zeros(len(self.slots), layout.size(rank), device=self.device)
        self.flat, self.grad = flat, torch.zeros_like(flat)  # out of memory is raised before anything has changed
        self.layout, self.rank = layout, rank
        for index, slot in enumerate(self.slots):
            if slot is None:
                continue
            for old, new in ((old_flat, self.flat), (old_grad, self.grad)):
                new[index, : layout.size(slot.rank)] = carry(old[index], old_layout, layout, slot.rank)
            self._point(index, slot)
            self.load_moments(index, saved[index])

    def _point(self, index: int, slot: ArenaSlot) -> None:
        """Set a slot's parameters and their gradients to its place in the arena."""
        values, grads, cut = self.row(index), self.grad_row(index), self.layout.undecayed
        for parameter, part in ((slot.undecayed, slice(0, cut)), (slot.decayed, slice(cut, None))):
            parameter.grad = None
            parameter.data = values[part]
            parameter.grad = grads[part]


def new_adamw(parameters: list[tuple[list[nn.Parameter], float]], optimizer: Any) -> torch.optim.AdamW:
    """Stock fused AdamW over (parameters, weight decay) groups; `optimizer` is an OptimizerConfig."""
    groups = [{"params": held, "weight_decay": decay} for held, decay in parameters if held]
    return torch.optim.AdamW(
        groups, lr=optimizer.lr, betas=(optimizer.beta1, optimizer.beta2), eps=optimizer.eps, fused=True
    )
