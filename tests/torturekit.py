"""Real sweeps in processes that get killed, and what is left compared with the sweep that was never stopped.

A nursery is a process that has imported all libraries once and forks a child for each command: a command then starts
in a fraction of a second, and dies alone when it is killed. `python torturekit.py` is the nursery itself. One serves
all tests of a session: the fixture `nursery`, or `the_nursery()` for plain functions.
"""

from __future__ import annotations

import atexit
import base64
import functools
import gc
import hashlib
import importlib
import json
import os
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasweep import environment
from lorasweep.config.home import Folders

MINI = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: demo_reviews
data: {demo_rows: 80}
sampler: {kind: tpe, startup_trials: 3}
train: {eval_every_steps: 3, log_every_steps: 1, checkpoint_every_seconds: 0.2}
launcher: {slots: 3}
sweep:
  trials: 7
  space:
    optimizer.lr: tag(log, interval(1e-4, 1e-2))
    adapter.r: choice(2, 4, 8)
    train.batch_size: choice(4, 8)
    train.accumulation: choice(1, 2)
    train.max_steps: range(5, 17, 4)
"""
LIBRARIES = (  # what a sweep imports by and by
    "lorasweep.sweeping", "lorasweep.worker.loop", "lorasweep.tracking.tracker", "lorasweep.training.snapshot",
    "optuna.importance",
    "lorasweep.metrics.classification", "lorasweep.models.peft_format", "lorasweep.search.samplers", "peft",
    "mlflow.store.tracking.sqlalchemy_store", "transformers.models.bert.modeling_bert",
    "transformers.models.gpt2.modeling_gpt2", "plotly.io",
)  # fmt: skip
OWN = -1  # in place of a trial's number
# what the wall says; no promise is made of it
CLOCK_METRICS = {"train/seconds", "train/samples_per_second", "train/cost", "eval/seconds", "eval/samples_per_second"}


class Command:
    """A running `lorasweep` command; `out` and `err` are what it has written so far."""

    def __init__(self, nursery: Nursery, number: int, log: Path):
        self.nursery, self.number, self.log = nursery, number, log

    @property
    def pid(self) -> int:
        return self.nursery.pids[self.number]

    @property
    def out(self) -> str:
        return self.log.with_suffix(".out").read_text(errors="replace")

    @property
    def err(self) -> str:
        return self.log.with_suffix(".err").read_text(errors="replace")

    @property
    def output(self) -> str:
        return self.out + self.err

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        self.nursery.listen(0)
        return self.nursery.ended.get(self.number)

    def wait(self, seconds: float = 120) -> int:
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s:\n{self.output}")
            self.nursery.listen(0.02)
        return self.nursery.ended[self.number]

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Nursery:
    """Starts commands; use as a context."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.pids: dict[int, int] = {}  # a command's number -> its process
        self.ended: dict[int, int] = {}  # a command's number -> its exit code
        self._rest = b""  # of a line that is half read
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip

    def start(self, home: Path, *words: str, cwd: Path | None = None, pictures: bool = False, **env: str) -> Command:
        """Its environment is this process's, of now, and `env`. `pictures`: draw the report's PNG files, which takes
        as long as a short sweep."""
        number = len(self.pids)
        log = self.folder / f"{number:03d}"
        for suffix in (".out", ".err"):
            log.with_suffix(suffix).touch()
        order = {
            "number": number, "words": words, "log": str(log), "cwd": str(cwd or home), "pictures": pictures,
            "env": {**os.environ, "LORASWEEP_HOME": str(home), **env},
        }  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        while number not in self.pids:
            self.listen(60)
        return Command(self, number, log)

    def run(self, home: Path, *words: str, code: int = 0, **env: str) -> str:
        """What a command has written once it ended so; with --json its standard output alone."""
        command = self.start(home, *words, **env)
        assert command.wait() == code, command.output
        return command.out if "--json" in words else command.output

    def listen(self, seconds: float) -> None:
        assert self.process.stdout is not None
        channel = self.process.stdout.fileno()  # not its buffer, in which a second line would be hidden from select
        while select.select([channel], [], [], seconds)[0]:
            read = os.read(channel, 65536)
            assert read, "the nursery died"
            *lines, self._rest = (self._rest + read).split(b"\n")
            for news in map(json.loads, lines):
                if "code" in news:
                    self.ended[news["number"]] = news["code"]
                else:
                    self.pids[news["number"]] = news["pid"]
            seconds = 0

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *_: object) -> None:
        for number, pid in self.pids.items():
            if number not in self.ended:
                os.kill(pid, signal.SIGKILL)
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=20)
        self.process.stdout.close()


@functools.cache
def the_nursery() -> Nursery:
    """The one of this test process, which ends with it."""
    logs = tempfile.TemporaryDirectory(prefix="lorasweep-nursery-", ignore_cleanup_errors=True)
    nursery = Nursery(Path(logs.name))
    atexit.register(logs.cleanup)
    atexit.register(nursery.__exit__)
    return nursery


DOT = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNkYAAAAAYAAjCB0C8AAAAASUVORK5CYII=")


REAL_PICTURES: list[Callable[..., None]] = []


def draw_nothing() -> None:
    """From now on each of a report's PNG files is one dot; tests/reporting and those in a browser look at real ones."""
    from lorasweep.reporting import png

    if REAL_PICTURES:
        return
    REAL_PICTURES.append(png.write)

    def dot(picture: Any, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DOT)

    png.write = dot


def home_with(folder: Path, sweep: str = MINI) -> Path:
    """A home with an empty MLflow database and sweeps/mini.yaml."""
    from trackkit import new_folders

    new_folders(folder)
    (folder / "sweeps").mkdir()
    (folder / "sweeps" / "mini.yaml").write_text(sweep)
    return folder


# -- what a sweep has left ------------------------------------------------------------------------------------------


@dataclass
class Left:
    """`trials`: number -> what the study says; `runs`: number -> MLflow's runs of it; `metrics`: number -> key ->
    [(step, value)] in the order of their reports, as the database has them. OWN stands for the sweep's own run."""

    trials: dict[int, dict[str, Any]]
    runs: dict[int, list[dict[str, Any]]]
    metrics: dict[int, dict[str, list[tuple[int, float]]]]
    report: bool


Asks = Callable[[str], list[tuple]]  # a query of MLflow's database -> its rows


def left_by(
    home: Path,
    sweep: str = "mini",
    kind: str = "trial",
    database: Path | None = None,
    folders: Folders | None = None,
    asks: Asks | None = None,
) -> Left:
    """Read study, MLflow and what the kept checkpoints answered; of a sweep's trials, or of its finalists. `database`:
    that of the server which keeps the runs; None: the home's own. `folders`, `asks`: where studies and runs are in
    PostgreSQL, the one and the other."""
    from lorasweep import results
    from lorasweep.search.finals import FinalsStudy
    from lorasweep.search.study import SweepStudy

    study = SweepStudy.load(folders or Folders(home), sweep)
    if kind == "finalist":
        study = FinalsStudy.of(study) or study
    records = study.records()
    trials = {record.trial: {**record.to_json(), "train_seconds": 0, "peak_memory_bytes": 0} for record in records}
    for number, trial in trials.items():
        answers = results.place_of(study.files)
        kept = results.name_of(number) in answers.names()
        trial["answers"] = hashlib.sha256(answers.read(results.name_of(number))).hexdigest() if kept else None
    if asks is not None:
        runs, metrics = _runs_of(asks, sweep, kind)
    else:
        with closing(sqlite3.connect(database or home / "mlflow.db")) as mlflow:
            runs, metrics = _runs_of(lambda query: mlflow.execute(query).fetchall(), sweep, kind)
    report = (home / "mlruns" / "lorasweep" / "sweeps" / sweep / "report.html").is_file()
    return Left(trials, runs, metrics, report)


def _runs_of(
    asks: Asks, sweep: str, kind: str
) -> tuple[dict[int, list[dict[str, Any]]], dict[int, dict[str, list[tuple[int, float]]]]]:
    runs: dict[int, list[dict[str, Any]]] = {}
    metrics: dict[int, dict[str, list[tuple[int, float]]]] = {}
    tags: dict[str, dict[str, str]] = {}
    for run_id, key, value in asks("select run_uuid, key, value from tags"):
        tags.setdefault(run_id, {})[key] = value
    for run_id, status in asks("select run_uuid, status from runs where lifecycle_stage = 'active'"):
        own = tags.get(run_id, {})
        if own.get("lorasweep.sweep") == sweep and own["lorasweep.kind"] in (kind, "sweep"):
            number = int(own.get("lorasweep.trial", OWN))
            runs.setdefault(number, []).append({"id": run_id, "status": status, "state": own["lorasweep.state"]})
            points = asks(f"select key, step, value from metrics where run_uuid = '{run_id}' order by step, timestamp")
            for key, step, value in points:
                if key not in CLOCK_METRICS:
                    metrics.setdefault(number, {}).setdefault(key, []).append((step, value))
    return runs, metrics


def check_agreement(left: Left, trials: int) -> None:
    """One Optuna trial, one run, one end in both, for each trial of the budget; no metric step twice; the sweep's own
    run has ended with all of them."""
    assert sorted(left.trials) == list(range(trials)) == sorted(left.runs.keys() - {OWN})
    assert [(run["status"], run["state"]) for run in left.runs[OWN]] == [("FINISHED", "complete")] and left.report
    assert left.metrics[OWN]["sweep/trials_complete"][-1] == (
        trials,
        sum(trial["state"] == "complete" for trial in left.trials.values()),
    )
    statuses = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
    for number, trial in left.trials.items():
        assert len(left.runs[number]) == 1, f"trial {number} has runs {left.runs[number]}"
        (run,) = left.runs[number]
        assert run["id"] == trial["run_id"]
        assert (run["status"], run["state"]) == (statuses[trial["state"]], trial["state"]), number
    for number, series in left.metrics.items():
        for key, points in series.items():
            steps = [step for step, _ in points]
            assert len(steps) == len(set(steps)), f"trial {number}: {key} has a step twice: {points}"


def check_same(left: Left, uninterrupted: Left) -> None:
    """The same trials with the same values and metric histories, bit for bit."""
    for number, trial in uninterrupted.trials.items():
        theirs = {**left.trials[number], "run_id": trial["run_id"]}
        differing = {key: (theirs[key], value) for key, value in trial.items() if theirs[key] != value}
        assert not differing, f"trial {number} (was, should be): {differing}"
        ours, wanted = left.metrics[number], uninterrupted.metrics[number]
        assert ours.keys() == wanted.keys(), f"trial {number}"
        for key, points in wanted.items():
            assert ours[key] == points, f"trial {number}, {key}"


# -- the nursery ----------------------------------------------------------------------------------------------------


def _child(order: dict[str, Any]) -> None:
    """Become the command; never returns."""
    from lorasweep import cli, failpoints

    os.setsid()
    os.chdir(order["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(order["log"] + suffix, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.clear()
    os.environ.update(order["env"])
    if not order["pictures"]:
        draw_nothing()
    failpoints.arm(os.environ.get(failpoints.VARIABLE))
    code = 70
    try:
        code = cli.main(order["words"])
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _nursery() -> None:
    environment.settle()
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # children collect what is theirs alone
    buffer, children = b"", {}
    while True:
        if select.select([0], [], [], 0.01)[0]:
            read = os.read(0, 65536)
            if not read:
                return
            buffer += read
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            order = json.loads(line)
            sys.stdout.flush()
            pid = os.fork()
            if pid == 0:
                _child(order)
            children[pid] = order["number"]
            print(json.dumps({"number": order["number"], "pid": pid}), flush=True)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            print(json.dumps({"number": children.pop(pid), "code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    _nursery()
