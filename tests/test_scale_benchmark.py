"""benchmarks/scale.py counts what it says and keeps what it ran; benchmarks/scale_model.py queues as queues do;
benchmarks/stages.py puts its stopwatches around what is there."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_one_lock_serves_as_many_as_it_can() -> None:
    simulate = load("scale_model").simulate
    rate, waits = simulate(1, 0.0, 0.02, 0.03)
    assert rate == pytest.approx(1 / 0.05, rel=0.15)  # nobody else asks: ask, tell, ask
    assert waits == 0
    rate, waits = simulate(1000, 1.0, 0.02, 0.03)
    assert rate == pytest.approx(1 / 0.02, rel=0.01)  # always somebody waits
    assert waits == pytest.approx(1 - 1.05 / (1000 * 0.02), abs=0.02)
    rate, waits = simulate(100, 60.0, 0.02, 0.03)
    assert rate == pytest.approx(100 / 60.05, rel=0.1)
    assert waits < 0.001


@pytest.mark.slow
def test_the_benchmark_counts_every_trial_once_and_keeps_its_runs(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    words = ["--storage", "sqlite", "--workers", "2", "--trials", "8", "--tpe-trials", "0", "--out", str(out)]
    command = [sys.executable, str(BENCHMARKS / "scale.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = json.loads(out.read_text())["runs"]
    assert [run["way"] for run in runs] == ["own", "coordinator"]
    for run in runs:
        assert (run["stored"], run["lost"], run["doubled"], run["overshoot"], run["timed_out"]) == (8, 0, 0, 0, False)
        assert run["ask_ms"] > 0
        assert run["tell_ms"] > 0
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert again.stdout.count("as kept in") == 2
    command += ["--ways", "own", "--again", "--limit-seconds", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 1
    assert "ended by the limit" in ended.stdout


def test_a_trial_of_two_workers_counts_as_doubled(tmp_path: Path) -> None:
    scale = load("scale")
    run = scale.Run("sqlite", "random", 4, 2, "own", 0.0, True)
    rows = {0: [[0, 0.1, 0, 0.1, 0.1, 5.0], [1, 0.1, 0, 0.1, 0.1, 6.0]], 1: [[1, 0.1, 0, 0.1, 0.1, 7.0]]}
    for index, own in rows.items():
        lines = [*own, {"begun": 3.0, "cpu": 1.0}]
        (tmp_path / f"worker-{index}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    stored = {"trials": 5, "states": {"complete": 4, "running": 1}, "numbered": True}
    (tmp_path / "states.json").write_text(json.dumps(stored))
    found = scale.summary(scale.Place(tmp_path, None, run), timed_out=False, failed=0)
    assert (found["doubled"], found["lost"], found["overshoot"], found["missing"]) == (1, 1, 1, 0)
    assert found["asks_per_second"] == round(3 / 4.0, 2)


def test_every_stage_has_its_functions() -> None:
    stages = load("stages")
    for path, names, _ in stages.STAGED:
        for name in names:
            assert callable(getattr(stages.owner_of(path), name)), f"{path}.{name}"
