"""`lorasweep ui`: the server it starts, the address it prints, and what a browser shows there."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorasweep import ui
from lorasweep.errors import LorasweepError, UsageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.tracking.tracker import Tracker
from trackkit import Counts, Folders, search_data, sweep_config

pytestmark = pytest.mark.slow  # a server

SERVE = "import sys; from lorasweep import ui; sys.exit(ui.serve(None, sys.argv[1:2], int(sys.argv[2]), as_json=True))"


@dataclass
class Running:
    process: subprocess.Popen[str]
    url: str
    port: int
    server_pid: int


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    folders = Folders(tmp_path_factory.mktemp("ui"))
    tracker = Tracker(folders, "quick")
    tracker.open_sweep(sweep_config(), "", ["optimizer.lr", "adapter.r"])
    for number, value in enumerate((0.6127, 0.9341, 0.7518)):
        config = sweep_config()
        config.optimizer.lr = 0.0015 + number / 1000
        params = {"optimizer.lr": config.optimizer.lr}
        tracker.start_trial(number, config, "", params, {}, search_data(), Counts())
        tracker.log(number, {"eval/accuracy": value, "eval/f1": value / 2, "train/loss": 1 - value}, 10)
        record = TrialRecord(number, TrialState.COMPLETE, value, {"eval/accuracy": value})
        tracker.finish_trial(number, record, {})
    # A fourth trial died before MLflow heard of its last points: the page must show them all the same.
    tracker.start_trial(3, sweep_config(), "", {}, {}, search_data(), Counts())
    tracker.log(3, {"eval/accuracy": 0.8864}, 5)
    return folders


@pytest.fixture(scope="module")
def running(tracked: Folders, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", SERVE, f"tracking.dir={tracked.mlflow_db.parent}", str(port)]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=elsewhere)
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())
    assert told["sweep"] == "quick"
    yield Running(process, told["url"], port, told["pid"])
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 0
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", port), timeout=2):
        pass  # nobody may listen any more


def test_the_address_answers_with_all_that_was_reported(running: Running) -> None:
    assert running.url.startswith(f"http://127.0.0.1:{running.port}/#/experiments/1/runs?workflowType=machine_learning")
    body = json.dumps({"experiment_ids": ["1"], "filter": "tags.`lorasweep.kind` = 'trial'"}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{running.port}/api/2.0/mlflow/runs/search", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        runs = json.load(answer)["runs"]
    values = {m["value"] for run in runs for m in run["data"]["metrics"] if m["key"] == "eval/accuracy"}
    assert values == {0.6127, 0.9341, 0.7518, 0.8864}


def test_no_sweep_and_no_database_are_told(tracked: Folders, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing was tracked in .* yet"):
        ui.find_sweep(Folders(tmp_path), None)
    with pytest.raises(UsageError, match="did you mean `quick`"):
        ui.find_sweep(tracked, "qick")
    assert ui.find_sweep(tracked, "quick") == ui.find_sweep(tracked, None) == ("quick", "1")


def test_a_taken_port_moves_on_and_a_dead_server_is_explained(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < ui.free_port(port) <= port + ui.PORTS_TRIED
    log = tmp_path / "ui.log"
    log.write_text("first\nno such option\n")
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    with pytest.raises(LorasweepError, match="no such option"):
        ui.wait_until_up(dead, port, log)


@pytest.mark.parametrize("port", [-5, 0, 65_536])
def test_ports_that_are_none(port: int) -> None:
    with pytest.raises(UsageError, match="a number from 1 to 65535"):
        ui.free_port(port)
