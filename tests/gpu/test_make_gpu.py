"""`make gpu` as a whole over tiny shapes, on a machine that has no more than a bare one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.slow  # processes of their own

REPOSITORY = Path(__file__).parent.parent.parent

# lorasweep's dependencies that a machine with torch, transformers, peft and accelerate alone lacks
ABSENT = ["hydra", "omegaconf", "optuna", "mlflow", "datasets", "evaluate", "plotly", "rich", "psutil"]
BARE = f"""
import sys
from importlib.machinery import PathFinder
class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {ABSENT!r} else super().find_spec(name, path, target)
sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""


def make_gpu(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(BARE)
    command = [sys.executable, "benchmarks/gpu", "--out", str(folder / "out"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # hydra's is announced though it is absent
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.torture  # its short twins: the tests of this folder on the CPU
def test_smoke_writes_all_of_its_results(tmp_path: Path) -> None:
    done = make_gpu(tmp_path, "--smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "out"
    suite = ElementTree.parse(out / "tests.xml").getroot().find("testsuite")
    assert suite is not None
    assert int(suite.get("tests", 0)) > 0
    assert int(suite.get("failures", 1)) == int(suite.get("errors", 1)) == 0
    results = json.loads((out / "results.json").read_text())
    assert len(results["cells"]) + len(results["dropped"]) == 2
    cell = results["cells"][0]
    names = ["PEFT by hand", "transformers.Trainer", "lorasweep, 1 slots", "lorasweep, 2 slots", "lorasweep, 4 slots"]
    assert [way["name"] for way in cell["ways"]] == names
    assert all(way["samples_per_second"] > 0 for way in cell["ways"])
    assert cell["tokens_per_slot"] == pytest.approx(184, abs=15)
    assert all(bound["launches"] > 0 for bound in cell["bounds"].values())
    table = (out / "table.md").read_text()
    assert all(f"| {name} |" in table for name in names)
    assert len(list(out.iterdir())) <= 8  # as many files as come back from a lent machine


def test_without_a_gpu_it_says_so_and_fails(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu/cells.py", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": "src", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "needs a CUDA device" in done.stderr
    assert "--smoke" in done.stderr
