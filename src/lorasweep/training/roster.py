"""Who is in a pack: trials enter, leave, are saved and restored, and wait on the CPU where memory is short.

Neighbours: `pack` (the loop over those that train), `slot` (one trial's state), models' engines (trained values).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.config.schema import Config
from lorasweep.errors import TrialFailed, UsageError
from lorasweep.models.counts import ParameterCounts
from lorasweep.models.full import FullModel
from lorasweep.models.packed_lora import Engine, PackedLora, counts_of
from lorasweep.models.prefix_cache import PrefixBudget, PrefixCache
from lorasweep.training.memory import free_memory, is_out_of_memory
from lorasweep.training.schedule import samples_per_step, trial_steps
from lorasweep.training.slot import Slot

if TYPE_CHECKING:
    from lorasweep.models.base import LoadedBase

State = tuple[dict[str, torch.Tensor], dict[str, Any]]  # a trial's tensors by name, and the rest as JSON types


@dataclass
class Parked:
    """A trial that waits for memory. `state` is None where it has not begun, else its tensors lie on the CPU."""

    number: int
    config: Config
    rungs: tuple[int, ...]
    state: State | None = None


class Roster:
    """The slots of a pack and the trials that wait beside them. `rows` counts training rows; `prefixes`: what cached
    states of frozen lower blocks may take, None: nothing is cached."""

    def __init__(self, base: LoadedBase, slots: int, rows: int, prefixes: PrefixBudget | None = None):
        if base.key.full and slots != 1:
            raise UsageError(f"adapter=full trains one trial at a time and {slots} slots were asked for; use 1")
        self.base, self.rows = base, rows
        self.prefixes = PrefixCache(base, prefixes) if prefixes is not None and prefixes.memory_bytes else None
        self.engine: Engine = self._new_engine(slots)
        self.slots: list[Slot | None] = [None] * slots
        self.parked: list[Parked] = []
        self.room = slots  # trials that train at once; fewer after out of memory

    def _new_engine(self, slots: int) -> Engine:
        return FullModel(self.base) if self.base.key.full else PackedLora(self.base, slots, self.prefixes)

    # -- reading --------------------------------------------------------------------------------------------------

    @property
    def held(self) -> list[Slot]:
        """Trials in slots, those that ended but were not evicted included."""
        return [slot for slot in self.slots if slot is not None]

    @property
    def training(self) -> list[Slot]:
        """Trials in slots that train on."""
        return [slot for slot in self.held if not slot.over]

    @property
    def active(self) -> list[int]:
        """Numbers of all trials here, those that wait included."""
        return [*(slot.number for slot in self.held), *(waiting.number for waiting in self.parked)]

    @property
    def free(self) -> int:
        """How many trials may enter now."""
        return 0 if self.parked else max(0, min(self.room - len(self.held), self.slots.count(None)))

    def at(self, index: int) -> Slot:
        """The trial in a slot."""
        slot = self.slots[index]
        assert slot is not None, f"slot {index} is empty"
        return slot

    def slot(self, number: int) -> Slot:
        """The slot of a trial that is not waiting. UsageError where there is none."""
        for slot in self.held:
            if slot.number == number:
                return slot
        raise UsageError(f"trial {number} is not in this pack (trials {self.active} are)")

    def waiting(self, number: int) -> Parked | None:
        """A trial that waits for memory, None where it does not."""
        return next((waiting for waiting in self.parked if waiting.number == number), None)

    def has_begun(self, number: int) -> bool:
        """False for a trial that has waited for memory since it came."""
        waiting = self.waiting(number)
        return waiting is None or waiting.state is not None

    def max_steps(self, number: int) -> int:
        """Optimizer steps that the trial trains for, unless it stops early."""
        waiting = self.waiting(number)
        return self.slot(number).max_steps if waiting is None else trial_steps(waiting.config, self.rows)

    def samples(self, number: int) -> int:
        """Training rows that the trial's finished steps have seen."""
        waiting = self.waiting(number)
        if waiting is None:
            return self.slot(number).samples
        return 0 if waiting.state is None else int(waiting.state[1]["step"]) * samples_per_step(waiting.config.train)

    def counts(self, number: int) -> ParameterCounts:
        """Parameter counts of the trial."""
        waiting = self.waiting(number)
        if waiting is None:
            return self.engine.counts(self.slot(number).index)
        return counts_of(self.base, waiting.config)

    def cached_blocks(self, number: int) -> int:
        """Lower blocks of the base that the trial's training takes from the cache; 0 also while it waits for memory."""
        waits = self.waiting(number) is not None
        return 0 if waits else self.engine.depth(self.slot(number).index, True)

    # -- coming and going -----------------------------------------------------------------------------------------

    def admit(self, number: int, config: Config, rungs: Sequence[int] = ()) -> None:
        """Start a trial in the first empty slot. Where there is no memory for it beside the others, it waits for room.

        Raises:
            ModelError: the base lacks a module or layer that the adapter names.
            UsageError: no slot is free, or the trial is there already.
            TrialFailed: out of memory with no other trial there.
        """
        if not self.free or number in self.active:
            raise UsageError(
                f"trial {number} cannot enter: {self.free} of {len(self.slots)} slots are free, with {self.active}"
            )
        try:
            self._place(Parked(number, config, tuple(rungs)), self.slots.index(None))
        except TrialFailed:
            if not self.held:
                raise
            self.room = len(self.held)
            self.parked.append(Parked(number, config, tuple(rungs)))

    def evict(self, number: int) -> None:
        """Drop a trial; neighbours do not notice."""
        waiting = self.waiting(number)
        if waiting is not None:
            self.parked.remove(waiting)
            return
        slot = self.slot(number)
        self.engine.release(slot.index)
        self.slots[slot.index] = None

    def _place(self, trial: Parked, index: int) -> None:
        """Put a trial into an empty slot, at its beginning or as its state left it. TrialFailed: out of memory."""
        try:
            self.engine.admit(index, trial.config)
            slot = Slot.start(trial.number, index, trial.config, self.rows, self.base.device, trial.rungs)
            if trial.state is not None:
                self._load(slot, *trial.state)
            self.slots[index] = slot
        except RuntimeError as error:
            self.engine.release(index)
            if not is_out_of_memory(error):
                raise
            free_memory(self.base.device)
            others = [held.number for held in self.held]
            raise TrialFailed(
                "out_of_memory", f"trial {trial.number} does not fit beside trials {others}: {error}"
            ) from None

    # -- waiting for memory ---------------------------------------------------------------------------------------

    def make_room(self) -> bool:
        """Park the newer half of the trials on the CPU; False where only one is left."""
        held = self.held
        if len(held) < 2:
            return False
        self.room = len(held) // 2
        saved = [Parked(slot.number, slot.config, slot.rungs, self.state(slot.number, "cpu")) for slot in held]
        for slot in held:
            self.engine.release(slot.index)
        self.slots = [None] * self.room
        self.engine = self._new_engine(self.room)  # an arena of fewer rows
        free_memory(self.base.device)
        for index, trial in enumerate(saved[: self.room]):
            self._place(trial, index)
        self.parked = saved[self.room :] + self.parked
        return True

    def seat_waiting(self) -> list[tuple[int, TrialFailed]]:
        """Give room that has come free to those who wait; trials that do not fit even alone, with why."""
        failed = []
        while self.parked and len(self.held) < self.room and None in self.slots:
            trial = self.parked[0]
            try:
                self._place(trial, self.slots.index(None))
            except TrialFailed as error:
                if self.held:
                    self.room = len(self.held)
                    break
                failed.append((trial.number, error))
            self.parked.pop(0)
        return failed

    # -- saving ---------------------------------------------------------------------------------------------------

    def state(self, number: int, device: str | None = None) -> State:
        """All of a trial's state, as copies: tensors by name (on `device`), and a dict of JSON types."""
        waiting = self.waiting(number)
        if waiting is not None and waiting.state is not None:
            return waiting.state
        slot = self.slot(number)
        tensors = {f"now.{name}": tensor for name, tensor in self.engine.state(slot.index, slot.micro > 0).items()}
        if slot.best is not None:
            tensors |= {f"best.{name}": tensor for name, tensor in slot.best.values.items()}
            tensors |= {} if slot.best.sheet is None else slot.best.sheet.tensors()
        if device is not None:
            tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        return tensors, slot.fields()

    def load_state(self, number: int, config: Config, tensors: dict[str, torch.Tensor], fields: dict[str, Any]) -> None:
        """Admit a trial as `state` left it, in the slot it had where that is free.

        Raises:
            ModelError, UsageError, TrialFailed: as `admit`.
        """
        if not self.free or number in self.active:
            raise UsageError(f"trial {number} cannot enter: {self.free} slots are free, with {self.active}")
        index = fields["index"]
        if not (0 <= index < len(self.slots)) or self.slots[index] is not None:
            index = self.slots.index(None)
        self._place(Parked(number, config, tuple(fields["rungs"]), state=(tensors, fields)), index)

    def _load(self, slot: Slot, tensors: dict[str, torch.Tensor], fields: dict[str, Any]) -> None:
        device = self.base.device

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {k.removeprefix(prefix): v.to(device, copy=True) for k, v in tensors.items() if k.startswith(prefix)}

        self.engine.load_state(slot.index, part("now."))
        slot.load_fields(fields, part("best."), tensors)
