"""One self-contained HTML page about a sweep: where people would rather look than read.

Reads the study and the local spool alone, so it works while a sweep runs and needs no network to be opened. Drawn by
plotly, whose script is inlined once. Neighbours: `leaderboard` (the rows), `spool` (the curves), `tracking` (keeps a
copy on the sweep's own run), `cli`.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import leaderboard, spool
from lorasweep.config import compose
from lorasweep.config.home import Folders, Home
from lorasweep.live import format_params, format_seconds
from lorasweep.search.study import SweepStudy

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MAX_CURVES = 100  # more lines than this are a blot: the best ones are drawn
MAX_TABLE_ROWS = 500
LAYOUT = {
    "template": "plotly_white",
    "height": 420,
    "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
    "font": {"family": "system-ui, sans-serif", "size": 13},
}
STYLE = """
body { font-family: system-ui, sans-serif; color: #1c2430; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: .2rem; } .sub { color: #5b6675; margin-top: 0; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #c9d1da; } td { border-bottom: 1px solid #e8ecf0; } td.text, th.text { text-align: left; }
tr.best td { background: #e8f6ec; font-weight: 600; } tr.failed td { color: #a33; } tr.pruned td { color: #8a6d00; }
.scroll { overflow-x: auto; } .facts { display: flex; gap: 2.5rem; flex-wrap: wrap; margin: 1.2rem 0; }
.facts div { font-size: 1.5rem; font-weight: 600; }
.facts span { display: block; font-size: .8rem; font-weight: 400; color: #5b6675; }
"""


@dataclass
class Curves:
    """Metric histories by trial: key -> trial -> (steps, values)."""

    series: dict[str, dict[int, tuple[list[int], list[float]]]]

    @classmethod
    def read(cls, folder: Path, trials: list[int]) -> Curves:
        """From the spool files of these trials; a trial without one has no curve."""
        series: dict[str, dict[int, tuple[list[int], list[float]]]] = {}
        for trial in trials:
            path = spool.path_of(folder, trial)
            for point in spool.read_points(path) if path.exists() else ():
                for key, value in point.metrics.items():
                    steps, values = series.setdefault(key, {}).setdefault(trial, ([], []))
                    steps.append(point.step)
                    values.append(value)
        return cls(series)


def write(name: str, overrides: list[str], out: Path | None = None) -> Path:
    """Write the report of a sweep and keep a copy on the sweep's own MLflow run.

    Raises:
        UsageError: no sweep of this name was ever started.
    """
    home = Home.find()
    folders = Folders(compose.tracking_folder(overrides, home))
    return attach(SweepStudy.load(folders, name), folders, out)


def attach(study: SweepStudy, folders: Folders, out: Path | None = None) -> Path:
    """Write the report of a study to `out` (default: beside the sweep's files) and to the sweep's own MLflow run.

    Raises:
        StorageError: MLflow has no run of this sweep.
    """
    from lorasweep import tracking_files

    path = (out or folders.sweep(study.name) / "report.html").resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(study, folders), encoding="utf-8")
    tracking_files.attach_to_sweep(folders, study.name, path, "report")
    return path


def render(study: SweepStudy, folders: Folders) -> str:
    """The page as text."""
    board = leaderboard.Leaderboard.of(study)
    shown = [row["trial"] for row in board.rows[:MAX_CURVES]]
    curves = Curves.read(folders.spool(study.name), shown)
    figures = [
        figure
        for figure in (
            objective_over_trials(board),
            curve(curves, "train/loss", board, "Training loss"),
            curve(curves, "eval/loss", board, "Evaluation loss"),
            curve(curves, board.metric, board, board.metric),
            importances(study),
            *slices(board),
        )
        if figure is not None
    ]
    drawn = [
        figure.to_html(full_html=False, include_plotlyjs=index == 0, config={"displaylogo": False})
        for index, figure in enumerate(figures)
    ]
    title = html.escape(f"Sweep {study.name}")
    body = "\n".join([facts(study, board), table(board), *drawn])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>"
        f'<body><h1>{title}</h1><p class="sub">{html.escape(board.metric)}, {board.direction}</p>{body}</body></html>'
    )


def facts(study: SweepStudy, board: leaderboard.Leaderboard) -> str:
    """The headline numbers."""
    counts = study.counts()
    shown = [
        (f"{board.best['value']:.4f}" if board.best else "none", f"best {board.metric}"),
        (str(sum(counts.values())), ", ".join(f"{count} {state}" for state, count in counts.items() if count)),
        (f"{sum(row['samples'] for row in board.rows):,}", "training samples"),
        (format_seconds(study.seconds()), "in training"),
    ]
    price = study.config.tracking.price_per_hour
    if price is not None:
        shown.append((f"{price * study.seconds() / 3600:.2f}", "cost at tracking.price_per_hour"))
    cells = "".join(f"<div>{html.escape(value)}<span>{html.escape(label)}</span></div>" for value, label in shown)
    return f'<div class="facts">{cells}</div>'


def table(board: leaderboard.Leaderboard) -> str:
    """The leaderboard as an HTML table; every text from outside is escaped."""
    rows = board.rows[:MAX_TABLE_ROWS]
    metrics = sorted({key for row in rows for key in row["metrics"]} - {board.metric})
    params = sorted({key for row in rows for key in row["params"]})
    first, last = ["rank", "trial", "state", board.metric], ["trainable", "total", "samples", "seconds", "reason"]
    head = [*first, *metrics, *params, *last]
    lines = []
    for row in rows:
        cells = [
            row["rank"],
            row["trial"],
            row["state"],
            row["value"],
            *(row["metrics"].get(key) for key in metrics),
            *(row["params"].get(key) for key in params),
            f"{row['trainable_params']:,}",
            f"{row['total_params']:,}",
            row["samples"],
            round(row["train_seconds"], 1),
            row["reason"],
        ]
        kind = "best" if row["rank"] == 1 else row["state"]
        shown = "".join(f"<td>{html.escape(_cell(cell))}</td>" for cell in cells)
        lines.append(f'<tr class="{kind}">{shown}</tr>')
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f'<h2>Leaderboard</h2><div class="scroll"><table><tr>{heads}</tr>{"".join(lines)}</table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def objective_over_trials(board: leaderboard.Leaderboard) -> Figure | None:
    """Each trial's value in the order of the trials, and the best so far."""
    from plotly import graph_objects

    done = sorted((row for row in board.rows if row["value"] is not None), key=lambda row: row["trial"])
    if not done:
        return None
    choose = max if board.direction == "maximize" else min
    best: list[float] = []
    for row in done:
        best.append(row["value"] if not best else choose(best[-1], row["value"]))
    numbers = [row["trial"] for row in done]
    texts = [html.escape(format_params(row["params"])) for row in done]
    points = graph_objects.Scatter(
        x=numbers, y=[row["value"] for row in done], mode="markers", name="trial", text=texts, hoverinfo="x+y+text"
    )
    line = graph_objects.Scatter(x=numbers, y=best, mode="lines", line={"shape": "hv"}, name="best so far")
    return _figure([points, line], f"{board.metric} over trials", "trial", board.metric)


def curve(curves: Curves, key: str, board: leaderboard.Leaderboard, title: str) -> Figure | None:
    """One line a trial; the best trial is drawn thick and last."""
    from plotly import graph_objects

    series = curves.series.get(key, {})
    if not series:
        return None
    leader = board.best["trial"] if board.best else None
    lines = []
    for trial, (steps, values) in sorted(series.items(), key=lambda item: item[0] == leader):
        thick = trial == leader
        style = {"width": 3, "color": "#167d3f"} if thick else {"width": 1}
        lines.append(
            graph_objects.Scatter(
                x=steps, y=values, mode="lines+markers" if len(steps) < 20 else "lines", line=style,
                opacity=1 if thick else 0.45, name=f"trial {trial}" + (" (best)" if thick else ""),
            )
        )  # fmt: skip
    return _figure(lines, title, "optimizer step", key)


def importances(study: SweepStudy) -> Figure | None:
    """How much of the objective's variance each swept key explains (fANOVA, Hutter et al. 2014); None where too little
    is known."""
    from plotly import graph_objects

    shares = study.importances()
    if not shares:
        return None
    keys = sorted(shares, key=lambda key: shares[key])
    bars = graph_objects.Bar(x=[shares[key] for key in keys], y=[html.escape(key) for key in keys], orientation="h")
    return _figure([bars], "Importance of what was swept (fANOVA)", "share of the objective's variance", "")


def slices(board: leaderboard.Leaderboard) -> list[Figure]:
    """The objective over each swept key."""
    from plotly import graph_objects

    done = [row for row in board.rows if row["value"] is not None]
    figures = []
    for key in sorted({key for row in done for key in row["params"]}):
        rows = [row for row in done if key in row["params"]]
        xs = [row["params"][key] for row in rows]
        points = graph_objects.Scatter(
            x=[html.escape(x) if isinstance(x, str) else x for x in xs],
            y=[row["value"] for row in rows], mode="markers", text=[f"trial {row['trial']}" for row in rows],
            marker={"color": [row["trial"] for row in rows], "colorscale": "Blues", "cmin": -5, "showscale": False},
        )  # fmt: skip
        figure = _figure([points], f"{board.metric} over {html.escape(key)}", html.escape(key), board.metric)
        numbers = [x for x in xs if isinstance(x, int | float) and not isinstance(x, bool)]
        if len(numbers) == len(xs) and min(numbers) > 0 and max(numbers) / min(numbers) >= 20:
            figure.update_xaxes(type="log")
        figures.append(figure)
    return figures


def _figure(traces: list[Any], title: str, x: str, y: str) -> Figure:
    from plotly import graph_objects

    figure = graph_objects.Figure(traces)
    figure.update_layout(title=title, xaxis_title=x, yaxis_title=y, **LAYOUT)
    return figure
