"""Evaluation of several slots over the validation rows in shared forwards.

Every forward holds the same rows for all slots that are due, rows of like length together, so ranges are equal and
little is padded. Neighbours: `examine` (when), `generate` (prompts), `tasks` (what is measured).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from lorasweep.metrics.squad import question_scores
from lorasweep.models.stream import RowStore, Segment
from lorasweep.tasks.base import Answers, Predictions, References, Sitting
from lorasweep.training.ahead import compute_ahead
from lorasweep.training.generate import Outcome, Plan, Responses, answer_prompts, tokens_at_most
from lorasweep.training.lanes import Lanes
from lorasweep.training.sheet import Sheet

if TYPE_CHECKING:
    from lorasweep.models.packed_lora import Engine
    from lorasweep.tasks import Exam, Task
    from lorasweep.training.slot import Slot


@dataclass(frozen=True)
class Sheets:
    """An exam with its rows, and what it has of prompts, on the device."""

    exam: Exam
    rows: RowStore
    prompts: RowStore | None = None

    @classmethod
    def of(cls, exam: Exam, pad: int, device: torch.device, causal: bool) -> Sheets:
        """An exam's rows moved to the device."""
        rows = RowStore(exam.rows, pad, device, causal=causal)
        prompts = None if exam.prompts is None else RowStore(exam.prompts, pad, device, causal=True)
        return cls(exam, rows, prompts)


def evaluate(
    engine: Engine, task: Task, sheets: Sheets, slots: list[Slot], tokens_per_forward: int, lanes: Lanes
) -> list[tuple[dict[str, float], Sheet]]:
    """Metrics of each slot and what they were computed from, in the slots' order."""
    store = sheets.rows
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
            group, _evaluate_together(engine, task, sheets, group, tokens_per_forward, lanes), strict=True
        )
    }
    return [found[slot.index] for slot in slots]


def _evaluate_together(
    engine: Engine, task: Task, sheets: Sheets, slots: list[Slot], tokens_per_forward: int, lanes: Lanes
) -> list[tuple[dict[str, float], Sheet]]:
    results, exam = [], sheets.exam
    outcomes = None
    shared = shared_responses(engine, sheets, slots)
    if sheets.prompts is not None and (exam.max_new_tokens or shared is not None):
        outcomes = continue_prompts(engine, task, sheets, slots, tokens_per_forward, lanes, shared)
    if outcomes is not None and shared is not None:
        units = shared.rows.units.numpy()
        sittings = [Sitting(None, outcome.losses.numpy(), units) for outcome in outcomes if outcome.losses is not None]
    else:
        sittings = read_rows(engine, task, sheets.rows, slots, tokens_per_forward, lanes)
    if outcomes is not None and exam.max_new_tokens:
        sittings = [replace(one, generated=own.written) for one, own in zip(sittings, outcomes, strict=True)]
    for sitting in sittings:
        predictions, losses = task.read(sheets.exam, sitting)
        results.append((task.metrics(predictions, sheets.exam.references, losses), Sheet(predictions, losses)))
    return results


def shared_responses(engine: Engine, sheets: Sheets, slots: list[Slot]) -> Responses | None:
    """The exam's rows as responses to its prompts, where that saves reading prompts again and again; None where rows
    are read whole: without a token stream, and where frozen layers are cached, of whole rows."""
    exam, prompts = sheets.exam, sheets.prompts
    if prompts is None or not engine.base.stream or any(engine.depth(slot.index, False) for slot in slots):
        return None
    if len(sheets.rows) <= len(prompts) and not exam.max_new_tokens:
        return None
    return Responses(sheets.rows, exam.rows.extras["prompt"], prompts)


def continue_prompts(
    engine: Engine,
    task: Task,
    sheets: Sheets,
    slots: list[Slot],
    tokens_per_forward: int,
    lanes: Lanes,
    responses: Responses | None = None,
) -> list[Outcome]:
    """What each slot writes after each prompt of the exam, and the losses of its given `responses`."""
    store, exam = sheets.prompts, sheets.exam
    assert store is not None, "the exam has no prompts"
    order = torch.argsort(store.lengths, stable=True)
    rows_at_most = min(slot.config.train.eval_batch_size for slot in slots)
    room = tokens_at_most(engine.base, tokens_per_forward)
    sizes = store.lengths + exam.max_new_tokens
    if responses is not None:
        sizes = torch.maximum(sizes, store.lengths + responses.longest_of_prompt)
    chunks = _chunks(order, sizes[order], rows_at_most, max(1, room // len(slots)))
    plan = Plan(task, responses, exam.max_new_tokens, exam.end_ids)
    indexes = [slot.index for slot in slots]
    return answer_prompts(engine, store, indexes, chunks[::-1], plan, lanes)  # the long first: lanes end together


def read_rows(
    engine: Engine, task: Task, store: RowStore, slots: list[Slot], tokens_per_forward: int, lanes: Lanes
) -> list[Sitting]:
    """Outputs and losses of every row's units, in the rows' order, for each slot."""
    base, count = engine.base, len(slots)
    order = torch.argsort(store.lengths, stable=True)
    rows_at_most = min(slot.config.train.eval_batch_size for slot in slots)
    outputs: list[list[torch.Tensor]] = [[] for _ in slots]
    losses: list[list[torch.Tensor]] = [[] for _ in slots]

    def run(rows: torch.Tensor) -> tuple[list[int], torch.Tensor | None, torch.Tensor]:
        batch = base.batch(store, [Segment(slot.index, rows) for slot in slots])
        with torch.no_grad(), base.running(engine.forward(batch, None)):
            logits = base.logits(batch).float()
        kept = task.predictions(logits, batch.labels)
        return batch.unit_counts, None if kept is None else kept.cpu(), task.unit_losses(logits, batch.labels).cpu()

    chunks = _chunks(order, store.lengths[order], rows_at_most, max(1, tokens_per_forward // count))
    wanted = [([slot.index for slot in slots], order)]
    compute_ahead(engine, store, wanted, training=False, lanes=lanes, tokens_per_forward=tokens_per_forward)
    chunks.reverse()  # the long rows first, so that lanes end together
    for units, kept, unit in reversed(lanes.map(run, chunks, count * int(store.offsets[-1]))):
        for slot, their in enumerate(unit.split(units)):
            losses[slot].append(their)
        for slot, some in enumerate(() if kept is None else kept.split(units)):
            outputs[slot].append(some)
    # units were seen row by row in `order`: back to the rows' own order
    back = torch.argsort(torch.repeat_interleave(order, store.units[order]), stable=True)
    units_of_rows = store.units.numpy()
    return [
        Sitting(
            torch.cat(outputs[slot])[back].numpy() if outputs[slot] else None,
            torch.cat(losses[slot])[back].numpy(),
            units_of_rows,
        )
        for slot in range(count)
    ]


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


def row_results(predictions: Predictions, references: References, maximize: bool) -> list[float] | None:
    """One number a validation row, better in the objective's direction: right or wrong, of texts the F1 of their words,
    or minus its likelihood's logarithm. None where there is no such number."""
    if predictions is None or (isinstance(predictions, Answers) and not maximize):
        return None
    if isinstance(predictions, Answers):
        return [question_scores(text, own)[1] for text, own in zip(predictions.texts, references, strict=True)]
    wanted = np.asarray(references)
    if maximize:
        return [float(right) for right in predictions.argmax(1) == wanted]
    likelihood = predictions[np.arange(len(wanted)), wanted]
    return [float(loss) for loss in -np.log(np.maximum(likelihood, 1e-12))]
