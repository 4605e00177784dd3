"""`lorasweep ui`: MLflow's own page on 127.0.0.1, opened at a sweep's saved leaderboard.

What a dead process left in the spool is sent to MLflow first, so that the page shows everything that was reported.
Neighbours: `tracking.readers` (replay, experiments), `tracking.views` (the address), `publishing`,
`cli` (calls).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.errors import LorasweepError, StorageError, UsageError, nearest

if TYPE_CHECKING:
    from lorasweep.config.home import Folders

STARTUP_SECONDS = 90
PORTS_TRIED = 20


def serve(
    name: str | None, overrides: list[str], port: int = 5000, as_json: bool = False, view: str = "leaderboard"
) -> int:
    """Start MLflow's server, print the address of a saved view, and stay until Ctrl-C; returns the exit code. A sweep
    whose runs a server keeps is shown there, and nothing is started.

    `name` None: the sweep that was written to last. `view`: one of `tracking_view.VIEWS`. With `as_json` the first line
    is `{"url", "sweep", "pid"}`.

    Raises:
        UsageError: nothing was tracked here yet, no such sweep, or no free port.
        LorasweepError: the server does not start.
    """
    from lorasweep.config.compose import place_alone, tracking_place
    from lorasweep.config.home import Home
    from lorasweep.tracking import readers as tracking_readers
    from lorasweep.tracking.views import VIEWS, address

    folders = where_tracked(tracking_place(place_alone(overrides, "ui"), Home.find()), name)
    sweep, experiment_id = find_sweep(folders, name)
    tracking_readers.replay(folders, sweep)
    refresh(folders, sweep)
    if folders.server is not None:  # it has its page already
        url = address(folders.server, experiment_id, view)
        print(json.dumps({"url": url, "sweep": sweep}) if as_json else f"{VIEWS[view]} of {sweep}: {url}", flush=True)
        if on_a_desktop():
            webbrowser.open(url)
        return 0
    port = free_port(port)
    url = address(port, experiment_id, view)
    server, log = start(folders, port)
    try:
        wait_until_up(server, port, log)
        if as_json:
            print(json.dumps({"url": url, "sweep": sweep, "pid": server.pid}), flush=True)
        else:
            print(f"{VIEWS[view]} of {sweep}: {url}\nCtrl-C stops the server.", flush=True)
        if on_a_desktop():
            webbrowser.open(url)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(server)


def refresh(folders: Folders, sweep: str) -> None:
    """Bring the sweep's views and descriptions up to date. Where that cannot be done now, the page shows older ones."""
    from lorasweep import publishing
    from lorasweep.search.study import SweepStudy

    if sweep not in SweepStudy.names(folders):  # tracked, but its study was moved away
        return
    try:
        publishing.publish(SweepStudy.load(folders, sweep), folders)
    except StorageError as error:
        print(f"lorasweep: the page may be behind: {error}", file=sys.stderr)


def where_tracked(folders: Folders, name: str | None) -> Folders:
    """`folders` with the server that keeps the sweep's runs (`name` None: the newest sweep's), where there is one."""
    from lorasweep.search.study import SweepStudy

    names = SweepStudy.names(folders)
    found = name or (names[0] if names else None)
    return SweepStudy.load(folders, found).folders if found in names else folders


def find_sweep(folders: Folders, name: str | None) -> tuple[str, str]:
    """(name, experiment id) of the sweep to show.

    Raises:
        UsageError: there is none; names those that there are.
    """
    from lorasweep.tracking import readers as tracking_readers

    where = folders.server or folders.mlflow_db.parent
    if folders.server is None and not folders.mlflow_db.exists():
        raise UsageError(f"nothing was tracked in {where} yet (no mlflow.db); run a sweep, or give tracking.dir=FOLDER")
    found = tracking_readers.newest_experiment(folders, name)
    if found is None:
        known = tracking_readers.sweep_names(folders)
        raise UsageError(f"no sweep {name or ''} is tracked in {where}; {nearest(name or '', known)}")
    return found


def command(folders: Folders, port: int) -> list[str]:
    """The command line of the server. One worker: a page for one person needs no four processes of 300 MB."""
    from lorasweep.tracking.store import database_uri

    mlflow = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [*mlflow, "--backend-store-uri", database_uri(folders)]


def start(folders: Folders, port: int) -> tuple[subprocess.Popen[bytes], Path]:
    """Start the server in the tracking folder; its output goes to a log file, which is returned too."""
    log = folders.own / "ui.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten more processes, for pages of which a sweep has none
        **os.environ,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with log.open("wb") as out:
        server = subprocess.Popen(
            command(folders, port),
            cwd=folders.mlflow_db.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to handle; stop() ends the server with its workers
        )

    def leave(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)
    return server, log


def wait_until_up(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return once the server answers.

    Raises:
        LorasweepError: it ended, or did not answer in time; the end of its log is in the message.
    """
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise LorasweepError(f"MLflow's server did not start on port {port}; the end of {log}:\n{tail}")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers."""
    if server.poll() is not None:
        return
    if os.name == "posix":
        os.killpg(server.pid, signal.SIGTERM)
    else:
        server.terminate()
    try:
        server.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()


def free_port(wanted: int) -> int:
    """The wanted port of 127.0.0.1, or the next free one: another `lorasweep ui` may hold it.

    Raises:
        UsageError: no such port, or none of the next ones is free.
    """
    if not 0 < wanted < 65_536:
        raise UsageError(f"--port {wanted}: a port is a number from 1 to 65535; 5000 is the default")
    for port in range(wanted, min(wanted + PORTS_TRIED, 65_536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UsageError(f"no port from {wanted} to {wanted + PORTS_TRIED - 1} is free on 127.0.0.1; give another --port N")


def on_a_desktop() -> bool:
    """Whether opening a browser would reach the person at the terminal."""
    if not sys.stdout.isatty() or os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
