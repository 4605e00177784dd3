"""Two models on the same evaluation rows: is one better, and by how much?

`better` is the gate of a promotion: it says yes to a challenger that is no better at most as often as its level says.
Right and wrong answers are compared by McNemar's test, all other metrics by the paired bootstrap. Neighbours: `scores`,
`intervals`; `many` (a leaderboard's worth of comparisons).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lorasweep.stats.intervals import blocks, expanded_percentile, nominal_tail
from lorasweep.stats.scores import Results, Score, kind_of, resampled, units_of, value_of

GATE_RESAMPLES = 10_000
GATE_WORK = 40_000_000  # resamples times rows
DECISION_LEVEL = 0.05  # how often a no-better challenger may pass


@dataclass(frozen=True)
class Decision:
    """Whether a challenger is better than the champion, with every number behind it.

    difference: challenger minus champion, in the metric's own sign; interval: of the difference, two-sided, at
    1 - 2 * level, so that it agrees with the one-sided test; p_value: the chance of at least so large an advantage if
    there were none beyond `margin`; test: its name; said: the decision in one sentence.
    """

    better: bool
    metric: str
    value: float
    other: float
    difference: float
    interval: tuple[float, float] | None
    p_value: float
    level: float
    margin: float
    test: str
    rows: int
    said: str

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; what is not finite is null."""
        plain = asdict(self)
        plain["interval"] = None if self.interval is None else list(self.interval)
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in plain.items()}


def better(
    challenger: Results,
    champion: Results,
    metric: str,
    direction: str = "maximize",
    average: str = "macro",
    level: float = DECISION_LEVEL,
    margin: float = 0.0,
    score: Score | None = None,
) -> Decision:
    """Whether the challenger beats the champion on the same rows by more than `margin`.

    A margin of 0 asks for superiority; a negative one, such as -0.01, only that it is not worse by so much
    (non-inferiority). `score` computes a metric that this room has no formula for.

    Raises:
        ValueError: the two were not asked about the same rows.
    """
    if not challenger.same_rows(champion):
        raise ValueError(
            f"two models can be compared on the same rows alone; these have {len(challenger)} and {len(champion)} rows"
            " or other labels"
        )
    sign = 1.0 if direction == "maximize" else -1.0
    value, other = (value_of(one, metric, average, score) for one in (challenger, champion))
    units = units_of(challenger, metric)
    if kind_of(metric) == "accuracy" and challenger.probabilities.shape[1]:
        wins = int((challenger.correct & ~champion.correct).sum())
        losses = int((champion.correct & ~challenger.correct).sum())
        gain, loss = (wins, losses) if sign > 0 else (losses, wins)
        if margin == 0:
            p_value, test = mcnemar(gain, loss, two_sided=False, mid_p=False), "McNemar's exact test, one-sided"
        else:
            p_value, test = tango_p(gain, loss, units, margin), "Tango's score test, one-sided"
        interval: tuple[float, float] | None = tango_interval(wins, losses, units, 1 - 2 * level)
        what = f"it alone is right on {wins} of {units} rows, the champion alone on {losses}"
    else:
        p_value, interval = _bootstrap(challenger, champion, metric, sign, average, level, margin, score)
        test = "paired bootstrap, one-sided"
        what = f"{units} rows"
    known = math.isfinite(value) and math.isfinite(other) and math.isfinite(p_value)
    passed = known and p_value <= level and sign * (value - other) > margin
    name = kind_of(metric)
    verdict = "is better than" if passed and margin >= 0 else "is no worse than" if passed else "is not shown to beat"
    beyond = f" by more than {margin:g}" if margin else ""
    said = (
        f"{name} {value:.4f} {verdict} {other:.4f}{beyond} (difference {value - other:+.4f}"
        + (f", {1 - 2 * level:.0%} interval {interval[0]:+.4f} to {interval[1]:+.4f}" if interval else "")
        + f"; {test}: p = {p_value:.3g}, needed {level:g}; {what})"
    )
    return Decision(
        passed, metric, value, other, value - other, interval, float(p_value), level, margin, test, units, said
    )


def _bootstrap(
    challenger: Results,
    champion: Results,
    metric: str,
    sign: float,
    average: str,
    level: float,
    margin: float,
    score: Score | None,
) -> tuple[float, tuple[float, float] | None]:
    """One-sided p-value and two-sided interval of the difference: both models meet the same resampled rows (Efron and
    Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 16; Koehn, EMNLP 2004)."""
    units = units_of(challenger, metric)
    if units < 2 or units != units_of(champion, metric):
        return math.nan, None
    count = max(1000, min(GATE_RESAMPLES, GATE_WORK // units))
    differences = []
    for weights in blocks(units, count):
        ours, theirs = (resampled(one, metric, weights, average, score) for one in (challenger, champion))
        differences.append(ours - theirs)
    values = np.concatenate(differences)
    known = values[np.isfinite(values)]
    interval = expanded_percentile(values, units, 1 - 2 * level)
    if interval is None:
        return math.nan, None
    advantage = sign * known
    share = (1 + (advantage < margin).sum() + (advantage == margin).sum() / 2) / (len(known) + 1)
    return nominal_tail(min(1.0, float(share)), units), interval


# -- right and wrong --------------------------------------------------------------------------------------------------


def mcnemar(wins: int, losses: int, two_sided: bool = True, mid_p: bool = True) -> float:
    """McNemar's test (Psychometrika 12, 1947) from the rows on which exactly one of two models is right: wins of the
    first, losses of the first. Exact: the sign test of wins among them; one-sided for "the first is better".

    The mid-p form counts half of the observed outcome's chance; it keeps its level nearly always and loses less power
    than the exact one (Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013). 1 where the two
    never differ.
    """
    from scipy.stats import binom

    total = wins + losses
    if not total:
        return 1.0
    half = 0.5 * binom.pmf(wins, total, 0.5) if mid_p else 0.0
    upper = binom.sf(wins - 1, total, 0.5) - half  # at least so many wins
    if not two_sided:
        return float(upper)
    lower = binom.cdf(wins, total, 0.5) - half
    return float(min(1.0, 2 * min(upper, lower)))


def _tango_z(wins: int, losses: int, rows: int, margin: float) -> float:
    """Tango's score statistic for a difference of paired shares of `margin`."""
    a = 2.0 * rows
    b = -wins - losses + (2 * rows - wins + losses) * margin
    c = -losses * margin * (1 - margin)
    only_losses = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    spread = rows * (2 * only_losses + margin * (1 - margin))
    above = wins - losses - rows * margin
    if spread <= 0:
        return 0.0 if above == 0 else math.copysign(math.inf, above)
    return above / math.sqrt(spread)


def tango_p(wins: int, losses: int, rows: int, margin: float) -> float:
    """One-sided p-value of "the first model's share is higher by more than `margin`" (Tango, Statistics in Medicine
    17, 1998); at a margin of 0 it is McNemar's asymptotic test."""
    from scipy.stats import norm

    return float(norm.sf(_tango_z(wins, losses, rows, margin)))


def tango_interval(wins: int, losses: int, rows: int, level: float) -> tuple[float, float]:
    """Tango's score interval of the difference of two paired shares, good also for few differing rows (Statistics in
    Medicine 17, 1998)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    share = (wins - losses) / rows

    def end(target: float, outer: float) -> float:
        def gap(margin: float) -> float:
            return _tango_z(wins, losses, rows, margin) - target

        low, high = sorted((share, outer * (1 - 1e-9)))
        if gap(low) * gap(high) > 0:  # the interval reaches the end of what is possible
            return outer
        return float(brentq(gap, low, high))

    return end(z, -1.0), end(-z, 1.0)
