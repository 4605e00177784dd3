"""Who works on a sweep: where, on which trials, since when, and when last heard of. The command `lorasweep workers`.

Posts say who is there, the study whose each trial is. Neighbours: `posts`, `search.leases`; `cli` calls.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from lorasweep import posts
from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.errors import readable
from lorasweep.live import format_seconds
from lorasweep.search.leases import Leases
from lorasweep.search.study import SweepStudy


@dataclass(frozen=True)
class AtWork:
    """One worker. `state`: training; waiting (for a trial of another worker, should that die); starting (a trial that
    nobody has taken yet is beside the point); gone: it died, and its `trials` go to whoever is free. `since`: seconds
    since 1970; `silent_seconds` since its last sign of life. None: not known."""

    post: str
    state: str
    host: str
    pid: int | None
    device: str
    since: float | None
    trials: list[int]
    silent_seconds: float | None

    def to_json(self) -> dict[str, Any]:
        """JSON types; `since` as ISO 8601 in UTC."""
        since = None if self.since is None else datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")
        silent = None if self.silent_seconds is None else round(self.silent_seconds, 1)
        return {**asdict(self), "since": since, "silent_seconds": silent}


def at_work(name: str, overrides: list[str]) -> list[AtWork]:
    """The workers of a sweep, those that died with trials in their slots too.

    Raises:
        UsageError: there is no such sweep.
    """
    study = SweepStudy.load(compose.tracking_place(compose.place_alone(overrides, "workers"), Home.find()), name)
    signs = Leases(study._stored, "", study.config.launcher.heartbeat_seconds).signs()
    found = []
    for worker in posts.roll(study.folders, study.name):
        trials = [number for number, (post, _) in signs.items() if post == worker.post]
        if not worker.alive and not trials:
            continue
        ages = [age for _, age in (signs[number] for number in trials) if age is not None]
        if worker.silent_seconds is not None:
            ages.append(worker.silent_seconds)
        state = "gone" if not worker.alive else "training" if trials else "waiting"
        device = str(worker.about.get("device", ""))
        silent = min(ages, default=None)
        found.append(AtWork(worker.post, state, worker.host, worker.pid, device, worker.since, trials, silent))
    return found


def show(name: str, found: list[AtWork]) -> None:
    """Print them as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not any(one.state != "gone" for one in found):
        left = sorted(number for one in found for number in one.trials)
        waits = f"; trials {', '.join(map(str, left))} wait" if left else ""
        print(f"No process works on sweep {name}{waits}. `lorasweep resume {name}` goes on.")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("post", "state", "host", "process", "device", "for", "heard of", "trials"):
        table.add_column(title)
    for one in found:
        since = "" if one.since is None else format_seconds(max(0.0, time.time() - one.since))
        silent = "" if one.silent_seconds is None else f"{format_seconds(max(0.0, one.silent_seconds))} ago"
        trials = ", ".join(map(str, one.trials))
        cells = (one.post, one.state, one.host, str(one.pid or ""), one.device, since, silent, trials)
        table.add_row(*(Text(readable(cell)) for cell in cells))  # others wrote some of it
    Console().print(table)
