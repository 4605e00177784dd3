"""Real Ray on this machine: a simulated cluster of nodes over PostgreSQL and an MLflow server, of which nodes are lost
and join; workers that outlive their command; a resource that no node has."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clusterkit import Postgres, postgres
from mlflowserver import Server
from torturekit import MINI, Command, Nursery, home_with

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install -e '.[ray]'"),
]
TRIALS = 6
SWEEP = MINI.replace("trials: 7", f"trials: {TRIALS}").replace("kind: tpe, startup_trials: 3", "kind: random").replace(
    "slots: 3", "slots: 1, threads: 1, heartbeat_seconds: 2"
)  # fmt: skip
STORE_BYTES = 80 << 20


class Hive:
    """A simulated cluster: a head that takes no worker, and nodes that take one each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False},
        )
        self.nodes: list[Any] = []

    @property
    def words(self) -> list[str]:
        seat = "launcher.resources={seat: 1}"
        return ["launcher=ray", f"launcher.address={self.cluster.address}", seat]

    def grow(self) -> None:
        node = self.cluster.add_node(num_cpus=1, resources={"seat": 1}, object_store_memory=STORE_BYTES)
        self.nodes.append(node)

    def lose_one(self) -> None:
        self.cluster.remove_node(self.nodes.pop(), allow_graceful=False)


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as server:  # before the nodes, which find its password in their environment
        yield server


@pytest.fixture(scope="module")
def hive(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("LORASWEEP_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        hive = Hive()
        yield hive
        hive.cluster.shutdown()


def rows_of(nursery: Nursery, home: Path, *words: str) -> dict[int, dict[str, Any]]:
    text = nursery.run(home, "leaderboard", "mini", "--json", *words)
    return {row["trial"]: row for row in json.loads(text)["rows"]}


def wait_for_workers(nursery: Nursery, home: Path, command: Command, count: int, *words: str) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert command.poll() in (None, 0), command.output
        look = nursery.start(home, "workers", "mini", "--json", *words)
        if look.wait() == 0:
            found = [one for one in json.loads(look.out)["workers"] if one["state"] == "training"]
            if len(found) >= count:
                return found
        time.sleep(0.2)
    raise AssertionError(command.output)


@pytest.mark.torture  # its short twin: test_crews.py, where workers die
def test_nodes_come_and_go_and_the_values_are_those_of_one_machine(
    nursery: Nursery, hive: Hive, database: Postgres, tmp_path: Path
) -> None:
    alone, home = home_with(tmp_path / "alone", SWEEP), home_with(tmp_path / "home", SWEEP)
    nursery.run(alone, "sweep", "mini")
    for _ in range(2):
        hive.grow()
    with Server(tmp_path / "server") as server:
        place = [f"tracking.uri={server.url}", f"tracking.studies={database.make_database('nodes')}"]
        place.append(f"tracking.files={tmp_path / 'files'}")
        lacking = [*hive.words[:2], "launcher.resources={tpu: 4}", "launcher.placement_seconds=1"]
        refused = nursery.run(home, "sweep", "mini", *lacking, *place, code=1)
        assert "each asks for CPU: 1, tpu: 4; the cluster has" in refused.replace("\n", " ")
        assert "there is no sweep 'mini'" in nursery.run(home, "leaderboard", "mini", *place, code=2)
        command = nursery.start(home, "sweep", "mini", *hive.words, "launcher.workers=2", *place)
        wait_for_workers(nursery, home, command, 2, *place)
        hive.lose_one()
        hive.grow()
        assert command.wait(300) == 0, command.output
        assert "its node left the cluster; it goes on" in command.output
        ours, theirs = rows_of(nursery, home, *place), rows_of(nursery, alone)
    assert sorted(ours) == list(range(TRIALS))
    for number, row in theirs.items():
        for key in ("state", "value", "metrics", "params", "samples"):
            assert ours[number][key] == row[key], (number, key)
    assert os.environ["PGPASSWORD"] not in command.output


@pytest.mark.torture  # its short twin: the test above, watched by its command
def test_a_sweep_goes_on_without_its_command_and_resume_watches_it(
    nursery: Nursery, hive: Hive, database: Postgres, tmp_path: Path
) -> None:
    home = home_with(tmp_path / "home", SWEEP)
    if not hive.nodes:
        hive.grow()
    with Server(tmp_path / "server") as server:
        place = [f"tracking.uri={server.url}", f"tracking.studies={database.make_database('detached')}"]
        said = nursery.run(home, "sweep", "mini", *hive.words, *place, "--detach")
        assert "Sweep mini trains on without this command" in said
        output = nursery.run(home, "resume", "mini", *place)
        assert "Ray worker" not in output  # it found those that there are
        rows = rows_of(nursery, home, *place)
    assert {row["state"] for row in rows.values()} == {"complete"} and len(rows) == TRIALS


LOSE = """
import sys, ray
from lorasweep.launchers.cluster import NAMESPACE
ray.init(sys.argv[1], namespace=NAMESPACE, log_to_driver=False)
for named in ray.util.list_named_actors():
    ray.kill(ray.get_actor(named), no_restart=True)
"""


@pytest.mark.torture  # its short twin: test_launch.py
def test_workers_that_are_gone_for_good_are_followed_by_new_ones(
    nursery: Nursery, hive: Hive, database: Postgres, tmp_path: Path
) -> None:
    home = home_with(tmp_path / "home", SWEEP.replace("range(5, 17, 4)", "range(300, 309, 4)"))
    if not hive.nodes:
        hive.grow()
    with Server(tmp_path / "server") as server:
        place = [f"tracking.uri={server.url}", f"tracking.studies={database.make_database('lost')}"]
        nursery.run(home, "sweep", "mini", *hive.words, *place, "train.eval_every_steps=100", "--detach")
        command = nursery.start(home, "resume", "mini", *place)
        while "continuing mini" not in command.output:
            assert command.poll() is None, command.output
            time.sleep(0.1)
        subprocess.run([sys.executable, "-c", LOSE, hive.cluster.address], check=True, timeout=120)
        assert command.wait(300) == 0, command.output
        assert "its workers are gone and have left trials to train" in " ".join(command.output.split())
        rows = rows_of(nursery, home, *place)
    assert {row["state"] for row in rows.values()} == {"complete"} and len(rows) == TRIALS
