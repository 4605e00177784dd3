"""What a study costs as workers and trials grow: synthetic trials, nothing trained, through the product's own code.

    python benchmarks/scale.py [--workers 1 8 32] [--trials 10000] [--tpe-trials 1000] [--storage postgres]
                               [--ways own coordinator] [--limit-seconds 900] [--out bench-results/scale.json]

Each worker is a process that takes a post, asks (`worker.candidates.Queue`: takeovers first, the budget and the ask
under the sweep's lock, then the claim), gives heartbeats, draws a value and tells it as `worker.outcomes` does. It
trains for --train-seconds (default 0: all workers ask all the time, the worst case). Two ways to ask:

  own          every worker asks for itself under the sweep's lock, as the product does
  coordinator  one process asks for all and hands trials out over a socket; workers tell for themselves

PostgreSQL is started on loopback by tests/clusterkit.py, durable commits on (--no-fsync: off). Printed and kept for
each run: asks a second, ask and tell latency (median, p95), how much of an ask is waiting for the lock, trials beyond
the budget, lost (asked for and never ended), doubled (ended by two workers); cost by number of trials in the study.
A run that is in --out already is not repeated; one that takes longer than --limit-seconds is ended and shown as such.
Exit code 1 where a trial was lost, doubled or one too many, a worker failed, or a run took too long.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
SWEEP = "scale"
SPACE = {
    "optimizer.lr": "tag(log, interval(1e-5, 1e-1))",
    "optimizer.weight_decay": "tag(log, interval(1e-4, 1e-1))",
    "adapter.dropout": "interval(0, 0.3)",
    "adapter.r": "choice(2, 4, 8, 16, 32)",
    "train.batch_size": "choice(8, 16, 32)",
    "train.max_steps": "range(50, 201, 50)",
    "train.seed": "range(0, 3)",
}
PERIODS = 10  # of a run: costs are shown for each tenth of its trials
START_SECONDS = 120.0  # until all workers hold their posts
FORK = multiprocessing.get_context("fork")  # 32 fresh interpreters would take a minute to import Optuna


@dataclass(frozen=True)
class Run:
    """One cell of the table."""

    storage: str  # postgres or sqlite
    sampler: str
    trials: int
    workers: int
    way: str  # own or coordinator
    train_seconds: float
    fsync: bool

    @property
    def name(self) -> str:
        parts = [self.storage, self.sampler, f"{self.trials}t", f"{self.workers}w", self.way]
        parts += [f"{self.train_seconds:g}s"] if self.train_seconds else []
        return "-".join(parts if self.fsync else [*parts, "nofsync"])


@dataclass(frozen=True)
class Place:
    """Where one run happens. `stop`: a file that ends it; `go`: one that starts it."""

    folder: Path
    studies: str | None
    run: Run

    @property
    def stop(self) -> Path:
        return self.folder / "stop"

    @property
    def go(self) -> Path:
        return self.folder / "go"

    def study(self, create: bool = False) -> Any:
        """The study of this process: forked ones share no connection."""
        from lorasweep.config.home import Folders
        from lorasweep.config.schema import Config
        from lorasweep.search.space import parse_space
        from lorasweep.search.study import SweepStudy

        folders = Folders(self.folder, None, self.studies)
        if not create:
            return SweepStudy.load(folders, SWEEP)
        config = Config()
        config.sweep.name, config.sweep.trials, config.sweep.space = SWEEP, self.run.trials, SPACE
        config.sampler.kind, config.sampler.seed = self.run.sampler, 0
        config.launcher.workers = self.run.workers
        config.tracking.dir, config.tracking.studies = str(self.folder), self.studies
        space = parse_space(SPACE, config)
        return SweepStudy.open(folders, config, space, {"benchmark": "scale"}, [], sweep_file=SWEEP)


class Stopwatch:
    """Seconds that one ask waits for the sweep's lock, and holds it."""

    def __init__(self, post: Any):
        self.wait = self.held = 0.0
        self._asking = post.asking
        post.asking = self._timed

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        with self._asking():
            entered = time.perf_counter()
            self.wait += entered - started
            try:
                yield
            finally:
                self.held += time.perf_counter() - entered

    def take(self) -> tuple[float, float]:
        found = self.wait, self.held
        self.wait = self.held = 0.0
        return found


# -- processes of a run -----------------------------------------------------------------------------------------------


def make_study(place: Place) -> None:
    """In a process of its own, so that no worker inherits a connection."""
    place.study(create=True)


def work(place: Place, index: int, address: str | None) -> None:
    """One worker: ask, train (nothing), tell, until nothing is left. Writes a line a trial."""
    from lorasweep import posts
    from lorasweep.search.leases import Leases
    from lorasweep.worker.candidates import Queue

    study = place.study()
    with ExitStack() as stack, (place.folder / f"worker-{index}.jsonl").open("w") as lines:
        post = stack.enter_context(posts.enter(study.folders, SWEEP, join=True))
        leases, watch, training = Leases.of(study, post), Stopwatch(post), list[int]()
        stack.enter_context(leases.beating(lambda: list(training)))
        queue = Queue(study, leases, post, None)
        line = stack.enter_context(Client(address, "AF_UNIX")) if address is not None else None
        (place.folder / f"ready-{index}").touch()
        while not place.go.exists():
            time.sleep(0.02)
        begun, cpu = time.time(), time.process_time()
        while not place.stop.exists():
            started = time.perf_counter()
            number, params = ask(queue, line, post.name)
            asked = time.perf_counter()
            wait, held = watch.take()
            if number is None:
                break
            training.append(number)
            time.sleep(place.run.train_seconds)
            training_ended = time.perf_counter()
            told = tell(study, leases, post, number, params)
            training.remove(number)
            if told:
                row = [number, asked - started, wait, held, time.perf_counter() - training_ended, time.time()]
                lines.write(json.dumps(row) + "\n")
        lines.write(json.dumps({"begun": begun, "cpu": time.process_time() - cpu}) + "\n")


def ask(queue: Any, line: Connection | None, post: str) -> tuple[int | None, dict[str, Any]]:
    """The next trial's number and point, from the study or from the coordinator; None where the budget is spent."""
    if line is not None:
        line.send(post)
        return line.recv()
    candidate = queue.next(0)
    return (None, {}) if candidate is None else (candidate.asked.number, candidate.asked.params)


def tell(study: Any, leases: Any, post: Any, number: int, params: dict[str, Any]) -> bool:
    """As `worker.outcomes` ends a trial, without MLflow and files. False: another worker has taken it over."""
    import math

    from lorasweep.records import TrialRecord, TrialState

    if not post.alone and not leases.holds(number):
        return False
    value = 1.0 / (1.0 + abs(math.log10(params["optimizer.lr"]) + 3)) + 0.01 * math.sin(number)
    record = TrialRecord(number, TrialState.COMPLETE, value, {study.metric: value}, params, samples=800)
    study.complete(number, value, record)
    return True


def coordinate(place: Place, address: str, workers: int) -> None:
    """Ask for all workers, one request after the other."""
    from lorasweep import posts
    from lorasweep.search.leases import Leases

    study, served, cpu = place.study(), list[float](), time.process_time()
    with posts.enter(study.folders, SWEEP, join=True) as post, Listener(address, "AF_UNIX", backlog=workers) as door:
        (place.folder / "ready-coordinator").touch()
        lines: list[Any] = [door.accept() for _ in range(workers)]
        while lines and not place.stop.exists():
            for line in multiprocessing.connection.wait(lines, timeout=1.0):
                assert isinstance(line, Connection)
                try:
                    name = line.recv()
                except EOFError:
                    lines.remove(line)
                    continue
                started = time.perf_counter()
                with post.asking():
                    asked = study.ask(name)
                    if asked is not None and not asked.claimed:
                        Leases(study._stored, name, study.config.launcher.heartbeat_seconds).claim(asked.number)
                served.append(time.perf_counter() - started)
                line.send((None, {}) if asked is None else (asked.number, asked.params))
    found = {"cpu": time.process_time() - cpu, "serve_ms": round(1000 * statistics.median(served or [0.0]), 2)}
    (place.folder / "coordinator.json").write_text(json.dumps(found))


def count_states(place: Place) -> None:
    """What the study holds at the end, read by a process that had no part in it."""
    records = place.study().records()
    states = Counter(str(record.state) for record in records)
    numbers = [record.trial for record in records]
    found = {"trials": len(records), "states": states, "numbered": numbers == list(range(len(numbers)))}
    (place.folder / "states.json").write_text(json.dumps(found))


# -- one run ----------------------------------------------------------------------------------------------------------


def process(target: Any, *arguments: Any) -> BaseProcess:
    child = FORK.Process(target=target, args=arguments, daemon=True)
    child.start()
    return child


def to_end(child: BaseProcess, seconds: float, what: str) -> None:
    child.join(seconds)
    if child.exitcode != 0:
        end([child])
        raise SystemExit(f"{what} failed (exit code {child.exitcode})")


def end(children: list[BaseProcess]) -> None:
    """End what still runs, however it hangs."""
    for child in children:
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGKILL)
    for child in children:
        child.join(10)


def wait_for(paths: list[Path], children: list[BaseProcess]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline or any(child.exitcode for child in children):
            end(children)
            raise SystemExit(f"not every process of the run started within {START_SECONDS:.0f} s")
        time.sleep(0.05)


def measure(place: Place, server: Any, limit_seconds: float) -> dict[str, Any]:
    """Run one cell; its numbers."""
    run = place.run
    to_end(process(make_study, place), 120, "making the study")
    address, children = None, list[BaseProcess]()
    try:
        if run.way == "coordinator":
            address = str(place.folder / "coordinator.sock")
            children.append(process(coordinate, place, address, run.workers))
            wait_for([place.folder / "ready-coordinator"], children)
        workers = [process(work, place, index, address) for index in range(run.workers)]
        children = [*workers, *children]
        wait_for([place.folder / f"ready-{index}" for index in range(run.workers)], children)
        place.go.touch()
        deadline, connections, look = time.monotonic() + limit_seconds, 0, 0.0
        while any(child.is_alive() for child in workers) and time.monotonic() < deadline:
            time.sleep(0.1)
            if server is not None and time.monotonic() > look:
                connections, look = max(connections, connections_of(server, run.name)), time.monotonic() + 2
        timed_out = any(child.is_alive() for child in workers)
        place.stop.touch()
        for child in children:
            child.join(15)
        failed = sum(child.exitcode not in (0, None) for child in children)
    finally:
        end(children)
    to_end(process(count_states, place), 300, "reading the study")
    return {**summary(place, timed_out, failed), "connections": connections}


def summary(place: Place, timed_out: bool, failed: int) -> dict[str, Any]:
    """The numbers of a run from what its workers wrote and what the study holds."""
    run, rows, cpu, begun = place.run, list[list[float]](), 0.0, list[float]()
    for path in sorted(place.folder.glob("worker-*.jsonl")):
        for text in path.read_text().splitlines():
            one = json.loads(text)
            if isinstance(one, dict):
                cpu, _ = cpu + one["cpu"], begun.append(one["begun"])
            else:
                rows.append(one)
    stored = json.loads((place.folder / "states.json").read_text())
    coordinator = place.folder / "coordinator.json"
    served = json.loads(coordinator.read_text()) if coordinator.is_file() else None
    times = Counter(int(row[0]) for row in rows)
    wall = max(row[5] for row in rows) - min(begun) if rows and begun else 0.0
    size = max(1, run.trials // PERIODS)
    periods = []
    for first in range(0, run.trials, size):
        part = [row for row in rows if first <= row[0] < first + size]
        if part:
            periods.append({"from": first, **costs(part)})
    return {
        **vars(run),
        "name": run.name,
        "seconds": round(wall, 1),
        "asks_per_second": round(len(rows) / wall, 2) if rows else None,
        **(costs(rows) if rows else {}),
        "worker_cpu_seconds": round(cpu, 1),
        "coordinator": served,
        "stored": stored["trials"],
        "overshoot": max(0, stored["trials"] - run.trials),
        "missing": 0 if timed_out else max(0, run.trials - stored["trials"]),
        "lost": 0 if timed_out else stored["trials"] - stored["states"].get("complete", 0),
        "doubled": sum(count - 1 for count in times.values()) + (0 if stored["numbered"] else 1),
        "workers_failed": failed,
        "timed_out": timed_out,
        "periods": periods,
    }


def costs(rows: list[list[float]]) -> dict[str, float]:
    """Milliseconds: the whole ask, what of it is waiting for the lock and holding it, and telling."""
    found = {}
    for place, name in ((1, "ask"), (2, "ask_wait"), (3, "ask_held"), (4, "tell")):
        values = sorted(row[place] for row in rows)
        found[f"{name}_ms"] = round(1000 * statistics.median(values), 2)
        found[f"{name}_p95_ms"] = round(1000 * values[int(0.95 * (len(values) - 1))], 2)
        found[f"{name}_mean_ms"] = round(1000 * statistics.fmean(values), 2)
    return found


# -- all runs ---------------------------------------------------------------------------------------------------------


@contextmanager
def studies_of(settings: argparse.Namespace) -> Iterator[Any]:
    """PostgreSQL, running; None for sqlite, which needs no server."""
    if settings.storage == "sqlite":
        yield None
        return
    from clusterkit import postgres

    with postgres(durable=settings.fsync) as server:
        yield server


def cpu_seconds_of(server: Any) -> float:
    """Of all the server's sessions that have ended."""
    if server is None:
        return 0.0
    import psutil

    pid = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    times = psutil.Process(pid).cpu_times()
    return float(times.children_user + times.children_system)


def connections_of(server: Any, database: str) -> int:
    """That clients hold to this database now."""
    query = f"select count(*) from pg_stat_activity where datname = '{database}'"
    return int(server.execute(query, database="postgres")[0][0])


def runs_of(settings: argparse.Namespace) -> list[Run]:
    def cell(sampler: str, trials: int, workers: int, way: str) -> Run:
        return Run(settings.storage, sampler, trials, workers, way, settings.train_seconds, settings.fsync)

    samplers = [("random", settings.trials), ("tpe", settings.tpe_trials)]
    return [
        cell(sampler, trials, workers, way)
        for sampler, trials in samplers
        if trials
        for way in settings.ways
        for workers in settings.workers
    ]


def show(found: list[dict[str, Any]]) -> None:
    """As Markdown: docs/scale.md holds it. CPU is that of workers, coordinator and server, a trial."""
    print(
        "\n| storage | sampler | trials | workers | way | trials/s | ask ms (p95) | of it in the lock | tell ms (p95) "
        "| CPU ms | connections | extra | lost | doubled | s |\n|" + "---|" * 15
    )
    for one in found:
        cells = [one["storage"], one["sampler"], f"{one['trials']:,}", one["workers"], one["way"]]
        if one["asks_per_second"]:
            served = one["coordinator"] or {"cpu": 0.0, "serve_ms": one["ask_held_ms"]}
            cpu = 1000 * (one["worker_cpu_seconds"] + served["cpu"] + one["server_cpu_seconds"]) / one["trials"]
            cells += [
                f"{one['asks_per_second']:.1f}",
                f"{one['ask_ms']:.0f} ({one['ask_p95_ms']:.0f})",
                f"{served['serve_ms']:.0f}",
                f"{one['tell_ms']:.0f} ({one['tell_p95_ms']:.0f})",
                f"{cpu:.0f}",
            ]
        else:
            cells += ["no trial ended", "", "", "", ""]
        cells += [one["connections"], one["overshoot"], one["lost"] + one["missing"], one["doubled"]]
        cells += [f"{one['seconds']:.0f}" + (", ended by the limit" if one["timed_out"] else "")]
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--trials", type=int, default=10_000, help="with sampler=random; 0: none")
    parser.add_argument("--tpe-trials", type=int, default=1000, help="with sampler=tpe; 0: none")
    parser.add_argument("--storage", choices=("postgres", "sqlite"), default="postgres")
    parser.add_argument("--ways", choices=("own", "coordinator"), nargs="+", default=["own", "coordinator"])
    parser.add_argument("--train-seconds", type=float, default=0.0)
    parser.add_argument("--no-fsync", dest="fsync", action="store_false", help="PostgreSQL without durable commits")
    parser.add_argument("--limit-seconds", type=float, default=900.0, help="of one run")
    parser.add_argument("--out", type=Path, default=Path("bench-results/scale.json"))
    parser.add_argument("--again", action="store_true", help="repeat runs that are in --out")
    return parser.parse_args()


def main() -> int:
    settings = arguments()
    import lorasweep.search.samplers  # once, before the workers are forked
    import lorasweep.search.study
    import lorasweep.worker.candidates  # noqa: F401

    assert "torch" not in sys.modules, "nothing trains here"
    kept: dict[str, dict[str, Any]] = {}
    if settings.out.is_file() and not settings.again:
        kept = {one["name"]: one for one in json.loads(settings.out.read_text())["runs"] if not one["timed_out"]}
    found = []
    with studies_of(settings) as server:
        for run in runs_of(settings):
            if run.name in kept:
                print(f"{run.name}: as kept in {settings.out}", flush=True)
            else:
                folder = Path(tempfile.mkdtemp(prefix="lorasweep-scale-"))
                studies, spent = None if server is None else server.make_database(run.name), cpu_seconds_of(server)
                try:
                    one = measure(Place(folder, studies, run), server, settings.limit_seconds)
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                one["server_cpu_seconds"] = round(cpu_seconds_of(server) - spent, 1)
                kept[run.name] = one
                print(f"{run.name}: {one['seconds']:.1f} s, {one['asks_per_second']} asks/s", flush=True)
                settings.out.parent.mkdir(parents=True, exist_ok=True)
                about = {"command": sys.argv, "cpus": os.cpu_count(), "machine": platform.platform()}
                settings.out.write_text(json.dumps({**about, "runs": list(kept.values())}, indent=1))
            found.append(kept[run.name])
    show(found)
    faults = ("overshoot", "lost", "missing", "doubled", "workers_failed", "timed_out")
    return 1 if any(one[fault] for one in found for fault in faults) else 0


if __name__ == "__main__":
    sys.exit(main())
