"""What memory is free, telling out of memory from other errors, and giving back what a failed forward held."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from pathlib import Path

import torch

OUT_OF_MEMORY = "out of memory"  # what such an error is kept as: itself, it holds frames
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


def peak_bytes(device: torch.device) -> int | None:
    """The most that this process has taken of a GPU, or of main memory for a CPU; None where nobody counts that."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes(device: torch.device) -> int:
    """Memory that could still be taken: a GPU's own; of a CPU the machine's, within this process's control group."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for reuse
        return int(free + held)
    found = [_meminfo_bytes(), _control_group_bytes()]
    return min((size for size in found if size is not None), default=_physical_bytes())


def _meminfo_bytes() -> int | None:
    """Linux: what can be taken without swapping; None elsewhere."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _control_group_bytes() -> int | None:
    """What a container's limit (control groups, version 2) leaves; None without one."""
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
        return None
    return max(0, int(limit.read_text()) - int(used.read_text()))


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
