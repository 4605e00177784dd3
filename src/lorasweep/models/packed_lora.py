"""The adapters of K trials over one frozen base, each exactly as if alone.

Puts the stand-ins of `layers` into a base once, keeps every trial's values in an `Arena`, and makes the `Forward` that
the layers read. Neighbours: `base` (the frozen model), `training.pack` (the loop), `full` (the other engine behind the
same protocol), `peft_format` (files).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from lorasweep.config.schema import Config
from lorasweep.errors import ModelError
from lorasweep.models.arena import Arena, RowLayout, new_adamw
from lorasweep.models.counts import ParameterCounts
from lorasweep.models.forward import Forward, HeadPart, Job, LoraPart
from lorasweep.models.prefix import draws_below, first_block, worth_apart
from lorasweep.models.prefix_cache import Fill, PrefixCache
from lorasweep.models.stream import Batch, RowStore
from lorasweep.models.targets import lora_scale, resolve_targets, resolve_whole, trained_biases

if TYPE_CHECKING:
    from lorasweep.models.base import LoadedBase
    from lorasweep.models.decoding import StepBatch

Wanted = Sequence[tuple[Sequence[int], torch.Tensor]]  # the slots of a forward to come, and its rows


class Engine(Protocol):
    """What the training loop asks of trained values: packed adapters and full fine-tuning answer alike.

    Tensors of `save` and `state` are copies on the engine's device, in a form that depends on the trial alone.
    """

    base: LoadedBase

    def admit(self, index: int, config: Config) -> None: ...
    def release(self, index: int) -> None: ...
    def forward(self, batch: Batch, keys: list[int] | None) -> Forward: ...
    def generation(self, batch: Batch | StepBatch) -> Forward: ...
    def depth(self, index: int, training: bool) -> int: ...
    def apart(self, held: int, joining: int, tokens: int, training: bool) -> bool: ...
    def lacking(self, store: RowStore, wanted: Wanted, training: bool, tokens: int, parts: int) -> list[Fill]: ...
    def optimizer(self, index: int) -> torch.optim.Optimizer: ...
    def gradients(self, index: int) -> list[torch.Tensor]: ...
    def zero_gradients(self, index: int) -> None: ...
    def counts(self, index: int) -> ParameterCounts: ...
    def save(self, index: int) -> dict[str, torch.Tensor]: ...
    def load(self, index: int, values: dict[str, torch.Tensor]) -> None: ...
    def state(self, index: int, gradients: bool) -> dict[str, torch.Tensor]: ...
    def load_state(self, index: int, state: dict[str, torch.Tensor]) -> None: ...
    def export(self, index: int, values: dict[str, torch.Tensor], folder: Path) -> None: ...


def slot_generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one trial, so that no draw moves another."""
    digest = hashlib.blake2b(f"{purpose}/{seed}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class _Trial:
    """A trial's settings as the layers need them."""

    def __init__(self, base: LoadedBase, config: Config):
        self.config, self.adapter = config, config.adapter
        self.targets = resolve_targets(base, config.adapter)
        self.biases = trained_biases(base, config.adapter, self.targets)
        # heads and other layers of which the trial has its own weight
        self.whole = [*base.head_layers, *resolve_whole(base, config.adapter)]
        layers = [(name, base.model.get_submodule(name)) for name in self.whole]
        if config.adapter.kind == "none":
            _check_as_it_is(base)
        elif not layers and not self.targets:
            why = "adapter=head" if config.adapter.kind == "head" else "adapter.layers leaves no module"
            raise ModelError(f"nothing would be trained: {why} and the task has no head; use adapter=lora")
        self.layout = RowLayout(
            vectors=(
                *((name, layer.bias.numel()) for name, layer in layers if layer.bias is not None),
                *self.biases,
            ),
            matrices=tuple((name, *layer.weight.shape) for name, layer in layers),
            loras=tuple((name, *base.linear_modules[name]) for name in self.targets),
        )
        self.trains = config.adapter.kind != "none"  # else its row is the checkpoint's head, and stays
        self.rank = config.adapter.r if self.targets else 0
        trained = (*self.targets, *(name for name, _ in self.biases), *self.whole)
        self.depth = first_block(base, trained) if base.blocks else 0
        self.random_prefix = draws_below(base, self.depth, config.train.base_dropout) if base.blocks else False


def _check_as_it_is(base: LoadedBase) -> None:
    """ModelError where the checkpoint lacks weights that the task needs: they would be drawn, and say nothing."""
    if base.fresh_modules:
        raise ModelError(
            f"adapter=none evaluates the pretrained model as it is, and {base.path} has no weights of its own for "
            f"{', '.join(sorted(base.fresh_modules))}; take a checkpoint that was fine-tuned for the task, "
            "task=instruct with a language model, or adapter=head"
        )


def counts_of(base: LoadedBase, config: Config) -> ParameterCounts:
    """Parameter counts of a trial that is in no slot. ModelError: as `PackedLora.admit`."""
    return _counts(base, _Trial(base, config))


def _counts(base: LoadedBase, trial: _Trial) -> ParameterCounts:
    if not trial.trains:
        return ParameterCounts(0, 0, 0, base.total_params)
    lora = sum(inputs + outputs for _, inputs, outputs in trial.layout.loras) * trial.rank
    adapter = lora + sum(size for _, size in trial.biases)
    head = sum(parameter.numel() for name in trial.whole for parameter in base.model.get_submodule(name).parameters())
    return ParameterCounts(adapter, head, adapter + head, base.total_params + lora + head)


class PackedLora:
    """K slots of LoRA adapters and heads over one base. Implements `Engine`."""

    def __init__(self, base: LoadedBase, slots: int, prefixes: PrefixCache | None = None):
        """`prefixes`: the states past frozen lower blocks; None: they are computed in every forward."""
        self.base, self.arena = base, Arena(slots, base.device)
        self.prefixes = prefixes
        self._trials: list[_Trial | None] = [None] * slots
        self._anchor = torch.zeros(0, device=base.device, requires_grad=True)
        self._jobs: dict[tuple[int, ...], dict[str, Job]] = {}
        self._jobs_version = -1
        self.pad_ranges = base.device.type == "cuda"  # a GPU's launches must not grow with the slots

    # -- slots ----------------------------------------------------------------------------------------------------

    def admit(self, index: int, config: Config) -> None:
        """Start a trial in an empty slot: A as PEFT draws it, B zero, heads from the checkpoint or drawn.

        Raises:
            ModelError: a target module or layer that the base lacks.
        """
        trial = _Trial(self.base, config)
        slot = self.arena.take(index, trial.layout, trial.rank)
        self._trials[index] = trial
        if trial.trains:
            cut = [(slot.undecayed, 0.0), (slot.decayed, config.optimizer.weight_decay)]
            groups = [([parameter], decay) for parameter, decay in cut if parameter.numel()]
            slot.optimizer = new_adamw(groups, config.optimizer)
            self.arena.zero_moments(index)
        self._draw(index, trial)

    def _draw(self, index: int, trial: _Trial) -> None:
        row, layout = self.arena.flat[index], self.arena.layout
        generator = slot_generator(trial.config.train.seed, "adapter")
        for name, inputs, _ in trial.layout.loras:
            a, _ = layout.lora(row, name, trial.rank)
            bound = 1 / math.sqrt(inputs)  # kaiming_uniform_(a=sqrt(5)), as PEFT
            drawn = torch.empty(trial.rank, inputs).uniform_(-bound, bound, generator=generator)
            a.copy_(drawn)
        generator = slot_generator(trial.config.train.seed, "head")
        for name in trial.whole:
            layer = self.base.model.get_submodule(name)
            fresh = name in self.base.fresh_modules
            weight = layout.matrix(row, name, layer.weight.shape[1])
            if fresh:
                std = getattr(self.base.model.config, "initializer_range", None) or 0.02
                weight.copy_(torch.empty(layer.weight.shape).normal_(0, std, generator=generator))
            else:
                weight.copy_(layer.weight)
            if layer.bias is not None and not fresh:
                layout.vector(row, name).copy_(layer.bias)

    def release(self, index: int) -> None:
        """Empty a slot."""
        self.arena.release(index)
        self._trials[index] = None

    def _trial(self, index: int) -> _Trial:
        trial = self._trials[index]
        assert trial is not None, f"slot {index} is empty"
        return trial

    # -- forwards -------------------------------------------------------------------------------------------------

    def forward(self, batch: Batch, keys: list[int] | None) -> Forward:
        """The forward of a batch; keys: one dropout key a segment, None in evaluation."""
        forward = self.generation(batch)
        trials = [self._trial(segment.slot) for segment in batch.segments]
        depth = min(self.depth(segment.slot, keys is not None) for segment in batch.segments)
        forward.keys = keys
        forward.adapter_rates = [trial.adapter.dropout for trial in trials]
        forward.base_rates = [trial.config.train.base_dropout for trial in trials]
        if self.prefixes is not None and depth:
            forward.entry = self.prefixes.entry(batch, depth)
        return forward

    def generation(self, batch: Batch | StepBatch) -> Forward:
        """A forward without dropout that enters at the embeddings."""
        slots = tuple(segment.slot for segment in batch.segments)
        return Forward(batch, self._jobs_of(slots), self.base.dtype, self._anchor, pad_ranges=self.pad_ranges)

    def depth(self, index: int, training: bool) -> int:
        """Blocks of the base that a slot's forwards skip where its neighbours' do: those below all that it trains. 0
        without a cache, and in training where dropout makes those blocks random."""
        trial = self._trial(index)
        return 0 if self.prefixes is None or (training and trial.random_prefix) else trial.depth

    def apart(self, held: int, joining: int, tokens: int, training: bool) -> bool:
        """Whether slots that skip as many blocks as `held`, with so many tokens, should have a forward without
        `joining`, for which that forward would have to skip fewer."""
        depth = self.depth(held, training)
        lost = depth - self.depth(joining, training)
        return lost > 0 and worth_apart(self.base, depth, tokens, lost)

    def lacking(self, store: RowStore, wanted: Wanted, training: bool, tokens: int, parts: int) -> list[Fill]:
        """What frozen blocks have to compute before forwards over the wanted rows: in about `parts` parts of at most so
        many tokens, for any number of threads."""
        rows: dict[int, list[torch.Tensor]] = {}
        for slots, chosen in wanted:
            rows.setdefault(min(self.depth(slot, training) for slot in slots), []).append(chosen)
        if self.prefixes is None:
            return []
        found = [self.prefixes.lacking(store, torch.cat(rows[at]), at, tokens, parts) for at in sorted(rows) if at]
        return [fill for fills in found for fill in fills]

    def _jobs_of(self, slots: tuple[int, ...]) -> dict[str, Job]:
        if self._jobs_version != self.arena.version:
            self._jobs.clear()
            self._jobs_version = self.arena.version
        jobs = self._jobs.get(slots)  # lanes ask at once: what one of them has cleared is built again
        if jobs is None:
            jobs = self._jobs[slots] = self._build_jobs(slots)
        return jobs

    def _build_jobs(self, slots: tuple[int, ...]) -> dict[str, Job]:
        trials = [self._trial(slot) for slot in slots]
        jobs: dict[str, Job] = {}
        whole, places = self._block_of(slots)
        for name in self.base.head_layers:
            job = Job([self._head_part(name, slot) for slot in slots], has_lora=False)
            if whole is not None:
                job.stacked, job.places = self._head_part(name, whole), places
            jobs[name] = job
        rank = max(trial.rank for trial in trials)
        targets = [set(trial.targets) for trial in trials]
        biases = [{name for name, _ in trial.biases} for trial in trials]
        for name in {**self.base.linear_modules, **self.base.norm_modules}:
            has_lora, has_bias = [name in names for names in targets], [name in names for names in biases]
            has_whole = [name in trial.whole for trial in trials]
            if not any(has_lora) and not any(has_bias) and not any(has_whole):
                continue
            parts = [
                self._head_part(name, slot)
                if own
                else self._lora_part(name, slot, trial.rank if lora else 0, bias, lora_scale(trial.adapter))
                if lora or bias
                else None
                for slot, trial, lora, bias, own in zip(slots, trials, has_lora, has_bias, has_whole, strict=True)
            ]
            job = jobs[name] = Job(parts, has_lora=any(has_lora), has_whole=any(has_whole))
            if job.has_whole:  # range by range
                continue
            # a slot that does not target the module has zeros there, which stay: one block may hold it at some cost
            together = len(set(has_lora)) == 1 or self.pad_ranges
            if whole is not None and together and len(set(has_bias)) == 1:
                job.stacked = self._lora_part(name, whole, rank if any(has_lora) else 0, has_bias[0], 1.0)
                scales = [lora_scale(trial.adapter) for trial in trials]
                if places:  # what an idle slot multiplies is zero at any scale
                    scales = [scales[places.index(at)] if at in places else 1.0 for at in range(places[-1] + 1)]
                job.scales = torch.tensor(scales, device=self.base.device, dtype=self.base.dtype).view(-1, 1, 1)
                job.places = places
        return jobs

    def _block_of(self, slots: tuple[int, ...]) -> tuple[slice | None, tuple[int, ...]]:
        """The arena's rows that a block over these slots takes, None where each is on its own; and the slots' places in
        it, where it has idle ones between them: on a GPU up to as many as there are slots."""
        if len(slots) < 2 or any(one >= two for one, two in pairwise(slots)):
            return None, ()
        rows = slots[-1] + 1 - slots[0]
        if rows == len(slots):
            return slice(slots[0], slots[-1] + 1), ()
        if not self.pad_ranges or rows > 2 * len(slots):
            return None, ()
        return slice(slots[0], slots[-1] + 1), tuple(slot - slots[0] for slot in slots)

    def _lora_part(self, name: str, rows: int | slice, rank: int, bias: bool, scale: float) -> LoraPart:
        arena, part = self.arena, LoraPart(scale=scale)
        if rank:
            part.a, part.bt = arena.layout.lora(arena.flat[rows], name, rank)
            part.grad_a, part.grad_bt = arena.layout.lora(arena.grad[rows], name, rank)
        if bias:
            part.bias = arena.layout.vector(arena.flat[rows], name)
            part.grad_bias = arena.layout.vector(arena.grad[rows], name)
        return part

    def _head_part(self, name: str, rows: int | slice) -> HeadPart:
        arena, layer = self.arena, self.base.model.get_submodule(name)
        columns, has_bias = layer.weight.shape[1], layer.bias is not None
        flat, grad = arena.flat[rows], arena.grad[rows]
        return HeadPart(
            arena.layout.matrix(flat, name, columns),
            arena.layout.vector(flat, name) if has_bias else None,
            arena.layout.matrix(grad, name, columns),
            arena.layout.vector(grad, name) if has_bias else None,
        )

    # -- values ---------------------------------------------------------------------------------------------------

    def optimizer(self, index: int) -> torch.optim.Optimizer:
        """The slot's AdamW."""
        slot = self.arena.slots[index]
        assert slot is not None and slot.optimizer is not None, f"slot {index} is empty"
        return slot.optimizer

    def gradients(self, index: int) -> list[torch.Tensor]:
        """The slot's gradients as one vector."""
        return [self.arena.grad_row(index)]

    def zero_gradients(self, index: int) -> None:
        """Forget the slot's gradients."""
        self.arena.grad_row(index).zero_()

    def counts(self, index: int) -> ParameterCounts:
        """Adapter: LoRA matrices and trained biases. Total: as PEFT counts, with the copy of the trained head."""
        return _counts(self.base, self._trial(index))

    def save(self, index: int) -> dict[str, torch.Tensor]:
        """The slot's values in its own layout."""
        return {"values": self.arena.read(index, self.arena.row(index))}

    def load(self, index: int, values: dict[str, torch.Tensor]) -> None:
        """The inverse of `save`."""
        self.arena.write(index, values["values"], self.arena.row(index))

    def start_from(self, index: int, folder: Path) -> None:
        """Give a trial that was just admitted the values of an adapter that was exported, for its start.

        Raises:
            StorageError: it cannot be read, or is of another base, rank or set of layers.
        """
        from lorasweep.models.peft_format import import_adapter

        trial = self._trial(index)
        row = import_adapter(self.base, trial.adapter, trial.layout, folder)
        self.load(index, {"values": row.to(self.base.device)})

    def state(self, index: int, gradients: bool) -> dict[str, torch.Tensor]:
        """Values and moments; gradients too where an optimizer step is half accumulated."""
        state = self.save(index) | self.arena.moments(index)
        if gradients:
            state["gradients"] = self.arena.read(index, self.arena.grad_row(index))
        return state

    def load_state(self, index: int, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        self.load(index, state)
        self.arena.load_moments(
            index, {name: state[name] for name in ("step", "exp_avg", "exp_avg_sq") if name in state}
        )
        if "gradients" in state:
            self.arena.write(index, state["gradients"], self.arena.grad_row(index))
        else:
            self.zero_gradients(index)

    def export(self, index: int, values: dict[str, torch.Tensor], folder: Path) -> None:
        """Write the given values of the slot as a PEFT adapter."""
        from lorasweep.models.peft_format import export_adapter

        trial = self._trial(index)
        export_adapter(
            self.base, trial.adapter, trial.targets, layout=trial.layout, values=values["values"], folder=folder
        )
