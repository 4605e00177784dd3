"""What a picture of the report holds, whoever draws it: `plotly_page` for the HTML page, `png` for files.

Pure data. Values are as they were measured; names are raw text, which the drawers escape. Neighbours: `objective`,
`curves`, `space`, `quality` (make pictures), `page` (places them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

BLUE, GREEN, GREY, RED, AMBER = "#2f6fb2", "#167d3f", "#8a94a3", "#b3372f", "#b7791f"
PALETTE = ("#167d3f", "#2f6fb2", "#b7791f", "#7a4fb5", "#b3372f", "#0e8a8a", "#c2548f", "#5d6b1e", "#4a5568", "#8f4a1f")


@dataclass(frozen=True)
class Series:
    """One or more lines, or points, of one look.

    `style`: line, steps (a value holds until the next x) or points. A None in `y` is a gap, so that many faint lines
    are one series. `notes`: a text for each point, shown under the pointer; `heat`: a number for each point, its
    colour.
    """

    x: list[Any]
    y: list[float | None]
    name: str = ""
    style: str = "line"
    color: str = BLUE
    width: float = 2.0
    opacity: float = 1.0
    notes: list[str] = field(default_factory=list)
    heat: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Picture:
    """What all pictures share. `key` names the PNG file and the place on the page; `caption` is one plain sentence or
    two on how to read it, and says where something was left out."""

    key: str
    title: str
    caption: str


@dataclass(frozen=True)
class Plot(Picture):
    """Series over two axes. `log_x`: a logarithmic x axis, for positive values; `diagonal`: a line from (0, 0) to
    (1, 1)."""

    x: str
    y: str
    series: list[Series]
    log_x: bool = False
    diagonal: bool = False


@dataclass(frozen=True)
class Bars(Picture):
    """One bar a name and group. `horizontal`: names stand on the y axis, the first on top."""

    value_label: str
    names: list[str]
    groups: dict[str, list[float]]  # group -> a value for each name
    horizontal: bool = False


@dataclass(frozen=True)
class Grid(Picture):
    """A table of counts as colours: `counts[row][column]`."""

    x: str
    y: str
    names: list[str]
    counts: list[list[int]]


@dataclass(frozen=True)
class Axis:
    """One axis of parallel coordinates. `values` are numbers; where `ticks` is given they are places in it."""

    name: str
    values: list[float]
    ticks: list[str] = field(default_factory=list)
    log: bool = False


@dataclass(frozen=True)
class Parallel(Picture):
    """One line a trial across all axes, coloured by the first of `heat`'s values; dark is better."""

    axes: list[Axis]
    heat: list[float]
    heat_label: str
    low_is_better: bool = False
