"""`make gpu`: every test marked `gpu`, then the GPU benchmark, on whatever Python has torch; all results in one folder.

    python benchmarks/gpu [--out DIR] [--seconds 530] [--wheels DIR] [--smoke]

Needs torch, transformers, peft and accelerate; pytest for the tests, bitsandbytes for nf4, each named where it is
missing. --wheels: a folder of wheels that are used without being installed. Ends within --seconds. --smoke: tiny
shapes, on a CPU too. Writes tests.log, tests.xml, benchmark.log, results.json and table.md. Standard library alone.
Neighbour: `cells` (the benchmark).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
NEEDED = ("torch", "transformers", "peft", "accelerate")
TESTS_SHARE = 0.4  # of the seconds, at most
STOPPING = 10.0  # seconds kept for ending
SMOKE_TESTS = "masks"  # enough to see that pytest runs here


def use_wheels(folder: Path, site: Path) -> None:
    """Unpack wheels beside the machine's own packages, none of which is changed."""
    wheels = sorted(str(wheel) for wheel in folder.glob("*.whl"))
    if not wheels:
        sys.exit(f"--wheels={folder} holds no .whl file")
    options = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)


def environment(site: Path | None) -> dict[str, str]:
    """What the tests and the benchmark run in."""
    paths = [str(REPOSITORY / "src"), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path), "PYTHONUNBUFFERED": "1"}
    found.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several the Trainer would spread over them
    found.setdefault("HF_HUB_OFFLINE", "1")
    return found


def has(module: str, env: dict[str, str]) -> bool:
    """Whether a subprocess would find a module."""
    sys.path[:0] = env["PYTHONPATH"].split(os.pathsep)
    try:
        return importlib.util.find_spec(module) is not None
    finally:
        del sys.path[: len(env["PYTHONPATH"].split(os.pathsep))]


def stream(command: list[str], log: Path, env: dict[str, str], seconds: float) -> int:
    """Run a command, its output here and in `log`; its exit status, 124 where it was ended after `seconds`."""
    print(f"+ {' '.join(command)}", flush=True)
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(max(1.0, seconds), end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                print(line, end="", flush=True)
            status = process.wait()
        finally:
            timer.cancel()
        if late.is_set():
            said = f"ended after {seconds:.0f} s, its share of the time\n"
            file.write(said)
            print(said, end="", flush=True)
            return 124
    return status


def run_tests(out: Path, env: dict[str, str], seconds: float, smoke: bool) -> int:
    """The tests marked `gpu`; their exit status."""
    if not has("pytest", env):
        print("pytest is not installed: the tests are left out (pass it with --wheels)", flush=True)
        (out / "tests.log").write_text("pytest is not installed\n")
        return 1
    chosen = ["-m", "not gpu", "-k", SMOKE_TESTS] if smoke else ["-m", "gpu"]
    report = ["-rs", "--durations=10", f"--junitxml={out / 'tests.xml'}"]
    command = [sys.executable, "-m", "pytest", "tests/gpu", *chosen, *report]
    return stream(command, out / "tests.log", env, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-results")))
    parser.add_argument("--seconds", type=float, default=530)
    parser.add_argument("--wheels", type=Path)
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    ends = time.monotonic() + arguments.seconds
    missing = [module for module in NEEDED if importlib.util.find_spec(module) is None]
    if missing:
        sys.exit(f"{sys.executable} lacks {', '.join(missing)}; install them, or name another with PYTHON=")
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site" if arguments.wheels else None
        if arguments.wheels and site:
            use_wheels(arguments.wheels, site)
        env = environment(site)
        if not has("bitsandbytes", env):
            print("bitsandbytes is not installed: what is about nf4 is left out (pass it with --wheels)", flush=True)
        tested = run_tests(out, env, TESTS_SHARE * arguments.seconds, arguments.smoke)
        left = ends - time.monotonic() - STOPPING
        command = [sys.executable, str(HERE / "cells.py"), "--out", str(out), "--seconds", f"{left:.0f}"]
        command += ["--smoke"] if arguments.smoke else []
        measured = stream(command, out / "benchmark.log", env, left)
    print(f"tests: exit {tested}; benchmark: exit {measured}; results in {out}")
    return 1 if tested or measured else 0


if __name__ == "__main__":
    sys.exit(main())
