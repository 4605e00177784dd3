"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere.

Implements `progress.Progress` twice. Drawn by Rich; knows nothing of training or storage.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lorasweep.errors import readable
from lorasweep.progress import Progress
from lorasweep.records import STYLES, TrialRecord, TrialState

ENDED_SHOWN = 8  # ended trials that stay in the live table


def format_params(params: dict[str, Any]) -> str:
    """Swept values on one line: `lr=0.0012 r=8`; the last part of a key is enough to read."""
    shown = {key.rpartition(".")[2]: value for key, value in params.items()}
    return " ".join(f"{k}={v:.3g}" if isinstance(v, float) else f"{k}={v}" for k, v in shown.items())


def format_seconds(seconds: float) -> str:
    """`47 s`, `3 min 20 s`, `2 h 05 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


@dataclass
class Tally:
    """Counts that both views show: what ended, what is best, how long is left."""

    total: int
    maximize: bool
    broken: Callable[[TrialRecord], str | None] = lambda record: None  # the constraints that a trial breaks
    ended: int = 0
    ended_before: int = 0
    best: TrialRecord | None = None
    started_at: float = field(default_factory=time.monotonic)

    def end(self, record: TrialRecord) -> bool:
        """Count a trial; True when it is the best so far."""
        self.ended += 1
        self.total = max(self.total, self.ended)  # clones are beside the budget
        if record.state is not TrialState.COMPLETE or record.value is None or self.broken(record):
            return False
        if self.best is None or self.best.value is None:
            better = True
        else:
            better = record.value > self.best.value if self.maximize else record.value < self.best.value
        if better:
            self.best = record
        return better

    def seconds_left(self) -> float | None:
        """From the pace of the trials that ended since this start; None before the first."""
        here = self.ended - self.ended_before
        if here <= 0:
            return None
        return (time.monotonic() - self.started_at) / here * max(0, self.total - self.ended)


class PlainProgress:
    """One line for each thing that matters; for logs, pipes and CI."""

    def __init__(self, tally: Tally, console: Console):
        self.tally, self.console = tally, console

    def note(self, text: str) -> None:
        """See `Progress`."""
        self.console.print(readable(text), highlight=False, markup=False)

    def trial_started(self, number: int, params: dict[str, Any], max_steps: int) -> None:
        """See `Progress`."""

    def stepped(self, number: int, step: int, loss: float) -> None:
        """See `Progress`."""

    def evaluated(self, number: int, step: int, value: float | None) -> None:
        """See `Progress`."""

    def trial_ended(self, record: TrialRecord) -> None:
        """See `Progress`."""
        best = self.tally.end(record)
        value = "" if record.value is None else f" {record.value:.4f}"
        why = f" ({record.reason})" if record.reason else ""
        left = self.tally.seconds_left()
        parts = [
            f"[{self.tally.ended}/{self.tally.total}] trial {record.trial} {record.state}{value}{why}",
            format_params(record.params),
            "best so far" if best else "",
            f"{format_seconds(left)} left" if left else "",
        ]
        line = readable("  ".join(part for part in parts if part))
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


@dataclass
class _Row:
    params: dict[str, Any]
    max_steps: int
    step: int = 0
    loss: float | None = None
    value: float | None = None
    best: float | None = None
    state: TrialState = TrialState.RUNNING
    reason: str | None = None


class LiveProgress:
    """A table that redraws itself: running trials with step, loss, last and best evaluation, and time left."""

    def __init__(self, tally: Tally, console: Console, title: str, metric: str):
        self.tally, self.console, self.title, self.metric = tally, console, title, metric
        self.rows: dict[int, _Row] = {}
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """See `Progress`."""
        self.notes = [*self.notes[-2:], text]

    def trial_started(self, number: int, params: dict[str, Any], max_steps: int) -> None:
        """See `Progress`."""
        self.rows[number] = _Row(params, max_steps)

    def stepped(self, number: int, step: int, loss: float) -> None:
        """See `Progress`."""
        row = self.rows[number]
        row.step, row.loss = step, loss

    def evaluated(self, number: int, step: int, value: float | None) -> None:
        """See `Progress`."""
        row = self.rows[number]
        row.value = value
        if value is not None:
            choose = max if self.tally.maximize else min
            row.best = value if row.best is None else choose(row.best, value)

    def trial_ended(self, record: TrialRecord) -> None:
        """See `Progress`."""
        self.tally.end(record)
        row = self.rows.setdefault(record.trial, _Row(record.params, 0))
        row.state, row.reason = record.state, record.reason
        if record.value is not None:
            row.best = record.value
        ended = [number for number, row in self.rows.items() if row.state is not TrialState.RUNNING]
        for number in ended[:-ENDED_SHOWN]:
            del self.rows[number]

    def __rich__(self) -> Group:
        """The picture of this moment; Rich calls it at each refresh."""
        table = Table(title=None, box=None, pad_edge=False, header_style="bold")
        for name, justify in (("trial", "right"), ("state", "left"), ("step", "right"), ("loss", "right")):
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        table.add_column(self.metric, justify="right")
        table.add_column("best", justify="right")
        table.add_column("params", overflow="ellipsis", no_wrap=True)
        for number, row in sorted(self.rows.items()):
            leader = self.tally.best is not None and self.tally.best.trial == number
            table.add_row(
                str(number),
                Text(str(row.state), style=STYLES[str(row.state)]),
                f"{row.step}/{row.max_steps}" if row.max_steps else "",
                "" if row.loss is None else f"{row.loss:.4f}",
                "" if row.value is None else f"{row.value:.4f}",
                Text("" if row.best is None else f"{row.best:.4f}", style="bold green" if leader else ""),
                Text(readable(row.reason or format_params(row.params))),  # their brackets are no markup
            )
        return Group(self._headline(), *(Text(readable(note), style="dim") for note in self.notes), table)

    def _headline(self) -> Text:
        left, best = self.tally.seconds_left(), self.tally.best
        line = Text(f"{self.title}  ", style="bold")
        line.append(f"{self.tally.ended}/{self.tally.total} trials  ", style="cyan")
        line.append(f"{format_seconds(time.monotonic() - self.tally.started_at)} elapsed  ", style="none")
        if left is not None:
            line.append(f"about {format_seconds(left)} left  ", style="none")
        if best is not None and best.value is not None:
            line.append(f"best {self.metric} {best.value:.4f} (trial {best.trial})", style="bold green")
        return line


def screen() -> Console:
    """Where progress is shown: standard error; in a notebook plain lines on standard output, because there standard
    error is coloured as a failure, and each of Rich's own prints is a picture."""
    console = Console(stderr=True)
    if console.is_jupyter:
        return Console(file=sys.stdout, force_jupyter=False, force_terminal=False, soft_wrap=True)
    return console


@contextmanager
def show(tally: Tally, console: Console, title: str, metric: str) -> Iterator[Progress]:
    """The fitting view for this console: live where it is a terminal, plain lines where it is not."""
    if not console.is_terminal:
        yield PlainProgress(tally, console)
        return
    view = LiveProgress(tally, console, title, metric)
    with Live(view, console=console, refresh_per_second=4, transient=True):
        yield view
