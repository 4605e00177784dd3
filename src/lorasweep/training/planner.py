"""How many trials share a base, and what one step of them costs: measured by a probe step, not guessed.

The probe trains a few micro-batches in throw-away slots. On a GPU the allocator says what they took at the highest; on
a CPU, where nothing counts that, the probe adds up what autograd keeps for the backward pass.
Neighbours: `pack` (probed), `planning` (the command), `sweep` (asks for slots).
"""

from __future__ import annotations

import copy
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.config.schema import Config

if TYPE_CHECKING:
    from lorasweep.training.pack import Pack

AUTOMATIC_SLOTS = 8  # small bases gain most of what packing gives by then; large ones lose nothing
PROBE_STEPS = 4  # the first one is not timed: it fills caches
FLOATS_PER_TRAINED = 5  # value, gradient, two moments, kept checkpoint; each 4 bytes


def automatic_slots(config: Config) -> int:
    """Slots for `launcher.slots=auto`; full fine-tuning has its base to itself."""
    return 1 if config.adapter.kind == "full" else AUTOMATIC_SLOTS


@dataclass(frozen=True)
class Probe:
    """What a pack costs. Bytes of the resident base, of one trial's trained state, of the activations of one trial's
    micro-batch (on a GPU with all that comes and goes beside them); seconds of one turn in which `slots` trials train a
    micro-batch each."""

    slots: int
    base_bytes: int
    state_bytes: int
    activation_bytes: int
    turn_seconds: float

    @property
    def memory_bytes(self) -> int:
        """The base once, and state and activations of every slot."""
        return self.base_bytes + self.slots * (self.state_bytes + self.activation_bytes)


def probe(pack: Pack, config: Config) -> Probe:
    """Measure a pack whose slots are all empty; they are empty again afterwards."""
    slots = pack.free
    endless = copy.deepcopy(config)
    endless.train.max_steps, endless.train.eval_every_steps = 10**9, 0
    numbers = [-1 - index for index in range(slots)]
    for number in numbers:
        pack.admit(number, endless)
    try:
        activations = _kept_bytes(pack)
        seconds = []
        for _ in range(PROBE_STEPS):
            before = _start_counting(pack.base.device)
            started = time.perf_counter()
            pack.advance()
            if pack.base.device.type == "cuda":
                torch.cuda.synchronize(pack.base.device)
                activations = max(activations, torch.cuda.max_memory_allocated(pack.base.device) - before)
            seconds.append(time.perf_counter() - started)
        trained = pack.counts(numbers[0]).trainable
    finally:
        for number in numbers:
            pack.evict(number)
    return Probe(
        slots=slots,
        base_bytes=sum(_storage_bytes(tensor) for tensor in pack.base.model.state_dict(keep_vars=True).values()),
        state_bytes=trained * FLOATS_PER_TRAINED * 4,
        activation_bytes=activations // slots,
        turn_seconds=statistics.median(seconds[1:]),
    )


def _kept_bytes(pack: Pack) -> int:
    """One turn, and the bytes that autograd kept in it; 0 on a GPU, whose allocator knows better."""
    if pack.base.device.type == "cuda":
        pack.advance()  # takes what a first use costs: handles and workspaces of libraries
        return 0
    kept = _KeptBytes(pack.base.model)
    with torch.autograd.graph.saved_tensors_hooks(kept.count, lambda tensor: tensor):
        pack.advance()
    return kept.total


def _start_counting(device: torch.device) -> int:
    """Bytes allocated on a GPU now; its highest mark starts from here."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return int(torch.cuda.memory_allocated(device))


def _storage_bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size()) if isinstance(tensor, torch.Tensor) else 0


class _KeptBytes:
    """Counts the memory that autograd keeps, each storage once, the model's own weights left out."""

    def __init__(self, model: torch.nn.Module):
        self.seen = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self.total = 0

    def count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
