"""The paired tests against scipy's and against brute force, and what the gate says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest, norm, permutation_test

from lorasweep.stats.paired import better, mcnemar, tango_interval, tango_p
from lorasweep.stats.scores import Results, value_of
from statslab import drawn, pair


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (12, 2), (2, 12), (40, 60)])
def test_mcnemar_is_the_sign_test(wins: int, losses: int) -> None:
    total = wins + losses
    exact = binomtest(wins, total).pvalue if total else 1.0
    assert mcnemar(wins, losses, mid_p=False) == pytest.approx(exact)
    upper = binomtest(wins, total, alternative="greater").pvalue if total else 1.0
    assert mcnemar(wins, losses, two_sided=False, mid_p=False) == pytest.approx(upper)
    chance = mcnemar(wins, losses)
    assert chance <= exact and (wins != losses or chance == pytest.approx(1.0))


def test_the_published_case_of_the_mid_p_test() -> None:
    # airway hyper-responsiveness before and after stem cell transplantation, 1 against 7 of 21 (Fagerland et al. 2013)
    assert mcnemar(1, 7, mid_p=False) == pytest.approx(0.0703, abs=1e-4)
    assert mcnemar(1, 7) == pytest.approx(0.0391, abs=1e-4)


def brute_z(wins: int, losses: int, rows: int, margin: float) -> float:
    """Tango's statistic with the restricted maximum of the likelihood found by search."""
    rest = rows - wins - losses

    def minus_likelihood(q: float) -> float:  # q: share of rows that the other alone has right
        cells = np.array([q + margin, q, 1 - 2 * q - margin])
        counts = np.array([wins, losses, rest])
        return float(-(counts * np.log(np.maximum(cells, 1e-300))).sum())

    q = minimize_scalar(
        minus_likelihood, bounds=(max(0, -margin), (1 - margin) / 2), method="bounded", options={"xatol": 1e-12}
    ).x
    return (wins - losses - rows * margin) / np.sqrt(rows * (2 * q + margin * (1 - margin)))


@pytest.mark.parametrize("margin", [-0.1, -0.01, 0.02, 0.2])
@pytest.mark.parametrize(("wins", "losses", "rows"), [(12, 2, 50), (30, 28, 872), (3, 9, 40)])
def test_tango_is_the_score_test(wins: int, losses: int, rows: int, margin: float) -> None:
    wanted = float(norm.sf(brute_z(wins, losses, rows, margin)))
    assert tango_p(wins, losses, rows, margin) == pytest.approx(wanted, abs=1e-5)
    low, high = tango_interval(wins, losses, rows, 0.9)
    assert low < (wins - losses) / rows < high
    assert tango_p(wins, losses, rows, low) == pytest.approx(0.05, abs=1e-6)
    assert tango_p(wins, losses, rows, high) == pytest.approx(0.95, abs=1e-6)


def test_tango_at_the_ends_of_what_is_possible() -> None:
    assert tango_interval(0, 0, 20, 0.9)[0] < 0 < tango_interval(0, 0, 20, 0.9)[1]
    low, high = tango_interval(20, 0, 20, 0.9)
    assert 0.7 < low < 1 and high == 1.0
    low, high = tango_interval(0, 20, 20, 0.9)
    assert low == -1.0 and -1 < high < -0.7


@pytest.mark.parametrize("metric", ["loss", "f1", "roc_auc"])
def test_the_paired_bootstrap_agrees_with_a_permutation_test(metric: str) -> None:
    first, second = drawn(1, rows=200), drawn(2, rows=200)
    second = Results(first.labels, second.probabilities * 0.5 + first.probabilities * 0.5)
    decision = better(first, second, metric, "minimize" if metric == "loss" else "maximize")

    def gap(swaps: np.ndarray, axis: int = -1) -> np.ndarray:
        found = []
        for one in np.atleast_2d(swaps):
            chosen = (one > 0)[:, None]
            ours = Results(first.labels, np.where(chosen, first.probabilities, second.probabilities))
            theirs = Results(first.labels, np.where(chosen, second.probabilities, first.probabilities))
            found.append(value_of(ours, metric) - value_of(theirs, metric))
        return np.array(found) if np.ndim(swaps) > 1 else np.float64(found[0])

    side = "less" if metric == "loss" else "greater"
    theirs = permutation_test(
        (np.ones(200),), gap, permutation_type="samples", alternative=side, n_resamples=600,
        rng=np.random.default_rng(0), vectorized=True,
    )  # fmt: skip
    assert decision.p_value == pytest.approx(theirs.pvalue, abs=0.05)


def test_the_gate_opens_for_the_better_and_for_no_other() -> None:
    clear = better(*pair(30, 8, 100, 10), "test/accuracy")
    assert clear.better and clear.p_value < 0.001 and clear.difference == pytest.approx(22 / 148)
    assert clear.interval is not None and clear.interval[0] > 0
    assert "is better than" in clear.said and "McNemar" in clear.said and "30 of 148" in clear.said
    assert not better(*pair(10, 8, 100, 10), "test/accuracy").better
    assert not better(*pair(8, 30, 100, 10), "test/accuracy").better
    same = better(*pair(0, 0, 50, 0), "test/accuracy")
    assert not same.better and same.p_value == 1.0
    json.dumps(clear.to_json(), allow_nan=False)


def test_direction_and_margin() -> None:
    ours, theirs = pair(30, 8, 100, 10)
    assert better(ours, theirs, "loss", "minimize").better and not better(ours, theirs, "loss").better
    assert not better(ours, theirs, "accuracy", margin=0.12).better
    even = pair(10, 10, 300, 20)
    assert better(*even, "accuracy", margin=-0.05).better and not better(*even, "accuracy", margin=-0.001).better
    assert "no worse" in better(*even, "accuracy", margin=-0.05).said
    assert not better(*even, "accuracy", "minimize").better


def test_the_same_model_never_beats_itself() -> None:
    results = drawn(3, rows=150)
    for metric in ("accuracy", "loss", "f1", "roc_auc"):
        decision = better(results, results, metric, "minimize" if metric == "loss" else "maximize")
        assert not decision.better and decision.difference == 0 and decision.p_value >= 0.4, metric


def test_other_rows_are_refused_and_an_undefined_metric_beats_nothing() -> None:
    with pytest.raises(ValueError, match="same rows"):
        better(drawn(1), drawn(2), "accuracy")
    labels = np.zeros(20, int)
    one = Results(labels, np.tile([0.6, 0.4], (20, 1)))
    decision = better(one, one, "roc_auc")
    assert not decision.better and decision.interval is None
    json.dumps(decision.to_json(), allow_nan=False)


def test_a_metric_of_ones_own_passes_the_gate_too() -> None:
    first, second = pair(30, 2, 60, 8)

    def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {"eval/brier": float(((probabilities[:, 1] - labels) ** 2).mean())}

    assert better(first, second, "test/brier", "minimize", score=score).better
    assert not better(second, first, "test/brier", "minimize", score=score).better
