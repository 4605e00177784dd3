"""Telling out of memory from other errors, errors in words, and giving back what a failed forward held."""

from __future__ import annotations

import gc
import traceback
from pathlib import Path

import torch

CPU_WORDS = ("can't allocate memory", "not enough memory")  # of torch's CPU allocators


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device, or this machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in CPU_WORDS)


def describe(error: BaseException) -> str:
    """An unexpected error in one line: its kind, its words, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def free_memory(device: torch.device) -> None:
    """Return unreferenced memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
