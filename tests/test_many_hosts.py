"""One sweep on many hosts, as far as one machine can be several: workers that share nothing but real servers.

PostgreSQL, an MLflow server on it, S3 for artifacts, checkpoints and results; worker processes, and nodes of a
simulated Ray cluster. The same list of trials gives the values of a plain sweep; killing workers, nodes and servers
changes none.
"""

from __future__ import annotations

import functools
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from clusterkit import SECRET, Postgres, Site, site
from lorasweep import posts
from lorasweep.config.home import Folders
from lorasweep.failpoints import VARIABLE
from lorasweep.search.study import SweepStudy
from torturekit import OWN, Command, Left, check_agreement, check_same, left_by, the_nursery

pytestmark = pytest.mark.slow

TRIALS, SHORT, LONG = 8, 9, 300  # optimizer steps of a trial
POINTS = [(0.01, 2), (0.003, 4), (0.001, 8), (0.02, 2), (0.005, 4), (0.03, 8), (0.002, 2), (0.008, 8)]
LISTED = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: demo_reviews
  - override /sampler: list
data: {{demo_rows: 80}}
train:
  {{max_steps: {steps}, batch_size: 4, eval_every_steps: {every}, log_every_steps: {every}}}
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
    (folder / "sweeps" / "listed.yaml").write_text(LISTED.format(steps=steps, every=max(3, steps // 20)) + points)
    return folder


@contextmanager
def command(home: Path, *words: str) -> Iterator[Command]:
    """A running `lorasweep`; it does not outlive the context."""
    started = the_nursery().start(home, *words)
    try:
        yield started
    finally:
        started.send(signal.SIGKILL)
        started.wait(20)


def run(home: Path, *words: str, seconds: float = 300) -> str:
    """Its output, where it ends well."""
    with command(home, *words) as started:
        code = started.wait(seconds)
    assert code == 0, started.output[-3000:]
    assert SECRET not in started.output
    return started.output


@pytest.fixture(scope="module")
def servers(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site"), postgres_server) as made:
        yield made


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Left]:
    """Steps -> what the list leaves on one host, never disturbed."""

    @functools.cache
    def left(steps: int) -> Left:
        home = home_with_list(tmp_path_factory.mktemp("plain") / "home", steps)
        run(home, "sweep", "listed")
        found = left_by(home, "listed")
        check_agreement(found, TRIALS)
        return found

    return left


def left_on(servers: Site, home: Path, sweep: str) -> Left:
    """The report is looked for on the sweep's own run, where every host finds it: its file lies on the disk of whoever
    closed the sweep."""
    from mlflow import MlflowClient

    folders = Folders(home, servers.uri, servers.studies, "s3://lorasweep/files")
    database = servers.runs.rpartition("/")[2]
    left = left_by(home, sweep, folders=folders, asks=lambda query: servers.database.execute(query, database=database))
    kept = MlflowClient(servers.uri).list_artifacts(left.runs[OWN][0]["id"], "report")
    return replace(left, report="report/report.html" in {one.path for one in kept})


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


@pytest.mark.torture  # the nodes below go the same way, and further
def test_workers_on_servers_leave_what_one_host_leaves(
    servers: Site, plain: Callable[[int], Left], tmp_path: Path
) -> None:
    home = home_with_list(tmp_path / "home", SHORT)
    said = run(home, "sweep", "listed", "sweep.name=two", "launcher.workers=2", *servers.overrides)
    assert "2 workers" in said and "lorasweep promote two tracking=server" in said
    left = left_on(servers, home, "two")
    check_agreement(left, TRIALS)
    check_same(left, plain(SHORT))
    check_secrets(servers, home)
    assert not (home / "mlflow.db").exists() and not Folders(home).study_db.exists()


# -- Ray --------------------------------------------------------------------------------------------------------------


class Nodes:
    """A simulated Ray cluster: each node with its own scratch folder, so that workers share nothing on the disk."""

    def __init__(self, folder: Path, count: int, failpoint: str = ""):
        """`failpoint`: where each worker halts."""
        cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray: pip install 'lorasweep[ray]'")
        self.folder, self.made, self.failpoint = folder, 0, failpoint
        self.cluster = cluster_utils.Cluster()
        self.nodes = [self.add() for _ in range(count)]

    def add(self) -> object:
        """One more node with room for one worker; the first is the head."""
        self.made += 1
        scratch = self.folder / f"node{self.made}"
        scratch.mkdir(parents=True)
        return self.cluster.add_node(
            num_cpus=1, object_store_memory=80 << 20, include_dashboard=False,
            env_vars={"LORASWEEP_SCRATCH": str(scratch), VARIABLE: self.failpoint},
        )  # fmt: skip

    def replace_one(self, draw: random.Random) -> None:
        """A node that is not the head dies with all on it; another one comes."""
        lost = draw.choice(self.nodes[1:])
        self.cluster.remove_node(lost, allow_graceful=False)
        self.nodes.remove(lost)
        self.nodes.append(self.add())

    @property
    def overrides(self) -> list[str]:
        return ["launcher=ray", f"launcher.address={self.cluster.address}", f"launcher.workers={len(self.nodes)}"]


@pytest.fixture
def nodes(servers: Site, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    made = Nodes(tmp_path / "nodes", 3, getattr(request, "param", ""))
    yield made
    made.cluster.shutdown()


def scratches(folder: Path) -> list[int]:
    """In how many nodes' folders spools lie: 1 each where a worker has trained there."""
    return [int(any(node.rglob("trial-*.jsonl"))) for node in sorted(folder.iterdir())]


def test_a_run_that_a_late_answer_made_is_gone_at_the_end(servers: Site, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    home = home_with_list(tmp_path / "home", SHORT)
    client = MlflowClient(servers.uri)
    experiment = client.create_experiment("late")
    tags = {"lorasweep.kind": "trial", "lorasweep.sweep": "late", "lorasweep.trial": "99", "lorasweep.state": "running"}
    stray = client.create_run(experiment, tags=tags).info.run_id
    run(home, "sweep", "listed", "sweep.name=late", *servers.overrides)
    assert client.get_run(stray).info.lifecycle_stage == "deleted"
    check_agreement(left_on(servers, home, "late"), TRIALS)


@pytest.mark.torture  # its short twin: test_crews.py::test_two_workers_give_the_values_of_one_whoever_dies
def test_three_nodes_leave_what_one_host_leaves(
    servers: Site, nodes: Nodes, plain: Callable[[int], Left], tmp_path: Path
) -> None:
    home = home_with_list(tmp_path / "home", SHORT)
    said = run(home, "sweep", "listed", "sweep.name=nodes", *nodes.overrides, *servers.overrides)
    assert "3 Ray workers" in said
    left = left_on(servers, home, "nodes")
    check_agreement(left, TRIALS)
    check_same(left, plain(SHORT))
    assert sum(scratches(nodes.folder)) >= 2  # more than one of them had a part in it
    check_secrets(servers, home)
    check_secrets(servers, nodes.folder)


def leave_to_itself(servers: Site, nodes: Nodes, home: Path, sweep: str) -> None:
    words = ["sweep", "listed", f"sweep.name={sweep}", *nodes.overrides, *servers.overrides]
    assert f"Sweep {sweep} trains on without this command" in run(home, *words, "--detach")


@pytest.mark.torture  # its short twins: test_closing.py, launchers/test_launch.py
def test_nodes_that_train_on_without_their_command_leave_the_same(
    servers: Site, nodes: Nodes, plain: Callable[[int], Left], tmp_path: Path
) -> None:
    home = home_with_list(tmp_path / "home", SHORT)
    leave_to_itself(servers, nodes, home, "left")
    assert "8 complete" in run(home, "resume", "left", *servers.overrides)  # and its workers have closed it by now
    left = left_on(servers, home, "left")
    check_agreement(left, TRIALS)
    check_same(left, plain(SHORT))
    check_secrets(servers, home)
    check_secrets(servers, nodes.folder)


@pytest.mark.torture  # test_torture.py kills one that a command started
@pytest.mark.parametrize("nodes", ["trials-told:1:20"], indirect=True, ids=["halt"])
def test_workers_that_die_while_they_close_are_made_anew_and_close(
    servers: Site, nodes: Nodes, plain: Callable[[int], Left], tmp_path: Path
) -> None:
    """The first to close halts before the sweep's own run has ended, which leaves time to kill all of them."""
    home = home_with_list(tmp_path / "home", SHORT)
    leave_to_itself(servers, nodes, home, "dies")
    with command(home, "resume", "dies", *servers.overrides) as watching:
        folders = Folders(home, servers.uri, servers.studies, "s3://lorasweep/files")
        study = SweepStudy.load(folders, "dies")
        deadline = time.monotonic() + 120
        while study.counts()["complete"] < TRIALS and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(2)  # they come to the end of it
        print("killed at", left_on(servers, home, "dies").runs[OWN])  # shown where the test fails
        for worker in posts.roll(folders, "dies"):
            if worker.pid and "worker" in worker.about:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        code = watching.wait(300)
    assert code == 0, watching.output[-3000:]
    left = left_on(servers, home, "dies")
    check_agreement(left, TRIALS)
    check_same(left, plain(SHORT))


# -- chaos ------------------------------------------------------------------------------------------------------------


def pids_at_work(servers: Site, home: Path, sweep: str) -> list[int]:
    """Processes that train the sweep now, by their posts."""
    folders = Folders(home, servers.uri, servers.studies, "s3://lorasweep/files")
    roll = posts.roll(folders, sweep)
    return [worker.pid for worker in roll if worker.alive and worker.pid and "worker" in worker.about]


def kill_a_worker(servers: Site, home: Path, sweep: str, draw: random.Random) -> str:
    pids = pids_at_work(servers, home, sweep)
    if not pids:
        return "nobody to kill"
    with suppress(ProcessLookupError):  # dead since less than its grace
        os.kill(pid := draw.choice(pids), signal.SIGKILL)
        return f"killed worker {pid}"
    return "killed a dead one"


def restart_postgres(servers: Site) -> str:
    servers.database.stop()
    time.sleep(1)
    servers.database.start()
    return "restarted PostgreSQL"


def restart_mlflow(servers: Site) -> str:
    servers.kill_mlflow()
    time.sleep(1)
    servers.start_mlflow()
    return "restarted MLflow"


def check_what_chaos_left(servers: Site, home: Path, sweep: str, calm: Left) -> None:
    """All trials once, each with the curve that it would have had: no step lost, none twice, the same numbers but for
    last bits, which depend on who trained beside whom."""
    left = left_on(servers, home, sweep)
    check_agreement(left, TRIALS)
    for number, trial in calm.trials.items():
        assert left.trials[number]["params"] == trial["params"]
        assert left.trials[number]["state"] == trial["state"] == "complete"
        assert math.isclose(left.trials[number]["value"], trial["value"], abs_tol=1e-6), number
        ours, wanted = left.metrics[number], calm.metrics[number]
        assert ours.keys() == wanted.keys(), number
        for key, points in wanted.items():
            assert [step for step, _ in ours[key]] == [step for step, _ in points], (number, key)
            for (step, value), (_, expected) in zip(ours[key], points, strict=True):
                assert math.isclose(value, expected, rel_tol=1e-3, abs_tol=1e-5), (number, key, step)
    assert left.metrics[OWN]["sweep/trials_complete"][-1][1] == TRIALS


CALM_SECONDS = 2.0  # from one blow to the next, at least


def wreak_havoc(process: Command, blows: list, draw: random.Random) -> list[str]:
    """One blow after another while the sweep runs, each as often as it is listed; what was done."""
    left, done = list(blows), []
    draw.shuffle(left)
    while left and process.poll() is None:
        time.sleep(CALM_SECONDS + draw.random() * 2)
        if process.poll() is None:
            done.append(left.pop()())
    return done


@pytest.mark.torture  # minutes of restarts
@pytest.mark.parametrize("seed", [1, 2])
def test_chaos_changes_nothing(
    servers: Site, nodes: Nodes, plain: Callable[[int], Left], tmp_path: Path, seed: int
) -> None:
    home, draw, sweep = home_with_list(tmp_path / "home", LONG), random.Random(seed), f"chaos{seed}"

    def lose_a_node() -> str:
        nodes.replace_one(draw)
        return "a node died, another came"

    def kill() -> str:
        return kill_a_worker(servers, home, sweep, draw)

    blows = [kill, kill, kill, lose_a_node, lambda: restart_postgres(servers), lambda: restart_mlflow(servers), kill]
    with command(home, "sweep", "listed", f"sweep.name={sweep}", *nodes.overrides, *servers.overrides) as process:
        deadline = time.monotonic() + 120
        while not pids_at_work(servers, home, sweep) and time.monotonic() < deadline:
            time.sleep(0.5)
        done = wreak_havoc(process, blows, draw)
        code = process.wait(400)
    assert code == 0, f"{done}\n{process.output[-4000:]}"
    assert len(done) >= 5, f"the sweep was over before it was hurt: {done}\n{process.output[-3000:]}"
    check_what_chaos_left(servers, home, sweep, plain(LONG))
