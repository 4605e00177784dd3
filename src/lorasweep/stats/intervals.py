"""How sure one number is: intervals over evaluation rows, and over seeds.

Neighbours: `scores` (metrics of resamples); `paired` (two models), `many` (a leaderboard).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from lorasweep.stats.scores import Array, Results, Score, kind_of, resampled, units_of

LEVEL = 0.95  # of every interval that is shown
RESAMPLES = 2000  # Hesterberg's advice for intervals is thousands
WORK = 4_000_000  # resamples times rows at most, so that a large validation set costs no more
FEWEST_RESAMPLES = 400
BLOCK = 1_000_000  # resamples times rows that are in memory at once
SEED = 20_260_101  # of the resamples: the same rows give the same interval on every machine


def interval(
    results: Results, metric: str, average: str = "macro", level: float = LEVEL, score: Score | None = None
) -> tuple[float, float] | None:
    """The interval that covers the metric's true value with probability `level`, the rows being drawn at random.

    Accuracy has Wilson's score interval, any other metric the bootstrap's. None where there is none: fewer than two
    rows, or resamples that hardly ever define the metric (a class with one row).
    """
    units = units_of(results, metric)
    if units < 2:
        return None
    if kind_of(metric) == "accuracy" and results.probabilities.shape[1]:
        return wilson(int(results.correct.sum()), len(results), level)
    count = max(FEWEST_RESAMPLES, min(RESAMPLES, WORK // units))
    values = [resampled(results, metric, weights, average, score) for weights in blocks(units, count)]
    return expanded_percentile(np.concatenate(values), units, level)


def wilson(successes: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share (JASA 22, 1927); near its nominal coverage from small counts on, where the
    textbook's interval is not (Brown, Cai and DasGupta, Statistical Science 16, 2001)."""
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def blocks(units: int, resamples: int) -> Iterator[Array]:
    """`resample_counts` of so many resamples, a block at a time: memory stays bounded for large validation sets."""
    rows = max(1, BLOCK // units)
    for place, start in enumerate(range(0, resamples, rows)):
        yield resample_counts(units, min(rows, resamples - start), SEED + place)


@functools.lru_cache(maxsize=4)  # every trial of a sweep asks for the same ones
def resample_counts(units: int, resamples: int, seed: int = SEED) -> Array:
    """(resamples, units) how often each unit is drawn in each resample of the bootstrap (Efron, Annals of Statistics
    7, 1979). The same for the same numbers, so that two models meet the same resamples."""
    drawn = np.random.default_rng(seed).integers(0, units, (resamples, units))
    drawn += units * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * units).reshape(resamples, units).astype(np.float32)
    counts.setflags(write=False)
    return counts


def expanded_percentile(values: Array, units: int, level: float = LEVEL) -> tuple[float, float] | None:
    """The bootstrap's percentile interval, widened by what it is too narrow for few units (Hesterberg, "What Teachers
    Should Know About the Bootstrap", American Statistician 69, 2015, section 4.3). None where under half of the
    resamples define the metric."""
    known = values[np.isfinite(values)]
    if len(known) < max(2, len(values) / 2):
        return None
    tail = expanded_tail((1 - level) / 2, units)
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def expanded_tail(tail: float, units: int) -> float:
    """The percentile to read where a tail of this probability is wanted."""
    from scipy.stats import norm, t

    return float(norm.cdf(math.sqrt(units / (units - 1)) * t.ppf(tail, units - 1)))


def nominal_tail(share: float, units: int) -> float:
    """The inverse of `expanded_tail`: the probability that a share of resamples stands for."""
    from scipy.stats import norm, t

    return float(t.cdf(norm.ppf(share) / math.sqrt(units / (units - 1)), units - 1))


def mean_interval(values: Array | Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """Student's t interval of a mean (Biometrika 6, 1908), here over seeds. None for fewer than two values."""
    from scipy.stats import t

    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return None
    half = t.ppf((1 + level) / 2, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers))
    return float(numbers.mean() - half), float(numbers.mean() + half)
