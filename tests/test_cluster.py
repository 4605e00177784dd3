"""One sweep on many hosts, as far as one machine can be several: workers that share nothing but real servers.

PostgreSQL, an MLflow server on it, S3 for artifacts, checkpoints and results; worker processes, and nodes of a
simulated Ray cluster. The same list of trials gives the values of a plain sweep; killing workers, nodes and servers
changes none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clusterkit import SECRET, Postgres, Site, site
from lorasweep.config.home import Folders
from torturekit import Left, check_agreement, check_same, left_by

pytestmark = pytest.mark.slow

TRIALS = 8
POINTS = [(0.01, 2), (0.003, 4), (0.001, 8), (0.02, 2), (0.005, 4), (0.03, 8), (0.002, 2), (0.008, 8)]
LISTED = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: demo_reviews
  - override /sampler: list
data: {{demo_rows: 80}}
train: {{eval_every_steps: 3, log_every_steps: 1, checkpoint_every_seconds: 0.2, max_steps: {steps}, batch_size: 4}}
launcher: {{slots: 1, heartbeat_seconds: 1, threads: 1}}
sweep:
  trials: 8
  space:
    optimizer.lr: tag(log, interval(1e-4, 1e-1))
    adapter.r: choice(2, 4, 8)
  enqueue:
"""


def home_with_list(folder: Path, steps: int) -> Path:
    (folder / "sweeps").mkdir(parents=True)
    points = "".join(f"    - {{optimizer.lr: {lr}, adapter.r: {rank}}}\n" for lr, rank in POINTS)
    (folder / "sweeps" / "listed.yaml").write_text(LISTED.format(steps=steps) + points)
    return folder


@contextmanager
def command(home: Path, *words: str) -> Iterator[subprocess.Popen]:
    """A running `lorasweep` whose output is in home/log; it does not outlive the context."""
    env = {**os.environ, "LORASWEEP_HOME": str(home), "OMP_NUM_THREADS": "1"}
    with (home / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lorasweep.cli", *words], cwd=home, env=env, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(20)


def run(home: Path, *words: str, seconds: float = 300) -> str:
    """Its output, where it ends well."""
    with command(home, *words) as process:
        code = process.wait(seconds)
    said = (home / "log").read_text()
    assert code == 0, said[-3000:]
    return said


@pytest.fixture(scope="module")
def servers(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site"), postgres_server) as made:
        yield made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Left]:
    """Steps -> what the list leaves on one host, never disturbed."""
    found = {}
    for steps in (9,):
        home = home_with_list(tmp_path_factory.mktemp("plain") / "home", steps)
        run(home, "sweep", "listed")
        found[steps] = left_by(home, "listed")
        check_agreement(found[steps], TRIALS)
    return found


def left_on(servers: Site, home: Path, sweep: str) -> Left:
    folders = Folders(home, servers.uri, servers.studies, "s3://lorasweep/files")
    database = servers.runs.rpartition("/")[2]
    return left_by(home, sweep, folders=folders, asks=lambda query: servers.database.execute(query, database=database))


def check_secrets(servers: Site, home: Path) -> None:
    """The password of all servers stands in no file, no run and no study."""
    for path in home.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    for address in (servers.studies, servers.runs):
        for table, column in (("trial_user_attributes", "value_json"), ("study_user_attributes", "value_json"),
                              ("tags", "value"), ("params", "value"), ("lorasweep_posts", "about")):  # fmt: skip
            database = address.rpartition("/")[2]
            there = servers.database.execute(f"select to_regclass('{table}')", database=database)[0][0]
            if there is not None:
                found = servers.database.execute(f"select {column} from {table}", database=database)
                assert not any(SECRET in str(value) for (value,) in found), (address, table)
    import s3fs

    files = s3fs.S3FileSystem(skip_instance_cache=True)
    for name in files.find("lorasweep"):
        assert SECRET.encode() not in files.cat_file(name), name


def test_workers_on_servers_leave_what_one_host_leaves(servers: Site, plain: dict[int, Left], tmp_path: Path) -> None:
    home = home_with_list(tmp_path / "home", 9)
    said = run(home, "sweep", "listed", "sweep.name=two", "launcher.workers=2", *servers.overrides)
    assert "2 workers" in said and "lorasweep promote two tracking=server" in said
    left = left_on(servers, home, "two")
    check_agreement(left, TRIALS)
    check_same(left, plain[9])
    check_secrets(servers, home)
    assert not (home / "mlflow.db").exists() and not Folders(home).study_db.exists()
