"""One trial's place in a pack: where it is in its data, its schedule and its accumulation, and the best it has seen.

Trained values and moments live in the engine; everything else of a trial is here, and small. Neighbours: `pack` (the
loop), `schedule`, models' engines.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from lorasweep.config.schema import Config
from lorasweep.models.packed_lora import slot_generator
from lorasweep.training.schedule import learning_rate, samples_per_step, trial_steps
from lorasweep.training.sheet import Sheet


class DataOrder:
    """Rows in the order of one trial: epoch e is a permutation drawn from (seed, e); batches run across epoch borders,
    so that they are always full. The cursor, rows drawn so far, is all its state."""

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed, self.cursor = rows, seed, 0
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.int64)

    def draw(self, count: int) -> torch.Tensor:
        """The next rows, (count,) int64."""
        parts = []
        while count > 0:
            epoch, start = divmod(self.cursor, self.rows)
            if epoch != self._epoch:
                generator = slot_generator(self.seed, f"order/{epoch}")
                self._epoch, self._permutation = epoch, torch.randperm(self.rows, generator=generator)
            part = self._permutation[start : start + count]
            parts.append(part)
            self.cursor += len(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass
class Best:
    """The kept checkpoint: the trial's values at its best evaluation, and what they answered there."""

    step: int
    value: float
    metrics: dict[str, float]
    values: dict[str, torch.Tensor]
    sheet: Sheet | None = None

    def fields(self) -> dict[str, Any]:
        """All but tensors, as JSON types."""
        texts = None if self.sheet is None else self.sheet.texts
        plain = {"step": self.step, "value": self.value, "metrics": dict(self.metrics)}
        return plain if texts is None else {**plain, "texts": texts}


@dataclass
class Slot:
    """State of one trial. `step` counts optimizer steps done, `micro` micro-batches of the step in progress, `losses`
    are theirs. `over` is why it no longer trains ("" while it does)."""

    number: int
    index: int
    config: Config
    order: DataOrder
    max_steps: int
    rungs: tuple[int, ...] = ()  # ascending counts of training samples
    step: int = 0
    micro: int = 0
    losses: list[float] = field(default_factory=list)
    best: Best | None = None
    evaluations_without_best: int = 0
    scaler: Any = None
    over: str = ""
    last_loss: float | None = None
    eval_seconds: float = 0.0  # its part of the last evaluation
    earlier_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls, number: int, index: int, config: Config, rows: int, device: torch.device, rungs: tuple[int, ...] = ()
    ) -> Slot:
        """A trial at its beginning."""
        slot = cls(
            number=number,
            index=index,
            config=config,
            order=DataOrder(rows, config.train.seed),
            max_steps=trial_steps(config, rows),
            rungs=rungs,
        )
        if config.train.precision == "fp16":
            slot.scaler = torch.amp.GradScaler(device.type)
            slot.scaler.scale(torch.zeros((), device=device))  # it makes its state at the first use
        return slot

    @property
    def samples(self) -> int:
        """Training rows that finished steps have seen."""
        return self.step * samples_per_step(self.config.train)

    @property
    def rung(self) -> int | None:
        """The rung that the step just done has reached, the highest where it passed several; None for none, and at the
        trial's end, where nothing is left to decide."""
        if self.step == self.max_steps:
            return None
        before = self.samples - samples_per_step(self.config.train)
        return max((rung for rung in self.rungs if before < rung <= self.samples), default=None)

    @property
    def seconds(self) -> float:
        """Wall seconds since admission, those of earlier processes included."""
        return self.earlier_seconds + time.monotonic() - self.started

    @property
    def lr(self) -> float:
        """Learning rate of the step in progress."""
        return learning_rate(self.config.optimizer, self.step, self.max_steps)

    @property
    def loss_scale(self) -> float:
        """What losses are multiplied by before backward; 1 but for fp16."""
        return float(self.scaler.get_scale()) if self.scaler is not None else 1.0

    @property
    def evaluation_due(self) -> bool:
        """Whether the trial itself wants an evaluation after the step just done; a rung may want another."""
        every = self.config.train.eval_every_steps
        return self.step == self.max_steps or (every > 0 and self.step % every == 0)

    def rewind(self) -> None:
        """Go back to the start of the step in progress."""
        self.order.cursor, self.micro, self.losses = self.samples, 0, []

    def fields(self) -> dict[str, Any]:
        """All of its state but tensors, as JSON types."""
        best = self.best
        return {
            "index": self.index,
            "rungs": list(self.rungs),
            "step": self.step,
            "micro": self.micro,
            "losses": list(self.losses),
            "cursor": self.order.cursor,
            "evaluations_without_best": self.evaluations_without_best,
            "over": self.over,
            "last_loss": self.last_loss,
            "seconds": self.seconds,
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "best": None if best is None else best.fields(),
        }

    def load_fields(
        self, fields: dict[str, Any], best_values: dict[str, torch.Tensor], answers: dict[str, torch.Tensor]
    ) -> None:
        """The inverse of `fields`; `answers` are the tensors of the best's sheet."""
        self.step, self.micro, self.losses = fields["step"], fields["micro"], list(fields["losses"])
        self.order.cursor = fields["cursor"]
        self.evaluations_without_best = fields["evaluations_without_best"]
        self.over, self.last_loss = fields["over"], fields["last_loss"]
        self.earlier_seconds, self.started = fields["seconds"], time.monotonic()
        if self.scaler is not None:
            self.scaler.load_state_dict(fields["scaler"])
        if fields["best"] is not None:
            best = dict(fields["best"])
            sheet = Sheet.load(answers, best.pop("texts", None))
            self.best = Best(**best, values=best_values, sheet=sheet)
