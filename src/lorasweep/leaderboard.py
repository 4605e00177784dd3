"""The ranked table of a sweep, from its study alone: no MLflow, so that it answers at once and without a server.

Complete trials are ranked by the objective in its direction, equal values share a rank; running, pruned and failed
trials follow with their reason and have none. Neighbours: `search.study` (read), `cli` and `sweep` (who show it).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorasweep.records import STYLES, TrialRecord, TrialState

if TYPE_CHECKING:
    from rich.table import Table

    from lorasweep.search.objectives import Goals
    from lorasweep.search.study import SweepStudy

AFTER_THE_RANKED = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAILED)
PLAIN_WIDTH = 100  # columns where the output is not a terminal
SHORTEST_REASON = 24
COLUMN_GAP = 3  # a space on each side of a cell and one between columns


@dataclass
class Leaderboard:
    """`rows` are those of `leaderboard --json`, best first."""

    sweep: str
    metric: str
    direction: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: dict[str, Any] = field(default_factory=dict)  # `objectives` where there are several, `constraints`

    @classmethod
    def of(cls, study: SweepStudy) -> Leaderboard:
        """The study's trials as they are now, from one read of its storage."""
        goals = study.goals
        rows = rank(study.records(), study.direction, goals)
        return cls(study.name, study.metric, study.direction, rows, goals.to_json())

    @property
    def best(self) -> dict[str, Any] | None:
        """The first row where it is ranked; of equal values that of the earliest trial."""
        return self.rows[0] if self.rows and self.rows[0]["rank"] is not None else None

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """The document of `leaderboard --json`; `top` K: the first K rows."""
        objective = {"metric": self.metric, "direction": self.direction}
        return {"sweep": self.sweep, "objective": objective, **self.goals, "rows": self.rows[:top]}


def load(name: str, overrides: list[str]) -> Leaderboard:
    """The leaderboard of a stored sweep.

    Raises:
        UsageError: there is no sweep of this name.
    """
    from lorasweep.config.compose import tracking_folder
    from lorasweep.config.home import Folders, Home
    from lorasweep.search.study import SweepStudy

    home = Home.find()
    return Leaderboard.of(SweepStudy.load(Folders(tracking_folder(overrides, home)), name))


def rank(records: list[TrialRecord], direction: str, goals: Goals | None = None) -> list[dict[str, Any]]:
    """Rows in the order of the leaderboard; `rank` is None for what is not a complete trial with a finite value, and
    for one that breaks a constraint, which is its reason. With several objectives `pareto` says whether a trial is on
    the front."""
    sign = -1.0 if direction == "maximize" else 1.0
    broken = {record.trial: goals.broken(record) for record in records} if goals else {}
    front = goals.front(records) if goals and goals.several else None

    def ranked(record: TrialRecord) -> bool:
        known = record.value is not None and math.isfinite(record.value)
        return record.state is TrialState.COMPLETE and known and not broken.get(record.trial)

    def place(record: TrialRecord) -> tuple[bool, int, float, int]:
        known = record.value is not None and math.isfinite(record.value)
        return (
            not ranked(record),
            AFTER_THE_RANKED.index(record.state),
            sign * record.value if known and record.value is not None else math.inf,
            record.trial,
        )

    rows: list[dict[str, Any]] = []
    for position, record in enumerate(sorted(records, key=place), start=1):
        row: dict[str, Any] = {"rank": None, **_finite(record.to_json())}
        if ranked(record):
            tied = bool(rows) and rows[-1]["value"] == record.value
            row["rank"] = rows[-1]["rank"] if tied else position
        elif record.state is TrialState.COMPLETE:
            row["reason"] = row["reason"] or broken.get(record.trial)
        if front is not None:
            row["pareto"] = record.trial in front
        rows.append(row)
    return rows


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null stands for both."""
    metrics = {key: value if math.isfinite(value) else None for key, value in row["metrics"].items()}
    value = row["value"]
    return {**row, "value": value if value is not None and math.isfinite(value) else None, "metrics": metrics}


# -- in the terminal --------------------------------------------------------------------------------------------------


@dataclass
class _Column:
    title: str
    cells: list[str]
    numeric: bool = True

    @property
    def width(self) -> int:
        return max(len(text) for text in [self.title, *self.cells]) + COLUMN_GAP


def show(board: Leaderboard, top: int | None = None) -> None:
    """Print the table, as wide as the terminal; 100 columns where the output is not one."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    console.print(table(board, top, console.width))
    hidden = len(board.rows) - len(board.rows[:top])
    if hidden:
        console.print(f"… and {hidden} more; without --top all are shown", style="dim")


def table(board: Leaderboard, top: int | None = None, width: int = PLAIN_WIDTH) -> Table:
    """A Rich table at most `width` columns wide. Where not all fits, the less important columns are left out: first
    totals and cost, then further metrics, then the last of the swept params; never rank, trial, objective or reason."""
    from rich import box
    from rich.table import Table

    rows = board.rows[:top]
    counts = {state: sum(row["state"] == state for row in board.rows) for state in AFTER_THE_RANKED}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no trials yet"
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=f"{board.sweep}: {board.metric}, {board.direction}d ({told})" + _more(board),
        title_justify="left",
        title_style="bold",
        show_edge=False,
    )
    columns = _fit(_columns(board, rows), rows, width)
    reasons = [row["reason"] or "" for row in rows]
    for column in columns:
        shown.add_column(column.title, justify="right" if column.numeric else "left", no_wrap=True)
    if any(reasons):
        used = sum(column.width for column in columns)
        longest = max(len(reason) for reason in ["reason", *reasons])
        shown.add_column("reason", overflow="fold", width=min(longest, max(SHORTEST_REASON, width - used) - 2))
    for number, row in enumerate(rows):
        cells = [column.cells[number] for column in columns] + ([reasons[number]] if any(reasons) else [])
        best = row["rank"] == 1
        shown.add_row(*cells, style="bold green" if best else STYLES[row["state"]] if row["rank"] is None else "")
    return shown


def _more(board: Leaderboard) -> str:
    """A second line of the title: further objectives and constraints."""
    others = [f"{one['metric']}, {one['direction']}d" for one in board.goals.get("objectives", [])[1:]]
    front = sum(bool(row.get("pareto")) for row in board.rows)
    parts = [f"with {'; '.join(others)}: {front} on the Pareto front (◆)"] if others else []
    parts += [f"ranked where {' and '.join(board.goals['constraints'])}"] if board.goals.get("constraints") else []
    return "".join(f"\n{part}" for part in parts)


def _columns(board: Leaderboard, rows: list[dict[str, Any]]) -> list[tuple[int, _Column]]:
    """All columns from left to right, each with its importance (1: always shown)."""
    columns = [
        (1, _Column("rank", [_mark(row) for row in rows])),
        (1, _Column("trial", [str(row["trial"]) for row in rows])),
        (1, _Column(board.metric, [_number(row["value"]) for row in rows])),
    ]
    keys = list(dict.fromkeys(key for row in rows for key in row["params"]))
    for place, (key, title) in enumerate(zip(keys, _short_names(keys), strict=True)):
        cells = [_number(row["params"].get(key)) for row in rows]
        columns.append((3 + place, _Column(title, cells)))
    asked = {one["metric"] for one in board.goals.get("objectives", [])}  # shown before any swept param
    asked |= {text.split()[0] for text in board.goals.get("constraints", [])}
    metrics = [key for key in dict.fromkeys(key for row in rows for key in row["metrics"]) if key != board.metric]
    for place, key in enumerate(metrics):
        cells = [_number(row["metrics"].get(key)) for row in rows]
        columns.append((2 if key in asked else 50 + place, _Column(key, cells)))
    facts = [
        (52, "train_seconds", _Column("seconds", [f"{row['train_seconds']:.1f}" for row in rows])),
        (51, "trainable_params", _Column("trainable", [f"{row['trainable_params']:,}" for row in rows])),
        (90, "total_params", _Column("total", [f"{row['total_params']:,}" for row in rows])),
        (91, "samples", _Column("samples", [f"{row['samples']:,}" for row in rows])),
    ]
    columns += [(2 if name in asked else importance, column) for importance, name, column in facts]
    return columns


def _fit(columns: list[tuple[int, _Column]], rows: list[dict[str, Any]], width: int) -> list[_Column]:
    reserved = SHORTEST_REASON if any(row["reason"] for row in rows) else 0
    kept: set[int] = set()
    for importance, place in sorted((importance, place) for place, (importance, _) in enumerate(columns)):
        column = columns[place][1]
        if importance == 1 or reserved + column.width <= width:
            kept.add(place)
            reserved += column.width
    return [column for place, (_, column) in enumerate(columns) if place in kept]


def _mark(row: dict[str, Any]) -> str:
    """The rank, or the state of a trial without one; the first carries a star, for terminals without colours, and one
    on the Pareto front a diamond."""
    mark = str(row["state"]) if row["rank"] is None else f"★ {row['rank']}" if row["rank"] == 1 else str(row["rank"])
    return f"◆ {mark}" if row.get("pareto") else mark


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    return f"{value:.4f}" if 0.1 <= abs(value) < 1000 else f"{value:.3g}"


def _short_names(keys: list[str]) -> list[str]:
    """The last part of each key, the whole key where two would read the same."""
    last = [key.rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
