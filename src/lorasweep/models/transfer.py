"""Moves what the CPU has laid out to the device without waiting for what the device is doing.

Neighbours: `stream`, `attention`, `forward` (which lay out indexes and masks of every forward).
"""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on the device. To a GPU it goes from pinned memory, in the queue with the kernels: a plain copy
    would first wait for all of them."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
