"""When trials of a pack are evaluated, and what that means for each: a new best, its value at a rung, its end.

At its rungs a trial is rated over a fixed part of the validation rows where there is one, which is cheap, and else over
all of them. Only evaluations over all rows decide what is kept and what a trial is worth in the end.
Neighbours: `pack` (calls), `evaluate` (the forwards), `slot`, `events`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lorasweep.training.evaluate import Sheets, evaluate
from lorasweep.training.events import Evaluated, Event, Finished, Rated
from lorasweep.training.memory import OUT_OF_MEMORY, describe, free_memory, is_out_of_memory
from lorasweep.training.sheet import Sheet
from lorasweep.training.slot import Best, Slot

if TYPE_CHECKING:
    from lorasweep.config.schema import ObjectiveConfig
    from lorasweep.training.pack import Pack

Results = list[tuple[dict[str, float], Sheet]]  # one a slot


class Examiner:
    """Evaluates the slots of one pack."""

    def __init__(self, pack: Pack, objective: ObjectiveConfig, whole: Sheets, part: Sheets | None = None):
        """`part`: what trials are rated by at their rungs; None: by the whole validation."""
        self.pack, self.objective, self.whole, self.part = pack, objective, whole, part

    def is_due(self, slot: Slot) -> bool:
        """Whether the step just done is one to evaluate after."""
        return slot.evaluation_due or slot.rung is not None

    def examine(self, due: list[Slot]) -> list[Event]:
        """Evaluate slots, those together that see the same rows."""
        if self.part is None:
            return self._evaluate(due)
        rated = self._rate([slot for slot in due if slot.rung is not None], self.part)
        return rated + self._evaluate([slot for slot in due if slot.evaluation_due and not slot.over])

    def untrained(self, slot: Slot) -> dict[str, float]:
        """Metrics over all rows as the slot is now; empty where that fails."""
        try:
            pack = self.pack
            found = evaluate(pack.engine, pack.task, self.whole, [slot], pack.limits.tokens, pack.lanes)
        except Exception as error:
            if is_out_of_memory(error):
                free_memory(self.pack.device)
            return {}
        return dict(found[0][0])

    def _evaluate(self, due: list[Slot]) -> list[Event]:
        """Over all rows."""
        events: list[Event] = []
        began = time.monotonic()
        for slots, results, failed in self._together(self.whole, due):
            seconds, began = time.monotonic() - began, time.monotonic()
            for slot, (metrics, sheet) in zip(slots, results, strict=True):
                slot.eval_seconds = seconds / len(slots)
                events += self._judge(slot, metrics, sheet)
            events += failed
        return events

    def _rate(self, due: list[Slot], part: Sheets) -> list[Event]:
        """Over the part of the rows that rungs are judged by."""
        events: list[Event] = []
        for slots, results, failed in self._together(part, due):
            for slot, (metrics, sheet) in zip(slots, results, strict=True):
                problem = self.objective.problem(metrics)
                if problem is not None:
                    where = f"on the {len(part.exam.references)} validation rows of pruner.eval_rows; raise that"
                    events.append(self.pack.fail(slot, "objective", f"{problem} at step {slot.step} {where}"))
                else:
                    events.append(self._rating(slot, metrics, sheet, part))
            events += failed
        return events

    def _together(self, sheets: Sheets, due: list[Slot]) -> Iterator[tuple[list[Slot], Results, list[Event]]]:
        """Slots evaluated together, their results, and failures. After out of memory in smaller forwards, then slot by
        slot; after an exception slot by slot, so that it ends its own trial alone."""
        if not due:
            return
        pack, trouble, results = self.pack, "", []
        try:
            results = evaluate(pack.engine, pack.task, sheets, due, pack.limits.tokens, pack.lanes)
        except Exception as error:  # kept as words: the error itself holds the frames, and they the activations
            trouble = OUT_OF_MEMORY if is_out_of_memory(error) else describe(error)
        if not trouble:
            yield due, results, []
            return
        longest, is_memory = sheets.rows.longest, trouble == OUT_OF_MEMORY
        if is_memory:
            free_memory(pack.device)
        if is_memory and pack.limits.tokens > len(due) * longest:
            pack.limits.tokens //= 2
            yield from self._together(sheets, due)
        elif len(due) > 1:
            for slot in due:
                yield from self._together(sheets, [slot])
        elif is_memory:
            yield [], [], [pack.fail(due[0], "out_of_memory", pack.memory_message(due[0], longest))]
        else:
            yield [], [], [pack.fail(due[0], "exception", f"evaluation at step {due[0].step}: {trouble}")]

    def _judge(self, slot: Slot, metrics: dict[str, float], sheet: Sheet) -> list[Event]:
        """What an evaluation over all rows means for a trial: a new best, its end, or a failure."""
        problem = self.objective.problem(metrics)
        if problem is not None:
            return [self.pack.fail(slot, "objective", f"{problem} at step {slot.step}")]
        value = metrics[self.objective.metric]
        is_best = slot.best is None or self._better(value, slot.best.value)
        if is_best:
            slot.best = Best(slot.step, value, dict(metrics), self.pack.engine.save(slot.index), sheet)
        slot.evaluations_without_best = 0 if is_best else slot.evaluations_without_best + 1
        events: list[Event] = [Evaluated(slot.number, slot.step, slot.samples, metrics, sheet.predictions, is_best)]
        if self.part is None and slot.rung is not None:
            events.append(self._rating(slot, metrics, sheet, self.whole))
        patience = slot.config.train.early_stopping_evals
        if slot.step == slot.max_steps:
            slot.over = "steps"
        elif patience and slot.evaluations_without_best >= patience:
            slot.over = "early_stopping"
        if slot.over:
            best = slot.best
            assert best is not None
            ended = (slot.number, slot.step, slot.samples, best.step, dict(best.metrics), slot.over)
            events.append(Finished(*ended, slot.seconds, slot.eval_seconds))
        return events

    def _rating(self, slot: Slot, metrics: dict[str, float], sheet: Sheet, sheets: Sheets) -> Rated:
        assert slot.rung is not None
        references = sheets.exam.references
        return Rated(
            slot.number, slot.step, slot.samples, slot.rung, metrics, sheet.predictions, references,
            over_part=sheets is self.part,
        )  # fmt: skip

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.objective.direction == "maximize" else value < than
