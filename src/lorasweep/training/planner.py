"""How many trials share a base, and what one step of them costs: measured by a probe step, not guessed.

The probe trains a few micro-batches in throw-away slots. On a GPU the allocator says what they took at the highest; on
a CPU, where nothing counts that, the probe adds up what autograd keeps for the backward pass.
Neighbours: `pack` (probed), `planning` (the command), `sweeping` (asks for slots).
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.config.schema import Config, LauncherConfig
from lorasweep.training.memory import available_bytes

if TYPE_CHECKING:
    from lorasweep.training.pack import Pack

MOST_SLOTS = {"cpu": 16, "cuda": 64}  # past them the device has long been full; only memory would grow
TRIALS_A_SLOT = 3  # a sampler that learns must see results: each slot trains at least so many trials in turn
LEARNING_SAMPLERS = ("tpe", "gp", "cmaes")
USABLE = 0.85  # share of the free memory that a plan may fill; the rest is for what comes and goes
PROBE_STEPS = 4  # the first one is not timed: it fills caches
FLOATS_PER_TRAINED = 5  # value, gradient, two moments, kept checkpoint; each 4 bytes


def automatic_slots(pack: Pack, heaviest: Config) -> int:
    """Slots for `launcher.slots=auto`: as many as fit into memory and pay, measured with the heaviest trial.

    `pack` is empty and may have one slot alone. What pays: `MOST_SLOTS`, and for samplers that learn a third of the
    trials; with several workers their share of the trials, and of the memory where they have one device in common.
    Full fine-tuning has its base to itself.
    """
    if heaviest.adapter.kind == "full":
        return 1
    device, workers = pack.base.device, heaviest.launcher.workers
    trials = -(-heaviest.sweep.trials // workers)
    most = min(trials, MOST_SLOTS[device.type])
    if heaviest.sampler.kind in LEARNING_SAMPLERS:
        most = max(1, min(most, trials // TRIALS_A_SLOT))
    cost, sharing = probe(pack, heaviest), workers_on(device, heaviest.launcher)
    free = (available_bytes(device) - (sharing - 1) * cost.base_bytes) // sharing  # each has a base of its own
    return max(1, min(most, fitting_slots(cost, free)))


def workers_on(device: torch.device, launcher: LauncherConfig) -> int:
    """How many workers of a sweep take their memory from one device."""
    if launcher.kind == "local":
        return launcher.workers if device.type == "cpu" else 1
    if device.type == "cuda":
        return min(launcher.workers, max(1, int(1 / launcher.gpus))) if launcher.gpus else 1
    return min(launcher.workers, max(1, int((os.cpu_count() or 1) / launcher.cpus))) if launcher.cpus else 1


def fitting_slots(cost: Probe, free_bytes: int) -> int:
    """How many slots fit into the memory that is free once the base is resident; 0 where not even one does."""
    return int(USABLE * free_bytes // (cost.state_bytes + cost.activation_bytes))


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
    kept, lanes = _KeptBytes(pack.base.model), pack.lanes.count
    pack.lanes.count = 1  # autograd's hooks are a thread's own
    try:
        with torch.autograd.graph.saved_tensors_hooks(kept.count, lambda tensor: tensor):
            pack.advance()
    finally:
        pack.lanes.count = lanes
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
