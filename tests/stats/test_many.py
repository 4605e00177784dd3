"""Corrections against brute force, and many comparisons against one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import ttest_ind

from lorasweep.stats.many import TIE_LEVEL, against_first, holm, paired_p_values, tied_with_first, welch
from lorasweep.stats.paired import better, mcnemar
from statslab import drawn, with_right

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def rejected_one_by_one(p_values: list[float], allowed: list[float]) -> set[int]:
    """Step down by hand: the smallest first, until one is too large for its step."""
    found = set()
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        if p_values[place] > allowed[step]:
            break
        found.add(int(place))
    return found


@given(P_VALUES)
def test_holm_steps_down(p_values: list[float]) -> None:
    count = len(p_values)
    adjusted = holm(p_values)
    wanted = rejected_one_by_one(p_values, [0.05 / (count - step) for step in range(count)])
    assert {place for place in range(count) if adjusted[place] <= 0.05 * (1 + 1e-12)} == wanted


@given(P_VALUES, st.integers(0, 5))
@example([0.01], 2)  # four trials have six pairs: 0.06, where four comparisons would make it 0.04
def test_pairs_with_the_first_step_down_over_all_pairs(p_values: list[float], not_passed: int) -> None:
    trials = len(p_values) + 1 + not_passed
    adjusted = against_first(p_values, trials)
    left = [trials - step for step in range(len(p_values))]
    wanted = rejected_one_by_one(p_values, [0.05 / (one * (one - 1) / 2) for one in left])
    assert {place for place in range(len(p_values)) if adjusted[place] <= 0.05 * (1 + 1e-12)} == wanted
    assert (adjusted >= holm(p_values) - 1e-12).all()


def test_many_mcnemar_tests_are_single_ones() -> None:
    rng = np.random.default_rng(0)
    rights = rng.random((9, 60)) < np.linspace(0.5, 0.95, 9)[:, None]
    first, others = with_right(rights[-1]), [with_right(right) for right in rights[:-1]]
    found = paired_p_values(first, others, "eval/accuracy")
    for right, p_value in zip(rights[:-1], found, strict=True):
        assert p_value == pytest.approx(mcnemar(int((rights[-1] & ~right).sum()), int((right & ~rights[-1]).sum())))


@pytest.mark.parametrize("metric", ["loss", "f1", "roc_auc"])
def test_other_metrics_agree_with_the_paired_bootstrap(metric: str) -> None:
    first, second = drawn(1, rows=300), drawn(2, rows=300)
    mixed = type(first)(first.labels, 0.6 * second.probabilities + 0.4 * first.probabilities)
    direction = "minimize" if metric == "loss" else "maximize"
    one_sided = min(better(*both, metric, direction).p_value for both in ((first, mixed), (mixed, first)))
    assert paired_p_values(first, [mixed], metric)[0] == pytest.approx(2 * one_sided, abs=0.03)


def test_what_cannot_be_compared_is_nan() -> None:
    first, same, others = drawn(1), drawn(1), drawn(2)
    found = tied_with_first(first, [same, others, drawn(3, rows=40)], "f1")
    assert found[0] == 1.0 and np.isnan(found[1:]).all()
    assert np.isnan(paired_p_values(first, [same], "brier")).all()
    assert len(tied_with_first(first, [], "accuracy")) == 0


def test_a_clearly_worse_trial_is_no_tie_and_more_trials_ask_for_more() -> None:
    right = np.arange(400) < 340
    worse, near = right & (np.arange(400) % 4 > 0), right & (np.arange(400) > 2)
    first, others = with_right(right), [with_right(worse), with_right(near)]
    clear, close = tied_with_first(first, others, "accuracy")
    assert clear <= TIE_LEVEL < close
    fewer = tied_with_first(first, [with_right(right & (np.arange(400) > 12))], "accuracy")[0]
    more = tied_with_first(first, [with_right(right & (np.arange(400) > 12))], "accuracy", trials=500)[0]
    assert fewer <= TIE_LEVEL < more


def test_seeds_are_compared_by_welchs_test() -> None:
    one, other = [0.8, 0.82, 0.81, 0.84], [0.7, 0.78, 0.74]
    assert welch(one, other) == pytest.approx(ttest_ind(one, other, equal_var=False).pvalue)
    assert np.isnan(welch([0.8], other))
    assert welch([0.8, 0.8], [0.8, 0.8]) == 1.0 and welch([0.8, 0.8], [0.7, 0.7]) == 0.0
