"""Runs a pack's forwards side by side on a CPU's cores: a lane is a thread with its share of them.

Two forwards on a core each are faster than one forward on two: nothing waits for the slower half of a product, and
one lane computes while the other is in the interpreter (measured in docs/performance.md). A GPU has one lane: its
kernels queue up anyhow. Neighbours: `pack` and `evaluate`, which give it work; `forwards` cuts the work into lanes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

MOST_LANES = 4  # beyond it, lanes wait for the interpreter's lock more than for their cores

Work = TypeVar("Work")
Result = TypeVar("Result")


class Lanes:
    """Threads that share a CPU's cores. `threads`: cores in all, as torch counts them in the thread that asks."""

    def __init__(self, device: torch.device, threads: int | None = None):
        self.threads = 1 if device.type != "cpu" else threads or torch.get_num_threads()
        self.count = min(self.threads, MOST_LANES)
        self._pool: ThreadPoolExecutor | None = None

    def map(self, function: Callable[[Work], Result], work: Sequence[Work]) -> list[Result]:
        """Results in the work's order; the first exception is raised once all lanes have stopped."""
        lanes = min(self.count, len(work))
        share = max(1, self.threads // max(1, lanes))
        if lanes < 2:
            if self.count > 1:
                torch.set_num_threads(share)
            return [function(item) for item in work]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="lane")
            weakref.finalize(self, self._pool.shutdown, wait=False)
        torch.set_num_threads(share)  # what products are cut into is set once for all threads,

        def run(item: Work) -> Result:
            torch.set_num_threads(share)  # and for what else is parallel, in each
            return function(item)

        futures = [self._pool.submit(run, item) for item in work]
        return [future.result() for future in futures]
