"""Pictures of how trials learned: loss, accuracy, AUC and the objectives over training samples seen.

Samples rather than steps, so that trials of different batch sizes compare at equal progress. Each metric has two
pictures: all trials (the best one marked), and the finalists apart. Neighbours: `material`, `pictures`.
"""

from __future__ import annotations

import re

from lorasweep.records import at_rung
from lorasweep.reporting.material import CURVES, Curve, Material
from lorasweep.reporting.pictures import BLUE, GREEN, PALETTE, Picture, Plot, Series

SAMPLES = "training samples seen"


def pictures(material: Material) -> list[Picture]:
    """Two a metric, where any trial logged it."""
    titles = dict(CURVES)
    for objective in material.objectives:
        titles.setdefault(objective.metric, objective.metric)
        titles.setdefault(at_rung(objective.metric), f"{objective.metric} at rungs, over a part of the rows")
    return [
        picture
        for metric, title in titles.items()
        for picture in (of_all(material, metric, title), of_finalists(material, metric, title))
        if picture is not None
    ]


def _key(metric: str, whose: str) -> str:
    return f"curve-{re.sub(r'[^A-Za-z0-9_]+', '-', metric)}-{whose}"  # a file's name and an element's id


def of_all(material: Material, metric: str, title: str) -> Plot | None:
    """One faint line a trial; the best one thick and on top."""
    curves = material.curves.get(metric, {})
    if not curves:
        return None
    best = material.ranked[0] if material.ranked else None
    others = {trial: curve for trial, curve in curves.items() if trial != best}
    opacity = 0.55 if len(others) <= 30 else 0.4
    lines = {trial: curve for trial, curve in others.items() if len(curve.values) > 1}
    points = {trial: curve for trial, curve in others.items() if len(curve.values) == 1}  # pruned at the first rung
    series = [_joined(lines, opacity)] if lines else []
    if points:
        ends = [(curve.samples[0], curve.values[0]) for curve in points.values()]
        notes = [f"trial {trial}" for trial in points]
        series.append(Series([x for x, _ in ends], [y for _, y in ends], "", "points", BLUE, opacity=0.5, notes=notes))
    if best in curves:
        assert best is not None
        line = curves[best]
        series.append(Series(list(line.samples), list(line.values), f"trial {best}, the best", color=GREEN, width=2.6))
    said = "One line a trial" + ("; the best trial is green." if best in curves else ".")
    return Plot(
        _key(metric, "all"), f"{title}, all trials", said + material.drawn_note, SAMPLES, metric, series
    )  # fmt: skip


def _joined(curves: dict[int, Curve], opacity: float) -> Series:
    """All these lines as one series with gaps: a browser draws one such line far faster than a hundred."""
    xs: list[float | None] = []
    ys: list[float | None] = []
    notes: list[str] = []
    for trial, curve in curves.items():
        xs += [*curve.samples, None]
        ys += [*curve.values, None]
        notes += [f"trial {trial}"] * (len(curve.samples) + 1)
    return Series(xs, ys, color=BLUE, width=1, opacity=opacity, notes=notes)


def of_finalists(material: Material, metric: str, title: str) -> Plot | None:
    """A line of its own colour for each of the best trials."""
    curves = material.curves.get(metric, {})
    shown = [trial for trial in material.finalists if trial in curves]
    if len(shown) < 2:
        return None
    series = [
        Series(
            list(curves[trial].samples), list(curves[trial].values), f"trial {trial}",
            color=PALETTE[place % len(PALETTE)], width=2,
        )
        for place, trial in enumerate(shown)
    ]  # fmt: skip
    return Plot(
        _key(metric, "finalists"),
        f"{title}, finalists",
        f"The {len(shown)} best trials, in the order of the leaderboard.",
        SAMPLES,
        metric,
        series,
    )
