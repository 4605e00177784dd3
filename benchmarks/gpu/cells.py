"""The GPU benchmark: bases x precisions x tokens a slot, each over the ways of training, within a budget of seconds.

    PYTHONPATH=src python benchmarks/gpu/cells.py --out DIR [--seconds 300] [--smoke]

Ways are interleaved, round by round; figures are medians. Cells run in the order of their worth, and those that no
longer fit the budget are dropped and named. Writes results.json after every cell and table.md at the end. `--smoke`
runs everything over tiny shapes, on a CPU too. Neighbours: `__main__` (tests, then this), `bases`, `ways`, `profiling`,
`table`.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several the Trainer would spread over them

import torch
from bases import SHAPES, build_model, has_bitsandbytes, our_base
from profiling import Ceilings, find_bound, graph_gain, hand_step, measure_ceilings, packed_step
from rows import make_rows
from table import write_table
from ways import ByHand, ByTrainer, Packed, PackedSlots, Way, padded_batches, peft_over, slots_upto

BATCH_SIZE = 8
RUN_SECONDS = 0.7  # one run of one way in one round
ROUNDS = 3
ROOM = 0.8  # share of the device's memory that a pack may be expected to take
RESERVE = 20.0  # seconds kept for what follows the last cell


@dataclass(frozen=True)
class Cell:
    """One base at one length. length: tokens of a row, None for SST-2's lengths; slots: the most; graphs: whether a
    CUDA graph is tried; worst_seconds: what it may take, below which it is not begun."""

    shape: str
    quantization: str
    length: int | None
    slots: int
    graphs: bool
    worst_seconds: float

    @property
    def name(self) -> str:
        """For the table."""
        tokens = "SST-2's lengths (about 184 tokens a slot)" if self.length is None else f"{self.length * 8} tokens"
        return f"{self.shape}, {'nf4' if self.quantization == 'nf4' else 'bf16'}, {tokens}"


CELLS = [
    Cell("Llama-3.2-1B", "none", None, 32, False, 50),
    Cell("Llama-3.2-1B", "none", 64, 32, True, 55),
    Cell("Llama-2-7B", "nf4", 64, 8, False, 60),
    Cell("Llama-3.2-1B", "none", 512, 8, False, 45),
    Cell("Llama-2-7B", "none", None, 16, False, 60),
    Cell("Llama-2-7B", "none", 64, 16, True, 60),
    Cell("Llama-2-7B", "nf4", None, 16, False, 60),
    Cell("Llama-3.2-1B", "nf4", None, 32, False, 50),
    Cell("Llama-2-7B", "none", 512, 2, False, 45),
]
SMOKE = [
    Cell("smoke", "none", None, 4, True, 1),
    Cell("smoke", "nf4", 8, 2, False, 1),
]


class Bench:
    """All cells within a budget."""

    def __init__(self, out: Path, seconds: float, smoke: bool):
        self.out, self.smoke, self.ends = out, smoke, time.monotonic() + seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if not smoke and self.device.type != "cuda":
            sys.exit("the benchmark needs a CUDA device and torch sees none; --smoke tries it on a CPU")
        self.precision = "bf16" if self.device.type == "cuda" else "fp32"
        self.run_seconds, self.rounds = (0.05, 2) if smoke else (RUN_SECONDS, ROUNDS)
        self.ceilings = measure_ceilings(self.device)
        self.results: dict[str, Any] = {"machine": describe_machine(self.device, self.ceilings), "cells": []}
        self.dropped: list[str] = []

    def left(self) -> float:
        """Seconds of the budget."""
        return self.ends - time.monotonic()

    def run(self) -> None:
        """Every cell that fits."""
        for cell in SMOKE if self.smoke else CELLS:
            reason = ""
            if cell.quantization == "nf4" and not has_bitsandbytes():
                reason = "bitsandbytes is not installed"
            elif not self.smoke and self.left() < cell.worst_seconds + RESERVE:
                reason = f"{self.left():.0f} s were left and it may take {cell.worst_seconds:.0f}"
            if not reason:
                print(f"{cell.name}  ({self.left():.0f} s left)", flush=True)
                try:
                    self.results["cells"].append(self.measure(cell))
                except torch.OutOfMemoryError as error:
                    reason = f"out of memory: {str(error).splitlines()[0]}"
            if reason:
                print(f"{cell.name}: dropped, {reason}", flush=True)
                self.dropped.append(f"{cell.name}: {reason}")
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.write()
        write_table(self.results, self.out / "table.md")
        print((self.out / "table.md").read_text())

    def write(self) -> None:
        """What there is so far."""
        self.results["dropped"] = self.dropped
        (self.out / "results.json").write_text(json.dumps(self.results, indent=1))

    # -- one cell -------------------------------------------------------------------------------------------------

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Memory first, while our base is alone on the device; then times, in rounds; then what bounds them."""
        started, encoded = time.monotonic(), make_rows(512, cell.length, SHAPES[cell.shape]["vocab_size"])
        base = our_base(cell.shape, cell.quantization, self.precision, self.device)
        one = Packed(base, encoded, BATCH_SIZE, 1)
        memory, slots = self.weigh(one, cell.slots)
        del one
        packed = Packed(base, encoded, BATCH_SIZE, slots)
        for count in slots_upto(slots):
            memory["measured"][str(count)] = self.peak(packed, count)
        batches = padded_batches(encoded, BATCH_SIZE, self.device)
        plain = peft_over(build_model(cell.shape, cell.quantization, self.precision, self.device))
        by_hand = ByHand(plain, batches, self.precision)
        ways: list[Way] = [by_hand, ByTrainer(plain, batches, self.precision)]
        ways += [PackedSlots(packed, count) for count in slots_upto(slots)]
        seconds = self.time(ways, started + cell.worst_seconds)
        weights = sum(inputs * outputs for inputs, outputs in base.linear_modules.values())
        tokens = float(encoded.lengths.float().mean())
        bounds = {}
        for way in (by_hand, ways[2], ways[-1]):
            flop = 4.0 * weights * tokens * way.rows_per_step
            bounds[way.name] = find_bound(way, seconds[way.name], flop, self.ceilings, self.device).fields()
        graphs = self.graphs(by_hand, packed, slots) if cell.graphs else {}
        return {
            **asdict(cell), "name": cell.name, "slots": slots, "memory": memory, "bounds": bounds, "graphs": graphs,
            "tokens_per_slot": tokens * BATCH_SIZE, "forwards_were_cut": packed.pack.limits.split_rows,
            "ways": [
                {"name": way.name, "rows_per_step": way.rows_per_step, "step_seconds": seconds[way.name],
                 "samples_per_second": way.rows_per_step / seconds[way.name]}
                for way in ways
            ],
            "took_seconds": time.monotonic() - started,
        }  # fmt: skip

    def weigh(self, one: Packed, most: int) -> tuple[dict[str, Any], int]:
        """The bytes of a base and of a slot, from a pack of one, and how many slots fit the device."""
        one.turns(1, 2)
        if self.device.type == "cpu":
            return {"base": 0, "slot": 0, "estimate": {}, "measured": {}}, most
        resting = torch.cuda.memory_allocated(self.device) - one.state_bytes
        one.turns(1, 1)  # a turn gives back all but the state
        torch.cuda.reset_peak_memory_stats(self.device)
        one.turns(1, 2)
        slot = torch.cuda.max_memory_allocated(self.device) - resting
        room = ROOM * torch.cuda.mem_get_info(self.device)[1] - 2 * resting  # the plain model lies there too
        fitting = [count for count in slots_upto(most) if count * slot <= room]
        estimate = {str(count): resting + count * slot for count in slots_upto(most)}
        return {"base": resting, "slot": slot, "estimate": estimate, "measured": {}}, max(fitting, default=1)

    def peak(self, packed: Packed, count: int) -> int:
        """Bytes allocated at the highest with `count` slots, those that sit out left away."""
        packed.turns(count, 2)
        if self.device.type == "cpu":
            return 0
        torch.cuda.reset_peak_memory_stats(self.device)
        packed.turns(count, 2)
        idle = (packed.slots - count) * packed.state_bytes
        return int(torch.cuda.max_memory_allocated(self.device)) - idle

    def time(self, ways: list[Way], until: float) -> dict[str, float]:
        """Median seconds of a step of each way; at least one round, more while there is time."""
        steps, found = {}, dict[str, list[float]]()
        for way in ways:
            way.run(2)
            steps[way.name] = max(3, min(40, round(self.run_seconds / max(way.run(2) / 2, 1e-4))))
        for turn in range(self.rounds):
            if turn and time.monotonic() > until - 10:
                break
            for way in ways:
                found.setdefault(way.name, []).append(way.run(steps[way.name]) / steps[way.name])
        return {name: statistics.median(seconds) for name, seconds in found.items()}

    def graphs(self, by_hand: ByHand, packed: Packed, slots: int) -> dict[str, Any]:
        """What CUDA graphs add to one forward and backward of each side."""
        if packed.pack.train.longest * len(packed.pack.train) != int(packed.pack.train.offsets[-1]):
            print("  rows differ in length: graphs are tried on one batch all the same", flush=True)
        packed.choose(slots)
        work = {
            "PEFT by hand": hand_step(by_hand),
            "lorasweep, 1 slots": packed_step(packed, 1),
            f"lorasweep, {slots} slots": packed_step(packed, slots),
        }
        return {name: graph_gain(step, self.device) for name, step in work.items()}


def describe_machine(device: torch.device, ceilings: Ceilings) -> dict[str, Any]:
    """What a reader must know of where the figures come from."""
    import accelerate
    import peft
    import transformers

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "memory_bytes": torch.cuda.mem_get_info(device)[1] if cuda else 0,
        "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__,
        "cuda": torch.version.cuda, "transformers": transformers.__version__, "peft": peft.__version__,
        "accelerate": accelerate.__version__, "bitsandbytes": has_bitsandbytes(), **asdict(ceilings),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    arguments.out.mkdir(parents=True, exist_ok=True)
    Bench(arguments.out, arguments.seconds, arguments.smoke).run()


if __name__ == "__main__":
    main()
