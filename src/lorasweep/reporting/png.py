"""Pictures as PNG files, for slides, notebooks and MLflow's artifact page.

Drawn by matplotlib, which MLflow brings along: plotly's own way to a PNG, kaleido, needs a Chrome. No window and no
global state: figures are made one by one. Neighbours: `pictures` (what is drawn), `plotly_page` (the same on a page).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.reporting.pictures import BLUE, GREEN, GREY, Bars, Grid, Parallel, Picture, Plot, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH_INCHES, HEIGHT_INCHES, DOTS_PER_INCH = 7.2, 4.2, 110
BOX = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}  # behind text over lines
LONGEST_NAME = 26  # characters of a name on an axis


def write(picture: Picture, path: Path) -> None:
    """Draw a picture into a PNG file, 792 x 462 dots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = isinstance(picture, Grid) or (isinstance(picture, Bars) and picture.horizontal)
    left = 0.26 if names else 0.11  # by hand: matplotlib's layout engines draw everything twice to find out
    figure.subplots_adjust(left=left, right=0.97, top=0.91, bottom=0.18 if isinstance(picture, Grid) else 0.13)
    axes.set_title(plain(picture.title, 90), fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if isinstance(picture, Plot):
        _plot(picture, axes)
    elif isinstance(picture, Bars):
        _bars(picture, axes)
    elif isinstance(picture, Grid):
        _grid(picture, axes)
    elif isinstance(picture, Parallel):
        _parallel(picture, axes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")


def plain(text: str, longest: int = LONGEST_NAME) -> str:
    """A text that matplotlib draws as it stands: dollars would be formulas, and a long name would push all else out."""
    text = " ".join(text.split())
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def _plot(picture: Plot, axes: Axes) -> None:
    if picture.diagonal:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for series in picture.series:
        _series(series, axes)
    if picture.log_x:
        axes.set_xscale("log")
    axes.set_xlabel(plain(picture.x, 80))
    axes.set_ylabel(plain(picture.y, 60))
    axes.grid(color="#e8ecf0", linewidth=0.8)
    if picture.diagonal or sum(bool(series.name) for series in picture.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _series(series: Series, axes: Axes) -> None:
    ys = [math.nan if y is None else y for y in series.y]
    xs: list[Any] = [plain(x) if isinstance(x, str) else (math.nan if x is None else x) for x in series.x]
    label = plain(series.name) or "_"
    if series.style == "points":
        look: dict[str, Any] = {"c": series.heat, "cmap": "Blues"} if series.heat else {"color": series.color}
        if series.heat:
            look |= {"vmin": min(series.heat) - 0.6 * (max(series.heat) - min(series.heat) or 1)}
        axes.scatter(xs, ys, s=18, alpha=series.opacity, label=label, zorder=3, **look)
        return
    style = "steps-post" if series.style == "steps" else "default"
    axes.plot(
        xs, ys, color=series.color, linewidth=max(0.6, series.width * 0.8), alpha=series.opacity, drawstyle=style,
        label=label,
    )  # fmt: skip


def _bars(picture: Bars, axes: Axes) -> None:
    names = [plain(name) for name in picture.names]
    thick = 0.8 / max(1, len(picture.groups))
    for place, (group, values) in enumerate(picture.groups.items()):
        color = BLUE if len(picture.groups) == 1 else (GREEN, BLUE, GREY)[place % 3]
        shift = thick * (place - (len(picture.groups) - 1) / 2)
        at = [index + shift for index in range(len(names))]
        if picture.horizontal:
            axes.barh(at, values, thick, color=color, label=plain(group))
        else:
            axes.bar(at, values, thick, color=color, label=plain(group))
    if picture.horizontal:
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlabel(plain(picture.value_label, 80))
    else:
        axes.set_xticks(range(len(names)), names)
        axes.set_ylabel(plain(picture.value_label, 60))
    if len(picture.groups) > 1:
        axes.legend(frameon=False, fontsize=8)


def _grid(picture: Grid, axes: Axes) -> None:
    most = max((count for row in picture.counts for count in row), default=0) or 1
    axes.imshow(picture.counts, cmap="Blues", vmin=0, vmax=most, aspect="auto")
    places, names = range(len(picture.names)), [plain(name, 20) for name in picture.names]
    axes.set_xticks(places, names, rotation=30 if len(names) > 4 else 0)
    axes.set_yticks(places, names)
    axes.set_xlabel(plain(picture.x))
    axes.set_ylabel(plain(picture.y))
    if len(names) <= 12:
        for row, counts in enumerate(picture.counts):
            for column, count in enumerate(counts):
                axes.text(
                    column, row, f"{count}", ha="center", va="center", color="white" if count > most / 2 else "black"
                )


def _parallel(picture: Parallel, axes: Axes) -> None:
    """One polyline a trial over axes scaled to [0, 1], with the ends of each axis written beside it."""
    from matplotlib import colormaps

    scaled = [[_logged(value, axis.log) for value in axis.values] for axis in picture.axes]
    columns = [_to_unit(column) for column in scaled]
    rows = list(zip(*columns, strict=True))
    colors, goodness = colormaps["Blues"], _to_unit(picture.heat)
    if picture.low_is_better:
        goodness = [1 - value for value in goodness]
    for trial in sorted(range(len(rows)), key=lambda trial: goodness[trial]):
        axes.plot(range(len(rows[trial])), rows[trial], color=colors(0.25 + 0.75 * goodness[trial]), linewidth=1)
    for place, axis in enumerate(picture.axes):
        axes.axvline(place, color=GREY, linewidth=1)
        marks = axis.ticks or [f"{min(axis.values):.3g}", f"{max(axis.values):.3g}"]
        shown = marks if len(marks) <= 6 else [marks[0], marks[-1]]
        for index, mark in enumerate(shown):
            height = index / (len(shown) - 1) if len(shown) > 1 else 0.5
            axes.text(place + 0.02, height, plain(mark, 14), fontsize=7, va="center", zorder=5, bbox=BOX)
    axes.set_xticks(range(len(picture.axes)), [plain(axis.name.rpartition(".")[2], 18) for axis in picture.axes])
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlim(-0.15, len(picture.axes) - 0.7)
    axes.set_xlabel(f"darker: better {plain(picture.heat_label)}")


def _to_unit(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.5 for value in values]


def _logged(value: float, log: bool) -> float:
    return math.log10(value) if log else float(value)
