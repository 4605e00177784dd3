"""The same LoRA trials as whole jobs: lorasweep with several numbers of slots against what a user would run instead.

    python benchmarks/packed.py [--model DIR --train T.tsv --eval E.tsv] [--trials 8] [--steps 100] [--slots 1 2 4 8]

Ways, interleaved, each a fresh process timed from start to exit (imports, tracking, evaluation and saving included):
  (a) trainer, one process   peers/trainer_sweep.py: all trials in one process over transformers.Trainer + PEFT + MLflow
  (b) trainer, a process a trial   the same, each trial in a process of its own
  (c) PEFT + torch by hand   by_hand.py: all trials in one process, no tracking
  (d) lorasweep, K slots     `lorasweep sweep` with a fixed list of the same trials
Without --model and --train it uses the tiny demo base and the demo reviews. The peer script is looked for in
../shared/peers (LORASWEEP_PEER names another place); without it (a) and (b) are left out. Prints a table and writes it
beside JSON (medians, ratios, peak memory, where lorasweep's time goes) into --out.
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
from functools import partial
from pathlib import Path
from typing import Any

from lorasweep.config import compose
from lorasweep.data.sources import load_search_data
from lorasweep.models.builtin import resolve

COLUMNS = ("seconds", "peak_mib", "best_accuracy")
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


def timed(command: list[str], home: Path) -> tuple[str, float, float]:
    """(standard output, wall seconds, peak resident MiB of the largest process) of a command; exits where it fails."""
    environment = {**os.environ, "LORASWEEP_HOME": str(home), "TRANSFORMERS_VERBOSITY": "error"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=out, stderr=log, cwd=home, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, log):
            file.seek(0)
        if child.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{log.read()[-3000:]}")
        return out.read(), seconds, usage.ru_maxrss / 1024


def run_listed(script: Path, options: list[str], trials: list[dict], arguments: argparse.Namespace) -> tuple:
    """(wall seconds, peak MiB, best accuracy) of a script that reads the list of trials."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "trials.json").write_text(json.dumps(trials))
        command = [
            sys.executable, str(script), "--model", str(arguments.model), "--train", str(arguments.train),
            "--eval", str(arguments.eval), "--trials", f"{folder}/trials.json",
            "--eval-steps", str(arguments.eval_steps), *options,
        ]  # fmt: skip
        if script == PEER:
            command += ["--workdir", f"{folder}/out"]
        out, seconds, peak = timed(command, Path(folder))
    result = json.loads(out.splitlines()[-1])
    return seconds, peak, max(trial["eval_accuracy"] for trial in result["trials"])


def run_ours(slots: int, trials: list[dict], arguments: argparse.Namespace) -> tuple:
    """(wall seconds, peak MiB, best accuracy) of `lorasweep sweep`."""
    with tempfile.TemporaryDirectory() as folder:
        write_sweep(Path(folder), trials, arguments)
        command = [sys.executable, "-m", "lorasweep.cli", "sweep", "bench", f"launcher.slots={slots}", "--json"]
        out, seconds, peak = timed(command, Path(folder))
    return seconds, peak, json.loads(out.splitlines()[-1])["best"]["value"]


def stages(slots: int, trials: list[dict], arguments: argparse.Namespace) -> dict[str, Any]:
    """Where one such sweep's time goes (`seconds` by stage), and what it held before it trained (`loaded_mib`)."""
    with tempfile.TemporaryDirectory() as folder:
        write_sweep(Path(folder), trials, arguments)
        script = Path(__file__).with_name("stages.py")
        out, _, _ = timed([sys.executable, str(script), "bench", f"launcher.slots={slots}"], Path(folder))
    return json.loads(out.splitlines()[-1])


def measure(arguments: argparse.Namespace, trials: list[dict]) -> dict[str, list[tuple]]:
    """name -> (seconds, peak MiB, best accuracy) of each round."""
    ways: dict[str, Any] = {}
    if PEER.is_file():
        ways["(a) trainer, one process"] = lambda: run_listed(PEER, ["--isolate", "none"], trials, arguments)
        ways["(b) trainer, a process a trial"] = lambda: run_listed(PEER, ["--isolate", "process"], trials, arguments)
    else:
        print(f"{PEER} is not there: (a) and (b) are left out", file=sys.stderr)
    hand = Path(__file__).with_name("by_hand.py")
    ways["(c) PEFT + torch by hand"] = lambda: run_listed(hand, [], trials, arguments)
    for slots in arguments.slots:
        ways[f"(d) lorasweep, {slots} slots"] = partial(run_ours, slots, trials, arguments)
    found: dict[str, list[tuple]] = {name: [] for name in ways}
    for number in range(arguments.rounds):
        for name, run in ways.items():
            found[name].append(run())
            print(f"round {number + 1}: {name:<32} {found[name][-1][0]:7.1f} s", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, list[tuple]], samples: int) -> list[str]:
    """Medians as a markdown table."""
    median = {name: statistics.median(seconds for seconds, _, _ in runs) for name, runs in found.items()}
    others = [name for name in median if not name.startswith("(d)")]
    against = " | ".join(f"of {name[:3]}" for name in others)
    lines = [
        f"| | seconds (least to most) | samples/s | {against} | peak MiB | best |",
        "|---" * (len(others) + 5) + "|",
    ]
    for name, runs in found.items():
        seconds = [run[0] for run in runs]
        ratios = " | ".join(f"{median[other] / median[name]:.2f}x" for other in others)
        peak = statistics.median(run[1] for run in runs)
        lines.append(
            f"| {name} | {median[name]:.1f} ({min(seconds):.1f} to {max(seconds):.1f}) | {samples / median[name]:.0f} "
            f"| {ratios} | {peak:,.0f} | {runs[-1][2]:.4f} |"
        )
    return lines


def memory_line(found: dict[str, list[tuple]], loaded: float) -> str:
    """What slots cost beyond the loaded base, against so many times what one slot costs."""
    peaks = {name: statistics.median(run[1] for run in runs) for name, runs in found.items() if name.startswith("(d)")}
    ours = {int(name.split()[2]): peak - loaded for name, peak in peaks.items()}
    parts = [
        f"{slots} slots {held:,.0f} MiB" + (f" ({held / (slots * ours[1]):.0%} of {slots} alone)" if 1 in ours else "")
        for slots, held in ours.items()
    ]
    return f"Memory beyond the {loaded:,.0f} MiB held before training, the base among them: {', '.join(parts)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="tiny", help="of the table and of its files")
    parser.add_argument("--model", type=Path, default=Path(resolve("builtin:tiny_encoder")))
    parser.add_argument("--train", type=Path)
    parser.add_argument("--eval", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--eval-steps", type=int, default=50)
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    arguments = parser.parse_args()
    trials = trial_list(arguments.trials, arguments.steps, arguments.batch_size)
    samples = sum(trial["batch_size"] * trial["max_steps"] for trial in trials)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.train is None:
            arguments.train, arguments.eval = write_demo(Path(folder))
        arguments.model, arguments.train, arguments.eval = (
            path.absolute() for path in (arguments.model, arguments.train, arguments.eval)
        )
        found = measure(arguments, trials)
        staged = stages(arguments.slots[-1], trials, arguments)
    title = f"{arguments.name}: {len(trials)} trials x {arguments.steps} steps x batch {arguments.batch_size}"
    lines = [f"### {title}", "", *table(found, samples), ""]
    spent = staged["seconds"]
    whole = sum(spent.values())
    shares = ", ".join(
        f"{stage} {seconds / whole:.0%}" for stage, seconds in sorted(spent.items(), key=lambda s: -s[1])
    )
    lines.append(f"Where the time of {arguments.slots[-1]} slots goes: {shares}.")
    lines += ["", memory_line(found, staged["loaded_mib"])]
    print("\n".join(lines))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"packed-{arguments.name}.md").write_text("\n".join([*lines, ""]))
    document = {
        "machine": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "samples": samples,
        "rounds": {name: [dict(zip(COLUMNS, run, strict=True)) for run in runs] for name, runs in found.items()},
        "stages": spent,
        "loaded_mib": staged["loaded_mib"],
    }
    (arguments.out / f"packed-{arguments.name}.json").write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
