"""Marks the trials of a leaderboard that are, for all that the evaluation rows or seeds can say, as good as the first.

Reads the trials' answers in the order of the table, and stops where a whole block is clearly worse, so that a sweep of
thousands costs no more than its ties. Neighbours: `stats.many` (the tests and their correction), `results` (the files);
`ranking` calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorasweep.stats import Results, kind_of, welch
from lorasweep.stats.many import TIE_LEVEL, against_first, paired_p_values

BLOCK = 100  # trials compared between two looks at whether to go on
MOST = 2000  # trials compared at all; of the others `tied` is null
Row = dict[str, Any]


@dataclass(frozen=True)
class Ties:
    """What was compared with what, for the head of the table: `first` is a trial's number, `tied` counts the others."""

    first: int
    tied: int
    compared: int
    test: str
    level: float = TIE_LEVEL

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return dict(vars(self))


def mark(
    rows: list[Row],
    read: Callable[[int], Results | None],
    metric: str,
    average: str,
    direction: str = "maximize",
) -> Ties | None:
    """Set `tied` and `p_tied` (adjusted) of every row: of the first true, of one that cannot be compared null. `read`
    gives a trial's answers. None where there is nothing to compare.

    One that looks better than the first, and ranks behind it for another reason (a seed of it failed, or it came after
    the finalists were chosen), is tied."""
    for row in rows:
        row["tied"], row["p_tied"] = None, None
    ranked = [row for row in rows if row["rank"] is not None]
    if not ranked:
        return None
    first, sign = ranked[0], 1 if direction == "maximize" else -1
    first["tied"] = True
    seem_better = {row["trial"] for row in ranked if sign * (row["value"] - first["value"]) > 0}
    repeated = [row for row in ranked[1:] if _seeds(row) and _seeds(first)]
    if repeated:
        means = [np.mean(_seeds(row)) - np.mean(_seeds(first)) for row in repeated]
        chances = [welch(_seeds(first), _seeds(row)) for row in repeated]
        raw = np.array([1.0 if sign * gap > 0 else chance for gap, chance in zip(means, chances, strict=True)])
        _set(repeated, raw, len(repeated) + 1)
    others = [row for row in ranked[1:] if row not in repeated] if repeated else ranked[1:]
    answers = read(first["trial"]) if others else None
    compared = len(repeated)
    if answers is not None and answers.knows(metric):
        compared += _compare(answers, others, read, metric, average, len(ranked), seem_better)
    if not compared:
        return None
    seeds = "Welch's t test over seeds" if repeated else ""
    by_rows = "" if compared == len(repeated) else _name(metric)
    tied = sum(bool(row["tied"]) for row in ranked[1:])
    return Ties(first["trial"], tied, compared, " and ".join(filter(None, [seeds, by_rows])))


def _compare(
    answers: Results,
    others: list[Row],
    read: Callable[[int], Results | None],
    metric: str,
    average: str,
    trials: int,
    seem_better: set[int],
) -> int:
    strictest = TIE_LEVEL / max(1.0, trials * (trials - 1) / 2)
    raw: list[float] = []
    rest: list[Row] = []
    for start in range(0, min(len(others), MOST), BLOCK):
        found = [read(row["trial"]) for row in others[start : start + BLOCK]]
        there = [place for place, one in enumerate(found) if one is not None]
        p_values = np.full(len(found), np.nan)
        if there:
            p_values[there] = paired_p_values(answers, [one for one in found if one is not None], metric, average)
        for place, row in enumerate(others[start : start + BLOCK]):
            if row["trial"] in seem_better and math.isfinite(p_values[place]):
                p_values[place] = 1.0
        raw += p_values.tolist()
        if len(found) == BLOCK and there and bool((p_values[there] <= strictest).all()):
            rest = others[len(raw) :]  # whoever comes after a hundred that are worse is worse
            break
    _set(others[: len(raw) + len(rest)], np.array(raw + [0.0] * len(rest)), trials)
    for row in rest:
        row["p_tied"] = None
    return sum(math.isfinite(one) for one in raw)


def _set(rows: list[Row], raw: np.ndarray, trials: int) -> None:
    known = np.isfinite(raw)
    adjusted = np.full(len(raw), np.nan)
    adjusted[known] = against_first(raw[known], trials)
    for row, chance in zip(rows, adjusted.tolist(), strict=True):
        if math.isfinite(chance):
            row["tied"], row["p_tied"] = chance > TIE_LEVEL, chance


def _seeds(row: Row) -> list[float]:
    """The values of a finalist's seeds, where they are enough to say how they scatter."""
    values = (row.get("finalist") or {}).get("values") or []
    return values if len(values) > 1 else []


def _name(metric: str) -> str:
    return "McNemar's mid-p test" if kind_of(metric) == "accuracy" else f"the paired bootstrap of {kind_of(metric)}"
