"""What search, tracking and checkpoints cost of a worker's time: the quickstart, alone and after thousands of trials.

    python benchmarks/overhead.py [--earlier 0 5000] [--out bench-results/overhead.json]

For each number of earlier trials: a study of the quickstart that holds so many (see `earlier`), then 24
more trials for true, by the stopwatches of `stages.py`.
Aim (issue 4): under 5% on the quickstart, under 10% at 5,000 trials. Exit code 1 where it is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
from earlier import write as write_earlier

from lorasweep.config.home import Folders

TRIALS = 24
WORK = ("forward + backward", "evaluate", "optimizer", "load", "rest of the worker")
COST = ("study", "tracking", "checkpoints")
FEW, SHARE_FEW, SHARE_MANY = 100, 0.05, 0.10


def run(home: Path, trials: int) -> dict[str, float]:
    """Seconds by stage of the quickstart, continued to so many trials."""
    script = Path(__file__).with_name("stages.py")
    command = [sys.executable, str(script), "quickstart", f"sweep.trials={trials}"]
    done = subprocess.run(
        command, env={**os.environ, "LORASWEEP_HOME": str(home)}, cwd=home, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1])["seconds"])


def measure(earlier: int) -> dict[str, float]:
    """Seconds by stage of 24 trials after so many earlier ones."""
    with tempfile.TemporaryDirectory(prefix="lorasweep-overhead-") as name:
        home = Path(name)
        if earlier:
            run(home, 1)
            folders = Folders(home)
            write_earlier(optuna.load_study(study_name="quickstart", storage=f"sqlite:///{folders.study_db}"), earlier)
        return run(home, earlier + TRIALS)


def main() -> int:
    """Measure each number of earlier trials and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earlier", type=int, nargs="+", default=[0, 5000])
    parser.add_argument("--out", type=Path, default=Path("bench-results/overhead.json"))
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = {earlier: measure(earlier) for earlier in arguments.earlier}
    print(f"| earlier trials | worker's seconds | {' | '.join(COST)} | together | opening and closing, seconds |")
    print("|---" * (len(COST) + 4) + "|")
    missed = False
    for earlier, seconds in found.items():
        whole = sum(seconds.get(stage, 0.0) for stage in (*WORK, *COST))
        shares = [seconds.get(stage, 0.0) / whole for stage in COST]
        missed |= sum(shares) > (SHARE_MANY if earlier > FEW else SHARE_FEW)
        print(
            f"| {earlier:,} | {whole:.1f} | {' | '.join(f'{share:.1%}' for share in shares)} | {sum(shares):.1%} "
            f"| {seconds.get('open and close', 0.0):.1f} |"
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "seconds": found}
    arguments.out.write_text(json.dumps(document, indent=2))
    said = "missed" if missed else "reached"
    print(f"The aim (under {SHARE_FEW:.0%}; under {SHARE_MANY:.0%} after thousands) is {said}.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
