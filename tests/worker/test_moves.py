"""A trial outlives its node: homes that share a PostgreSQL, an MLflow server and a bucket, and no disk."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clusterkit import SECRET, ObjectStore, Postgres
from lorasweep.config.home import Folders
from lorasweep.depot import StoreDepot
from mlflowserver import Server
from torturekit import MINI, Command, Left, Nursery, check_agreement, home_with, left_by

pytestmark = pytest.mark.slow
TRIALS = 8
LONG = (
    MINI.replace("trials: 7", f"trials: {TRIALS}")
    .replace("range(5, 17, 4)", "choice(120, 150)")
    .replace("eval_every_steps: 3", "eval_every_steps: 30")
    .replace("slots: 3", "slots: 2")
)


class Cluster:
    """Where the sweep's parts lie; `start` is a host with a disk of its own."""

    def __init__(self, nursery: Nursery, root: Path, server: Server, postgres: Postgres, s3: ObjectStore):
        self.nursery, self.root, self.server = nursery, root, server
        self.studies = postgres.make_database(root.name.replace("_", "-"))
        self.bucket = f"s3://lorasweep/{root.name}"
        self.env = {**s3.environment, "PGPASSWORD": SECRET}

    def start(self, host: str, *words: str, **env: str) -> Command:
        home = home_with(self.root / host, LONG)
        places = (
            f"tracking.uri={self.server.url}", f"tracking.studies={self.studies}", f"tracking.files={self.bucket}"
        )  # fmt: skip
        settings = ("launcher.heartbeat_seconds=1", "launcher.threads=1")
        return self.nursery.start(home, "sweep", "mini", *places, *settings, *words, **self.env, **env)

    def steps(self, host: str) -> int:
        """Of the running trial that is furthest."""
        folder = self.root / host / "mlruns/lorasweep/sweeps/mini/spool"
        texts = [path.read_text() for path in folder.glob("*.jsonl")] if folder.is_dir() else []
        return max((text.count('"train/loss"') for text in texts if '"end"' not in text), default=0)

    def saved(self) -> int:
        """The step of the trial that is furthest in the newest checkpoint of post 0."""
        depot = StoreDepot(f"{self.bucket}/mini/checkpoints/0")
        newest = max((name for name in depot.names()), default=None)
        if newest is None:
            return 0
        raw = depot.read(newest)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["lorasweep"]
        return max((trial["fields"]["step"] for trial in json.loads(header)["trials"]), default=0)

    def left(self, host: str) -> Left:
        return left_by(
            self.root / host, database=self.server.database, folders=Folders(self.root / host, studies=self.studies)
        )


@pytest.fixture
def cluster(nursery: Nursery, postgres_server: Postgres, s3: ObjectStore, tmp_path: Path) -> Iterator[Cluster]:
    with Server(tmp_path / "server") as server:
        yield Cluster(nursery, tmp_path, server, postgres_server, s3)


def wait_for(condition: Callable[[], bool], *commands: Command) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        ended = [command for command in commands if command.poll() is not None]
        assert not ended and time.monotonic() < deadline, "\n".join(command.output for command in commands)
        time.sleep(0.05)


def check_whole(left: Left, trials: int = TRIALS) -> None:
    """Every step of every trial is there once, each with a value."""
    check_agreement(left, trials)
    for number, trial in left.trials.items():
        assert trial["state"] == "complete" and trial["answers"], (number, trial)
        steps = [step for step, _ in left.metrics[number]["train/loss"]]
        assert steps == list(range(1, trial["params"]["train.max_steps"] + 1)), number
        evaluated = {step for step, _ in left.metrics[number]["eval/accuracy"]}
        assert set(range(30, steps[-1] + 1, 30)) <= evaluated, number


@pytest.mark.torture  # its short twin: the test below, over the same server and bucket
def test_a_trial_goes_on_on_another_host_whose_disk_never_saw_it(cluster: Cluster) -> None:
    one = cluster.start("one")
    wait_for(lambda: cluster.saved() > 0, one)
    two = cluster.start("two", "--join")
    wait_for(lambda: cluster.steps("two") > 4 and cluster.steps("one") > 50 and cluster.saved() > 20, one, two)
    one.send(signal.SIGKILL)
    one.wait()
    shutil.rmtree(cluster.root / "one")  # the node is gone, and its disk
    assert two.wait(240) == 0, two.output
    taken = re.findall(r"was left by its worker; it goes on here from step (\d+)", two.output.replace("\n", " "))
    assert max(map(int, taken)) >= 20 and "Traceback" not in two.output
    check_whole(cluster.left("two"))
    assert StoreDepot(f"{cluster.bucket}/mini/checkpoints/0").names() == []  # nothing is left for nobody
    shown = cluster.nursery.run(
        home_with(cluster.root / "three", LONG), "leaderboard", "mini", "--json", f"tracking.studies={cluster.studies}",
        **cluster.env,
    )  # fmt: skip
    board = json.loads(shown[shown.index("{") :])
    assert board["ties"] is not None and not board.get("notes")  # from the answers in the bucket
    for path in cluster.root.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path


def test_a_server_that_is_away_at_a_trials_end_and_a_bucket_that_fails_are_waited_for(
    cluster: Cluster, object_store: ObjectStore
) -> None:
    one = cluster.start("one", "sweep.trials=2")
    wait_for(lambda: cluster.saved() >= 1 and cluster.steps("one") >= 10, one)
    cluster.server.stop()
    object_store.refuse(True)
    try:
        wait_for(lambda: "no checkpoint could be saved" in one.output, one)
    finally:
        object_store.refuse(False)
    # the trial may end before the next checkpoint is due
    words = ("checkpoints are saved again", "its end must be there before it is told")
    wait_for(lambda: any(word in one.output for word in words), one)
    wait_for(lambda: words[1] in one.output, one)
    assert not any(trial["state"] == "complete" for trial in cluster.left("one").trials.values())
    cluster.server.start()
    assert one.wait(240) == 0, one.output
    assert "Traceback" not in one.output
    check_whole(cluster.left("one"), 2)
