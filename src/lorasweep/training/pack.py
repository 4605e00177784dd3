"""The loop: K trials of one base, one data set and one task, trained together, each exactly as if alone.

`advance` gives every trial one micro-batch in shared forwards, steps those whose accumulation is full, evaluates those
that are due together, and tells what happened as events. It never decides which trial trains: `worker` admits and
evicts. Neighbours: `slot` (a trial's state), `evaluate`, models' engines (trained values), `tasks` (losses, metrics).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.config.schema import Config, ObjectiveConfig
from lorasweep.errors import ConfigError, TrialFailed, UsageError
from lorasweep.models.counts import ParameterCounts
from lorasweep.models.dropout import stream_key
from lorasweep.models.full import FullModel
from lorasweep.models.packed_lora import Engine, PackedLora
from lorasweep.models.stream import RowStore, Segment
from lorasweep.training.evaluate import evaluate
from lorasweep.training.events import Evaluated, Event, Failed, Finished, Stepped
from lorasweep.training.memory import free_memory, is_out_of_memory
from lorasweep.training.slot import Best, Slot

if TYPE_CHECKING:
    from lorasweep.data.encode import Encoded
    from lorasweep.models.base import LoadedBase
    from lorasweep.tasks import Task

__all__ = ["Evaluated", "Event", "Failed", "Finished", "Pack", "Stepped"]

TOKENS_PER_FORWARD = {"cpu": 8192, "cuda": 131072}  # beyond it, further slots go into a forward of their own


class Pack:
    """K slots over one base. Not thread-safe. Rows, base and task are shared; nothing else is.

    Raises:
        ConfigError: a row is longer than the base has positions for.
    """

    def __init__(
        self,
        base: LoadedBase,
        task: Task,
        train: Encoded,
        validation: Encoded,
        objective: ObjectiveConfig,
        slots: int,
    ):
        if base.key.full and slots != 1:
            raise UsageError(f"adapter=full trains one trial at a time and {slots} slots were asked for; use 1")
        self.base, self.task, self.objective = base, task, objective
        pad = base.model.config.pad_token_id
        causal = base.key.head == "causal_lm"
        self.train = RowStore(train, pad, base.device, causal=causal)
        self.validation = RowStore(validation, pad, base.device, causal=causal)
        longest, limit = max(self.train.longest, self.validation.longest), base.longest_row
        if limit is not None and longest > limit:
            raise ConfigError(
                f"a row has {longest} tokens and {base.path} takes at most {limit}; set data.max_length={limit}"
            )
        self.engine: Engine = FullModel(base) if base.key.full else PackedLora(base, slots)
        self.tokens_per_forward = TOKENS_PER_FORWARD[base.device.type]
        self.split_rows = False  # after out of memory: cut a slot's micro-batch too
        self._slots: list[Slot | None] = [None] * slots

    # -- admission ------------------------------------------------------------------------------------------------

    @property
    def active(self) -> list[int]:
        """Numbers of the trials in the pack, those that ended but were not evicted included."""
        return [slot.number for slot in self._slots if slot is not None]

    @property
    def free(self) -> int:
        """Empty slots."""
        return self._slots.count(None)

    def admit(self, number: int, config: Config) -> None:
        """Start a trial in the first empty slot; neighbours do not notice.

        Raises:
            ModelError: the base lacks a module or layer that the adapter names.
            UsageError: no slot is free, or the trial is there already.
            TrialFailed: out of memory.
        """
        self._admit(number, config, self._slots.index(None) if self.free else -1)

    def _admit(self, number: int, config: Config, index: int) -> Slot:
        if index < 0 or number in self.active:
            raise UsageError(
                f"trial {number} cannot enter: {self.free} of {len(self._slots)} slots are free, with {self.active}"
            )
        try:
            self.engine.admit(index, config)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.engine.release(index)
            free_memory(self.base.device)
            raise TrialFailed(
                "out_of_memory", f"trial {number} does not fit beside trials {self.active}: {error}"
            ) from None
        slot = self._slots[index] = Slot.start(number, index, config, len(self.train), self.base.device)
        return slot

    def evict(self, number: int) -> None:
        """Empty a trial's slot; neighbours do not notice."""
        slot = self._slot(number)
        self.engine.release(slot.index)
        self._slots[slot.index] = None

    def _slot(self, number: int) -> Slot:
        for slot in self._slots:
            if slot is not None and slot.number == number:
                return slot
        raise UsageError(f"trial {number} is not in this pack (trials {self.active} are)")

    def max_steps(self, number: int) -> int:
        """Optimizer steps that the trial trains for, unless it stops early."""
        return self._slot(number).max_steps

    def counts(self, number: int) -> ParameterCounts:
        """Parameter counts of the trial."""
        return self.engine.counts(self._slot(number).index)

    # -- training -------------------------------------------------------------------------------------------------

    def advance(self) -> list[Event]:
        """One micro-batch for every trial that trains; steps and evaluations as they fall due."""
        slots = [slot for slot in self._slots if slot is not None and not slot.over]
        events: list[Event] = []
        started_over: set[int] = set()  # slots that go back to their step's start for want of memory
        for planned in list(self._forwards(slots)):
            segments = [segment for segment in planned if segment.slot not in started_over]
            if not segments:
                continue
            try:
                events += self._train(segments)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                started_over |= {segment.slot for segment in segments}
            if started_over & {segment.slot for segment in segments}:
                events += self._shrink(segments)
        ready = [slot for slot in slots if not slot.over and slot.micro == slot.config.train.accumulation]
        stepped = []
        for slot, norm in zip(ready, self._norms(ready), strict=True):
            event = self._step(slot, norm)
            if event is not None:
                events.append(event)
                if isinstance(event, Stepped):
                    stepped.append(slot)
        due = [slot for slot in stepped if slot.evaluation_due]
        if due:
            events += self._evaluate(due)
        return events

    def _forwards(self, slots: list[Slot]) -> Iterator[list[Segment]]:
        """This turn's micro-batches, cut into forwards of at most tokens_per_forward where that is possible."""
        forward: list[Segment] = []
        held = 0
        for slot in slots:
            rows = slot.order.draw(slot.config.train.batch_size)
            for segment, tokens in self._cut(slot.index, rows):
                if forward and (held + tokens > self.tokens_per_forward or not self.base.packable):
                    yield forward
                    forward, held = [], 0
                forward.append(segment)
                held += tokens
        if forward:
            yield forward

    def _cut(self, index: int, rows: torch.Tensor) -> Iterator[tuple[Segment, int]]:
        lengths = self.train.lengths[rows]
        total, units = int(lengths.sum()), int(self.train.units[rows].sum())
        if not self.split_rows or total <= self.tokens_per_forward:
            yield Segment(index, rows, units), total
            return
        first_row = first_token = held = 0
        for at, length in enumerate(lengths.tolist()):
            if at > first_row and held + length > self.tokens_per_forward:
                yield Segment(index, rows[first_row:at], units, first_row, first_token), held
                first_row, first_token, held = at, first_token + held, 0
            held += length
        yield Segment(index, rows[first_row:], units, first_row, first_token), held

    def _train(self, segments: list[Segment]) -> list[Event]:
        """Forward and backward of one forward's segments. A slot's loss is the mean over its micro-batch's units, over
        its accumulation."""
        slots = [self._at(segment.slot) for segment in segments]
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

    def _shrink(self, segments: list[Segment]) -> list[Event]:
        """After out of memory: halve what a forward may hold, and start the step in progress of its slots again.

        Nothing is lost, and the effective batch stays; a single row that does not fit ends its trial.
        """
        free_memory(self.base.device)
        tokens = sum(int(self.train.lengths[segment.rows].sum()) for segment in segments)
        for segment in segments:
            self._at(segment.slot).rewind()
            self.engine.zero_gradients(segment.slot)
        if len(segments) == 1 and len(segments[0].rows) == 1:
            slot = self._at(segments[0].slot)
            return [self._fail(slot, "out_of_memory", self._memory_message(slot, tokens))]
        self.tokens_per_forward, self.split_rows = max(1, min(self.tokens_per_forward, tokens) // 2), True
        return []

    def _memory_message(self, slot: Slot, tokens: int) -> str:
        trained = self.engine.counts(slot.index).trainable
        return (
            f"one row of {tokens} tokens does not fit on {self.base.device} beside a base of "
            f"{self.base.total_params} parameters and {trained} trained ones ({len(self.active)} trials in the pack). "
            "Set data.max_length lower, train.activation_checkpointing=true, quantization=nf4 or launcher.slots=1"
        )

    def _at(self, index: int) -> Slot:
        slot = self._slots[index]
        assert slot is not None, f"slot {index} is empty"
        return slot

    def _diverged(self, slot: Slot, what: str) -> Failed:
        last = "none before it" if slot.last_loss is None else f"the step before had loss {slot.last_loss:.6g}"
        return self._fail(
            slot,
            "diverged",
            f"{what} at step {slot.step + 1} ({last}; learning rate {slot.lr:.3g}). Lower optimizer.lr, warm up longer"
            + (", or use train.precision=bf16" if slot.config.train.precision == "fp16" else ""),
        )

    def _fail(self, slot: Slot, cause: str, message: str) -> Failed:
        slot.over = cause
        self.engine.zero_gradients(slot.index)
        return Failed(slot.number, cause, message)

    def _norms(self, slots: list[Slot]) -> list[float]:
        """Global norms of the slots' gradients, as torch's clip_grad_norm_ takes them; one wait for the device."""
        norms = []
        for slot in slots:
            if slot.scaler is not None:
                slot.scaler.unscale_(self.engine.optimizer(slot.index))
            parts = [torch.linalg.vector_norm(gradient) for gradient in self.engine.gradients(slot.index)]
            norms.append(parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts)))
        return torch.stack(norms).tolist() if norms else []

    def _step(self, slot: Slot, norm: float) -> Stepped | Failed | None:
        """One optimizer step; None where fp16 overflowed and the step is tried again at a smaller loss scale."""
        engine, settings = self.engine, slot.config.optimizer
        optimizer, gradients = engine.optimizer(slot.index), engine.gradients(slot.index)
        if not math.isfinite(norm):
            if slot.scaler is None or slot.loss_scale < 2**-10:
                return self._diverged(slot, f"the gradient's norm is {norm}")
            slot.scaler.update(slot.loss_scale * slot.scaler.get_backoff_factor())
            slot.rewind()
            engine.zero_gradients(slot.index)
            return None
        if settings.max_grad_norm > 0:
            factor = min(1.0, settings.max_grad_norm / (norm + 1e-6))
            if factor < 1.0:
                for gradient in gradients:
                    gradient.mul_(factor)
        lr = slot.lr
        for group in optimizer.param_groups:
            group["lr"] = lr
        if slot.scaler is None:
            optimizer.step()
        else:
            slot.scaler.step(optimizer)
            slot.scaler.update()
        engine.zero_gradients(slot.index)
        loss = sum(slot.losses) / len(slot.losses)
        slot.step, slot.micro, slot.losses, slot.last_loss = slot.step + 1, 0, [], loss
        return Stepped(slot.number, slot.step, slot.samples, loss, lr, norm)

    # -- evaluation -----------------------------------------------------------------------------------------------

    def _evaluate(self, due: list[Slot]) -> list[Event]:
        events: list[Event] = []
        results: list[Any] | None = None
        while results is None:
            try:
                results = evaluate(self.engine, self.task, self.validation, due, self.tokens_per_forward)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
            if results is None:
                free_memory(self.base.device)
                if self.tokens_per_forward <= 1:
                    longest = self.validation.longest
                    return [self._fail(slot, "out_of_memory", self._memory_message(slot, longest)) for slot in due]
                self.tokens_per_forward //= 2
        for slot, (metrics, predictions) in zip(due, results, strict=True):
            value = metrics.get(self.objective.metric)
            if value is None or not math.isfinite(value):
                said = (
                    f"is {value}" if value is not None else f"is not among those logged: {', '.join(sorted(metrics))}"
                )
                events.append(
                    self._fail(slot, "objective", f"the objective {self.objective.metric} {said} at step {slot.step}")
                )
                continue
            is_best = slot.best is None or self._better(value, slot.best.value)
            if is_best:
                slot.best = Best(slot.step, value, dict(metrics), self.engine.save(slot.index))
            slot.evaluations_without_best = 0 if is_best else slot.evaluations_without_best + 1
            events.append(Evaluated(slot.number, slot.step, slot.samples, metrics, predictions, is_best))
            patience = slot.config.train.early_stopping_evals
            if slot.step == slot.max_steps:
                slot.over = "steps"
            elif patience and slot.evaluations_without_best >= patience:
                slot.over = "early_stopping"
            if slot.over:
                best = slot.best
                assert best is not None
                events.append(
                    Finished(
                        slot.number, slot.step, slot.samples, best.step, dict(best.metrics), slot.over, slot.seconds
                    )
                )
        return events

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.objective.direction == "maximize" else value < than

    # -- what a trial leaves --------------------------------------------------------------------------------------

    def export(self, number: int, folder: Path) -> None:
        """Write the kept checkpoint: a PEFT adapter, or a whole checkpoint for adapter=full.

        Raises:
            TrialFailed: the trial was never evaluated, so that nothing is kept.
        """
        slot = self._slot(number)
        if slot.best is None:
            raise TrialFailed("exception", f"trial {number} has no kept checkpoint: it was not evaluated yet")
        self.engine.export(slot.index, slot.best.values, folder)

    def state(self, number: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All of a trial's state: tensors by name, and a dict of JSON types."""
        slot = self._slot(number)
        tensors = {f"now.{name}": tensor for name, tensor in self.engine.state(slot.index, slot.micro > 0).items()}
        if slot.best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in slot.best.values.items()}
        return tensors, slot.fields()

    def load_state(self, number: int, config: Config, tensors: dict[str, torch.Tensor], fields: dict[str, Any]) -> None:
        """Admit a trial as `state` left it, in the slot it had where that is free. On a CPU a pack restored whole goes
        on bit for bit.

        Raises:
            ModelError, UsageError: as `admit`.
        """
        index = fields["index"]
        if not (0 <= index < len(self._slots)) or self._slots[index] is not None:
            index = self._slots.index(None) if self.free else -1
        slot = self._admit(number, config, index)
        device = self.base.device

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v.to(device, copy=True) for k, v in tensors.items() if k.startswith(prefix)}

        self.engine.load_state(slot.index, part("now."))
        slot.load_fields(fields, part("best."))
