"""A sweep in MLflow, read back through MlflowClient alone; kills, replays and values that MLflow would spoil."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from lorasweep.errors import StorageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.tracking import readers as tracking_readers
from lorasweep.tracking.entities import LONGEST_PARAM, flatten, shorten
from lorasweep.tracking.store import open_client
from lorasweep.tracking.tracker import Tracker
from mlflowserver import Server
from trackkit import Counts, Folders, new_folders, search_data, sweep_config

PROVENANCE = {"lorasweep.git.commit": "c" * 40, "lorasweep.git.dirty": "true", "lorasweep.seed": "0"}
HERE = Path(__file__).parent.parent


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return new_folders(tmp_path / "my project")  # a space in the path


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("mlflow") / "server") as running:
        yield running


@pytest.fixture(params=["folder", pytest.param("server", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folders]:
    """A tracking folder with its own database, and one whose runs a server keeps: the same is promised of both."""
    if request.param == "folder":
        yield new_folders(tmp_path / "my project")
        return
    running: Server = request.getfixturevalue("server")
    found = Folders(tmp_path / "my project", running.url)
    yield found
    client = client_of(found)  # the next test's experiment has the same name
    experiment = client.get_experiment_by_name("quick")
    if experiment is not None and experiment.lifecycle_stage == "active":
        client.rename_experiment(experiment.experiment_id, f"quick of {tmp_path.name}")


def opened(folders: Folders, **options: Any) -> Tracker:
    tracker = Tracker(folders, "quick", **{"send_every_seconds": 0.0, **options})
    tracker.open_sweep(sweep_config(), "model: {}\n", ["optimizer.lr", "adapter.r"])
    return tracker


def start(tracker: Tracker, number: int = 0, **params: Any) -> str:
    return tracker.start_trial(
        number, sweep_config(), "a: 1\n", params or {"optimizer.lr": 0.0021}, PROVENANCE, search_data(), Counts()
    )


def client_of(folders: Folders) -> MlflowClient:
    return open_client(folders)


def history(folders: Folders, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client_of(folders).get_metric_history(run_id, key)]


def complete(number: int = 0, **metrics: float) -> TrialRecord:
    return TrialRecord(number, TrialState.COMPLETE, value=0.9, metrics=metrics)


def test_a_trials_run_holds_everything(either: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # not the tracking folder: nothing may depend on it
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    tracker = opened(either)
    run_id = start(tracker, 3, **{"optimizer.lr": 0.0021, "model": "distilbert"})
    tracker.log(3, {"train/loss": 0.7, "train/samples": 16.0}, 1)
    tracker.log(3, {"eval/accuracy": 0.8, "eval/loss": 0.5}, 10)
    tracker.flush(3)
    tracker.log(3, {"train/samples_per_second": 99.0}, 10)
    record = TrialRecord(3, TrialState.COMPLETE, value=0.8, metrics={"eval/accuracy": 0.8, "eval/loss": 0.5})
    tracker.finish_trial(3, record, {"adapter": adapter})
    tracker.close_sweep({"counts": {"complete": 1}, "best": record.to_json(), "seconds": 2.5, "samples": 160})
    tracker.close()

    client = client_of(either)
    experiment = client.get_experiment_by_name("quick")
    if either.server is None:
        assert Path(experiment.artifact_location) == either.mlruns / experiment.experiment_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "quick 3"
    assert flatten(sweep_config()).items() <= run.data.params.items()
    assert run.data.params["model"] == "distilbert" and run.data.params["adapter.r"] == "8"
    assert run.data.params["data.pair_column"] == "null" and run.data.params["adapter.rslora"] == "false"
    wanted = {
        "lorasweep.kind": "trial",
        "lorasweep.sweep": "quick",
        "lorasweep.trial": "3",
        "lorasweep.state": "complete",
    }
    assert {**wanted, **PROVENANCE, "mlflow.source.git.commit": "c" * 40}.items() <= run.data.tags.items()
    assert run.data.metrics == {
        "train/loss": 0.7,
        "train/samples": 16.0,
        "train/samples_per_second": 99.0,
        "eval/accuracy": 0.8,
        "eval/loss": 0.5,
        "parameters/adapter": 1000.0,
        "parameters/head": 130.0,
        "parameters/trainable": 1130.0,
        "parameters/total": 50_000.0,
    }
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.dataset.source_type) == ("demo_reviews", "f" * 36, "code")
    assert json.loads(data.dataset.profile)["fingerprint"] == "f" * 64
    assert {item.path for item in client.list_artifacts(run_id)} == {"adapter", "config.yaml"}
    assert {item.path for item in client.list_artifacts(run_id, "adapter")} == {"adapter/adapter_config.json"}
    assert Path(client.download_artifacts(run_id, "config.yaml")).read_text() == "a: 1\n"
    assert Path(client.download_artifacts(run_id, "adapter/adapter_config.json")).read_text() == "{}"
    assert not list(either.spool("quick").glob("*.artifacts"))  # nothing is kept twice
    own = client.search_runs([experiment.experiment_id], "tags.`lorasweep.kind` = 'sweep'")
    assert [r.info.status for r in own] == ["FINISHED"]
    assert own[0].data.metrics["sweep/best_value"] == 0.8 and own[0].data.metrics["sweep/trials_complete"] == 1
    assert {item.path for item in client.list_artifacts(own[0].info.run_id)} == {"config.yaml", "summary.json"}


@pytest.mark.parametrize(
    ("state", "status"),
    [(TrialState.COMPLETE, "FINISHED"), (TrialState.PRUNED, "FINISHED"), (TrialState.FAILED, "FAILED")],
)
def test_states_agree(either: Folders, state: TrialState, status: str) -> None:
    tracker = opened(either)
    run_id = start(tracker)
    tracker.finish_trial(0, TrialRecord(0, state, reason="diverged: loss is NaN at step 3"), {})
    run = client_of(either).get_run(run_id)
    assert (run.info.status, run.data.tags["lorasweep.state"]) == (status, str(state))
    assert run.data.tags["lorasweep.reason"] == "diverged: loss is NaN at step 3"
    failed = tracker.start_failed(1, {"adapter.r": 0})
    tracker.finish_trial(1, TrialRecord(1, TrialState.FAILED, reason="config: r"), {})
    assert client_of(either).get_run(failed).data.params == {"adapter.r": "0"}


def test_the_newest_value_is_that_of_the_kept_checkpoint(either: Folders) -> None:
    tracker = opened(either)
    run_id = start(tracker)
    for step, value in ((10, 0.9), (20, 0.8)):
        tracker.log(0, {"eval/accuracy": value, "eval/f1": 0.5}, step)
    tracker.finish_trial(0, complete(**{"eval/accuracy": 0.9, "eval/f1": 0.5}), {})
    assert history(either, run_id, "eval/accuracy") == [(10, 0.9), (20, 0.8), (21, 0.9)]
    assert history(either, run_id, "eval/f1") == [(10, 0.5), (20, 0.5)]
    assert client_of(either).get_run(run_id).data.metrics["eval/accuracy"] == 0.9


def test_a_trial_trained_again_continues_its_run_and_logs_nothing_twice(either: Folders) -> None:
    first = opened(either)
    run_id = start(first)
    for step in range(1, 6):
        first.log(0, {"train/loss": 1.0 / step}, step)
    first.flush(0)
    first.log(0, {"train/loss": 1.0 / 6}, 6)  # reported, not sent: the process dies here
    second = opened(either)
    assert start(second) == run_id
    for step in range(1, 9):
        second.log(0, {"train/loss": 1.0 / step}, step)
    second.finish_trial(0, complete(), {})
    assert history(either, run_id, "train/loss") == [(step, 1.0 / step) for step in range(1, 9)]
    client = client_of(either)
    runs = client.search_runs([client.get_experiment_by_name("quick").experiment_id], "tags.`lorasweep.kind` = 'trial'")
    assert len(runs) == 1 and len(runs[0].inputs.dataset_inputs) == 1


def test_points_that_mlflow_had_already_stored_are_recognised(either: Folders) -> None:
    """The kill falls between MLflow's commit and the spool's note of it."""
    tracker = opened(either)
    run_id = start(tracker)
    for step in range(3):
        tracker.log(0, {"m": float(step), "n": math.nan}, step)
    tracker.flush(0)
    (either.spool("quick") / "trial-00000.sent").unlink()
    again = opened(either)
    start(again)
    again.flush(0)
    assert history(either, run_id, "m") == [(0, 0.0), (1, 1.0), (2, 2.0)]
    assert len(history(either, run_id, "n")) == 3


def test_a_kill_between_creating_a_run_and_noting_it_leaves_one_run(either: Folders) -> None:
    tracker = opened(either)
    run_id = start(tracker)
    spool = either.spool("quick") / "trial-00000.jsonl"
    spool.write_text(spool.read_text().splitlines()[0] + "\n")  # the line that notes the run is missing
    assert start(opened(either)) == run_id


def test_a_run_deleted_by_hand_is_replaced_and_gets_all_metrics(either: Folders) -> None:
    tracker = opened(either)
    run_id = start(tracker)
    tracker.log(0, {"m": 1.0}, 1)
    tracker.flush(0)
    client_of(either).delete_run(run_id)
    again = opened(either)
    fresh = start(again)
    again.flush(0)
    assert fresh != run_id and history(either, fresh, "m") == [(1, 1.0)]


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from trackkit import *
from lorasweep.tracking.tracker import Tracker
from lorasweep.records import TrialRecord, TrialState
tracker = Tracker(Folders(Path(sys.argv[1]), *sys.argv[3:]), "quick", send_every_seconds=0.0)
tracker.open_sweep(sweep_config(), "", [])
tracker.start_trial(0, sweep_config(), "", {}, {}, search_data(), Counts())
for step in range(1, 61):
    tracker.log(0, {"train/loss": 1.0 / step}, step)
    tracker.flush(0)
    print(step, flush=True)
tracker.finish_trial(0, TrialRecord(0, TrialState.COMPLETE), {})
tracker.close()
"""


def test_sigkill_in_the_middle_then_the_trial_again(either: Folders) -> None:
    for stop_at in (17, 60):
        server = [either.server] if either.server else []
        command = [sys.executable, "-c", KILLED, str(either.tracking), str(HERE), *server]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = 0
        while said < stop_at:
            said = int(process.stdout.readline())
        if stop_at < 60:
            process.send_signal(signal.SIGKILL)
        assert process.wait() == (0 if stop_at == 60 else -signal.SIGKILL)
    client = client_of(either)
    [run] = client.search_runs(
        [client.get_experiment_by_name("quick").experiment_id], "tags.`lorasweep.kind` = 'trial'"
    )
    assert run.info.status == "FINISHED"
    assert history(either, run.info.run_id, "train/loss") == [(step, 1.0 / step) for step in range(1, 61)]


def test_what_a_dead_process_left_is_replayed_for_readers(either: Folders) -> None:
    tracker = opened(either, send_every_seconds=1e9)
    run_id = start(tracker)
    tracker.log(0, {"m": 1.0}, 5)
    tracker.flush(0)
    assert history(either, run_id, "m") == []
    assert tracking_readers.replay(either, "quick") > 0
    assert history(either, run_id, "m") == [(5, 1.0)]
    tracker.finish_trial(0, complete(), {})
    assert history(either, run_id, "m") == [(5, 1.0)]
    assert tracking_readers.replay(either, "quick") == 0


def test_non_finite_metrics_are_neither_dropped_nor_faked(either: Folders) -> None:
    tracker = opened(either)
    run_id = start(tracker)
    tracker.log(0, {"train/loss": math.nan, "train/grad_norm": math.inf}, 4)
    tracker.log(0, {"train/grad_norm": -math.inf}, 5)
    tracker.finish_trial(0, TrialRecord(0, TrialState.FAILED, reason="diverged: NaN"), {})
    run = client_of(either).get_run(run_id)
    assert math.isnan(run.data.metrics["train/loss"]) and math.isnan(run.data.metrics["train/grad_norm"])
    assert run.data.tags["lorasweep.nonfinite"] == "train/grad_norm=inf at step 4"


def test_secrets_and_long_values(either: Folders) -> None:
    tracker = opened(either)
    config = sweep_config()
    config.data.train = "https://me:pa55word@host/train.csv"
    config.data.kind = "file"
    config.data.label_names = [f"class {i:05d}" for i in range(1000)]
    tags = {"lorasweep.note": "hf_abcdefghijklmnopqrst"}
    run_id = tracker.start_trial(0, config, "train: https://me:pa55word@host\n", {}, tags, search_data(), Counts())
    tracker.finish_trial(0, complete(), {})
    run = client_of(either).get_run(run_id)
    stored = str(run.to_dictionary()) + run.inputs.dataset_inputs[0].dataset.source
    assert "pa55word" not in stored and "hf_abc" not in stored
    assert "pa55word" not in Path(client_of(either).download_artifacts(run_id, "config.yaml")).read_text()
    for path in either.mlruns.rglob("*.*"):
        assert not path.is_file() or "pa55word" not in path.read_text(errors="replace")
    long = run.data.params["data.label_names"]
    assert len(long) == LONGEST_PARAM and "shortened from" in long and "sha256" in long


@pytest.mark.slow
def test_readers_do_not_block_the_writer(folders: Folders) -> None:
    tracker = opened(folders)
    start(tracker)
    reader = sqlite3.connect(folders.mlflow_db)
    assert reader.execute("pragma journal_mode").fetchone() == ("wal",)
    reader.execute("begin")
    reader.execute("select count(*) from metrics").fetchone()  # an open read, as the page's
    begun = time.monotonic()
    tracker.finish_trial(0, complete(), {})
    assert time.monotonic() - begun < 10  # with SQLite's default journal this waits for its 20 s of patience
    reader.close()


def test_shortening_says_so() -> None:
    assert shorten("abc", 10) == "abc"
    text = "x" * 10_000
    assert shorten(text, 500).startswith("xxx") and "10000 characters" in shorten(text, 500)
    assert shorten(text, 500) != shorten(text[:-1] + "y", 500)


def test_more_metrics_and_params_than_one_batch_holds(either: Folders) -> None:
    tracker = opened(either, send_every_seconds=1e9)
    run_id = start(tracker, 0, **{f"swept.key{i}": i for i in range(250)})
    for step in range(300):
        tracker.log(0, {f"m{i}": float(step) for i in range(7)}, step)
    tracker.finish_trial(0, complete(), {})
    run = client_of(either).get_run(run_id)
    assert sum(key.startswith("swept.") for key in run.data.params) == 250
    assert all(len(history(either, run_id, f"m{i}")) == 300 for i in range(7))


def test_a_broken_database_keeps_metrics_and_says_what_failed(
    folders: Folders, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = opened(folders)
    run_id = start(tracker)
    tracker.flush(0)
    other = sqlite3.connect(folders.mlflow_db)
    other.execute("alter table metrics rename to gone")
    other.commit()
    monkeypatch.setattr("lorasweep.tracking.patience.RETRY_SECONDS", 0.0)
    tracker.log(0, {"m": 1.0}, 1)
    for _ in range(5):
        tracker.flush(0)  # a training loop goes on
    assert [record.levelname for record in caplog.records if record.name == "lorasweep.tracking.patience"] == [
        "WARNING"
    ]
    tracker.finish_trial(0, complete(), {})
    with pytest.raises(StorageError, match="could not store metrics of trial 0"):
        tracker.close()
    other.execute("alter table gone rename to metrics")
    other.commit()
    other.close()
    assert client_of(folders).get_run(run_id).info.status == "RUNNING"
    tracking_readers.settle(folders, "quick")  # what the next start does
    tracking_readers.settle(folders, "quick")
    run = client_of(folders).get_run(run_id)
    assert history(folders, run_id, "m") == [(1, 1.0)]
    assert (run.info.status, run.data.tags["lorasweep.state"]) == ("FINISHED", "complete")


def test_runs_end_when_the_database_is_back(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorasweep.tracking.patience.RETRY_SECONDS", 0.0)
    tracker = opened(folders)
    run_ids = [start(tracker, number) for number in (0, 1)]
    tracker.flush()
    other = sqlite3.connect(folders.mlflow_db)
    other.execute("alter table metrics rename to gone")
    other.commit()
    tracker.log(0, {"m": 1.0}, 1)
    tracker.finish_trial(0, complete(0), {})
    other.execute("alter table gone rename to metrics")
    other.commit()
    other.close()
    tracker.log(1, {"m": 2.0}, 1)
    tracker.flush(1)
    statuses = [client_of(folders).get_run(run_id).info.status for run_id in run_ids]
    assert statuses == ["FINISHED", "RUNNING"]
    assert history(folders, run_ids[0], "m") == [(1, 1.0)]


def test_a_run_that_is_to_end_and_trains_on_stays_open(either: Folders) -> None:
    """A kill between the end in the spool and the study's: the next process trains the last steps again."""
    tracker = opened(either)
    run_id = start(tracker)
    tracker.log(0, {"m": 1.0}, 1)
    spool = tracker._open[0].spool
    spool.set_end("FINISHED", {"lorasweep.state": "complete"})
    again = opened(either)
    assert client_of(either).get_run(run_id).info.status == "FINISHED"  # what was known has been passed on
    assert start(again) == run_id
    assert client_of(either).get_run(run_id).info.status == "RUNNING"
    again.log(0, {"m": 2.0}, 2)
    again.finish_trial(0, complete(), {})
    run = client_of(either).get_run(run_id)
    assert (run.info.status, history(either, run_id, "m")) == ("FINISHED", [(1, 1.0), (2, 2.0)])


def test_a_deleted_experiment_is_not_written_to(either: Folders) -> None:
    tracker = opened(either)
    client_of(either).delete_experiment(tracker.experiment_id)
    with pytest.raises(StorageError, match=r"mlflow experiments restore -x \d+"):
        opened(either)


def test_a_database_that_is_none(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    folders.mlflow_db.write_bytes(b"not a database, for sure" * 100)
    with pytest.raises(StorageError, match=r"could not open .*mlflow\.db"):
        opened(folders)


@pytest.mark.slow
def test_nothing_is_printed(tmp_path: Path) -> None:
    code = KILLED.replace("print(step, flush=True)", "pass")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(HERE)], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_a_bare_mlflow_server_in_the_folder_lists_runs_and_artifacts(folders: Folders, tmp_path: Path) -> None:
    tracker = opened(folders)
    run_id = start(tracker)
    tracker.finish_trial(0, complete(**{"eval/accuracy": 0.9}), {})
    tracker.close()
    port = 18000 + os.getpid() % 2000
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "log").open("w") as out:
        server = subprocess.Popen(
            command, cwd=folders.tracking, env=environment, stdout=out, stderr=out, start_new_session=True
        )
    try:
        base = f"http://127.0.0.1:{port}/api/2.0/mlflow"
        wait_for(f"http://127.0.0.1:{port}/health", server)
        found = ask(
            f"{base}/runs/search",
            {"experiment_ids": [tracker.experiment_id], "filter": "tags.`lorasweep.kind` = 'trial'"},
        )
        assert [run["info"]["run_id"] for run in found["runs"]] == [run_id]
        listed = ask(f"{base}/artifacts/list?run_id={run_id}")
        assert [item["path"] for item in listed["files"]] == ["config.yaml"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/get-artifact?path=config.yaml&run_uuid={run_id}") as page:
            assert page.read() == b"a: 1\n"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)
    assert not (folders.tracking / "mlruns" / "lorasweep" / "meta.yaml").exists()


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        assert server.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(address, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"{address} does not answer")


def ask(address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)
