"""Pictures of what the swept values did: importances, parallel coordinates, slices.

Neighbours: `search.reader` (Optuna's importances), `material`, `pictures`.
"""

from __future__ import annotations

import json
from typing import Any

from lorasweep.reporting.material import MOST_POINTS, Material, some, some_note
from lorasweep.reporting.pictures import Axis, Bars, Parallel, Picture, Plot, Series

MOST_LINES = 1000  # of the parallel coordinates
MOST_SLICES = 24
WIDE = 20  # a range of values that spans this factor is shown on a logarithmic axis


def pictures(material: Material) -> list[Picture]:
    """Those for which enough is known."""
    found: list[Picture | None] = [importances(material, place) for place in range(len(material.objectives))]
    found.append(parallel(material))
    found += slices(material)
    return [picture for picture in found if picture is not None]


def importances(material: Material, place: int) -> Bars | None:
    """How much of an objective's variance each swept key explains."""
    shares = material.study.importances(place)
    if not shares:
        return None
    metric = material.objectives[place].metric
    names = sorted(shares, key=lambda key: -shares[key])
    return Bars(
        f"importances-{place}" if place else "importances",
        f"What mattered for {metric}",
        "Share of the variance over complete trials that each swept key explains (fANOVA, Hutter et al. 2014); shares "
        "of keys that matter together are counted once, so they are a guide, not a proof.",
        f"share of the variance of {metric}",
        names,
        {"share": [shares[name] for name in names]},
        horizontal=True,
    )


def parallel(material: Material) -> Parallel | None:
    """One line a complete trial across the swept keys to its objectives."""
    done = [trial for trial in material.ranked if trial in material.values]
    everywhere = [key for key in material.keys if all(key in material.records[trial].params for trial in done)]
    if len(done) < 2 or not everywhere:
        return None
    shown = some(done, MOST_LINES)
    axes = [_axis(key, [material.records[trial].params[key] for trial in shown]) for key in everywhere]
    axes += [
        Axis(objective.metric, [material.values[trial][place] for trial in shown])
        for place, objective in enumerate(material.objectives)
    ]
    left_out = [key for key in material.keys if key not in everywhere]
    missing = f" Left out, because not every trial has it: {', '.join(left_out)}." if left_out else ""
    first = material.objectives[0]
    return Parallel(
        "parallel",
        "Parallel coordinates",
        "One line a complete trial from its swept values to its result, darker is better; in the page, drag along an "
        "axis to keep a range." + missing + some_note(len(shown), len(done)),
        axes,
        [material.values[trial][0] for trial in shown],
        first.metric,
        first.direction == "minimize",
    )


def _axis(key: str, values: list[Any]) -> Axis:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return Axis(key, [float(value) for value in values], log=spans_decades(values))
    names = sorted({_word(value) for value in values})
    return Axis(key, [float(names.index(_word(value))) for value in values], ticks=names)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def spans_decades(values: list[Any]) -> bool:
    """Whether numbers are better seen on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) >= WIDE


def slices(material: Material) -> list[Plot]:
    """Each objective over each swept key, the first objective's first."""
    found: list[Plot] = []
    for place, objective in enumerate(material.objectives):
        for key in material.keys:
            there = [trial for trial in material.ranked if key in material.records[trial].params]
            there = [trial for trial in there if trial in material.values]
            if len(there) < 2:
                continue
            shown = some(there, MOST_POINTS)
            xs = [material.records[trial].params[key] for trial in shown]
            numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in xs)
            points = Series(
                xs if numbers else [_word(x) for x in xs],
                [material.values[trial][place] for trial in shown],
                style="points",
                heat=[float(trial) for trial in shown],
                notes=[f"trial {trial}" for trial in shown],
            )
            found.append(
                Plot(
                    f"slice-{len(found):02d}",
                    f"{objective.metric} over {key}",
                    "One point a complete trial, later trials darker." + some_note(len(shown), len(there)),
                    key,
                    objective.metric,
                    [points],
                    log_x=numbers and spans_decades(xs),
                )
            )
    return found[:MOST_SLICES]
