"""How far asking one at a time reaches: a simulation of workers that queue for the sweep's lock, from measured costs.

    python benchmarks/scale_model.py [--held-ms 20] [--tell-ms 25] [--from bench-results/scale.json]

A worker has one trial at a time (a slot of a pack counts as a worker here): it queues for the lock, first come first
served, holds it for the ask, trains for a time drawn around the mean (lognormal, sigma 0.5), tells, and asks again.
Printed for each number of slots and each length of a trial: trials a second, and the share of all slots' time that is
spent waiting for the lock. --from takes the costs that benchmarks/scale.py measured and prints, for each of its runs
with nothing to train, the trials a second that the simulation makes of them beside those that were measured.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from pathlib import Path

SLOTS = (32, 100, 300, 1000, 3000, 10_000)
TRAIN_SECONDS = (1.0, 10.0, 60.0, 600.0)
TRIALS_OF_A_SLOT = 20  # the first quarter is left out: all begin at once
SIGMA = 0.5


def simulate(slots: int, train: float, held: float, tell: float, seed: int = 0) -> tuple[float, float]:
    """(trials a second, share of the slots' time spent waiting for the lock); all times in seconds."""
    draw = random.Random(seed)
    ready = [(draw.uniform(0, train), slot) for slot in range(slots)]
    heapq.heapify(ready)
    trials, free, waited, since = slots * TRIALS_OF_A_SLOT, 0.0, 0.0, 0.0
    skipped = trials // 4
    for number in range(trials):
        asked, slot = heapq.heappop(ready)
        begins = max(asked, free)
        free = begins + held
        if number == skipped:
            since = begins
        if number >= skipped:
            waited += begins - asked
        trained = train * draw.lognormvariate(-SIGMA * SIGMA / 2, SIGMA) if train else 0.0
        heapq.heappush(ready, (free + trained + tell, slot))
    seconds = max(free - since, 1e-9)
    return (trials - skipped) / seconds, min(1.0, waited / (seconds * slots))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-ms", type=float, default=20.0, help="the lock is held for an ask")
    parser.add_argument("--tell-ms", type=float, default=25.0)
    parser.add_argument("--from", dest="measured", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    if arguments.measured is not None:
        print("| run | measured trials/s | simulated |\n|---|---|---|")
        for run in json.loads(arguments.measured.read_text())["runs"]:
            if run["way"] == "own" and run["asks_per_second"]:
                held, tell = run["ask_held_mean_ms"] / 1000, run["tell_mean_ms"] / 1000
                rate, _ = simulate(run["workers"], run["train_seconds"], held, tell)
                print(f"| {run['name']} | {run['asks_per_second']:.1f} | {rate:.1f} |")
        return
    held, tell = arguments.held_ms / 1000, arguments.tell_ms / 1000
    print("| slots | " + " | ".join(f"trials of {seconds:g} s" for seconds in TRAIN_SECONDS) + " |")
    print("|" + "---|" * (len(TRAIN_SECONDS) + 1))
    for slots in SLOTS:
        cells = [simulate(slots, train, held, tell) for train in TRAIN_SECONDS]
        print(f"| {slots:,} | " + " | ".join(f"{rate:.1f}/s, {100 * share:.1f}% waits" for rate, share in cells) + " |")


if __name__ == "__main__":
    main()
