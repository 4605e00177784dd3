"""What a report is made of, read once: the leaderboard, each objective's values, the curves of some trials.

The study, the trials' answers and the local spool (over several hosts MLflow in its place) are all it reads, so a
report can be made while a sweep runs. Ten thousand trials are as many as ten: what grows with their number (curves,
points) is chosen here, and the page says what was left out.
Neighbours: `search.study`, `spool` (read), the modules that make pictures.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorasweep import results
from lorasweep.config.home import Folders
from lorasweep.config.schema import ObjectiveConfig
from lorasweep.ranking import board as leaderboard
from lorasweep.records import TrialRecord, TrialState, at_rung
from lorasweep.search.study import SweepStudy
from lorasweep.spread import evenly
from lorasweep.stats import Results
from lorasweep.tracking.histories import points_of
from lorasweep.tracking.spool import Point

SAMPLES = "train/samples"
CURVES = {  # metrics that are drawn beside the objectives
    "train/loss": "Training loss",
    "eval/loss": "Evaluation loss",
    "eval/accuracy": "Accuracy",
    "eval/roc_auc": "Area under the ROC curve",
}
MOST_CURVES = 100  # trials whose curves are drawn; more lines are a blot
MOST_CURVE_POINTS = 80  # of one line
MOST_POINTS = 2000  # of a scatter
FINALISTS = 5  # the best so many, where the sweep repeats none


@dataclass(frozen=True)
class Curve:
    """A metric of one trial over training samples seen."""

    samples: list[float]
    values: list[float]


@dataclass
class Material:
    """A sweep as the report sees it."""

    study: SweepStudy
    board: leaderboard.Leaderboard
    records: dict[int, TrialRecord]
    folders: Folders

    @classmethod
    def read(cls, study: SweepStudy, folders: Folders) -> Material:
        """Everything of a stored sweep as it is now."""
        board = leaderboard.Leaderboard.of(study)
        return cls(study, board, {record.trial: record for record in study.records()}, folders)

    @property
    def objectives(self) -> list[ObjectiveConfig]:
        """What the sweep looks for; the first ranks."""
        return self.study.goals.objectives

    @cached_property
    def ranked(self) -> list[int]:
        """Complete trials in the order of the leaderboard, those that break a constraint left out."""
        return [row["trial"] for row in self.board.rows if row["rank"] is not None]

    @cached_property
    def repeated(self) -> dict[int, dict[str, Any]]:
        """Trials that were repeated over seeds, in the order of the leaderboard -> what came of it, as in its rows."""
        return {row["trial"]: row["finalist"] for row in self.board.rows if row.get("finalist")}

    @cached_property
    def finalists(self) -> list[int]:
        """The trials that were repeated over seeds, else the best; their curves are drawn apart."""
        return list(self.repeated) or self.ranked[:FINALISTS]

    @cached_property
    def values(self) -> dict[int, list[float]]:
        """Complete trial -> a finite value for each objective."""
        complete = [record for record in self.records.values() if record.state is TrialState.COMPLETE]
        found = {record.trial: self.study.goals.values(record) for record in complete}
        return {trial: values for trial, values in found.items() if all(math.isfinite(value) for value in values)}

    @cached_property
    def keys(self) -> list[str]:
        """Swept keys, in the order of the sweep file."""
        there = {key: None for record in self.records.values() for key in record.params}
        space = self.study.space
        swept = [dimension.key for dimension in space.dimensions] if space is not None else []
        return [*(key for key in swept if key in there), *(key for key in there if key not in swept)]

    @cached_property
    def curves(self) -> dict[str, dict[int, Curve]]:
        """Metric -> trial -> its curve, of the trials in `drawn`."""
        found: dict[str, dict[int, Curve]] = {}
        metrics = [one.metric for one in self.objectives]
        keys = {SAMPLES, *CURVES, *metrics, *map(at_rung, metrics)}
        for trial, points in self.points(self.drawn, keys):
            for key, curve in read_curves(points, self.records[trial].samples).items():
                found.setdefault(key, {})[trial] = curve
        return found

    def points(self, trials: list[int], keys: Collection[str]) -> Iterator[tuple[int, Iterable[Point]]]:
        """(trial, what it reported) of these metrics and maybe others: from the local spool, or where several hosts
        share the sweep from MLflow."""
        return points_of(self.folders, self.study.name, {trial: self.records[trial].run_id for trial in trials}, keys)

    def results(self, trial: int) -> Results | None:
        """What a trial answered to each validation row; None where that is not kept, or is no choice of classes."""
        found = results.read(self.folders, self.study.name, trial)
        return None if found is None or found.probabilities.shape[1] < 2 else found

    @cached_property
    def drawn(self) -> list[int]:
        """Trials whose curves are drawn: the best, and others evenly over the sweep."""
        started = [row["trial"] for row in self.board.rows if row["samples"] or row["state"] == TrialState.RUNNING]
        return some(started, MOST_CURVES)

    @property
    def drawn_note(self) -> str:
        """Which trials' curves are drawn, where that is not all."""
        of = sum(1 for row in self.board.rows if row["samples"] or row["state"] == TrialState.RUNNING)
        if len(self.drawn) == of:
            return ""
        return f" Of {of:,} trials the best {MOST_CURVES // 2} and {MOST_CURVES - MOST_CURVES // 2} others are drawn."


def some(items: list[Any], most: int) -> list[Any]:
    """All, or the first half of `most` and as many of the others, evenly spread, in their order."""
    if len(items) <= most:
        return items
    first, others = items[: most // 2], items[most // 2 :]
    return [*first, *evenly(others, most - len(first))]


def some_note(shown: int, of: int, what: str = "trials") -> str:
    """A sentence on what was left out; empty where nothing was."""
    return (
        ""
        if shown >= of
        else f" {shown:,} of {of:,} {what} are drawn: the best half of them, the others evenly spread."
    )


def read_curves(reported: Iterable[Point], samples: int = 0) -> dict[str, Curve]:
    """Metric -> its curve over training samples, from what a trial reported.

    `samples`: those that the trial saw in all, 0 while it runs. The step after its last, which holds the kept
    checkpoint's values once more, is no part of a curve.
    """
    points: dict[str, list[tuple[int, float]]] = {}
    for point in reported:
        for key, value in point.metrics.items():
            if math.isfinite(value) and point.step > 0:
                points.setdefault(key, []).append((point.step, value))
    step, seen = max(points.pop(SAMPLES, []), default=(1, 1.0))
    per_step = seen / step
    last = math.inf if per_step == 1.0 or not samples else samples / per_step + 0.5
    found = {}
    for key, pairs in points.items():
        kept = thin(sorted(pair for pair in pairs if pair[0] <= last), MOST_CURVE_POINTS)
        if kept:
            found[key] = Curve([step * per_step for step, _ in kept], [value for _, value in kept])
    return found


def thin(points: list[Any], most: int) -> list[Any]:
    """At most so many points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]
