"""A trial goes from host to host: trackers with a disk each, one real MLflow server; no metric is lost or doubled."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorasweep.checkpoint import checkpoints_of
from lorasweep.config.home import Folders
from lorasweep.errors import StorageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.tracking import readers
from lorasweep.tracking.histories import points_of
from lorasweep.tracking.spool import Spool, path_of
from lorasweep.tracking.store import open_client
from lorasweep.tracking.tracker import Tracker
from mlflowserver import Server
from trackkit import Counts, search_data, sweep_config

pytestmark = pytest.mark.slow  # a server takes 10 s to start

STUDIES = "postgresql://nobody@localhost/none"  # the tracker asks only whether several hosts share the sweep


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("mlflow") / "server") as running:
        yield running


class Host:
    """A worker's disk, and a tracker that sends when it is told to."""

    def __init__(self, root: Path, name: str, server: Server):
        self.folders = Folders(root / name, server.url, STUDIES, str(root / "shared"))
        self.sweep = root.name
        self.begin()

    def begin(self) -> None:
        self.tracker = Tracker(self.folders, self.sweep, send_every_seconds=1e9)
        self.tracker.connect()

    def start(self, noted: str | None = None, left: object = ()) -> str:
        return self.tracker.start_trial(
            0, sweep_config(self.sweep), "a: 1\n", {"optimizer.lr": 0.1}, {}, search_data(), Counts(), noted, left
        )

    def train(self, first: int, last: int, value: float = 0.0) -> None:
        for step in range(first, last + 1):
            self.tracker.log(0, {"train/loss": value + step, "train/samples": 8.0 * step}, step)

    def send(self) -> None:
        self.tracker.flush(0, send=True)

    def die(self) -> None:
        """As with SIGKILL: what is on the disk stays."""
        self.tracker._open[0].spool.close()

    def finish(self, **metrics: float) -> bool:
        return self.tracker.finish_trial(0, TrialRecord(0, TrialState.COMPLETE, value=1.0, metrics=metrics), {})


@pytest.fixture
def hosts(server: Server, tmp_path: Path) -> tuple[Host, Host]:
    return Host(tmp_path, "one", server), Host(tmp_path, "two", server)


def stored(host: Host, run_id: str, key: str = "train/loss") -> list[tuple[int, float, int]]:
    found = open_client(host.folders).get_metric_history(run_id, key)
    return sorted((point.step, point.value, point.timestamp) for point in found)


def steps(host: Host, run_id: str, key: str = "train/loss") -> list[int]:
    return [step for step, _, _ in stored(host, run_id, key)]


def saved(host: Host) -> object:
    """What of the trial's metrics goes through a checkpoint."""
    return json.loads(json.dumps(host.tracker.unsent(0)))


def test_what_the_dead_had_sent_and_what_it_had_not_are_both_there_once(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    run_id = one.start()
    one.train(1, 4)
    one.send()
    one.train(5, 7)
    checkpoint, times = saved(one), {point.step: point.time_ms for point in one.tracker._open[0].spool.waiting()}
    assert [step for step, _, _ in checkpoint] == [5, 6, 7]
    one.train(8, 9)
    one.send()  # after the checkpoint: 5 to 9
    one.train(10, 11)  # lost with the disk
    one.die()

    assert two.start(run_id, checkpoint) == run_id
    two.train(8, 12, value=0.5)  # from the checkpoint; in another worker's packs the last bits differ
    assert two.finish()
    found = stored(two, run_id)
    assert [(step, value) for step, value, _ in found] == [(n, n + (0.5 if n >= 10 else 0)) for n in range(1, 13)]
    assert {step: when for step, _, when in found if step in (5, 6, 7)} == times
    assert steps(two, run_id, "train/samples") == list(range(1, 13))
    assert steps(two, run_id, "parameters/total") == [0]
    run = open_client(two.folders).get_run(run_id)
    assert (run.info.status, run.data.tags["lorasweep.state"]) == ("FINISHED", "complete")


def test_points_that_only_the_checkpoint_has_are_sent_with_their_first_times(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    run_id = one.start()
    one.train(1, 3)
    one.tracker.log(0, {"eval/loss": math.inf, "eval/accuracy": math.nan}, 3)
    checkpoint = saved(one)
    one.die()  # nothing was ever sent
    two.start(run_id, checkpoint)
    two.tracker.log(0, {"train/loss": 9.0, "eval/loss": 9.0}, 3)
    two.train(4, 5)
    assert two.finish()
    times = {step: when for step, when, _ in checkpoint}  # type: ignore[attr-defined]
    assert [(step, value) for step, value, _ in stored(two, run_id)] == [(n, float(n)) for n in range(1, 6)]
    assert all(when == times[step] for step, _, when in stored(two, run_id) if step <= 3)
    [(_, value, _)] = stored(two, run_id, "eval/loss")
    assert (
        math.isnan(value)
        and "eval/loss=inf at step 3" in open_client(two.folders).get_run(run_id).data.tags["lorasweep.nonfinite"]
    )


def test_a_trial_that_comes_back_takes_up_what_others_did_meanwhile(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    run_id = one.start()
    one.train(1, 2)
    one.send()
    one.train(3, 6)  # waits in the spool of host one, which hangs
    one.tracker.let_go(0)
    two.start(run_id, [])  # from a checkpoint at step 2
    two.train(3, 4, value=0.5)
    two.send()
    two.train(5, 5, value=0.5)
    checkpoint = saved(two)
    two.train(6, 8, value=0.5)
    two.die()

    assert readers.replay(one.folders, one.sweep) == 0  # nobody sends stale points behind its back
    one.begin()
    one.tracker.take_up_ends()
    assert one.start(run_id, checkpoint) == run_id
    one.train(6, 9, value=0.75)
    assert one.finish()
    values = {1: 1.0, 2: 2.0, 3: 3.5, 4: 4.5, 5: 5.5, 6: 6.0, 7: 7.75, 8: 8.75, 9: 9.75}  # 6: its own first report
    assert [(step, value) for step, value, _ in stored(one, run_id)] == list(values.items())


def test_a_host_that_dies_while_it_takes_up_a_trial_takes_it_up_again(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    run_id = one.start()
    one.train(1, 3)
    one.send()
    one.train(4, 5)
    checkpoint = saved(one)
    one.die()
    for _ in range(3):
        two.begin()
        two.start(run_id, checkpoint)
        two.train(6, 6, value=0.5)
        two.die()
    two.begin()
    two.start(run_id, checkpoint)
    assert two.finish()
    assert steps(two, run_id) == [1, 2, 3, 4, 5, 6]


def test_a_run_that_nobody_noted_is_found_again(hosts: tuple[Host, Host]) -> None:
    """The first host died between making the run and saying so."""
    one, two = hosts
    run_id = one.start()
    one.die()
    assert two.start(None, []) == run_id
    assert two.finish()
    one.begin()
    assert one.start(run_id) == run_id  # ended in MLflow, still open in the study: the same run trains on
    assert open_client(one.folders).get_run(run_id).info.status == "RUNNING"
    assert one.finish()


def test_an_end_that_only_a_dead_disk_had_is_none(hosts: tuple[Host, Host], server: Server) -> None:
    """Where hosts share the sweep, the study has not heard of it: another worker trains the trial by now."""
    one, two = hosts
    run_id = one.start()
    one.train(1, 2)
    spool = one.tracker._open[0].spool
    spool.set_end("FINISHED", {"lorasweep.state": "complete"})
    one.die()
    two.start(run_id, [])
    one.begin()
    one.tracker.take_up_ends()
    one.tracker.close()
    readers.settle(one.folders, one.sweep)
    assert open_client(two.folders).get_run(run_id).info.status == "RUNNING" and steps(two, run_id) == []
    two.train(1, 2, value=0.5)
    assert two.finish() and [value for _, value, _ in stored(two, run_id)] == [1.5, 2.5]


def test_metrics_go_through_a_checkpoint_in_a_bucket(
    hosts: tuple[Host, Host], s3: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    one, two = hosts
    bucket = Folders(one.folders.tracking, files=f"s3://lorasweep/{one.sweep}")
    run_id = one.start()
    one.train(1, 2)
    checkpoints_of(bucket, one.sweep, "0").save({"unsent": one.tracker.unsent(0)}, {"a": torch.zeros(1)})
    one.die()
    elsewhere = Folders(two.folders.tracking, files=bucket.files)
    found = checkpoints_of(elsewhere, one.sweep, "0").load()
    assert found is not None
    two.start(run_id, found.state["unsent"])
    assert two.finish() and steps(two, run_id) == [1, 2]


# -- the end of a trial -----------------------------------------------------------------------------------------------


def test_an_end_is_in_mlflow_before_it_is_told(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, asked = Host(tmp_path, "one", server), []
    monkeypatch.setattr("lorasweep.tracking.tracker.RETRY_SECONDS", 0.05)
    run_id = host.start()
    host.train(1, 3)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    server.stop()
    threading.Timer(0.5, server.start).start()
    record = TrialRecord(0, TrialState.COMPLETE, value=1.0, metrics={"train/loss": 2.0})
    assert host.tracker.finish_trial(0, record, {"adapter": adapter}, lambda: asked.append(1) or True)
    run = open_client(host.folders).get_run(run_id)
    assert run.info.status == "FINISHED" and steps(host, run_id) == [1, 2, 3, 4]
    assert open_client(host.folders).list_artifacts(run_id, "adapter")
    assert len(asked) > 1 and caplog.text.count("its end must be there before it is told") == 1
    assert not list(host.folders.spool(host.sweep).glob("*.artifacts"))
    host.tracker.close()


def test_an_end_that_mlflow_does_not_take_leaves_the_trial_open(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, "one", server)
    run_id = host.start()
    host.train(1, 3)
    monkeypatch.setattr("lorasweep.tracking.tracker.RETRY_SECONDS", 0.01)
    server.stop()
    try:
        with pytest.raises(StorageError, match="Trial 0 stays open"):
            host.tracker.finish_trial(0, TrialRecord(0, TrialState.COMPLETE, value=1.0), {}, goes_on=lambda: False)
        monkeypatch.setattr("lorasweep.tracking.tracker.END_SECONDS", 0.0)
        with pytest.raises(StorageError, match="Trial 0 stays open"):
            host.finish()
        ours = iter([True, True, False])
        monkeypatch.setattr("lorasweep.tracking.tracker.END_SECONDS", 60.0)
        assert not host.tracker.finish_trial(0, TrialRecord(0, TrialState.COMPLETE), {}, lambda: next(ours))
        host.tracker.let_go(0)  # another worker has it
    finally:
        server.start()
    host.tracker.close()
    assert open_client(host.folders).get_run(run_id).info.status == "RUNNING"


def test_points_of_trials_come_from_mlflow_where_hosts_share_the_sweep(hosts: tuple[Host, Host]) -> None:
    one, two = hosts
    run_id = one.start()
    one.train(1, 3)
    one.send()
    found = dict(points_of(two.folders, two.sweep, {0: run_id, 1: ""}, {"train/loss"}))
    assert [(point.step, point.metrics) for point in found[0]] == [(n, {"train/loss": float(n)}) for n in (1, 2, 3)]
    assert list(found) == [0]
    alone = Folders(one.folders.tracking, one.folders.server)
    assert [point.step for point in dict(points_of(alone, one.sweep, {0: run_id, 1: ""}))[0]] == [0, 1, 2, 3]
    one.die()


def test_nothing_of_this_touches_a_sweep_on_one_host(server: Server, tmp_path: Path) -> None:
    folders = Folders(tmp_path, server.url)
    tracker = Tracker(folders, "alone", send_every_seconds=1e9)
    tracker.connect()
    tracker.start_trial(0, sweep_config(), "a: 1\n", {}, {}, search_data(), Counts())
    tracker.log(0, {"a": 1.0}, 1)
    assert tracker.unsent(0) == []
    before = path_of(folders.spool("alone"), 0).read_bytes()
    tracker.close()
    assert Spool(folders.spool("alone"), 0).waiting() == []
    assert path_of(folders.spool("alone"), 0).read_bytes() == before
