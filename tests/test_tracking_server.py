"""How a server is asked: limits on each request, and whether something answers."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from lorasweep.tracking import server as tracking_server
from lorasweep.tracking.server import RETRIES, TIMEOUT, answers, asked_once, in_short, patient, tame_client


class Says(BaseHTTPRequestHandler):
    """Answers /health as a path says: http://host/503/health with 503."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Says) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_is_one_that_a_request_could_follow(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert answers(f"{address}/200") and answers(f"{address}/401") and answers(f"{address}/404")
    assert not answers(f"{address}/503")
    assert not answers("http://127.0.0.1:9") and not answers("http://no-such-host.invalid")

    def untrusted(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("self-signed"))

    monkeypatch.setattr(urllib.request, "urlopen", untrusted)
    assert answers("https://127.0.0.1:1")


def test_a_server_that_hangs_is_no_answer() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert not answers(f"http://127.0.0.1:{silent.getsockname()[1]}")  # waits for ever, where nothing limits it


def test_limits_are_the_users_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT, "200")
    monkeypatch.setenv(RETRIES, "")  # to be put back
    monkeypatch.delenv(RETRIES)
    for name in tracking_server.QUIET:
        monkeypatch.setenv(name, "x")
    tame_client()
    assert (os.environ[TIMEOUT], os.environ[RETRIES]) == ("200", "1")
    with patient():
        assert (os.environ[TIMEOUT], os.environ[RETRIES]) == ("200", "0")
    monkeypatch.delenv(TIMEOUT)
    with patient():
        assert os.environ[TIMEOUT] == "60"
    with asked_once():
        assert TIMEOUT not in os.environ and os.environ[RETRIES] == "0"
    assert TIMEOUT not in os.environ and os.environ[RETRIES] == "1"


def test_what_mlflow_says_at_length_is_told_in_short() -> None:
    long = (
        "API request to http://127.0.0.1:1/api/2.0/mlflow/runs/log-batch failed with exception HTTPConnectionPool("
        "host='127.0.0.1', port=1): Max retries exceeded with url: /api/2.0/mlflow/runs/log-batch (Caused by "
        "NewConnectionError('<…>: Failed to establish a new connection: [Errno 111] Connection refused'))"
    )
    assert in_short(long) == "the server does not answer (connection refused)"
    assert in_short("no such run") == "no such run"
