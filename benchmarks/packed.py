"""The same LoRA trials as whole jobs: lorasweep with several numbers of slots against what a user would run instead.

    python benchmarks/packed.py [--model DIR --train T.tsv --eval E.tsv] [--trials 8] [--steps 100] [--slots 1 2 4 8]

Ways, interleaved, each a fresh process timed from start to exit (imports, tracking, evaluation and saving included):
  trainer, warm       peers/trainer_sweep.py: all trials in one process over transformers.Trainer + PEFT + MLflow
  trainer, isolated   the same with a process per trial
  lorasweep, K slots  `lorasweep sweep` with a fixed list of the same trials
Without --model and --train it uses the tiny demo base and the demo reviews. The peer script is looked for in
../shared/peers (LORASWEEP_PEER names another place); without it only lorasweep runs. Writes JSON beside the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lorasweep.config import compose
from lorasweep.data.sources import load_search_data
from lorasweep.models.builtin import resolve

REPOSITORY = Path(__file__).resolve().parent.parent
PEER = Path(os.environ.get("LORASWEEP_PEER", REPOSITORY.parent / "shared" / "peers" / "trainer_sweep.py"))


def trial_list(count: int, steps: int, batch_size: int) -> list[dict]:
    """Fixed trials over learning rates and ranks, as the peer reads them."""
    ranks, rates = (4, 8, 16, 8), (5e-4, 1e-3, 2e-3, 3e-3)
    return [
        {
            "lr": rates[n % 4],
            "r": ranks[n // 4 % 4],
            "alpha": 16,
            "batch_size": batch_size,
            "max_steps": steps,
            "seed": n,
        }
        for n in range(count)
    ]


def write_demo(folder: Path) -> tuple[Path, Path]:
    """The demo reviews as the files that the peer reads."""
    data = load_search_data(compose.compose([]).data)
    paths = folder / "train.tsv", folder / "eval.tsv"
    for path, rows in zip(paths, (data.train, data.validation), strict=True):
        lines = [f"{text}\t{label}" for text, label in zip(rows.texts, rows.labels, strict=True)]
        path.write_text("\n".join(["sentence\tlabel", *lines, ""]))
    return paths


def write_sweep(folder: Path, trials: list[dict], arguments: argparse.Namespace) -> None:
    """The same list as a sweep file."""
    keys = {"lr": "optimizer.lr", "r": "adapter.r", "seed": "train.seed"}
    space = {name: sorted({trial[key] for trial in trials}) for key, name in keys.items()}
    points = [{name: trial[key] for key, name in keys.items()} for trial in trials]
    document = {
        "defaults": [{"override /model": "hf"}, {"override /data": "file"}, {"override /sampler": "list"}],
        "model": {"path": str(arguments.model)},
        "data": {
            "train": str(arguments.train), "validation": str(arguments.eval),
            "text_column": "sentence", "max_length": 64,
        },
        "adapter": {"targets": ["query", "value"]},
        "train": {
            "batch_size": trials[0]["batch_size"], "max_steps": trials[0]["max_steps"],
            "eval_every_steps": arguments.eval_steps, "eval_batch_size": 64,
        },
        "sweep": {"name": "bench", "trials": len(trials), "space": space, "enqueue": points},
    }  # fmt: skip
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "bench.yaml").write_text("# @package _global_\n" + json.dumps(document))  # JSON is YAML


def run_peer(isolate: str, trials: list[dict], arguments: argparse.Namespace) -> tuple[float, float]:
    """(wall seconds, best accuracy) of the peer."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "trials.json").write_text(json.dumps(trials))
        command = [
            sys.executable, str(PEER), "--model", str(arguments.model), "--train", str(arguments.train),
            "--eval", str(arguments.eval), "--trials", f"{folder}/trials.json", "--workdir", f"{folder}/out",
            "--isolate", isolate, "--eval-steps", str(arguments.eval_steps),
        ]  # fmt: skip
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - started
    result = json.loads(done.stdout.splitlines()[-1])
    return seconds, max(trial["eval_accuracy"] for trial in result["trials"])


def run_ours(slots: int, trials: list[dict], arguments: argparse.Namespace) -> tuple[float, float]:
    """(wall seconds, best accuracy) of `lorasweep sweep`."""
    with tempfile.TemporaryDirectory() as folder:
        write_sweep(Path(folder), trials, arguments)
        command = [sys.executable, "-m", "lorasweep.cli", "sweep", "bench", f"launcher.slots={slots}", "--json"]
        started = time.perf_counter()
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "LORASWEEP_HOME": folder},
            check=True,
        )
        seconds = time.perf_counter() - started
    return seconds, json.loads(done.stdout.splitlines()[-1])["best"]["value"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(resolve("builtin:tiny_encoder")))
    parser.add_argument("--train", type=Path)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--eval-steps", type=int, default=50)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("packed.json"))
    arguments = parser.parse_args()
    trials = trial_list(arguments.trials, arguments.steps, arguments.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.train is None:
            arguments.train, arguments.eval = write_demo(Path(folder))
        ways = {f"lorasweep, {slots} slots": (run_ours, slots) for slots in arguments.slots}
        if PEER.is_file():
            ways = {"trainer, warm": (run_peer, "none"), "trainer, isolated": (run_peer, "process"), **ways}
        else:
            print(f"{PEER} is not there: lorasweep alone runs", file=sys.stderr)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        best: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for name, (run, how) in ways.items():
                elapsed, best[name] = run(how, trials, arguments)
                seconds[name].append(elapsed)
    samples = sum(trial["batch_size"] * trial["max_steps"] for trial in trials)
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    first = next(iter(medians.values()))
    print(f"{arguments.model}: {len(trials)} trials x {arguments.steps} steps x batch {arguments.batch_size}")
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.1f} to {max(seconds[name]):.1f}"
        rate = f"{samples / median:7.1f} samples/s"
        print(f"{name:<20} {median:7.1f} s ({spread})  {rate}  {first / median:5.2f}x  best accuracy {best[name]:.4f}")
    machine = {"machine": platform.platform(), "cores": os.cpu_count(), "samples": samples}
    arguments.out.write_text(
        json.dumps({**machine, "seconds": seconds, "median_seconds": medians, "best": best}, indent=2)
    )


if __name__ == "__main__":
    main()
