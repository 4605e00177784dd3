"""Runs a worker in this process: threads, allocator and signals set for it.

Neighbours: `loop` (what runs); `sweeping`, `finalists` and `launchers` call.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from lorasweep.config.schema import LauncherConfig
from lorasweep.worker.loop import Worker

# glibc's mallopt parameters (malloc.h). Large activations would otherwise be mapped and unmapped at every step,
# which costs a page fault for each 4 KiB; kept in the heap they are reused. Measured in docs/performance.md.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEEP_BYTES = 1 << 30


def launch(worker: Worker, config: LauncherConfig) -> None:
    """Run `worker` to its end here. The first Ctrl-C or SIGTERM saves and leaves, the second stops at once."""
    prepare(config)
    with stop_on_signals(worker.stop):
        worker.run()


def prepare(config: LauncherConfig) -> None:
    """Set CPU threads and the allocator for this process."""
    import torch

    torch.set_num_threads(config.threads or available_cores())
    tune_allocator()


def available_cores() -> int:
    """How many cores this process may use; more threads than that slow a step many times over."""
    return len(cores_here())


def cores_here() -> list[int]:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def tune_allocator() -> bool:
    """Let glibc keep freed activations instead of returning them to the kernel. False where libc is another."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    settings = ((M_MMAP_THRESHOLD, KEEP_BYTES), (M_TRIM_THRESHOLD, KEEP_BYTES), (M_TOP_PAD, 1 << 26))
    return all(bool(mallopt(name, value)) for name, value in settings)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into `stop`, the second into KeyboardInterrupt. Main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
