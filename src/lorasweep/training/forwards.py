"""Which rows of which slots go through the base together: one turn's micro-batches, cut into forwards.

The limits are part of a pack's state: they shrink when memory runs out, and they decide the shapes of products, on
which a slot's last bits depend. Neighbours: `pack` (asks), `slot` (whose rows), `models.stream` (how rows are laid).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.models.stream import RowStore, Segment
from lorasweep.training.slot import Slot

if TYPE_CHECKING:
    from lorasweep.models.packed_lora import Engine


@dataclass
class Limits:
    """How much one forward may hold.

    tokens: beyond them, further slots go into a forward of their own. split_rows: cut one slot's micro-batch too, as
    out of memory asks for. together: whether slots may share a forward at all. alone: slots that share none in this
    turn, because one of them raised an exception.
    """

    tokens: int
    split_rows: bool = False
    together: bool = True
    alone: set[int] = field(default_factory=set)

    def fields(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON types."""
        return {"tokens": self.tokens, "split_rows": self.split_rows}

    def load_fields(self, fields: dict[str, Any]) -> None:
        """The inverse of `fields`."""
        self.tokens, self.split_rows = fields["tokens"], fields["split_rows"]


def cut_forwards(
    slots: list[Slot], store: RowStore, limits: Limits, engine: Engine, lanes: int = 1
) -> list[list[list[Segment]]]:
    """Draw one micro-batch for every slot and cut them into forwards, lane by lane: every lane has neighbouring slots
    with about the same number of tokens, in forwards of at most `limits.tokens` where possible. Slots that skip like
    numbers of frozen blocks share one."""
    drawn = [
        (slot, slot.order.draw(slot.config.train.batch_size))
        for slot in sorted(slots, key=lambda slot: -engine.depth(slot.index, True))
    ]
    sizes = [int(store.lengths[rows].sum()) for _, rows in drawn]
    share, before = sum(sizes) / lanes, 0
    found: list[list[list[Segment]]] = [[] for _ in range(lanes)]
    held = 0  # tokens of the lane's last forward
    for (slot, rows), tokens in zip(drawn, sizes, strict=True):
        lane = found[min(lanes - 1, int((before + tokens / 2) / share))]
        before += tokens
        for segment, size in _cut(slot.index, rows, store, limits):
            last = lane[-1][-1].slot if lane else slot.index
            fits = held + size <= limits.tokens and limits.together and not {last, slot.index} & limits.alone
            if lane and (last == slot.index or not engine.apart(last, slot.index, held, True)) and fits:
                lane[-1].append(segment)
                held += size
            else:
                lane.append([segment])
                held = size
    return [lane for lane in found if lane]


def _cut(index: int, rows: torch.Tensor, store: RowStore, limits: Limits) -> Iterator[tuple[Segment, int]]:
    lengths = store.lengths[rows]
    total, units = int(lengths.sum()), int(store.units[rows].sum())
    if not limits.split_rows or total <= limits.tokens:
        yield Segment(index, rows, units), total
        return
    first_row = first_token = held = 0
    for at, length in enumerate(lengths.tolist()):
        if at > first_row and held + length > limits.tokens:
            yield Segment(index, rows[first_row:at], units, first_row, first_token), held
            first_row, first_token, held = at, first_token + held, 0
        held += length
    yield Segment(index, rows[first_row:], units, first_row, first_token), held
