"""Whether a long sweep in one process grows: memory, file handles, threads; and the size of the files it leaves.

    python benchmarks/soak.py [--trials 500] [--first 50] [--out bench-results/soak.json]

A sweep of short trials runs in a process of its own and is looked at from outside, so that looking costs it nothing.
Aim (issue 8): resident memory after trial 50 and after the last differs by under 5%, and no handle or thread is left
over. Exit code 1 where it is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from lorasweep.config.home import Folders

GROWTH, NEAR = 0.05, 10  # the aim; samples that a median is of
COMING_AND_GOING = 4  # handles: files that are being written when the sample is taken
SWEEP = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: demo_reviews
  - override /sampler: random
data: {demo_rows: 160, max_length: 32}
train: {max_steps: 4, eval_every_steps: 2, batch_size: 4}
sweep:
  space:
    optimizer.lr: tag(log, interval(1e-4, 1e-2))
    adapter.r: choice(2, 4, 8)
    adapter.dropout: choice(0.0, 0.1)
"""


@dataclass(frozen=True)
class Sample:
    """The process when so many trials had ended."""

    trials: int
    rss_bytes: int
    handles: int
    threads: int


def ended(folders: Folders) -> int:
    """Trials that have ended, read from outside."""
    try:
        with closing(sqlite3.connect(f"file:{folders.study_db}?mode=ro", uri=True, timeout=5)) as database:
            states = "('COMPLETE', 'PRUNED', 'FAIL')"
            return int(database.execute(f"select count(*) from trials where state in {states}").fetchone()[0])
    except sqlite3.OperationalError:  # not there yet
        return 0


def watch(home: Path, trials: int, every_seconds: float = 0.25) -> list[Sample]:
    """Run a sweep of so many trials and sample its process until it ends."""
    (home / "sweeps").mkdir(exist_ok=True)
    (home / "sweeps" / "soak.yaml").write_text(SWEEP)
    words = ["soak", f"sweep.trials={trials}", "launcher.slots=4"]
    log = home / "soak.log"
    with log.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-m", "lorasweep.cli", "sweep", *words, "--json"],
            env={**os.environ, "LORASWEEP_HOME": str(home)},
            cwd=home,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    samples, process, folders = [], psutil.Process(child.pid), Folders(home)
    try:
        while child.poll() is None:
            done = ended(folders)
            try:
                sample = Sample(done, process.memory_info().rss, process.num_fds(), process.num_threads())
            except psutil.Error:  # it has just left
                break
            if done:
                samples.append(sample)
            time.sleep(every_seconds)
    finally:
        child.kill() if child.poll() is None and sys.exc_info()[0] else child.wait()
    if child.returncode:
        sys.exit(f"the sweep failed:\n{log.read_text(errors='replace')[-3000:]}")
    return [sample for sample in samples if sample.trials < trials]  # not the report that closes the sweep


def around(samples: list[Sample], trials: int) -> dict[str, float]:
    """Medians of the samples nearest to so many ended trials."""
    near = sorted(samples, key=lambda sample: abs(sample.trials - trials))[:NEAR]
    return {name: statistics.median(getattr(sample, name) for sample in near) for name in asdict(near[0])}


def leaked(first: dict[str, float], last: dict[str, float]) -> bool:
    """Whether handles or threads are left over."""
    return last["handles"] > first["handles"] + COMING_AND_GOING or last["threads"] > first["threads"]


def bytes_of(folder: Path) -> int:
    """Size of all files below a folder, or of one file."""
    files = [folder] if folder.is_file() else folder.rglob("*")
    return sum(path.stat().st_size for path in files if path.is_file())


def sizes(home: Path, trials: int) -> dict[str, float]:
    """KiB a trial of what the sweep left."""
    folders = Folders(home)
    own = bytes_of(folders.own)
    study = bytes_of(folders.study_db)
    found = {
        "mlflow.db": bytes_of(folders.mlflow_db),
        "study.db": study,
        "artifacts": bytes_of(folders.mlruns) - own,
        "mlruns/lorasweep without study.db": own - study,
    }
    return {name: round(size / 1024 / trials, 1) for name, size in found.items()}


def main() -> int:
    """Run, print the table and the sizes, and compare with the aim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--first", type=int, default=50, help="the sample that the last one is compared with")
    parser.add_argument("--out", type=Path, default=Path("bench-results/soak.json"))
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lorasweep-soak-") as name:
        samples = watch(Path(name), arguments.trials)
        left = sizes(Path(name), arguments.trials)
    seconds = time.monotonic() - began
    places = sorted({arguments.first, *range(100, arguments.trials, 100), arguments.trials})
    rows = [around(samples, place) for place in places]
    print("| trials ended | resident MiB | handles | threads |\n|---|---|---|---|")
    for row in rows:
        memory = row["rss_bytes"] / 2**20
        print(f"| {row['trials']:.0f} | {memory:.1f} | {row['handles']:.0f} | {row['threads']:.0f} |")
    first, last = rows[0], rows[-1]
    growth = last["rss_bytes"] / first["rss_bytes"] - 1
    print(f"\nmemory {growth:+.1%} (aim: under {GROWTH:.0%}), {seconds:.0f} s for {arguments.trials} trials")
    print("KiB a trial: " + ", ".join(f"{name} {size}" for name, size in left.items()))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "seconds": seconds}
    arguments.out.write_text(json.dumps({**about, "rows": rows, "kib_a_trial": left}, indent=1))
    return 1 if growth >= GROWTH or leaked(first, last) else 0


if __name__ == "__main__":
    sys.exit(main())
