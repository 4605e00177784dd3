"""One trial's adapter as PEFT writes it: adapter_config.json and adapter_model.safetensors.

`peft.PeftModel.from_pretrained` over the same base gives the trial's logits. Heads are PEFT's `modules_to_save`,
trained biases replace the base's. Neighbours: `packed_lora` (values in and out), `registry` (serves what is written).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.config.schema import AdapterConfig
from lorasweep.errors import StorageError
from lorasweep.models.arena import RowLayout
from lorasweep.models.targets import chosen_layers, layer_index, resolve_whole

if TYPE_CHECKING:
    from lorasweep.models.base import LoadedBase

PREFIX = "base_model.model."
WEIGHTS = "adapter_model.safetensors"
TASK_TYPES = {"classification": "SEQ_CLS", "causal_lm": "CAUSAL_LM", "question_answering": "QUESTION_ANS"}
NO_MODULE = "dummy-target-modules"  # PEFT's own word for an adapter that adapts no module, such as a head alone


def export_adapter(
    base: LoadedBase,
    adapter: AdapterConfig,
    targets: list[str],
    *,
    layout: RowLayout,
    values: torch.Tensor,
    folder: Path,
) -> None:
    """Write a slot's values, a row (P,) in the slot's own layout, into `folder`."""
    from safetensors.torch import save_file

    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(base, adapter, layout, values).items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    _peft_config(base, adapter, targets).save_pretrained(str(folder))
    save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})


def _tensors(
    base: LoadedBase, adapter: AdapterConfig, layout: RowLayout, values: torch.Tensor
) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, _, _ in layout.loras:
        a, bt = layout.lora(values, name, adapter.r)
        out[f"{PREFIX}{name}.lora_A.weight"], out[f"{PREFIX}{name}.lora_B.weight"] = a.clone(), bt.t().clone()
    for head in base.head_modules:  # whole modules: what is not trained (a norm inside a head) as the base has it
        for suffix, tensor in base.model.get_submodule(head).state_dict().items():
            out[f"{PREFIX}{head}.{suffix}"] = tensor.float().clone()
    for name, _, columns in layout.matrices:
        out[f"{PREFIX}{name}.weight"] = layout.matrix(values, name, columns).clone()
    adapted, whole = {name for name, _, _ in layout.loras}, {name for name, _, _ in layout.matrices}
    for name, _ in layout.vectors:
        trained = layout.vector(values, name)
        if name in whole:
            out[f"{PREFIX}{name}.bias"] = trained.clone()
        else:  # kept as a difference to the frozen bias
            inner = ".base_layer" if name in adapted else ""
            out[f"{PREFIX}{name}{inner}.bias"] = base.model.get_submodule(name).bias.float() + trained
    return out


def _peft_config(base: LoadedBase, adapter: AdapterConfig, targets: list[str]) -> Any:
    from peft import LoraConfig

    if not targets:
        return LoraConfig(target_modules=NO_MODULE, **_common(base, adapter, targets))
    endings = sorted({name.rpartition(".")[2] for name in targets})
    count = 1 + max((index for index in map(layer_index, base.linear_modules) if index is not None), default=-1)
    layers = chosen_layers(adapter.layers, count)
    common = _common(base, adapter, targets)
    short = LoraConfig(target_modules=endings, layers_to_transform=layers, **common)
    if _matched(base, short) == set(targets):
        return short
    return LoraConfig(target_modules=list(targets), **common)  # endings would match more than was trained


def _common(base: LoadedBase, adapter: AdapterConfig, targets: list[str]) -> dict[str, Any]:
    return {
        "r": adapter.r,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "bias": adapter.bias,
        "use_rslora": adapter.rslora,
        "task_type": TASK_TYPES[base.key.head],
        "modules_to_save": [*base.head_modules, *resolve_whole(base, adapter)] or None,
        "base_model_name_or_path": base.path,
        "revision": base.key.revision,
        "inference_mode": True,
        "fan_in_fan_out": any(type(base.model.get_submodule(name)).__name__ == "Conv1D" for name in targets),
    }


def _matched(base: LoadedBase, config: Any) -> set[str]:
    from peft.tuners.tuners_utils import check_target_module_exists

    return {name for name, _ in base.model.named_modules() if bool(check_target_module_exists(config, name))}


def import_adapter(base: LoadedBase, adapter: AdapterConfig, layout: RowLayout, folder: Path) -> torch.Tensor:
    """Read an adapter that PEFT or we wrote as a row in the given layout.

    Raises:
        StorageError: the folder lacks a tensor that the layout needs, or one has another shape.
    """
    from safetensors.torch import load_file

    try:
        stored = load_file(str(folder / WEIGHTS))
    except (OSError, ValueError) as error:
        raise StorageError(f"{folder / WEIGHTS} cannot be read as a PEFT adapter: {error}") from error
    row = torch.zeros(layout.size(adapter.r if layout.loras else 0))

    def take(target: torch.Tensor, *names: str, transpose: bool = False, minus: torch.Tensor | None = None) -> None:
        found = next((stored[PREFIX + name] for name in names if PREFIX + name in stored), None)
        wanted = tuple(reversed(target.shape)) if transpose else tuple(target.shape)
        if found is None or tuple(found.shape) != wanted:
            has = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise StorageError(
                f"{folder / WEIGHTS}: {names[0]} {has}; shape {wanted} is needed. Is it of another base or rank?"
            )
        target.copy_((found.t() if transpose else found).float() - (0 if minus is None else minus))

    for name, _, _ in layout.loras:
        a, bt = layout.lora(row, name, adapter.r)
        take(a, f"{name}.lora_A.weight")
        take(bt, f"{name}.lora_B.weight", transpose=True)
    for name, _, columns in layout.matrices:
        take(layout.matrix(row, name, columns), f"{name}.weight")
    whole = {name for name, _, _ in layout.matrices}
    for name, _ in layout.vectors:
        minus = None if name in whole else base.model.get_submodule(name).bias.float().cpu()
        take(layout.vector(row, name), f"{name}.base_layer.bias", f"{name}.bias", minus=minus)
    return row
