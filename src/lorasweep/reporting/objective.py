"""Pictures of how the search went: each objective over the trials, trade-offs between objectives, rungs survived.

Neighbours: `material` (read), `pictures` (made), `page` (places them).
"""

from __future__ import annotations

from lorasweep.live import format_params
from lorasweep.records import TrialState
from lorasweep.reporting.material import MOST_POINTS, Material, some, some_note
from lorasweep.reporting.pictures import AMBER, BLUE, GREEN, GREY, Bars, Picture, Plot, Series


def pictures(material: Material) -> list[Picture]:
    """Those for which there is something to show."""
    found: list[Picture | None] = [over_trials(material, place) for place in range(len(material.objectives))]
    found += [trade_off(material, place) for place in range(1, len(material.objectives))]
    found += [repeats(material), rungs(material)]
    return [picture for picture in found if picture is not None]


def over_trials(material: Material, place: int) -> Plot | None:
    """Each trial's value of an objective in the order of the trials, and the best so far."""
    objective = material.objectives[place]
    choose = max if objective.direction == "maximize" else min
    allowed = set(material.ranked)
    values = {trial: found[place] for trial, found in sorted(material.values.items()) if trial in allowed}
    if not values:
        return None
    best: list[tuple[int, float]] = []
    for trial, value in values.items():
        if not best or (choose(value, best[-1][1]) == value and value != best[-1][1]):
            best.append((trial, value))
    best.append((max(material.records), best[-1][1]))
    complete = sorted(some([trial for trial in material.ranked if trial in values], MOST_POINTS))
    series = [
        Series(
            list(complete), [values[trial] for trial in complete], "complete", "points", BLUE, opacity=0.75,
            notes=_notes(material, complete),
        ),
        Series([trial for trial, _ in best], [value for _, value in best], "best so far", "steps", GREEN),
    ]  # fmt: skip
    pruned = _pruned(material) if place == 0 else []
    if pruned:
        there = [material.records[trial].value for trial in pruned]
        series.insert(
            0, Series(list(pruned), there, "pruned, at its last rung", "points", AMBER, opacity=0.5,
                      notes=_notes(material, pruned)),
        )  # fmt: skip
    caption = (
        f"One point a trial in the order in which they were asked for; the line is the best {objective.metric} so far."
    )
    note = some_note(len(complete), len(values), "complete trials")
    return Plot(
        f"objective-{place}" if place else "objective",
        f"{objective.metric} over trials",
        caption + note,
        "trial",
        objective.metric,
        series,
    )


def _pruned(material: Material) -> list[int]:
    stopped = [
        trial
        for trial, record in sorted(material.records.items())
        if record.state is TrialState.PRUNED and record.value is not None
    ]
    return some(stopped, MOST_POINTS // 2)


def _notes(material: Material, trials: list[int]) -> list[str]:
    return [f"trial {trial}: {format_params(material.records[trial].params)}" for trial in trials]


def trade_off(material: Material, place: int) -> Plot | None:
    """The first objective against another one, and the trials that no other beats in all objectives."""
    if not material.values:
        return None
    first, other = material.objectives[0], material.objectives[place]
    front = [row["trial"] for row in material.board.rows if row.get("pareto") and row["trial"] in material.values]
    others = some([trial for trial in material.ranked if trial not in set(front)], MOST_POINTS)
    front.sort(key=lambda trial: material.values[trial][place])
    series = [
        Series(
            [material.values[trial][place] for trial in trials], [material.values[trial][0] for trial in trials],
            name, "points", color, opacity=opacity, notes=_notes(material, trials),
        )
        for trials, name, color, opacity in ((others, "beaten", GREY, 0.6), (front, "on the Pareto front", GREEN, 1.0))
        if trials
    ]  # fmt: skip
    directions = f"{first.metric} is {first.direction}d, {other.metric} {other.direction}d"
    return Plot(
        f"trade-off-{place}",
        f"{first.metric} against {other.metric}",
        f"Green trials are beaten by no other in every objective at once; {directions}.",
        other.metric,
        first.metric,
        series,
    )


def repeats(material: Material) -> Plot | None:
    """What the finalists reached over fresh seeds, beside what they had reached in the search."""
    if not material.repeated:
        return None
    metric = material.objectives[0].metric
    names = {trial: f"trial {trial}" for trial in material.repeated}
    seeds = [
        (names[trial], float(value))
        for trial, found in material.repeated.items()
        for value in found.get("values") or []
        if value is not None
    ]
    means = {trial: found.get("mean") for trial, found in material.repeated.items()}
    first = {trial: material.records[trial].value for trial in material.repeated}
    series = [
        Series([name for name, _ in seeds], [value for _, value in seeds], "a fresh seed", "points", GREY, opacity=0.7),
        Series(
            [names[trial] for trial, mean in means.items() if mean is not None],
            [mean for mean in means.values() if mean is not None], "mean of the fresh seeds", "points", GREEN,
        ),
        Series([names[trial] for trial in first], list(first.values()), "in the search", "points", AMBER),
    ]  # fmt: skip
    return Plot(
        "finalists",
        "Finalists over fresh seeds",
        "The best trials trained again: an amber point above the green one is luck that the search had.",
        "",
        metric,
        series,
    )


def rungs(material: Material) -> Bars | None:
    """How many trials reached each rung, and how many went on."""
    passed = material.study.rungs_survived()
    if not passed:
        return None
    kind = material.study.config.pruner.kind
    return Bars(
        "rungs",
        "Rungs survived",
        f"At each rung (training samples seen) {kind} judges the trials that reach it; the difference is pruned there.",
        "trials",
        [f"{samples:,}" for samples in passed],
        {
            "reached": [float(reached) for reached, _ in passed.values()],
            "went on": [float(kept) for _, kept in passed.values()],
        },
    )
