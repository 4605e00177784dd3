"""Many comparisons at once: which trials of a leaderboard are as good as its first, for all that the rows can say?

The first is first because it was looked for, so a comparison with it is a choice among all pairs: each pair counts in
the correction, not only those with the first (the range tests of Tukey and of Keuls do the same for means). What is
promised: if a trial that is not called tied is claimed to be worse, the chance that any such claim of a sweep is wrong
is at most the level. Neighbours: `scores`, `paired`; `ranking` marks the ties.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lorasweep.stats.scores import Array, Results, influence, kind_of, value_of

TIE_LEVEL = 0.05
NO_SPREAD = 1e-12


def holm(p_values: Array | Sequence[float]) -> Array:
    """Holm's adjusted p-values (Scandinavian Journal of Statistics 6, 1979): those at most alpha may all be rejected
    with a chance of at most alpha that any is rejected wrongly, however they depend on each other."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def against_first(p_values: Array | Sequence[float], trials: int) -> Array:
    """Adjusted p-values of comparisons with the best of `trials`, itself chosen by the same rows.

    Step-down like Holm's, with the pairs among the trials that are left in place of the comparisons that are left:
    after r rejections there are C(trials - r, 2), because the trials that were rejected are worse than the first, and
    so can no longer be it.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    left = trials - np.arange(len(p))
    stepped = np.maximum.accumulate(p[order] * np.maximum(1, left * (left - 1) / 2))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, stepped)
    return adjusted


def tied_with_first(
    first: Results, others: Sequence[Results], metric: str, average: str = "macro", trials: int | None = None
) -> Array:
    """(others,) adjusted p-values: a trial is tied with the first unless its own is at most `TIE_LEVEL`; NaN where it
    cannot be compared. `trials`: how many there are in all, the first and those that are not passed included.

    Accuracy is compared by McNemar's mid-p test. Any other metric by the paired bootstrap's standard error in its
    limit, the infinitesimal jackknife (`scores.influence`), with Student's t: p-values far out in the tail, which many
    comparisons ask for, would take more resamples than there is time for.
    """
    count = trials or len(others) + 1
    raw = paired_p_values(first, others, metric, average)
    known = np.isfinite(raw)
    adjusted = np.full(len(raw), np.nan)
    adjusted[known] = against_first(raw[known], count)
    return adjusted


def paired_p_values(first: Results, others: Sequence[Results], metric: str, average: str = "macro") -> Array:
    """(others,) two-sided p-values of "as good as the first", one by one; NaN where rows differ or the metric is not
    known here."""
    from scipy.stats import t

    comparable = [other.same_rows(first) for other in others]
    found = np.full(len(others), np.nan)
    if kind_of(metric) == "accuracy" and first.probabilities.shape[1]:
        if any(comparable):
            kept = np.array([other.correct for other, same in zip(others, comparable, strict=True) if same])
            found[comparable] = mcnemar_many((first.correct & ~kept).sum(1), (kept & ~first.correct).sum(1))
        return found
    own = influence(first, metric, average)
    if own is None:
        return found
    value = value_of(first, metric, average)
    for place, other in enumerate(others):
        theirs = influence(other, metric, average) if comparable[place] else None
        if theirs is None or len(theirs) != len(own):
            continue
        difference, gap = own - theirs, value - value_of(other, metric, average)
        error = difference.std(ddof=1) / np.sqrt(len(own)) if len(own) > 1 else np.nan
        if error > 0:
            found[place] = 2 * t.sf(abs(gap) / error, len(own) - 1)
        elif error == 0:
            found[place] = 1.0 if gap == 0 else 0.0
    return found


def mcnemar_many(wins: Array, losses: Array) -> Array:
    """Two-sided mid-p values of `paired.mcnemar` for arrays of counts."""
    from scipy.stats import binom

    total = wins + losses
    half = 0.5 * binom.pmf(wins, total, 0.5)
    tails = np.minimum(binom.sf(wins - 1, total, 0.5), binom.cdf(wins, total, 0.5)) - half
    return np.where(total == 0, 1.0, np.minimum(1.0, 2 * tails))


def welch(one: Array | Sequence[float], other: Array | Sequence[float]) -> float:
    """Two-sided p-value of Welch's test (Biometrika 34, 1947) of two means over seeds; NaN for fewer than two values
    on a side."""
    from scipy.stats import t

    if min(len(one), len(other)) < 2:
        return float("nan")
    gap = abs(float(np.mean(one) - np.mean(other)))
    errors = [float(np.var(side, ddof=1)) / len(side) for side in (one, other)]
    if sum(errors) < NO_SPREAD**2:
        return 1.0 if gap < NO_SPREAD else 0.0
    shares = [error**2 / (len(side) - 1) for error, side in zip(errors, (one, other), strict=True)]
    return float(2 * t.sf(gap / sum(errors) ** 0.5, sum(errors) ** 2 / sum(shares)))
