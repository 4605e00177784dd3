"""The wheel: what it carries, and that it works in an empty folder far from this checkout."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import lorasweep

ROOT = Path(__file__).parent.parent
TWO_SWEEPS = """
import sys
from pathlib import Path
import lorasweep
from lorasweep import cli
assert Path(lorasweep.__file__).is_relative_to(sys.prefix), lorasweep.__file__
small = ["sweep.trials=2", "launcher.slots=2", "launcher.threads=1", "--json"]
sys.exit(cli.main(["sweep", "shop", "train.max_steps=2", "train.eval_every_steps=0", *small])
         or cli.main(["sweep", "quickstart", "scale=smoke", "scale.trials=1", "scale.max_steps=2", *small[1:]]))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network by the hatchling of this environment."""
    pytest.importorskip("hatchling", reason="comes with the extra `dev`")
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([*build, "--quiet", "--disable-pip-version-check", str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_carries_configs_sweeps_and_bases_and_no_tests(wheel: Path) -> None:
    assert wheel.name == f"lorasweep-{lorasweep.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode())
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    for folder in ("conf", "sweeps"):
        for path in (ROOT / folder).rglob("*.yaml"):
            assert f"lorasweep/shipped/{path.relative_to(ROOT).as_posix()}" in names
    for path in (ROOT / "src" / "lorasweep").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(ROOT / "src").as_posix() in names
    assert {name.split("/")[0] for name in names} == {"lorasweep", f"lorasweep-{lorasweep.__version__}.dist-info"}
    assert not [name for name in names if re.search(r"(^|/)(tests?|benchmarks|mlruns)/|\.db$|__pycache__", name)]
    assert metadata["Version"] == lorasweep.__version__ and metadata["Requires-Python"] == "<3.14,>=3.11"
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["Summary"]
    assert "lorasweep = lorasweep.cli:main" in scripts


@pytest.mark.slow
def test_an_installed_wheel_sweeps_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    bin_folder = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(bin_folder / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "venv").glob("[Ll]ib/**/site-packages")
    (site / "dependencies.pth").write_text(
        sysconfig.get_paths()["purelib"] + "\n"
    )  # all but lorasweep is installed there

    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LORASWEEP_HOME")}
    folder = tmp_path / "shop"
    folder.mkdir()

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = str(bin_folder / "lorasweep")
    assert run(command, "--version") == f"lorasweep {lorasweep.__version__}\n"
    assert json.loads(run(command, "init", ".", "--json"))["sweep"] == "shop"
    assert f"LORASWEEP_FROM ?= lorasweep=={lorasweep.__version__}" in (folder / "Makefile").read_text()
    mine, quickstart = map(json.loads, run(str(bin_folder / "python"), "-c", TWO_SWEEPS).splitlines())
    assert mine["sweep"] == "shop" and mine["counts"]["complete"] == 2
    assert quickstart["sweep"] == "quickstart-smoke" and quickstart["best"]["value"] > 0
    assert (folder / "mlflow.db").is_file()


def test_the_version_stands_in_one_place_and_leads_the_changelog() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "src/lorasweep/__init__.py"
    releases = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert releases[0] == lorasweep.__version__
