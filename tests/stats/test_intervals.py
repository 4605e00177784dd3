"""Intervals against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from lorasweep.stats.intervals import (
    blocks,
    expanded_percentile,
    expanded_tail,
    interval,
    mean_interval,
    nominal_tail,
    resample_counts,
    wilson,
)
from lorasweep.stats.scores import Results, value_of
from statslab import drawn


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (3, 10), (10, 10), (170, 200), (872, 872)])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_wilson_is_scipys(successes: int, count: int, level: float) -> None:
    theirs = scipy_stats.binomtest(successes, count).proportion_ci(level, method="wilson")
    assert wilson(successes, count, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_bootstrap_is_scipys_but_for_the_widening() -> None:
    results = drawn(5, rows=300)
    theirs = scipy_stats.bootstrap(
        (results.unit_losses,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    ours = interval(results, "eval/loss")
    assert ours is not None
    width = theirs.high - theirs.low
    assert ours[0] == pytest.approx(theirs.low, abs=0.06 * width)
    assert ours[1] == pytest.approx(theirs.high, abs=0.06 * width)
    few = expanded_percentile(np.linspace(0, 1, 1001), 10)
    assert few is not None and few[1] - few[0] > 0.95 and few[0] == pytest.approx(expanded_tail(0.025, 10), abs=1e-6)


def test_resamples_are_whole_and_the_same_each_time() -> None:
    counts = resample_counts(50, 2000)
    assert counts.shape == (2000, 50) and (counts.sum(1) == 50).all()
    resample_counts.cache_clear()
    assert (resample_counts(50, 2000) == counts).all() and not (resample_counts(50, 2000, seed=1) == counts).all()
    several = list(blocks(20_000, 130))  # a large validation set is never in memory as a whole
    assert [len(block) for block in several] == [50, 50, 30] and not (several[0][:30] == several[2]).all()


@pytest.mark.parametrize("share", [1e-3, 0.05, 0.5, 0.9])
def test_a_tail_widens_and_narrows_back(share: float) -> None:
    assert nominal_tail(expanded_tail(share, 7), 7) == pytest.approx(share)


@pytest.mark.parametrize("metric", ["accuracy", "loss", "f1", "roc_auc"])
def test_every_metric_has_an_interval_around_it(metric: str) -> None:
    results = drawn(6, rows=80, classes=3)
    found = interval(results, metric)
    assert found is not None and found[0] < value_of(results, metric) < found[1]
    narrow = interval(results, metric, level=0.5)
    assert narrow is not None and found[0] < narrow[0] < narrow[1] < found[1]


def test_where_there_is_none() -> None:
    assert interval(Results(np.array([1]), np.array([[0.2, 0.8]])), "accuracy") is None
    one_class = Results(np.zeros(9, int), np.full((9, 2), 0.5))
    assert interval(one_class, "roc_auc") is None
    assert mean_interval([0.8]) is None


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.81, 0.84, 0.79, 0.83, 0.82]
    theirs = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean_interval(values) == pytest.approx((theirs.low, theirs.high))
