"""Pictures as figures of plotly.js: plain dicts that the page holds as JSON, and the library's own script, once.

plotly's Python classes are left out: they check every value, which costs seconds where a sweep has thousands of trials.
Neighbours: `pictures` (what is drawn), `page` (where), `png` (the same as files).
"""

from __future__ import annotations

import base64
import gzip
import html
import math
from functools import cache
from typing import Any

from lorasweep.reporting.pictures import BLUE, GREEN, GREY, PALETTE, Axis, Bars, Grid, Parallel, Picture, Plot, Series

DIGITS = 5  # significant ones; more are not seen in a picture, and the page would be twice as large
SCALE = [[0.0, "#dbe7f3"], [0.5, "#5b93c7"], [1.0, "#12395f"]]
POINTS = [[0.0, "#9cc0e2"], [1.0, "#12395f"]]  # none so pale that it is lost on white
AXIS = {"gridcolor": "#e8ecf0", "zeroline": False, "automargin": True}


def figure(picture: Picture) -> dict[str, Any]:
    """`data` and `layout` of plotly.js for a picture. Names are escaped: plotly reads them as markup."""
    layout: dict[str, Any] = {
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#1c2430"},
        "margin": {"l": 60, "r": 20, "t": 16, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "modebar": {"bgcolor": "rgba(255,255,255,0.85)", "color": GREY, "activecolor": BLUE},
        "hovermode": "closest",
        "showlegend": False,
    }
    if isinstance(picture, Plot):
        data = [_scatter(series) for series in picture.series if series.x]
        layout |= {"xaxis": _axis(picture.x), "yaxis": _axis(picture.y)}
        if picture.log_x:
            layout["xaxis"] |= {"type": "log", "dtick": "D2" if _decades(picture) < 2 else 1}
        if picture.diagonal:
            data.insert(0, _scatter(Series([0, 1], [0, 1], "chance", color=GREY, width=1)))
        named = [series for series in picture.series if series.name]
        legend = len(named) > 1 or picture.diagonal
        layout |= {"showlegend": legend, "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}}
        return {"data": data, "layout": layout}
    if isinstance(picture, Bars):
        return {"data": _bars(picture), "layout": layout | _bar_layout(picture)}
    if isinstance(picture, Grid):
        return {"data": [_heat_map(picture)], "layout": layout | _grid_layout(picture)}
    assert isinstance(picture, Parallel)
    layout["margin"] = {"l": 70, "r": 40, "t": 60, "b": 30}
    return {"data": [_parallel(picture)], "layout": layout}


@cache
def script() -> str:
    """plotly.js, gzip-compressed, in base64: a third of its size. Browsers unpack it since 2023."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()


def short(value: Any) -> Any:
    """A number with few digits; None for what JSON cannot hold; all else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def _axis(name: str) -> dict[str, Any]:
    return {**AXIS, "title": {"text": html.escape(name), "standoff": 8}}


def _decades(picture: Plot) -> float:
    xs = [x for series in picture.series for x in series.x if isinstance(x, int | float) and x > 0]
    return math.log10(max(xs) / min(xs)) if xs else 0.0


def _text(value: Any) -> Any:
    return html.escape(value) if isinstance(value, str) else short(value)


def _scatter(series: Series) -> dict[str, Any]:
    trace: dict[str, Any] = {
        "type": "scatter",
        "x": [_text(x) for x in series.x],
        "y": [short(y) for y in series.y],
        "name": html.escape(series.name),
        "opacity": series.opacity,
    }
    if series.style == "points":
        color: Any = [short(value) for value in series.heat] if series.heat else series.color
        trace |= {"mode": "markers", "marker": {"color": color, "size": 7, "colorscale": POINTS}}
    else:
        few = sum(y is not None for y in series.y) <= 20 and None not in series.y
        trace |= {"mode": "lines+markers" if few and series.width >= 2 else "lines", "marker": {"size": 5}}
        trace["line"] = {"color": series.color, "width": series.width}
        if series.style == "steps":
            trace["line"]["shape"], trace["mode"] = "hv", "lines"
    if series.notes:
        trace |= {"text": [html.escape(note) for note in series.notes], "hovertemplate": _hover("%{text}")}
    else:
        trace["hovertemplate"] = _hover(html.escape(series.name))
    return trace


def _hover(note: str) -> str:
    return f"%{{x}}: %{{y:.4g}}<br>{note}<extra></extra>"


def _bars(picture: Bars) -> list[dict[str, Any]]:
    names = [html.escape(name) for name in picture.names]
    order = slice(None, None, -1) if picture.horizontal else slice(None)  # plotly counts the y axis from below
    traces = []
    for place, (group, values) in enumerate(picture.groups.items()):
        lengths, labels = [short(value) for value in values][order], names[order]
        along = {"x": lengths, "y": labels, "orientation": "h"} if picture.horizontal else {"x": labels, "y": lengths}
        color = PALETTE[(place + 1) % len(PALETTE)] if len(picture.groups) == 1 else (GREEN, BLUE, GREY)[place % 3]
        traces.append({"type": "bar", "name": html.escape(group), **along, "marker": {"color": color}})
    return traces


def _bar_layout(picture: Bars) -> dict[str, Any]:
    value, names = _axis(picture.value_label), {**AXIS, "type": "category"}
    return {
        "xaxis": value if picture.horizontal else names,
        "yaxis": names if picture.horizontal else value,
        "barmode": "group",
        "showlegend": len(picture.groups) > 1,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    }


def _heat_map(picture: Grid) -> dict[str, Any]:
    names = [html.escape(name) for name in picture.names]
    return {
        "type": "heatmap",
        "x": names,
        "y": names,
        "z": picture.counts,
        "colorscale": SCALE,
        "showscale": False,
        "texttemplate": "%{z}" if len(names) <= 12 else "",
        "hovertemplate": "really %{y}, predicted %{x}: %{z}<extra></extra>",
    }


def _grid_layout(picture: Grid) -> dict[str, Any]:
    names = {"type": "category", "automargin": True}
    return {
        "xaxis": {**names, "title": {"text": html.escape(picture.x)}},
        "yaxis": {**names, "title": {"text": html.escape(picture.y)}, "autorange": "reversed"},
    }


def _parallel(picture: Parallel) -> dict[str, Any]:
    return {
        "type": "parcoords",
        "line": {
            "color": [short(value) for value in picture.heat],
            "colorscale": SCALE,
            "reversescale": picture.low_is_better,
            "showscale": True,
            "colorbar": {"title": {"text": html.escape(picture.heat_label)}, "thickness": 12},
        },
        "dimensions": [_dimension(axis) for axis in picture.axes],
    }


def _dimension(axis: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {"label": html.escape(axis.name)}
    if axis.ticks:
        places = list(range(len(axis.ticks)))
        return found | {"values": axis.values, "tickvals": places, "ticktext": [html.escape(t) for t in axis.ticks]}
    if axis.log:
        logs = [math.log10(value) for value in axis.values]
        marks = log_marks(min(axis.values), max(axis.values))
        return found | {
            "values": [short(value) for value in logs],
            "tickvals": [math.log10(mark) for mark in marks],
            "ticktext": [f"{mark:g}" for mark in marks],
        }
    return found | {"values": [short(float(value)) for value in axis.values]}


def log_marks(low: float, high: float) -> list[float]:
    """Round numbers (1, 2 and 5 times powers of ten) within [low, high], and both ends."""
    marks = [
        factor * 10.0**power
        for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for factor in ((1, 2, 5) if high / low < 1000 else (1,))
    ]
    return [mark for mark in marks if low <= mark <= high] or [low, high]
