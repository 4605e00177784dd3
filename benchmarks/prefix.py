"""What caching the frozen lower layers is worth: the same trials over one base with the cache and without, interleaved.

    python benchmarks/prefix.py [--model DIR_OR_ID] [--train FILE.tsv] [--top 2] [--slots 1 8] [--steps 20] [--rounds 5]

Ways: every layer adapted; the top layers alone and the head alone, each with and without the cache. Training steps are
timed, at batch 8 a slot and without evaluation; the cache is filled beforehand, which is timed apart. Prints medians,
steps per second and ratios, and one JSON line. Without --model and --train: the tiny demo base and the demo reviews.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the lorasweep command sets it

import torch

from lorasweep.config import compose
from lorasweep.config.home import Folders, Home
from lorasweep.config.schema import Config
from lorasweep.launchers.local import prepare
from lorasweep.models.prefix_cache import PrefixBudget
from lorasweep.training.ahead import compute_ahead
from lorasweep.training.pack import Pack
from lorasweep.workbench import Workbench


@dataclass
class Way:
    """One kind of trial over its own pack; seconds of each counted round."""

    config: Config
    pack: Pack
    seconds: list[float] = field(default_factory=list)
    fill_seconds: float = 0.0

    def admit(self, slots: int) -> None:
        """Trials of as many seeds, which never reach an evaluation."""
        for number in range(slots):
            trial = copy.deepcopy(self.config)
            trial.train.seed, trial.train.max_steps = number, 10**6
            self.pack.admit(number, trial)

    def fill(self, slots: int) -> None:
        """Compute the frozen layers for all training rows."""
        self.admit(slots)
        started = time.perf_counter()
        wanted, pack = [(list(range(slots)), torch.arange(len(self.pack.train)))], self.pack
        tokens = pack.limits.tokens
        compute_ahead(pack.engine, pack.train, wanted, training=True, lanes=pack.lanes, tokens_per_forward=tokens)
        self.fill_seconds = time.perf_counter() - started
        self.empty()

    def run(self, slots: int, steps: int) -> float:
        """Seconds of so many steps of every slot."""
        self.admit(slots)
        started = time.perf_counter()
        for _ in range(steps):
            self.pack.advance()
        elapsed = time.perf_counter() - started
        self.empty()
        return elapsed

    def empty(self) -> None:
        """Evict all trials."""
        for number in self.pack.active:
            self.pack.evict(number)


def make_ways(workbench: Workbench, config: Config, top: int, slots: int) -> dict[str, Way]:
    """The ways over one resident base."""
    base, (train, validation) = workbench.base(config), workbench.encoded(config)
    kinds = {"all layers": {}, f"top {top} layers": {"layers": top}, "head alone": {"kind": "head"}}
    ways = {}
    for kind, changes in kinds.items():
        for cached in (False, True) if changes else (False,):
            trial = copy.deepcopy(config)
            for name, value in changes.items():
                setattr(trial.adapter, name, value)
            budget = PrefixBudget(8.0) if cached else None
            pack = Pack(base, workbench.task(trial), train, validation, workbench.objective, slots, budget)
            ways[f"{kind}, cached" if cached else kind] = Way(trial, pack)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny_encoder")
    parser.add_argument("--train", help="a .tsv with the columns sentence and label; default: the demo reviews")
    parser.add_argument("--top", type=int, default=2)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/lorasweep-bench"))
    arguments = parser.parse_args()
    overrides = [
        "model=hf", f"model.path={arguments.model}", "data.max_length=64", f"train.batch_size={arguments.batch_size}",
        "train.base_dropout=0", "data.max_eval_rows=64", f"data.max_train_rows={arguments.rows}",
    ]  # fmt: skip
    if arguments.train:
        overrides += ["data=file", f"data.train={arguments.train}", "data.text_column=sentence"]
    config = compose.compose(overrides, home=Home.find())
    prepare(config.launcher)
    workbench = Workbench(Folders(arguments.folder), config.sweep.objective, 1)
    report = []
    for slots in arguments.slots:
        ways = make_ways(workbench, config, arguments.top, slots)
        for way in ways.values():
            way.fill(slots)
        for round_number in range(arguments.rounds + 1):  # the first round warms up and is not counted
            for way in ways.values():
                elapsed = way.run(slots, arguments.steps)
                if round_number:
                    way.seconds.append(elapsed)
        print(f"{arguments.model}, {slots} slots of batch {arguments.batch_size}, {torch.get_num_threads()} threads")
        for name, way in ways.items():
            plain = statistics.median(ways[name.removesuffix(", cached")].seconds)
            median = statistics.median(way.seconds)
            rate, spread = arguments.steps / median, f"{min(way.seconds):.2f} to {max(way.seconds):.2f}"
            filled = f"  filled {arguments.rows} rows in {way.fill_seconds:.1f} s" if "cached" in name else ""
            print(f"  {name:<24} {median:6.2f} s ({spread})  {rate:6.1f} steps/s  {plain / median:5.2f}x{filled}")
            report.append({"slots": slots, "way": name, "seconds": median, "fill_seconds": way.fill_seconds})
    print(json.dumps({"model": arguments.model, "steps": arguments.steps, "medians": report}))


if __name__ == "__main__":
    main()
