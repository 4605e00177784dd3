"""Evaluation of several slots over the validation rows in shared forwards.

Every forward holds the same rows for all slots that are due, rows of like length together, so ranges are equal and
little is padded. Neighbours: `pack` (when), `tasks` (what is measured).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lorasweep.models.stream import RowStore, Segment
from lorasweep.training.ahead import compute_ahead
from lorasweep.training.lanes import Lanes

if TYPE_CHECKING:
    from lorasweep.models.packed_lora import Engine
    from lorasweep.tasks import Task
    from lorasweep.training.slot import Slot


def evaluate(
    engine: Engine, task: Task, store: RowStore, slots: list[Slot], tokens_per_forward: int, lanes: Lanes
) -> list[tuple[dict[str, float], np.ndarray]]:
    """Metrics and predictions (rows, classes) of each slot, in the slots' order."""
    together: list[list[Slot]] = []
    tokens = min(tokens_per_forward, int(store.offsets[-1]))
    for slot in sorted(slots, key=lambda slot: -engine.depth(slot.index, False)):
        last = together[-1][-1].index if together else -1
        if not together or not engine.base.packable or engine.apart(last, slot.index, tokens, False):
            together.append([])
        together[-1].append(slot)
    found = {
        slot.index: part
        for group in together
        for slot, part in zip(
            group, _evaluate_together(engine, task, store, group, tokens_per_forward, lanes), strict=True
        )
    }
    return [found[slot.index] for slot in slots]


def _evaluate_together(
    engine: Engine, task: Task, store: RowStore, slots: list[Slot], tokens_per_forward: int, lanes: Lanes
) -> list[tuple[dict[str, float], np.ndarray]]:
    base, count = engine.base, len(slots)
    order = torch.argsort(store.lengths, stable=True)
    rows_at_most = min(slot.config.train.eval_batch_size for slot in slots)
    predictions: list[list[torch.Tensor]] = [[] for _ in slots]
    losses: list[list[torch.Tensor]] = [[] for _ in slots]

    def run(rows: torch.Tensor) -> tuple[list[int], torch.Tensor, torch.Tensor]:
        batch = base.batch(store, [Segment(slot.index, rows) for slot in slots])
        with torch.no_grad(), base.running(engine.forward(batch, None)):
            logits = base.logits(batch).float()
        return batch.unit_counts, task.predictions(logits).cpu(), task.unit_losses(logits, batch.labels).cpu()

    chunks = _chunks(order, store.lengths[order], rows_at_most, max(1, tokens_per_forward // count))
    wanted = [([slot.index for slot in slots], order)]
    compute_ahead(engine, store, wanted, training=False, lanes=lanes, tokens_per_forward=tokens_per_forward)
    chunks.reverse()  # the long rows first, so that lanes end together
    for units, predicted, unit in reversed(lanes.map(run, chunks, count * int(store.offsets[-1]))):
        for slot, (some, their) in enumerate(zip(predicted.split(units), unit.split(units), strict=True)):
            predictions[slot].append(some)
            losses[slot].append(their)
    # units were seen row by row in `order`: back to the rows' own order
    back = torch.argsort(torch.repeat_interleave(order, store.units[order]), stable=True)
    labels = store.unit_labels.cpu().numpy()
    results = []
    for slot in range(count):
        table: np.ndarray = torch.cat(predictions[slot])[back].numpy()
        results.append((task.metrics(table, labels, torch.cat(losses[slot])[back].numpy()), table))
    return results


def _chunks(order: torch.Tensor, lengths: torch.Tensor, rows_at_most: int, tokens_at_most: int) -> list[torch.Tensor]:
    """Cut rows, in ascending length, into runs of at most so many rows and (one row aside) tokens."""
    chunks, start, tokens = [], 0, 0
    for at, length in enumerate(lengths.tolist()):
        if at > start and (at - start == rows_at_most or tokens + length > tokens_at_most):
            chunks.append(order[start:at])
            start, tokens = at, 0
        tokens += length
    chunks.append(order[start:])
    return chunks


def row_results(predictions: np.ndarray, labels: Sequence[int], maximize: bool) -> list[float] | None:
    """One number a validation row, better in the objective's direction: right or wrong, or minus its likelihood's
    logarithm. None where predictions (rows, classes) are not one a row."""
    wanted = np.asarray(labels)
    if len(wanted) != len(predictions):
        return None
    if maximize:
        return [float(right) for right in predictions.argmax(1) == wanted]
    likelihood = predictions[np.arange(len(wanted)), wanted]
    return [float(loss) for loss in -np.log(np.maximum(likelihood, 1e-12))]
