"""The durable spool of one trial's metrics: what was reported survives the death of the process and of the tracker.

One append-only JSON Lines file per trial; beside it, in a file replaced atomically, the offset up to which the tracker
has confirmed what it stored. What lies past the offset is sent again, with the timestamps of the first time, so that
MLflow drops what it already has. Pure: no MLflow here. Neighbour: `tracking`, which owns one spool per running trial.

Lines: `{"trial": N}` first, `{"run": ID}` once the MLflow run exists, then for each report
`{"s": step, "t": milliseconds, "m": {key: value}}` (NaN, Infinity and -Infinity as Python's json writes them), and
`{"end": STATUS, "tags": {…}}` when the trial has ended: a run whose database cannot be reached is ended later.
Where a trial goes from host to host, the one that takes it up writes its spool anew: what the tracker has, what the
last worker's checkpoint says it had not sent, what waits here (`take_up`).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorasweep.config.home import sync_folder
from lorasweep.errors import StorageError


@dataclass(frozen=True)
class Point:
    """Metrics of one optimizer step, reported at `time_ms` (milliseconds since 1970); `end` is its last byte + 1."""

    metrics: dict[str, float]
    step: int
    time_ms: int
    end: int


@dataclass(frozen=True)
class Ending:
    """How the trial's run ends: MLflow's status, and tags that go with it; `end` is its last byte + 1."""

    status: str
    tags: dict[str, str]
    end: int


class Spool:
    """One trial's spool, opened for appending by its only writer; it continues a file that a dead process left.

    A (key, step) pair is kept once: the first report wins, whatever comes later. A trial that is trained again from
    its start after a kill therefore adds only what the first time had not reached.

    Raises:
        StorageError: a line before the last one is not what this class writes.
    """

    def __init__(self, folder: Path, trial: int):
        self.path, self.trial = path_of(folder, trial), trial
        self.offset_path = self.path.with_suffix(".sent")
        self.run_id: str | None = None
        self.ending: Ending | None = None  # an end that the tracker has not confirmed
        self.existed = self.path.exists()
        self._steps: dict[str, set[int]] = {}
        self._newest: dict[str, tuple[int, float]] = {}  # key -> (step, value) at its highest step
        self._waiting: list[Point] = []
        self._sent = 0
        folder.mkdir(parents=True, exist_ok=True)
        if self.existed:
            self._recover()
        self._file = self.path.open("ab")
        self._end = self._file.seek(0, os.SEEK_END)
        if self._end == 0:
            self._write({"trial": trial})
            self.sync()
            sync_folder(folder)

    # -- writing ----------------------------------------------------------------------------------------------------

    def append(self, metrics: dict[str, float], step: int, time_ms: int) -> None:
        """Keep the metrics that are new at this step. They survive the death of this process from here on (`sync`: of
        the machine too)."""
        fresh = {key: float(value) for key, value in metrics.items() if step not in self._steps.get(key, ())}
        if not fresh:
            return
        self._write({"s": step, "t": time_ms, "m": fresh})
        self._remember(Point(fresh, step, time_ms, self._end))

    def set_run(self, run_id: str) -> None:
        """Note the MLflow run that this trial writes to; all points are sent again where it is another one."""
        if run_id == self.run_id:
            return
        had_another = self.run_id is not None
        self._write({"run": run_id})
        self.sync()
        self.run_id = run_id
        if had_another:
            self._set_sent(0)
            self._waiting = list(read_points(self.path))

    def take_up(self, stored: Iterable[Point], left: Iterable[Point]) -> None:
        """Others may have trained this trial since. `stored`: all that the tracker has of it; `left`: what they had
        reported and perhaps not sent. Of each (key, step) the first is kept, in this order, and last what waits here;
        the file is written anew, in which all but `stored` waits."""
        known: set[tuple[str, int]] = set()

        def fresh(points: Iterable[Point]) -> Iterator[dict[str, Any]]:
            for point in points:
                kept = {key: value for key, value in point.metrics.items() if (key, point.step) not in known}
                known.update((key, point.step) for key in kept)
                if kept:
                    yield {"s": point.step, "t": point.time_ms, "m": kept}

        waiting = self.waiting()
        lines: list[dict[str, Any]] = [{"trial": self.trial}]
        if self.run_id is not None:
            lines.append({"run": self.run_id})
        confirmed = b"".join(map(_raw, [*lines, *fresh(stored)]))
        part = self.path.with_suffix(".new")
        with part.open("wb") as file:
            file.write(confirmed + b"".join(map(_raw, [*fresh(left), *fresh(waiting)])))
            file.flush()
            os.fsync(file.fileno())
        self._set_sent(0)  # a kill before the next offset is written sends all again, which changes nothing
        self._file.close()
        part.replace(self.path)
        sync_folder(self.path.parent)
        self._set_sent(len(confirmed))
        self._steps, self._newest, self._waiting, self.ending = {}, {}, [], None
        self._recover()
        self._file = self.path.open("ab")
        self._end = self._file.seek(0, os.SEEK_END)

    def set_end(self, status: str, tags: dict[str, str]) -> None:
        """The trial has ended; on the disk when this returns."""
        self._write({"end": status, "tags": tags})
        self.sync()
        self.ending = Ending(status, tags, self._end)

    def sync(self) -> None:
        """Return once everything appended is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what waits stays on disk for the next opening."""
        self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        raw = _raw(line)
        self._file.write(raw)
        self._file.flush()  # to the operating system: a SIGKILL from here on loses nothing
        self._end += len(raw)

    # -- what the tracker has -----------------------------------------------------------------------------------------

    def waiting(self) -> list[Point]:
        """Points that the tracker has not confirmed, oldest first."""
        return list(self._waiting)

    def confirm(self, point: Point) -> None:
        """The tracker has stored everything up to this point."""
        self._set_sent(point.end)
        self._waiting = [other for other in self._waiting if other.end > point.end]

    def confirm_end(self) -> None:
        """The tracker has ended the run, with everything that was reported."""
        assert self.ending is not None
        self._set_sent(self.ending.end)
        self._waiting, self.ending = [], None

    def newest(self, key: str) -> float | None:
        """The value of `key` at its highest step, None where it was never reported."""
        return self._newest[key][1] if key in self._newest else None

    @property
    def last_step(self) -> int:
        """The highest step of any metric, -1 before the first."""
        return max((step for step, _ in self._newest.values()), default=-1)

    # -- reading back -------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Cut a line that the dying process left unfinished, then learn what is there."""
        raw = self.path.read_bytes()
        whole = raw.rfind(b"\n") + 1
        if whole < len(raw):
            os.truncate(self.path, whole)
        self._sent = min(_read_offset(self.offset_path), whole)
        for line, end in _lines(self.path):
            if "run" in line:
                self.run_id = line["run"]
            elif "end" in line:
                self.ending = Ending(line["end"], line["tags"], end) if end > self._sent else None
            elif "m" in line:
                self._remember(_point(line, end))
                self.ending = None  # it trained on after that end

    def _remember(self, point: Point) -> None:
        for key, value in point.metrics.items():
            self._steps.setdefault(key, set()).add(point.step)
            if key not in self._newest or point.step >= self._newest[key][0]:
                self._newest[key] = (point.step, value)
        if point.end > self._sent:
            self._waiting.append(point)

    def _set_sent(self, offset: int) -> None:
        """No fsync: an offset that is lost means that points are sent twice, and the second time is dropped."""
        self._sent = offset
        part = self.offset_path.with_suffix(".part")
        part.write_text(str(offset))
        part.replace(self.offset_path)


def path_of(folder: Path, trial: int) -> Path:
    """The spool file of a trial."""
    return folder / f"trial-{trial:05d}.jsonl"


def trials_in(folder: Path) -> list[int]:
    """Numbers of the trials that have a spool in this folder, ascending."""
    return sorted(int(path.stem.removeprefix("trial-")) for path in folder.glob("trial-*.jsonl"))


def is_settled(folder: Path, trial: int) -> bool:
    """Whether the tracker has confirmed all of a spool, its end too; costs no reading of it."""
    path = path_of(folder, trial)
    return _read_offset(path.with_suffix(".sent")) >= path.stat().st_size


def read_points(path: Path) -> Iterator[Point]:
    """The points of a spool file in the order of their reports; an unfinished last line is left out."""
    for line, end in _lines(path):
        if "m" in line:
            yield _point(line, end)


def unsent(path: Path) -> tuple[str | None, list[Point]]:
    """(run id, points that no tracker has confirmed) of a spool that another process may own; changes nothing."""
    sent, run_id = _read_offset(path.with_suffix(".sent")), None
    points = []
    for line, end in _lines(path):
        if "run" in line:
            run_id = line["run"]
        elif "m" in line and end > sent:
            points.append(_point(line, end))
    return run_id, points


def unsent_end(path: Path) -> Ending | None:
    """The end that no tracker has confirmed, of a spool that another process may own; changes nothing."""
    sent, ending = _read_offset(path.with_suffix(".sent")), None
    for line, end in _lines(path):
        if "end" in line:
            ending = Ending(line["end"], line["tags"], end) if end > sent else None
        elif "m" in line:
            ending = None
    return ending


def same_value(one: float | None, other: float | None) -> bool:
    """Equality under which NaN equals NaN."""
    if one is None or other is None:
        return one is other
    return one == other or (math.isnan(one) and math.isnan(other))


def _point(line: dict[str, Any], end: int) -> Point:
    return Point({key: float(value) for key, value in line["m"].items()}, int(line["s"]), int(line["t"]), end)


def _raw(line: dict[str, Any]) -> bytes:
    return json.dumps(line, separators=(",", ":")).encode() + b"\n"


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    end = 0
    for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not raw.endswith(b"\n"):
            return
        end += len(raw)
        try:
            line = json.loads(raw)
            valid = isinstance(line, dict)
        except ValueError:
            valid = False
        if not valid:
            raise StorageError(
                f"{path}, line {number}: not a line of a metric spool ({raw[:60]!r}). The file was changed from "
                "outside; restore it, or move it away: metrics that MLflow already has stay there"
            )
        yield line, end


def _read_offset(path: Path) -> int:
    """0 where there is none or it is unreadable: everything is then sent again, which changes nothing."""
    try:
        return max(0, int(path.read_text()))
    except (FileNotFoundError, ValueError):
        return 0
