"""What a pack is beside its trials: the memory layout and the limits that its products' bits depend on.

A slot's numbers are its own, but their last bits depend on the shapes around it: on the arena's layout (a gradient's
norm sums over it), its largest rank, and on where forwards are cut. A pack that goes on from a checkpoint bit for bit
is therefore shaped first, then filled with `Pack.load_state`. Neighbours: `pack`, models' `arena`; `worker` calls.
"""

from __future__ import annotations

from typing import Any

from lorasweep.models.arena import RowLayout
from lorasweep.models.packed_lora import PackedLora
from lorasweep.training.baseline import BaselinePack
from lorasweep.training.pack import Pack

AnyPack = Pack | BaselinePack


def shape_of(pack: AnyPack) -> dict[str, Any]:
    """The pack's shape as JSON types; a baseline has none."""
    if isinstance(pack, BaselinePack):
        return {}
    shape: dict[str, Any] = {
        "slots": len(pack.roster.slots),
        "room": pack.roster.room,
        "limits": pack.limits.fields(),
    }
    if isinstance(pack.engine, PackedLora):
        layout = pack.engine.arena.layout
        shape["rank"] = pack.engine.arena.rank
        shape["layout"] = [layout.vectors, layout.matrices, layout.loras]
    return shape


def reshape(pack: AnyPack, shape: dict[str, Any]) -> None:
    """Give an empty pack the shape that `shape_of` told."""
    assert not pack.active, "a pack is shaped while it is empty"
    if isinstance(pack, BaselinePack):
        return
    pack.limits.load_fields(shape["limits"])
    pack.roster.room = min(shape["room"], len(pack.roster.slots))
    if isinstance(pack.engine, PackedLora):
        parts = [tuple(tuple(piece) for piece in pieces) for pieces in shape["layout"]]
        pack.engine.arena.lay(RowLayout(*parts), shape["rank"])
