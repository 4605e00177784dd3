"""Parameter counts of one trial, adapter and head told apart: a head alone can be a figure that misleads."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterCounts:
    """adapter: LoRA matrices and trained biases (full: the backbone); head: head modules, trained whole; trainable:
    both; total: the base with its own head, the LoRA matrices and the copy of the head that is trained, as PEFT counts
    (full: the base alone, of which there is no copy)."""

    adapter: int
    head: int
    trainable: int
    total: int


def count_parameters(model: nn.Module) -> int:
    """Parameters of a model, 4-bit weights counted as the weights that they stand for."""
    total = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        total += parameter.numel() if state is None else state.shape.numel()
    return total
