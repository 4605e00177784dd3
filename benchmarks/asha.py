"""What pruning saves: the same trials on the demo reviews with ASHA and without, over several seeds.

    python benchmarks/asha.py [--trials 64] [--seeds 5] [--steps 128] [--batch-size 8] [--min-samples 96] [--slots 16]

sampler=random proposes the same trials either way. Aim (issue 4): with at most a quarter of the training samples, the
best value within half a point of the best without pruning, in the median over the seeds. Prints a table and writes it
as JSON to --out. Exit code 1 where the aim is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

MOST_SAMPLES, MOST_LOST = 0.25, 0.005  # the aim: share of samples, accuracy
WAYS = ("none", "asha")
SWEEP = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: demo_reviews
  - override /sampler: random
train: {{batch_size: {batch_size}, max_steps: {steps}, eval_every_steps: 0}}  # at the end, and at rungs
sweep:
  trials: {trials}
  space:
    optimizer.lr: tag(log, interval(1e-5, 1e-1))
    adapter.r: choice(2, 4, 8, 16)
    adapter.dropout: interval(0, 0.3)
    optimizer.weight_decay: tag(log, interval(1e-4, 1e-1))
"""


def run(way: str, seed: int, settings: argparse.Namespace) -> dict[str, Any]:
    """One sweep: its best value, training samples, seconds and how many trials ended how."""
    from lorasweep import sweeping

    words = [
        f"sweep.name=asha-{way}-{seed}",
        f"sampler.seed={seed}",
        f"pruner={way}",
        f"launcher.slots={settings.slots}",
    ]
    words += [f"pruner.min_samples={settings.min_samples}"] if way == "asha" else []
    outcome = sweeping.start("asha", words, quiet=True)
    best = outcome.best["value"] if outcome.best else float("nan")
    return {
        "way": way,
        "seed": seed,
        "best": best,
        "samples": outcome.train_samples,
        "seconds": round(outcome.wall_seconds, 1),
        "counts": outcome.counts,
    }


def main() -> int:
    """Run all seeds both ways and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--min-samples", type=int, default=96)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("bench-results/asha.json"))
    settings = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory(prefix="lorasweep-asha-") as home:
        os.environ["LORASWEEP_HOME"] = home
        (Path(home) / "sweeps").mkdir()
        text = SWEEP.format(
            batch_size=settings.batch_size,
            steps=settings.steps,
            trials=settings.trials,
        )
        (Path(home) / "sweeps" / "asha.yaml").write_text(text)
        for seed in range(settings.seeds):
            for way in WAYS if seed % 2 == 0 else reversed(WAYS):
                results.append(run(way, seed, settings))
                print(f"# seed {seed} {way}: {results[-1]}", file=sys.stderr, flush=True)
    return report(results, settings)


def report(results: list[dict[str, Any]], settings: argparse.Namespace) -> int:
    """Print the table, write the JSON, and say whether the aim is reached."""
    found = {(result["way"], result["seed"]): result for result in results}
    print("| seed | best, all trained | best, ASHA | points lost | share of samples | seconds, all | seconds, ASHA |")
    print("|---|---|---|---|---|---|---|")
    lost, shares = [], []
    for seed in range(settings.seeds):
        whole, pruned = found["none", seed], found["asha", seed]
        lost.append(whole["best"] - pruned["best"])
        shares.append(pruned["samples"] / whole["samples"])
        print(
            f"| {seed} | {whole['best']:.4f} | {pruned['best']:.4f} | {100 * lost[-1]:.2f} | {shares[-1]:.3f} | "
            f"{whole['seconds']} | {pruned['seconds']} |"
        )
    median_lost, median_share = statistics.median(lost), statistics.median(shares)
    reached = median_lost <= MOST_LOST and median_share <= MOST_SAMPLES
    print(
        f"\nMedian of {settings.seeds} seeds, {settings.trials} trials: {100 * median_lost:.2f} points lost with "
        f"{median_share:.3f} of the samples; the aim ({100 * MOST_LOST:g} points, {MOST_SAMPLES:g}) is "
        f"{'reached' if reached else 'missed'}."
    )
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()},
        "median_points_lost": 100 * median_lost,
        "median_share_of_samples": median_share,
        "runs": results,
    }
    settings.out.write_text(json.dumps(document, indent=2))
    print(f"JSON: {settings.out}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
