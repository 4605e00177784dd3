"""The leaderboard in the terminal, as a table that fits, and as CSV.

Neighbours: `ranking` (the rows and what they mean); `sweeping` and `cli` show it.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from lorasweep.errors import readable
from lorasweep.records import STYLES, TrialState

if TYPE_CHECKING:
    from rich.table import Table

    from lorasweep.ranking.board import Leaderboard

AFTER_THE_RANKED = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED, TrialState.FAILED)
PLAIN_WIDTH = 100  # columns where the output is not a terminal
SHORTEST_REASON = 24
COLUMN_GAP = 3  # a space on each side of a cell and one between columns
MOST_ROWS = 200  # shown where nobody asked for more: what a person can read


@dataclass
class _Column:
    title: str
    cells: list[str]
    numeric: bool = True

    @property
    def width(self) -> int:
        return max(len(text) for text in [self.title, *self.cells]) + COLUMN_GAP


def show(board: Leaderboard, top: int | None = None) -> None:
    """Print the table, as wide as the terminal; 100 columns where the output is not one. `top` None: as many rows as a
    person reads."""
    from rich.console import Console
    from rich.markup import escape

    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    shown = MOST_ROWS if top is None else top
    console.print(table(board, shown, console.width))
    hidden = len(board.rows) - len(board.rows[:shown])
    if hidden:
        console.print(
            f"… and {hidden:,} more: --top {len(board.rows)} shows all, --csv and --json hold all", style="dim"
        )
    for line in [*explained(board), *board.notes]:
        console.print(escape(readable(line)), style="dim", highlight=False)


def explained(board: Leaderboard) -> list[str]:
    """What the marks of this table mean, in sentences; what needs no word has none."""
    lines = []
    ties = board.ties
    if ties is not None:
        whom = (
            "no other trial is"
            if not ties.tied
            else "1 other trial is"
            if ties.tied == 1
            else f"{ties.tied} others are"
        )
        lines.append(
            f"≈ tied: {whom} as good as trial {ties.first} for all that can be said ({ties.test}, corrected for "
            f"{ties.compared:,} comparison{'s' * (ties.compared != 1)})"
        )
    best = board.best
    found = best.get("finalist") if best else None
    if best and found and found["mean"] is not None:
        seeds = len(found["values"])
        over = f"its mean over {seeds} fresh seeds" if seeds > 1 else "a fresh seed"
        sure = "" if found["interval"] is None else f", 95% interval {_interval(found['interval'])}"
        lines.append(
            f"trial {best['trial']} is first by {over}, {found['mean']:.4f}{sure}; its "
            f"first look, {best['value']:.4f}, " + _overstated(found["overstated"])
        )
    return lines


def _overstated(by: float) -> str:
    return f"overstated it by {by:.4f}" if by > 0 else f"understated it by {-by:.4f}" if by < 0 else "was the same"


def write_csv(board: Leaderboard, file: IO[str], top: int | None = None) -> None:
    """All columns of the rows; empty cells for what is not known."""
    head, cells = flat(board, top)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(cells)


def flat(board: Leaderboard, top: int | None = None) -> tuple[list[str], list[list[Any]]]:
    """(names of the columns, cells of each row): all that is known of the rows, swept keys and metrics as columns of
    their own; None for what is not known."""
    rows = board.rows[:top]
    params = list(dict.fromkeys(key for row in rows for key in row["params"]))
    metrics = list(dict.fromkeys(key for row in rows for key in row["metrics"]))
    head = ["rank", "trial", "state", "value", "low", "high", "tied", "p_tied"]
    if any(row.get("finalist") for row in rows):
        head += ["mean", "mean_low", "mean_high", "seeds", "overstated"]
    facts = ["samples", "train_seconds", "trainable_params", "total_params", "eval_rows", "peak_memory_bytes", "cost"]
    names = [f"params.{key}" if key in (*head, *facts, "run_id", "reason") else key for key in params]
    table_cells = []
    for row in rows:
        found, interval = row.get("finalist") or {}, row.get("interval") or (None, None)
        spread = found.get("interval") or (None, None)
        derived = {
            "low": interval[0], "high": interval[1], "mean": found.get("mean"), "mean_low": spread[0],
            "mean_high": spread[1], "seeds": len(found["values"]) if found else None,
            "overstated": found.get("overstated"),
        }  # fmt: skip
        cells = [derived[key] if key in derived else row.get(key) for key in head]
        cells += [row["params"].get(key) for key in params] + [row["metrics"].get(key) for key in metrics]
        table_cells.append([*cells, *(row.get(key) for key in (*facts, "run_id", "reason"))])
    return [*head, *names, *metrics, *facts, "run_id", "reason"], table_cells


def table(board: Leaderboard, top: int | None = None, width: int = PLAIN_WIDTH) -> Table:
    """A Rich table at most `width` columns wide. Where not all fits, the less important columns are left out: first
    totals, peak and cost, then further metrics, then the last of the swept params; never rank, trial, objective or
    reason."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    rows = board.rows[:top]
    everything = board.rows if board.of_rows is None else board.of_rows
    counts = {state: sum(row["state"] == state for row in everything) for state in AFTER_THE_RANKED}
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no trials yet"
    told += "" if board.of_rows is None else f"; {len(board.rows):,} of them asked for"
    shown = Table(
        box=box.SIMPLE_HEAD,
        title=escape(readable(f"{board.sweep}: {board.metric}, {board.direction}d ({told})" + _more(board))),
        title_justify="left",
        title_style="bold",
        show_edge=False,
    )
    columns = _fit(_columns(board, rows), rows, width)
    reasons = [row["reason"] or "" for row in rows]
    for column in columns:
        shown.add_column(escape(column.title), justify="right" if column.numeric else "left", no_wrap=True)
    if any(reasons):
        used = sum(column.width for column in columns)
        longest = max(len(reason) for reason in ["reason", *reasons])
        shown.add_column("reason", overflow="fold", width=min(longest, max(SHORTEST_REASON, width - used) - 2))
    for number, row in enumerate(rows):
        cells = [column.cells[number] for column in columns] + ([reasons[number]] if any(reasons) else [])
        best = row["rank"] == 1
        cells = [Text(readable(cell)) for cell in cells]  # their brackets are no markup
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
    if any(row.get("interval") for row in rows):
        columns.append((2, _Column("95%", [_interval(row.get("interval")) for row in rows])))
    if any(row.get("finalist") for row in rows):
        found = [row.get("finalist") or {} for row in rows]
        columns[2:2] = [
            (1, _Column("seeds' mean", [_number(one.get("mean")) for one in found])),
            (2, _Column("95% of it", [_interval(one.get("interval")) for one in found])),
        ]
        columns.append((20, _Column("overstated", [_signed(one.get("overstated")) for one in found])))
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
    peaks = [row.get("peak_memory_bytes") for row in rows]
    facts = [
        (
            53,
            "peak_memory_bytes",
            _Column("peak", ["-" if one is None else f"{one / 2**20:,.0f} MiB" for one in peaks]),
        ),
        (52, "train_seconds", _Column("seconds", [f"{row['train_seconds']:.1f}" for row in rows])),
        (51, "trainable_params", _Column("trainable", [f"{row['trainable_params']:,}" for row in rows])),
        (90, "total_params", _Column("total", [f"{row['total_params']:,}" for row in rows])),
        (91, "samples", _Column("samples", [f"{row['samples']:,}" for row in rows])),
    ]
    if any(row.get("cost") is not None for row in rows):
        facts.append((49, "cost", _Column("cost", [_number(row.get("cost")) for row in rows])))
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
    """The rank, or the state of a trial without one; the first carries a star, for terminals without colours, one that
    is tied with it ≈, and one on the Pareto front a diamond."""
    mark = str(row["state"]) if row["rank"] is None else f"★ {row['rank']}" if row["rank"] == 1 else str(row["rank"])
    mark = f"≈ {mark}" if row.get("tied") and row["rank"] != 1 else mark
    return f"◆ {mark}" if row.get("pareto") else mark


def _interval(bounds: list[float] | None) -> str:
    if bounds is None:
        return "-"
    low, high = (f"{end:.3f}" if 0.1 <= abs(end) < 1000 else f"{end:.2g}" for end in bounds)
    return f"{low}–{high}" if not high.startswith("-") else f"{low} to {high}"


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.0f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"


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
