"""Puts the stand-ins of `layers` into a freshly loaded base, once, where a probe forward finds its rows.

Neighbours: `base` (which loads), `families` (the probe, the way of running), `layers` and `prefix` (the stand-ins).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorasweep.errors import ConfigError, ModelError
from lorasweep.models import attention, families, prefix
from lorasweep.models.forward import Forward
from lorasweep.models.layers import BiasedNorm, HeadLinear, LoraLinear, SlotDropout
from lorasweep.models.stream import RowStore, Segment

if TYPE_CHECKING:
    from lorasweep.models.base import LoadedBase

log = logging.getLogger(__name__)


def inside(name: str, modules: list[str]) -> bool:
    """Whether a module is one of the given ones or lies in one."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def outside_backbone(model: Any) -> list[str]:
    """Children of a model that are not its backbone and have weights."""
    backbone = model.base_model
    return [
        name
        for name, child in model.named_children()
        if child is not backbone and backbone is not model and any(True for _ in child.parameters())
    ]


def find_heads(model: Any, head: str, missing: set[str]) -> tuple[list[str], set[str]]:
    """Modules trained whole for each slot, and their linear layers that the checkpoint lacked."""
    heads = [] if head == "causal_lm" else outside_backbone(model)
    owners = {name.rpartition(".")[0] for name in missing}
    for name, module in model.named_modules():
        if name in owners and not inside(name, heads) and name != "lm_head":
            if type(module) is nn.Linear:
                heads.append(name)
            else:
                log.warning("the checkpoint lacks the weights of %s; they stay as they were drawn", name)
    fresh = {name for name in owners if inside(name, heads)}
    if head != "causal_lm" and not heads:
        raise ModelError(f"{type(model).__name__} has no head outside of its backbone, so there is nothing to train")
    return heads, fresh


def install(base: LoadedBase) -> None:
    """Put the stand-ins in, where a probe forward finds rows."""
    model, current = base.model, base.current
    if base.stream:
        attention.register()
        model.set_attn_implementation(attention.ATTENTION)
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.stream = current
        families.install_pooling(model, base.key.head, current)
    else:
        base.left_pad = _padding_side(base) == "left"
    watched = dict(_trainable_layers(base))
    dropouts: dict[str, nn.Module] = {name: it for name, it in model.named_modules() if type(it) is nn.Dropout}
    kinds = _probe(base, {**watched, **dropouts})
    reached = {name: layer for name, layer in watched.items() if name in kinds}
    base.packable = all(kinds[name] != "loose" for name in reached)
    for index, (name, layer) in enumerate(reached.items()):
        kind = kinds[name]
        if name in base.head_layers:
            _replace_forward(layer, HeadLinear(layer, name, kind, current))
        elif _is_linear(layer):
            base.linear_modules[name] = _linear_shape(layer)
            _replace_forward(layer, LoraLinear(layer, name, index, kind, current))
        else:
            base.norm_modules[name] = layer.get_parameter("bias").numel()
            _replace_forward(layer, BiasedNorm(layer, name, kind, current))
    for index, (name, layer) in enumerate(dropouts.items()):
        _replace_forward(layer, SlotDropout(layer, index, kinds.get(name, "loose"), current))
    told_apart = (name for name in dropouts if kinds.get(name, "loose") != "loose")
    base.dropouts = {name: dropouts[name].p for name in told_apart}  # type: ignore[misc]
    _store_in(base)
    if base.stream and not base.key.full:
        prefix.install_blocks(base)
    if base.key.checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"train.activation_checkpointing=true and {type(model).__name__} does not support it")
        model.gradient_checkpointing_enable({"use_reentrant": False})
        base.recompute(False)


def _replace_forward(layer: nn.Module, stand_in: Callable[[torch.Tensor], torch.Tensor]) -> None:
    layer.__dict__["forward"] = stand_in  # on the instance: names, weights and class stay what they are


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def _linear_shape(layer: Any) -> tuple[int, int]:
    if type(layer).__name__ == "Conv1D":
        return tuple(layer.weight.shape)
    return layer.in_features, layer.out_features


def _trainable_layers(base: LoadedBase) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers, heads and whatever else has a bias vector, in the model's order; the output embedding aside."""
    output = base.model.get_output_embeddings()
    for name, module in base.model.named_modules():
        bias = getattr(module, "bias", None)
        norm = isinstance(bias, nn.Parameter) and bias.dim() == 1 and not list(module.children())
        if (_is_linear(module) or (norm and not inside(name, base.head_modules))) and module is not output:
            yield name, module


def _probe_store(base: LoadedBase) -> RowStore:
    return families.probe_store(base.model.get_input_embeddings().weight.shape[0], base.pad_token_id, base.device)


@torch.no_grad()
def _bare_logits(base: LoadedBase, store: RowStore, rows: torch.Tensor) -> torch.Tensor:
    """Logits of each row: its class's, those behind its last token, or its first token's as start and end."""
    batch = base.batch(store, [Segment(0, rows)])
    if base.key.head == "causal_lm":
        batch.supervised = batch.last
    with base.running(Forward(batch, {}, base.dtype, torch.zeros(0, device=base.device))):
        logits = base.logits(batch).float()
    return logits[:, 0] if base.key.head == "question_answering" else logits


def _probe(base: LoadedBase, watched: dict[str, nn.Module]) -> dict[str, str]:
    store = _probe_store(base)
    return families.probe(lambda rows: _bare_logits(base, store, rows), store, base.stream, watched)


def _padding_side(base: LoadedBase) -> str:
    """The side on which padding leaves a row's logits alone: the tokenizer's own, or else the other.

    Raises:
        ModelError: a row's logits depend on the rows beside it whichever side is padded.
    """
    store, own = _probe_store(base), getattr(base.tokenizer, "padding_side", "right")
    alone = torch.cat([_bare_logits(base, store, torch.tensor([row])) for row in range(families.PROBE_ROWS)])
    for side in (own, "left" if own == "right" else "right"):
        base.left_pad = side == "left"
        together = _bare_logits(base, store, torch.arange(families.PROBE_ROWS))
        if bool((together - alone).abs().max() <= 1e-2 * alone.abs().max().clamp(min=1.0)):
            return side
    raise ModelError(
        f"model.path={base.path} ({base.model.config.model_type}) gives a row other logits when it is padded, "
        "on either side, so trials could not be compared; use another base"
    )


def _store_in(base: LoadedBase) -> None:
    """Frozen linear weights in the type of the products, once; everything else in float32, as autocast wants it."""
    if base.dtype == torch.float32 or base.key.full:
        return
    for name, module in base.model.named_modules():
        dtype = base.dtype if name in base.linear_modules else torch.float32
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and getattr(parameter, "quant_state", None) is None:
                parameter.data = parameter.data.to(dtype)
