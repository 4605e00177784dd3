"""Computes what frozen layers make of rows before the forwards that need them.

Forwards run side by side in lanes, and a row's last bits depend on the rows computed with it: left to whichever lane
asks first, they would change from run to run. Here the work is cut the same way every time, shared by the lanes, and
kept in order. Neighbours: `pack` and `evaluate` (whose rows), `lanes`, models' `prefix_cache`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lorasweep.models.prefix_cache import Fill
from lorasweep.models.stream import RowStore
from lorasweep.training.lanes import Lanes
from lorasweep.training.memory import describe, free_memory

if TYPE_CHECKING:
    from lorasweep.models.packed_lora import Engine, Wanted

log = logging.getLogger(__name__)


def compute_ahead(
    engine: Engine, store: RowStore, wanted: Wanted, *, training: bool, lanes: Lanes, tokens_per_forward: int
) -> None:
    """Fill the cache of frozen layers for the wanted rows. What fails is left to the forwards, where it concerns those
    trials alone."""
    try:
        fills = engine.lacking(store, wanted, training, tokens_per_forward, lanes.count)
        Fill.keep(fills, lanes.map(Fill.compute, fills, sum(fill.tokens for fill in fills)))
    except Exception as error:
        log.warning("frozen layers are not computed ahead: %s", describe(error))
        free_memory(engine.base.device)
