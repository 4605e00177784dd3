"""Telling out of memory from other errors, and giving back what a failed forward held."""

from __future__ import annotations

import gc

import torch

CPU_WORDS = ("can't allocate memory", "not enough memory")  # of torch's CPU allocators


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or this machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in CPU_WORDS)


def free_memory(device: torch.device) -> None:
    """Return unreferenced memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
