"""The loop: K trials of one base, one data set and one task, trained together, each exactly as if alone.

`advance` gives every trial one micro-batch in shared forwards, steps those whose accumulation is full, evaluates those
that are due together, and tells what happened as events. It never decides which trial trains: `worker` admits and
evicts. Where memory runs out it cuts its forwards, then parks trials until there is room, and loses nothing.
Neighbours: `slot` (a trial's state), `forwards` (who shares one), `stepping`, `examine` (evaluations), models' engines
(trained values), `tasks` (losses, metrics).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.config.schema import Config, ObjectiveConfig
from lorasweep.errors import ConfigError, TrialFailed
from lorasweep.models.counts import ParameterCounts
from lorasweep.models.dropout import stream_key
from lorasweep.models.packed_lora import Engine
from lorasweep.models.stream import RowStore, Segment
from lorasweep.tasks.base import Exam, References
from lorasweep.training.ahead import compute_ahead
from lorasweep.training.evaluate import Sheets
from lorasweep.training.events import Evaluated, Event, Failed, Finished, Rated, Stepped
from lorasweep.training.examine import Examiner
from lorasweep.training.forwards import Limits, cut_forwards
from lorasweep.training.lanes import Lanes
from lorasweep.training.memory import OUT_OF_MEMORY, describe, free_memory, is_out_of_memory
from lorasweep.training.roster import Roster, State
from lorasweep.training.slot import Best, Slot
from lorasweep.training.stepping import Diverged, gradient_norms, optimizer_step

if TYPE_CHECKING:
    from lorasweep.data.encode import Encoded
    from lorasweep.models.base import LoadedBase
    from lorasweep.models.prefix_cache import PrefixBudget
    from lorasweep.tasks import Task

__all__ = ["Evaluated", "Event", "Failed", "Finished", "Pack", "Rated", "Stepped"]

TOKENS_PER_FORWARD = {"cpu": 8192, "cuda": 131072}  # beyond it, further slots go into a forward of their own


class Pack:
    """K slots over one base. Not thread-safe. Rows, base and task are shared; nothing else is. `validation`: encoded
    rows stand for an exam of classification; `rung_exam`: what trials are judged by at their rungs, None: by the whole
    validation.

    Raises:
        ConfigError: a row is longer than the base has positions for.
    """

    def __init__(
        self,
        base: LoadedBase,
        task: Task,
        train: Encoded,
        validation: Encoded | Exam,
        objective: ObjectiveConfig,
        slots: int,
        prefixes: PrefixBudget | None = None,
        rung_exam: Exam | None = None,
    ):
        self.base, self.task, self.objective = base, task, objective
        pad, causal = base.model.config.pad_token_id, base.key.head == "causal_lm"
        self.train = RowStore(train, pad, base.device, causal=causal)
        exam = validation if isinstance(validation, Exam) else Exam(validation, validation.labels.numpy())
        self.sheets = Sheets.of(exam, pad, base.device, causal)
        prompts = self.sheets.prompts
        asked = 0 if prompts is None else prompts.longest + exam.max_new_tokens
        longest, limit = max(self.train.longest, self.sheets.rows.longest, asked), base.longest_row
        if limit is not None and longest > limit:
            raise ConfigError(
                f"a row has {longest} tokens{' with its answer' if longest == asked else ''} and {base.path} takes at "
                f"most {limit}; set data.max_length={limit}"
            )
        self.roster = Roster(base, slots, len(self.train), prefixes)
        self.lanes = Lanes(base.device, 4 * sum(inputs * outputs for inputs, outputs in base.linear_modules.values()))
        self.limits = Limits(TOKENS_PER_FORWARD[base.device.type], together=base.packable)
        part = None if rung_exam is None else Sheets.of(rung_exam, pad, base.device, causal)
        self.examiner = Examiner(self, objective, self.sheets, part)

    # -- who is in it ---------------------------------------------------------------------------------------------

    @property
    def engine(self) -> Engine:
        """What is trained over the base."""
        return self.roster.engine

    @property
    def active(self) -> list[int]:
        """Numbers of the trials in the pack, those that ended but were not evicted included."""
        return self.roster.active

    @property
    def free(self) -> int:
        """How many trials may enter now."""
        return self.roster.free

    def admit(self, number: int, config: Config, rungs: Sequence[int] = ()) -> None:
        """Start a trial; neighbours do not notice. It is judged after the first step with at least as many training
        samples as each rung, beside its own evaluations.

        Raises:
            ModelError: the base lacks a module or layer that the adapter names.
            UsageError: no slot is free, or the trial is there already.
            TrialFailed: out of memory with no other trial there.
        """
        self.roster.admit(number, config, rungs)

    def evict(self, number: int) -> None:
        """Empty a trial's slot; neighbours do not notice."""
        self.roster.evict(number)

    def max_steps(self, number: int) -> int:
        """Optimizer steps that the trial trains for, unless it stops early."""
        return self.roster.max_steps(number)

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.base.device

    @property
    def rows(self) -> int:
        """Training rows."""
        return self.roster.rows

    @property
    def references(self) -> References:
        """The right answers of the validation rows."""
        return self.sheets.exam.references

    def best(self, number: int) -> Best | None:
        """The trial's best evaluation; None before the first, and while it waits for memory."""
        return None if self.roster.waiting(number) is not None else self.roster.slot(number).best

    def has_begun(self, number: int) -> bool:
        """False for a trial that has waited for memory since it came."""
        return self.roster.has_begun(number)

    def cached_blocks(self, number: int) -> int:
        """Lower blocks of the base that the trial's training takes from the cache."""
        return self.roster.cached_blocks(number)

    def samples(self, number: int) -> int:
        """Training rows that the trial's finished steps have seen."""
        return self.roster.samples(number)

    def counts(self, number: int) -> ParameterCounts:
        """Parameter counts of the trial."""
        return self.roster.counts(number)

    # -- training -------------------------------------------------------------------------------------------------

    def advance(self) -> list[Event]:
        """One micro-batch for every trial that trains; steps and evaluations as they fall due."""
        with self.lanes.one_core():
            return self._advance()

    def _advance(self) -> list[Event]:
        roster, limits, engine = self.roster, self.limits, self.engine
        events: list[Event] = [Failed(number, e.cause, e.message) for number, e in roster.seat_waiting()]
        as_they_are = [slot for slot in roster.training if slot.max_steps == 0]
        if as_they_are:  # nothing is trained: their one evaluation is their end
            return events + self.examiner.examine(as_they_are)
        slots, again = roster.training, set[int]()  # again: slots that went back to their step's start
        expected = sum(slot.config.train.batch_size for slot in slots) * self.train.mean_length
        lanes = cut_forwards(slots, self.train, limits, engine, self.lanes.useful(expected))
        tokens = sum(int(self.train.lengths[part.rows].sum()) for lane in lanes for forward in lane for part in forward)
        coming = [
            ([part.slot for part in forward], torch.cat([part.rows for part in forward]))
            for lane in lanes
            for forward in lane
        ]
        compute_ahead(engine, self.train, coming, training=True, lanes=self.lanes, tokens_per_forward=limits.tokens)
        for results in self.lanes.map(self._run_lane, lanes, tokens):
            for segments, found, trouble in results:
                events += found
                if trouble and roster.engine is engine:
                    again |= {segment.slot for segment in segments}
                    events += self._start_over(segments, trouble)
        if roster.engine is not engine:
            return events  # trials were parked and slots have moved: what was planned for this turn is void
        limits.alone &= again
        ready = [slot for slot in slots if not slot.over and slot.micro == slot.config.train.accumulation]
        due = []
        for slot, norm in zip(ready, gradient_norms(engine, ready), strict=True):
            try:
                stepped = optimizer_step(engine, slot, norm)
            except Diverged as error:
                events.append(self._diverged(slot, str(error)))
                continue
            except Exception as error:  # moments of full fine-tuning that do not fit, for one
                cause = "out_of_memory" if is_out_of_memory(error) else "exception"
                events.append(self.fail(slot, cause, f"optimizer step {slot.step + 1}: {describe(error)}"))
                continue
            if stepped is not None:
                events.append(stepped)
                if self.examiner.is_due(slot):
                    due.append(slot)
        return events + self.examiner.examine(due) if due else events

    def _run_lane(self, forwards: list[list[Segment]]) -> list[tuple[list[Segment], list[Event], str]]:
        """Train the forwards of one lane; of each its segments, its events and, if any, its trouble in words."""
        results: list[tuple[list[Segment], list[Event], str]] = []
        failed: set[int] = set()
        for planned in forwards:
            segments = [segment for segment in planned if segment.slot not in failed]
            if not segments:
                continue
            events, trouble = [], ""
            try:
                events = self._train(segments)
            except Exception as error:  # kept as words: the error itself holds the frames, and they the activations
                trouble = OUT_OF_MEMORY if is_out_of_memory(error) else describe(error)
                failed |= {segment.slot for segment in segments}
            results.append((segments, events, trouble))
        return results

    def _train(self, segments: list[Segment]) -> list[Event]:
        """Forward and backward of one forward's segments. A slot's loss is the mean over its micro-batch's units, over
        its accumulation."""
        slots = [self.roster.at(segment.slot) for segment in segments]
        keys = [stream_key(slot.config.train.seed, slot.step, slot.micro) for slot in slots]
        batch = self.base.batch(self.train, segments)
        with self.engine.base.running(self.engine.forward(batch, keys)):
            logits = self.engine.base.logits(batch)
            units = self.task.unit_losses(logits, batch.labels)  # (units,)
            parts = zip(units.split(batch.unit_counts), segments, strict=True)
            sums = torch.stack([part.sum() / max(1, segment.units) for part, segment in parts])
            weights = [slot.loss_scale / slot.config.train.accumulation for slot in slots]
            (sums * sums.new_tensor(weights)).sum().backward()
        events: list[Event] = []
        for slot, segment, loss in zip(slots, segments, sums.tolist(), strict=True):
            if segment.first_row == 0:
                slot.losses.append(loss)
            else:
                slot.losses[-1] += loss
            if segment.first_row + len(segment.rows) == slot.config.train.batch_size:
                slot.micro += 1
            if not math.isfinite(loss) and not slot.over:
                events.append(self._diverged(slot, f"the loss is {loss}"))
        return events

    def _start_over(self, segments: list[Segment], trouble: str) -> list[Event]:
        """Send the slots of a forward that failed back to the start of their step. An exception is tried again slot by
        slot, so that it ends its own trial alone."""
        for segment in segments:
            self.roster.at(segment.slot).rewind()
            self.engine.zero_gradients(segment.slot)
        if trouble == OUT_OF_MEMORY:
            released = self.roster.prefixes is not None and self.roster.prefixes.budget.release()
            free_memory(self.base.device)
            return [] if released else self._shrink(segments)
        if len(segments) == 1:
            return [self.fail(self.roster.at(segments[0].slot), "exception", trouble)]
        self.limits.alone |= {segment.slot for segment in segments}
        return []

    def _shrink(self, segments: list[Segment]) -> list[Event]:
        """After out of memory: halve what a forward may hold, then the trials that train at once. Nothing is lost, and
        the effective batch stays; a row that does not fit even so ends its trial."""
        tokens = sum(int(self.train.lengths[segment.rows].sum()) for segment in segments)
        if len(segments) > 1 or len(segments[0].rows) > 1:
            self.limits.tokens, self.limits.split_rows = max(1, min(self.limits.tokens, tokens) // 2), True
            return []
        slot = self.roster.at(segments[0].slot)
        return [] if self._park() else [self.fail(slot, "out_of_memory", self.memory_message(slot, tokens))]

    def _park(self) -> bool:
        """Train fewer trials at once, each from the start of its step; False where one is alone already."""
        for slot in self.roster.training:
            slot.rewind()
            self.engine.zero_gradients(slot.index)
        return self.roster.make_room()

    def memory_message(self, slot: Slot, tokens: int) -> str:
        """That a row of so many tokens does not fit, beside what, and what to set."""
        trained = self.engine.counts(slot.index).trainable
        return (
            f"one row of {tokens} tokens does not fit on {self.base.device} beside a base of "
            f"{self.base.total_params} parameters and {trained} trained ones ({len(self.active)} trials in the pack). "
            "Set data.max_length lower, train.activation_checkpointing=true, quantization=nf4 or launcher.slots=1"
        )

    def _diverged(self, slot: Slot, what: str) -> Failed:
        last = "none before it" if slot.last_loss is None else f"the step before had loss {slot.last_loss:.6g}"
        return self.fail(
            slot,
            "diverged",
            f"{what} at step {slot.step + 1} ({last}; learning rate {slot.lr:.3g}). Lower optimizer.lr, warm up longer"
            + (", or use train.precision=bf16" if slot.config.train.precision == "fp16" else ""),
        )

    def fail(self, slot: Slot, cause: str, message: str) -> Failed:
        """End a trial; its neighbours go on."""
        slot.over = cause
        self.engine.zero_gradients(slot.index)
        return Failed(slot.number, cause, message)

    # -- evaluation -----------------------------------------------------------------------------------------------

    def evaluate_untrained(self, number: int) -> dict[str, float]:
        """Metrics of a trial before its first step: the base with its head as it starts. Empty where the trial waits
        for room, or where the evaluation fails: the trial's own evaluations then say why."""
        if self.roster.waiting(number) is not None:
            return {}
        with self.lanes.one_core():
            return self.examiner.untrained(self.roster.slot(number))

    # -- what a trial leaves --------------------------------------------------------------------------------------

    def export(self, number: int, folder: Path) -> None:
        """Write the kept checkpoint: a PEFT adapter, or a whole checkpoint for adapter=full.

        Raises:
            TrialFailed: the trial was never evaluated, so that nothing is kept.
        """
        slot = self.roster.slot(number)
        if slot.best is None:
            raise TrialFailed("exception", f"trial {number} has no kept checkpoint: it was not evaluated yet")
        self.engine.export(slot.index, slot.best.values, folder)

    def state(self, number: int) -> State:
        """All of a trial's state: tensors by name, and a dict of JSON types."""
        return self.roster.state(number)

    def load_state(self, number: int, config: Config, tensors: dict[str, torch.Tensor], fields: dict[str, Any]) -> None:
        """Admit a trial as `state` left it, in the slot it had where that is free. On a CPU a pack restored whole (each
        trial, and `limits`) goes on bit for bit.

        Raises:
            ModelError, UsageError, TrialFailed: as `admit`.
        """
        self.roster.load_state(number, config, tensors, fields)
