"""adapter=full: every weight of a private copy of the base is trained, by the same loop.

A pack of one. Matrices are decayed, biases and norms are not. Neighbours: `packed_lora` (the `Engine` protocol),
`training.pack` (the loop).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from lorasweep.config.schema import Config, OptimizerConfig
from lorasweep.errors import ConfigError, ModelError
from lorasweep.models.arena import new_adamw
from lorasweep.models.base import LoadedBase
from lorasweep.models.counts import ParameterCounts
from lorasweep.models.forward import Forward
from lorasweep.models.packed_lora import Wanted, slot_generator
from lorasweep.models.prefix_cache import Fill
from lorasweep.models.stream import Batch, RowStore

if TYPE_CHECKING:
    from lorasweep.models.decoding import StepBatch


MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of torch's AdamW
MOMENTS_8BIT = ("step", "state1", "state2", "qmap1", "qmap2", "absmax1", "absmax2")  # of bitsandbytes'; some are 32-bit


def new_optimizer(groups: list[tuple[list[nn.Parameter], float]], settings: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over (parameters, weight decay) groups, with its moments in 8 bits for optimizer=adamw8bit.

    Raises:
        ModelError: bitsandbytes is not installed.
    """
    if settings.kind != "adamw8bit":
        return new_adamw(groups, settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ModelError(
            "optimizer=adamw8bit needs bitsandbytes, which is not installed: `pip install bitsandbytes`, or use "
            "optimizer=adamw"
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(
        [{"params": held, "weight_decay": decay} for held, decay in groups if held],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    return made


class FullModel:
    """One trial over its own copy of the base. Implements `Engine`; `index` is always 0."""

    def __init__(self, base: LoadedBase):
        self._shared, self.base = base, base
        self._config: Config | None = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._optimizer: torch.optim.Optimizer | None = None
        self._anchor = torch.zeros(0, device=base.device)

    def admit(self, index: int, config: Config) -> None:
        """Copy the base; heads that the checkpoint lacked are drawn from the trial's seed."""
        self.base, self._config = self._shared.private_copy(), config
        model = self.base.model
        generator = slot_generator(config.train.seed, "head")
        std = getattr(model.config, "initializer_range", None) or 0.02
        for name in self.base.head_layers:
            if name in self.base.fresh_modules:
                layer = model.get_submodule(name)
                layer.weight.data.copy_(torch.empty(layer.weight.shape).normal_(0, std, generator=generator))
                if layer.bias is not None:
                    layer.bias.data.zero_()
        self._parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
            parameter.grad = torch.zeros_like(parameter)
        matrices = [p for p in self._parameters.values() if p.dim() > 1]
        vectors = [p for p in self._parameters.values() if p.dim() <= 1]
        self._optimizer = new_optimizer([(matrices, config.optimizer.weight_decay), (vectors, 0.0)], config.optimizer)

    def release(self, index: int) -> None:
        """Drop the private copy."""
        self.base, self._config, self._parameters, self._optimizer = self._shared, None, {}, None

    def forward(self, batch: Batch, keys: list[int] | None) -> Forward:
        """The forward of a batch; no adapters take part."""
        config = self._config
        if config is None:
            raise ConfigError("adapter=full: no trial is admitted")
        dtype = self.base.dtype
        return Forward(batch, {}, dtype, self._anchor, keys, [0.0], [config.train.base_dropout])

    def generation(self, batch: Batch | StepBatch) -> Forward:
        """As `forward`, without dropout."""
        return Forward(batch, {}, self.base.dtype, self._anchor)

    def depth(self, index: int, training: bool) -> int:
        """No block is frozen."""
        return 0

    def apart(self, held: int, joining: int, tokens: int, training: bool) -> bool:
        """There is one slot alone."""
        return False

    def lacking(self, store: RowStore, wanted: Wanted, training: bool, tokens: int, parts: int) -> list[Fill]:
        """Nothing is cached."""
        return []

    def optimizer(self, index: int) -> torch.optim.Optimizer:
        """AdamW over all weights."""
        assert self._optimizer is not None, "no trial is admitted"
        return self._optimizer

    def gradients(self, index: int) -> list[torch.Tensor]:
        """One gradient for each weight."""
        return [p.grad for p in self._parameters.values() if p.grad is not None]

    def zero_gradients(self, index: int) -> None:
        """Forget all gradients."""
        torch._foreach_zero_(self.gradients(index))

    def counts(self, index: int) -> ParameterCounts:
        """All parameters are trained; head: those of the head modules."""
        heads = sum(
            p.numel() for name in self.base.head_modules for p in self.base.model.get_submodule(name).parameters()
        )
        total = sum(p.numel() for p in self._parameters.values())
        return ParameterCounts(total - heads, heads, total, self.base.total_params)

    def save(self, index: int) -> dict[str, torch.Tensor]:
        """A copy of every weight, by name."""
        return {name: p.detach().clone() for name, p in self._parameters.items()}

    def load(self, index: int, values: dict[str, torch.Tensor]) -> None:
        """The inverse of `save`."""
        for name, parameter in self._parameters.items():
            parameter.data.copy_(values[name])

    def state(self, index: int, gradients: bool) -> dict[str, torch.Tensor]:
        """Weights and moments; gradients too where an optimizer step is half accumulated."""
        out = {f"values.{name}": tensor for name, tensor in self.save(index).items()}
        for name, parameter in self._parameters.items():
            for kind, tensor in self.optimizer(index).state.get(parameter, {}).items():
                out[f"{kind}.{name}"] = tensor.clone() if isinstance(tensor, torch.Tensor) else torch.tensor(tensor)
            if gradients and parameter.grad is not None:
                out[f"gradients.{name}"] = parameter.grad.clone()
        return out

    def load_state(self, index: int, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        self.load(index, {k.removeprefix("values."): v for k, v in state.items() if k.startswith("values.")})
        optimizer = self.optimizer(index)
        for name, parameter in self._parameters.items():
            if f"step.{name}" in state:
                kinds = MOMENTS if f"exp_avg.{name}" in state else MOMENTS_8BIT
                moments = {k: state[f"{k}.{name}"].clone() for k in kinds if f"{k}.{name}" in state}
                if kinds is MOMENTS_8BIT:
                    moments["step"] = int(moments["step"])  # type: ignore[assignment]
                optimizer.state[parameter] = moments
            assert parameter.grad is not None
            if f"gradients.{name}" in state:
                parameter.grad.copy_(state[f"gradients.{name}"])
            else:
                parameter.grad.zero_()

    def export(self, index: int, values: dict[str, torch.Tensor], folder: Path) -> None:
        """Write a whole checkpoint (safetensors) with its tokenizer."""
        model = self.base.model
        now = self.save(index)
        self.load(index, values)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            attention, model.config._attn_implementation = model.config._attn_implementation, None
            model.save_pretrained(str(folder), safe_serialization=True)
            model.config._attn_implementation = attention
            self.base.tokenizer.save_pretrained(str(folder))
        finally:
            self.load(index, now)
