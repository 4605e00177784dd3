"""The ways of training the same trials that are compared: PEFT + torch by hand, transformers.Trainer, lorasweep.

All adapt every linear layer of the backbone at rank 8 without dropout, with bf16 products (autocast) over a frozen base
and fp32 adapters, AdamW fused, clipped at 1, linear decay. The first two train one trial after another, so their
samples a second are those of one. Neighbours: `bases`, `rows`, `cells` (which times them), `profiling`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any, Protocol

import torch

from lorasweep.config.schema import Config, ObjectiveConfig, TaskConfig
from lorasweep.data.encode import Encoded
from lorasweep.models.base import LoadedBase
from lorasweep.tasks import Classify
from lorasweep.training.pack import Pack
from lorasweep.training.slot import DataOrder

RANK, ALPHA, RATE = 8, 16.0, 1e-4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ENDLESS = 10**9
BATCHES = 32  # drawn once, then gone through in a circle


class Way(Protocol):
    """One way of training. `rows_per_step`: rows that one step of it trains on."""

    name: str
    rows_per_step: int

    def run(self, steps: int) -> float:
        """Train so many steps; seconds, the device waited for."""
        ...


def wait(device: torch.device) -> None:
    """Until the device has done all it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def padded_batches(encoded: Encoded, batch_size: int, device: torch.device) -> list[dict[str, torch.Tensor]]:
    """Micro-batches padded to their longest row, on the device; no mask where nothing is padding."""
    order, made = DataOrder(len(encoded), 0), []
    for _ in range(BATCHES):
        rows = order.draw(batch_size)
        texts = [encoded.row(int(row)) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=0)
        batch = {"input_ids": ids.to(device), "labels": encoded.labels[rows].to(device)}
        if len({len(text) for text in texts}) > 1:
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
            batch["attention_mask"] = mask.to(device)
        made.append(batch)
    return made


def peft_over(model: Any) -> Any:
    """PEFT's model over a base, ready to train."""
    from peft import LoraConfig, TaskType, get_peft_model

    adapter = LoraConfig(task_type=TaskType.SEQ_CLS, r=RANK, lora_alpha=ALPHA, target_modules=TARGETS)
    made = get_peft_model(model, adapter).train()
    model.__dict__.pop("is_loaded_in_4bit", None)  # PEFT has read it; accelerate would ask for a quantizer too
    return made


class ByHand:
    """Plain PEFT + torch, nothing waited for within a step."""

    name = "PEFT by hand"

    def __init__(self, model: Any, batches: list[dict[str, torch.Tensor]], precision: str):
        self.model, self.device = model, batches[0]["input_ids"].device
        self.rows_per_step, self.batches = len(batches[0]["labels"]), cycle(batches)
        self.autocast = precision == "bf16"
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE, weight_decay=0.0, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 - step / ENDLESS)

    def forward_backward(self, batch: dict[str, torch.Tensor]) -> None:
        """The gradients of one micro-batch."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.model(**batch).loss
        loss.backward()

    def run(self, steps: int) -> float:
        """As `Way.run`."""
        wait(self.device)
        started = time.perf_counter()
        for batch in islice(self.batches, steps):
            self.forward_backward(batch)
            torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad(set_to_none=True)
        wait(self.device)
        return time.perf_counter() - started


class ByTrainer:
    """transformers.Trainer in this process, warm: what `train()` sets up before its first step ends is not counted."""

    name = "transformers.Trainer"

    def __init__(self, model: Any, batches: list[dict[str, torch.Tensor]], precision: str):
        self.model, self.device = model, batches[0]["input_ids"].device
        self.rows_per_step = len(batches[0]["labels"])
        self.batches = [{name: tensor.cpu() for name, tensor in batch.items()} for batch in batches]
        self.precision = precision

    def run(self, steps: int) -> float:
        """As `Way.run`."""
        from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

        device, clock = self.device, [0.0]

        class Clock(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step == 1:
                    wait(device)
                    clock[0] = time.perf_counter()

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder, max_steps=steps + 1, learning_rate=RATE, per_device_train_batch_size=1,
                report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
                bf16=self.precision == "bf16" and device.type == "cuda", use_cpu=device.type == "cpu",
            )  # fmt: skip
            rows = list(islice(cycle(self.batches), steps + 1))
            trainer = Trainer(
                model=self.model, args=arguments, train_dataset=rows, data_collator=lambda found: found[0],
                callbacks=[Clock()],
            )  # fmt: skip
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            wait(device)
            return time.perf_counter() - clock[0]


class Packed:
    """lorasweep. One pack of all slots serves every K: the slots past K sit out."""

    def __init__(self, base: LoadedBase, encoded: Encoded, batch_size: int, slots: int):
        self.device = base.device
        task = Classify(TaskConfig(), ["no", "yes"])
        few = encoded.select(torch.arange(4))  # nothing is evaluated while we measure
        self.pack = Pack(base, task, encoded, few, ObjectiveConfig(), slots)
        self.pack.engine.pad_ranges = True  # type: ignore[attr-defined]  # on a CPU too: the path that we measure
        self.batch_size, self.slots = batch_size, slots
        for number in range(slots):
            self.pack.admit(number, trial(base, batch_size, number))

    @property
    def state_bytes(self) -> int:
        """Device memory of one slot's trained values, gradients and moments."""
        return self.pack.counts(0).trainable * 4 * 4

    def choose(self, count: int) -> None:
        """The first `count` slots train."""
        for number in range(self.slots):
            self.pack.roster.slot(number).over = "" if number < count else "sits out"

    def turns(self, count: int, steps: int) -> float:
        """Seconds of so many turns of `count` slots."""
        self.choose(count)
        wait(self.device)
        started = time.perf_counter()
        for _ in range(steps):
            self.pack.advance()
        wait(self.device)
        return time.perf_counter() - started


class PackedSlots:
    """`Packed` with K slots, as one of the ways."""

    def __init__(self, packed: Packed, count: int):
        self.packed, self.count = packed, count
        self.name, self.rows_per_step = f"lorasweep, {count} slots", count * packed.batch_size

    def run(self, steps: int) -> float:
        """As `Way.run`."""
        return self.packed.turns(self.count, steps)


def trial(base: LoadedBase, batch_size: int, seed: int) -> Config:
    """A trial that does not end and is not evaluated."""
    config = Config()
    config.model.path, config.launcher.device = base.path, str(base.device)
    config.adapter.r, config.adapter.alpha = RANK, ALPHA
    config.optimizer.lr = RATE
    config.quantization.kind, config.train.precision = base.key.quantization, base.key.precision
    config.train.batch_size, config.train.max_steps, config.train.seed = batch_size, ENDLESS, seed
    return config


def slots_upto(most: int) -> Iterator[int]:
    """1, 2, 4, … up to `most`."""
    count = 1
    while count <= most:
        yield count
        count *= 2
