"""What `adapter.*` names in a base: the modules that a trial adapts or trains whole, their scale, the biases beside.

By PEFT's own rules, so that its files say the same. Neighbours: `base` (what there is), `packed_lora`, `peft_format`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from lorasweep.config.schema import AdapterConfig
from lorasweep.errors import ConfigError, ModelError, nearest

if TYPE_CHECKING:
    from lorasweep.models.base import LoadedBase

LAYER_INDEX = re.compile(r".*?\.[^.]*\.(?P<index>\d+)\.")  # PEFT's rule for layers_to_transform


def layer_index(name: str) -> int | None:
    """Which layer of the base a module belongs to, None outside of the layers."""
    match = LAYER_INDEX.match(name)
    return int(match["index"]) if match else None


def chosen_layers(layers: Any, count: int) -> list[int] | None:
    """`adapter.layers` as indexes, None for all. ModelError where the base has no such layer."""
    if layers is None:
        return None
    if isinstance(layers, int) and not isinstance(layers, bool):
        if not 0 <= layers <= count:
            raise ModelError(f"adapter.layers={layers} asks for the top {layers} layers and the base has {count}")
        return list(range(count - layers, count))
    if not isinstance(layers, Sequence) or isinstance(layers, str) or not all(type(i) is int for i in layers):
        raise ConfigError(f"adapter.layers={layers!r} must be null, an integer or a list of layer indexes")
    outside = [index for index in layers if not 0 <= index < count]
    if outside:
        raise ModelError(f"adapter.layers names {outside} and the base has layers 0 to {count - 1}")
    return sorted(set(layers))


def resolve_targets(base: LoadedBase, adapter: AdapterConfig) -> list[str]:
    """The modules that a trial adapts, in the base's order; none for adapter=head and none.

    Raises:
        ModelError: an ending that no linear module outside of the head has, or a layer that is not there.
    """
    if adapter.kind in ("head", "none"):
        return []
    whole = resolve_whole(base, adapter)
    names = [name for name in base.linear_modules if name not in whole]
    wanted = [adapter.targets] if isinstance(adapter.targets, str) else list(adapter.targets)
    if wanted != ["all-linear"]:
        for ending in wanted:
            if not any(name == ending or name.endswith(f".{ending}") for name in names):
                endings = sorted({name.rpartition(".")[2] for name in names})
                inside = [head for head in base.head_modules if ending in head.split(".")]
                hint = f"`{ending}` is in the head, which is always trained whole; leave it out. " if inside else ""
                raise ModelError(
                    f"adapter.targets names `{ending}` and {base.path} has no linear module that ends so. {hint}"
                    f"{nearest(str(ending), endings)} (candidates: {', '.join(endings)}, or all-linear)"
                )
        names = [name for name in names if any(name == e or name.endswith(f".{e}") for e in wanted)]
    count = 1 + max((index for index in map(layer_index, base.linear_modules) if index is not None), default=-1)
    layers = chosen_layers(adapter.layers, count)
    return names if layers is None else [name for name in names if layer_index(name) in layers]


def resolve_whole(base: LoadedBase, adapter: AdapterConfig) -> list[str]:
    """The linear modules outside of the head that a trial trains whole, in the base's order.

    Raises:
        ModelError: an ending that no linear module outside of the head has, or one of a module that is not nn.Linear.
    """
    if adapter.kind in ("head", "none"):
        return []
    found = []
    for ending in adapter.modules_to_save:
        names = [name for name in base.linear_modules if name == ending or name.endswith(f".{ending}")]
        other = next((name for name in names if type(base.model.get_submodule(name)) is not nn.Linear), None)
        if not names or other is not None:
            endings = sorted({name.rpartition(".")[2] for name in base.linear_modules})
            kind = "" if other is None else type(base.model.get_submodule(other)).__name__
            said = (
                f"{other} is a {kind}"
                if other
                else f"{base.path} has no linear module outside of the head that ends so"
            )
            raise ModelError(
                f"adapter.modules_to_save names `{ending}` and {said}; only nn.Linear can be trained whole; "
                + (nearest(ending, endings) if other is None else "adapt it instead, with adapter.targets")
            )
        found += names
    return [name for name in base.linear_modules if name in found]


def lora_scale(adapter: AdapterConfig) -> float:
    """What B A x is multiplied by."""
    return adapter.alpha / (math.sqrt(adapter.r) if adapter.rslora else adapter.r)


def trained_biases(base: LoadedBase, adapter: AdapterConfig, targets: list[str]) -> list[tuple[str, int]]:
    """(module, size) of the biases that `adapter.bias` trains, heads aside."""
    if adapter.bias == "none" or adapter.kind == "none":
        return []
    pool = targets if adapter.bias == "lora_only" else [*base.linear_modules, *base.norm_modules]
    whole = resolve_whole(base, adapter)
    modules = ((name, base.model.get_submodule(name)) for name in pool if name not in whole)
    return [(name, module.bias.numel()) for name, module in modules if getattr(module, "bias", None) is not None]
