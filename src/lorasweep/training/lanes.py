"""Runs a pack's forwards side by side on a CPU's cores: a lane is a thread with its share of them.

Two forwards on a core each are faster than one forward on two: nothing waits for the slower half of a product, and
one lane computes while the other is in the interpreter (measured in docs/performance.md). A GPU has one lane: its
kernels queue up anyhow. Neighbours: `pack` and `evaluate`, which give it work; `forwards` cuts the work into lanes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch

MOST_LANES = 4  # beyond it, lanes wait for the interpreter's lock more than for their cores
FLOP_WORTH_A_LANE = 1e9  # below it, a further lane mostly waits for the interpreter's lock
FLOP_WORTH_THREADS = 4e9  # of one forward and backward; below it, threads cost a lane more than they save

Work = TypeVar("Work")
Result = TypeVar("Result")


class Lanes:
    """Threads that share a CPU's cores. `threads`: cores in all, as torch counts them in the thread that asks;
    `flop_per_token`: what a base computes for a token, there and back."""

    def __init__(self, device: torch.device, flop_per_token: int, threads: int | None = None):
        self.device, self.flop_per_token = device, flop_per_token
        self.threads = 1 if device.type != "cpu" else threads or torch.get_num_threads()
        self.count = min(self.threads, MOST_LANES)
        self._pool: ThreadPoolExecutor | None = None

    def useful(self, tokens: float) -> int:
        """How many lanes work on so many tokens is worth."""
        return max(1, min(self.count, int(tokens * self.flop_per_token / FLOP_WORTH_A_LANE)))

    @contextmanager
    def one_core(self) -> Iterator[None]:
        """One thread for small work between forwards; then again as many as there were."""
        before = torch.get_num_threads()
        if before != 1 and self.device.type == "cpu":
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch.get_num_threads() != before:
                torch.set_num_threads(before)

    def map(self, function: Callable[[Work], Result], work: Sequence[Work], tokens: int) -> list[Result]:
        """Results in the work's order; the first exception is raised once all lanes have stopped. `tokens`: of all the
        work together."""
        lanes = min(self.useful(tokens), len(work))
        if lanes == 0:
            return []
        share = self.threads // lanes if tokens // len(work) * self.flop_per_token > FLOP_WORTH_THREADS else 1
        if self.device.type == "cpu":
            torch.set_num_threads(share)  # MKL takes it for every thread,
        if lanes == 1:
            return [function(item) for item in work]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="lane")
            weakref.finalize(self, self._pool.shutdown, wait=False)

        def run(item: Work) -> Result:
            torch.set_num_threads(share)  # OpenMP each for its own
            return function(item)

        futures = [self._pool.submit(run, item) for item in work]
        wait(futures)  # what is tried again after an exception must not meet a lane that still runs
        return [future.result() for future in futures]
