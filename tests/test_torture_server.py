"""Sweeps whose runs a real MLflow server keeps: it is stopped, frozen and started again while they train.

One slot, where a sweep is compared bit for bit: a trial that waits for its run leaves its neighbours in other shapes.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lorasweep.cli import main
from lorasweep.config.home import Folders
from lorasweep.failpoints import VARIABLE
from lorasweep.search.study import SweepStudy
from lorasweep.tracking.spool import is_settled
from mlflowserver import Server
from test_torture import ALONE, TRIALS, Whole, run_whole, trains, wait_for
from torturekit import MINI, Nursery, check_agreement, check_same, home_with, left_by

SECRET = "pa55w0rd-of-mine"


@pytest.fixture(scope="module")
def whole(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return run_whole(nursery, tmp_path_factory.mktemp("whole") / "home", ALONE)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path / "server") as running:
        yield running


def spools(home: Path) -> dict[int, str]:
    return {int(path.stem[-5:]): path.read_text() for path in home.glob("mlruns/lorasweep/sweeps/mini/spool/*.jsonl")}


def ends(home: Path) -> list[int]:
    """Trials whose end is in the spool."""
    return [trial for trial, text in spools(home).items() if '"end"' in text]


def trains_now(home: Path) -> bool:
    return any('"train/loss"' in text and '"end"' not in text for text in spools(home).values())


@pytest.mark.slow
def test_a_server_that_stops_freezes_and_comes_back_changes_nothing(
    nursery: Nursery, whole: Whole, server: Server, tmp_path: Path
) -> None:
    home = home_with(tmp_path / "home", ALONE)
    (home / "mlflow.db").unlink()
    login = server.url.replace("://", f"://me:{SECRET}@")
    command = nursery.start(home, "sweep", "mini", f"tracking.uri={login}")
    spool = home / "mlruns/lorasweep/sweeps/mini/spool"

    def disturb(after: int, away: Callable[[], None], back: Callable[[], None]) -> None:
        """Once so many trials have ended and another one trains, let it train to its end without the server."""
        wait_for(lambda: len(ends(home)) >= after and trains_now(home), command)
        before = len(ends(home))
        away()
        wait_for(lambda: len(ends(home)) > before, command)
        assert not all(is_settled(spool, trial) for trial in ends(home))
        back()

    disturb(0, server.stop, server.start)
    disturb(3, lambda: server.send(signal.SIGSTOP), lambda: server.send(signal.SIGCONT))
    assert command.wait(200) == 0, command.output
    assert "Training goes on" in command.output and "Traceback" not in command.output
    assert "View run" not in command.output  # what MLflow's client would print
    left = left_by(home, database=server.database)
    check_agreement(left, TRIALS)
    check_same(left, whole.left)
    assert not list(spool.glob("*.artifacts")) and not (home / "mlflow.db").exists()
    assert SECRET not in command.output
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path

    board = json.loads(nursery.run(home, "leaderboard", "mini", "--json"))
    assert len(board["rows"]) == TRIALS
    assert json.loads(nursery.run(home, "ui", "mini", "--json"))["url"].startswith(f"{server.url}/#/experiments/")
    server.stop()
    said = nursery.run(home, "report", "mini", code=1)
    assert "does not answer" in said and "report.html" in said
    assert "All is done" in nursery.run(home, "sweep", "mini")  # nothing is left that would need the server


@pytest.mark.torture  # its short twins: the one above, and worker/test_moves.py
@pytest.mark.slow
def test_a_server_that_stays_away_gets_everything_at_the_next_start(
    nursery: Nursery, server: Server, tmp_path: Path
) -> None:
    home = home_with(tmp_path / "home", MINI.replace("trials: 7", "trials: 3"))  # as many as slots: no run to make
    command = nursery.start(home, "sweep", "mini", f"tracking.uri={server.url}")
    wait_for(lambda: trains(home), command)
    server.stop()
    assert command.wait() == 1, command.output
    assert "the server does not answer" in command.output and "Traceback" not in command.output
    assert {trial["state"] for trial in left_by(home).trials.values()} == {"complete"}  # training went on to its end
    again = nursery.run(home, "resume", "mini", code=1)
    assert f"no MLflow server can be used at {server.url}" in again.replace("\n", " ") and "Nothing is lost" in again
    server.start()
    assert "All is done" in nursery.run(home, "resume", "mini")
    check_agreement(left_by(home, database=server.database), 3)


@pytest.mark.torture  # its short twin: test_torture.py, without a server
def test_a_sweep_killed_at_the_worst_places_beside_a_server(
    nursery: Nursery, whole: Whole, server: Server, tmp_path: Path
) -> None:
    home, words = home_with(tmp_path / "home", ALONE), ("sweep", "mini", f"tracking.uri={server.url}")
    for failpoint in ("run-created:1", "artifacts-placed:1", "end-spooled:1", "run-ended:2", "sweep-ended:1"):
        assert nursery.start(home, *words, **{VARIABLE: failpoint}).wait() == -signal.SIGKILL, failpoint
    nursery.run(home, *words)
    left = left_by(home, database=server.database)
    check_agreement(left, TRIALS)
    check_same(left, whole.left)


class Other(BaseHTTPRequestHandler):
    """A server, but not MLflow's."""

    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def other_server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Other) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{other.server_port}"
        other.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_wrong_address_is_told_before_anything_is_stored(
    other_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mini.yaml").write_text(MINI)
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # to be put back
    for uri, code, message in [
        ("http://127.0.0.1:9", 1, "http://127.0.0.1:9: the server does not answer (connection refused). Nothing is"),
        (f"http://me:{SECRET}@127.0.0.1:9", 1, "no MLflow server can be used at http://127.0.0.1:9"),
        (other_server, 1, "what answers there is no MLflow server"),
        (f"sqlite:///{SECRET}@x.db", 2, "`tracking.uri` must be the address of an MLflow server, such as http://"),
        ("127.0.0.1:5000", 2, "leave it out for mlflow.db in the folder `tracking.dir`"),
        (f"http://me:{SECRET}@:1", 2, "`tracking.uri` must be the address"),
    ]:
        for command in ("sweep", "train"):
            words = [command, "mini"] if command == "sweep" else [command, "model=tiny_encoder", "data=demo_reviews"]
            assert main([*words, f"tracking.uri={uri}"]) == code, uri
            said = capsys.readouterr()
            assert message in said.err and SECRET not in said.err + said.out
    assert SweepStudy.names(Folders(tmp_path)) == [] and not (tmp_path / "mlflow.db").exists()
