"""Wall seconds until a packed and pruned sweep has the best value that a list of Trainer trials finds.

    python benchmarks/time_to_best.py --model DIR --train T.tsv --eval E.tsv [--trials 32] [--steps 100] [--seeds 3]

The peer, peers/trainer_sweep.py, trains a fixed random list of trials in one warm process. `lorasweep sweep` searches
the same space with its own sampler and ASHA, and knows nothing of the list; the clock runs from its process's start to
the moment at which its study was told a complete trial with at least the list's best value. The list is cut into parts
with the sweeps (one a sampler seed) between them, so that a machine's drift meets both. Prints a table and writes it as
JSON to --out. Exit code 1 where the median is below 8x. Neighbour: `packed`, which times both kinds of process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import optuna
from packed import PEER, run_listed, timed

from lorasweep.config.home import Folders

AIM = 8.0  # times the peer's seconds
RATES, RANKS = (1e-5, 1e-2), (2, 4, 8, 16)


def random_list(count: int, steps: int, batch_size: int) -> list[dict]:
    """Random trials over learning rates and ranks, as the peer reads them."""
    draw = random.Random(0)
    return [
        {
            "lr": math.exp(draw.uniform(*map(math.log, RATES))),
            "r": draw.choice(RANKS),
            "alpha": 16,
            "batch_size": batch_size,
            "max_steps": steps,
            "seed": number,
        }
        for number in range(count)
    ]


def write_sweep(folder: Path, arguments: argparse.Namespace, seed: int) -> None:
    """The same space and budget of steps as a sweep with ASHA."""
    document = {
        "defaults": [
            {"override /model": "hf"}, {"override /data": "file"}, {"override /sampler": "tpe"},
            {"override /pruner": "asha"},
        ],
        "model": {"path": str(arguments.model)},
        "data": {
            "train": str(arguments.train), "validation": str(arguments.eval),
            "text_column": "sentence", "max_length": 64,
        },
        "adapter": {"targets": ["query", "value"]},
        "sampler": {"seed": seed},
        "pruner": {"min_samples": arguments.min_samples, "eval_rows": arguments.rung_rows},
        "train": {
            "batch_size": arguments.batch_size, "max_steps": arguments.steps, "eval_every_steps": arguments.steps,
            "eval_batch_size": 64,
        },
        "sweep": {
            "name": "best", "trials": arguments.budget,
            "space": {
                "optimizer.lr": f"tag(log, interval({RATES[0]}, {RATES[1]}))",
                "adapter.r": f"choice({','.join(map(str, RANKS))})",
            },
        },
    }  # fmt: skip
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "best.yaml").write_text("# @package _global_\n" + json.dumps(document))  # JSON is YAML


def run_ours(arguments: argparse.Namespace, seed: int) -> dict:
    """One sweep: its seconds, samples, and (seconds since the start, value) of every complete trial."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sweep(folder, arguments, seed)
        command = [
            sys.executable,
            "-m",
            "lorasweep.cli",
            "sweep",
            "best",
            f"launcher.slots={arguments.slots}",
            "--json",
        ]
        started = time.time()
        out, seconds, _ = timed(command, folder)
        study = optuna.load_study(study_name="best", storage=f"sqlite:///{Folders(folder).study_db}")
        complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
        told = sorted((trial.datetime_complete.timestamp() - started, trial.value) for trial in complete)
    result = json.loads(out.splitlines()[-1])
    return {"seed": seed, "seconds": seconds, "samples": result["train_samples"], "told": told}


def main() -> int:
    """Run the list and the sweeps by turns and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=32, help="in the peer's list")
    parser.add_argument("--budget", type=int, default=40, help="trials of a sweep, most of them pruned")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--min-samples", type=int, default=200, help="the first rung")
    parser.add_argument("--rung-rows", type=int, default=200, help="validation rows that rungs are judged by")
    parser.add_argument("--eval-steps", type=int, default=50, help="the peer's")
    parser.add_argument("--slots", default="4", help="fewer react sooner, more pack better")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-results/time_to_best.json"))
    arguments = parser.parse_args()
    if not PEER.is_file():
        sys.exit(f"{PEER} is not there; LORASWEEP_PEER names another place")
    arguments.model, arguments.train, arguments.eval = (
        path.absolute() for path in (arguments.model, arguments.train, arguments.eval)
    )
    trials = random_list(arguments.trials, arguments.steps, arguments.batch_size)
    cut = [trials[part :: arguments.seeds + 1] for part in range(arguments.seeds + 1)]
    peer_seconds, target, ours = 0.0, -math.inf, []
    for part, some in enumerate(cut):
        seconds, _, best = run_listed(PEER, ["--isolate", "none"], some, arguments)
        peer_seconds, target = peer_seconds + seconds, max(target, best)
        print(f"peer, part {part + 1} of {len(cut)}: {seconds:.0f} s, best {best:.4f}", file=sys.stderr, flush=True)
        if part < arguments.seeds:
            ours.append(run_ours(arguments, part))
            best = max((value for _, value in ours[-1]["told"]), default=math.nan)
            print(f"lorasweep, seed {part}: {ours[-1]['seconds']:.0f} s, best {best:.4f}", file=sys.stderr, flush=True)
    reached = [next((at for at, value in run["told"] if value >= target), math.inf) for run in ours]
    print(f"| | seconds to {target:.4f} | of the peer | whole sweep | best |\n|---|---|---|---|---|")
    print(f"| Trainer, {len(trials)} trials | {peer_seconds:.0f} | 1.0x | {peer_seconds:.0f} | {target:.4f} |")
    for run, seconds in zip(ours, reached, strict=True):
        best = max((value for _, value in run["told"]), default=math.nan)
        print(
            f"| lorasweep, seed {run['seed']} | {seconds:.0f} | {peer_seconds / seconds:.1f}x | {run['seconds']:.0f} "
            f"| {best:.4f} |"
        )
    ratio = peer_seconds / statistics.median(reached)
    said = "reached" if ratio >= AIM else "missed"
    print(f"\nMedian of {arguments.seeds} seeds: {ratio:.1f}x; the aim ({AIM:g}x) is {said}.")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "peer_seconds": peer_seconds,
        "target": target,
        "ratio": ratio,
        "sweeps": ours,
    }
    arguments.out.write_text(json.dumps(document, indent=2))
    return 0 if ratio >= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
