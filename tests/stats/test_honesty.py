"""What the leaderboard, its intervals and the gate promise, in 1,000 synthetic sweeps (400 for what is resampled)
where the truth is known.

Nothing is trained: per-example results are drawn. Rows have difficulties that all models of a sweep share, so that
their answers are correlated as those of real trials are. Seeds are fixed: a promise that is broken stays broken.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from lorasweep.stats import better, interval, mean_interval, tied_with_first, value_of, wilson
from lorasweep.stats import paired as paired_module
from lorasweep.stats.many import TIE_LEVEL
from lorasweep.stats.scores import Results
from statslab import with_right

pytestmark = pytest.mark.slow  # hundreds of simulated sweeps

SWEEPS, TRIALS, ROWS = 1000, 20, 200
FEWER = 400  # of those whose statistic is slow to resample
SHARED = 0.6  # correlation of two models' latent answers on a row


def rights(rng: np.random.Generator, accuracies: np.ndarray, rows: int = ROWS) -> np.ndarray:
    """(trials, rows) bool: right answers of models with these true accuracies, (trials,)."""
    difficulty = rng.normal(size=rows)
    own = rng.normal(size=(len(accuracies), rows))
    return np.sqrt(SHARED) * difficulty + np.sqrt(1 - SHARED) * own < ndtri(accuracies)[:, None]


def binary_results(rng: np.random.Generator, rows: int, shift: float, positives: float = 0.4) -> Results:
    """A classifier whose log-odds are normal around +shift and -shift: area under the curve, F1 and loss are known."""
    labels = (rng.random(rows) < positives).astype(int)
    logit = rng.normal(size=rows) * 1.5 + np.where(labels, shift, -shift)
    probability = 1 / (1 + np.exp(-logit))
    return Results(labels, np.stack([1 - probability, probability], 1))


@cache
def truth(metric: str, shift: float) -> float:
    if metric == "roc_auc":
        return float(ndtr(2 * shift / (1.5 * np.sqrt(2))))
    return value_of(binary_results(np.random.default_rng(99), 2_000_000, shift), metric)


def test_intervals_of_accuracy_cover_at_their_rate() -> None:
    rng = np.random.default_rng(1)
    covered = []
    for _ in range(SWEEPS):
        accuracies = rng.uniform(0.55, 0.97, TRIALS)
        counts = rights(rng, accuracies).sum(1)
        bounds = [_wilson(int(count)) for count in counts]
        covered += [low <= true <= high for (low, high), true in zip(bounds, accuracies, strict=True)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


@cache
def _wilson(count: int) -> tuple[float, float]:
    return wilson(count, ROWS)


@pytest.mark.parametrize("metric", ["loss", "f1", pytest.param("roc_auc", marks=pytest.mark.slow)])
def test_bootstrap_intervals_cover_at_their_rate(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorasweep.stats.intervals.RESAMPLES", 600)
    rng = np.random.default_rng(2)
    covered = []
    for _ in range(FEWER):
        found = interval(binary_results(rng, ROWS, 1.0), metric)
        assert found is not None
        covered.append(found[0] <= truth(metric, 1.0) <= found[1])
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_the_first_look_overstates_and_fresh_seeds_tell_the_truth() -> None:
    """The best of 20 looks better than it is; the mean over five fresh seeds covers what the trial is worth."""
    rng = np.random.default_rng(3)
    overstated, covered, first_covered = [], [], []
    for _ in range(SWEEPS):
        worth = rng.normal(0.85, 0.01, TRIALS)  # each trial's mean over seeds, on these rows
        chances = np.clip(worth[:, None] + rng.choice([-0.14, 0.14], (TRIALS, ROWS)), 0, 1)  # right on a row, by seed
        worth = chances.mean(1)
        looks = (rng.random((TRIALS, ROWS)) < chances).mean(1)
        for place in np.argsort(-looks)[:3]:
            seeds = (rng.random((5, ROWS)) < chances[place]).mean(1)
            found = mean_interval(seeds)
            assert found is not None
            covered.append(found[0] <= worth[place] <= found[1])
        best = int(looks.argmax())
        overstated.append(looks[best] - worth[best])
        low, high = _wilson(round(looks[best] * ROWS))
        first_covered.append(low <= worth[best] <= high)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
    assert np.mean(overstated) > 0.02  # the winner's curse: more than two points of accuracy
    assert np.mean(first_covered) < 0.9  # which its own interval does not know of


@pytest.mark.parametrize("kind", ["accuracy", "loss", "f1", pytest.param("roc_auc", marks=pytest.mark.slow)])
def test_no_trial_as_good_as_the_first_is_called_worse(kind: str) -> None:
    """All trials are equally good: any that is not marked as tied is a false claim."""
    rng = np.random.default_rng(4)
    false_claims, sweeps = 0, SWEEPS if kind == "accuracy" else FEWER
    for _ in range(sweeps):
        results = _equal_trials(rng, kind)
        values = [value_of(one, kind) * (-1 if kind == "loss" else 1) for one in results]
        first = results.pop(int(np.argmax(values)))
        false_claims += bool((tied_with_first(first, results, kind) <= TIE_LEVEL).any())
    assert false_claims / sweeps <= TIE_LEVEL + 0.005


def _equal_trials(rng: np.random.Generator, kind: str) -> list[Results]:
    if kind == "accuracy":
        return [with_right(right) for right in rights(rng, np.full(TRIALS, 0.85))]
    labels = rng.integers(0, 2, ROWS)
    logits = 1.0 + 0.7 * rng.normal(size=ROWS) + rng.normal(size=(TRIALS, ROWS))  # of the right class
    chosen = 1 / (1 + np.exp(-logits))
    return [Results(labels, np.where(labels[:, None] == [0, 1], p[:, None], 1 - p[:, None])) for p in chosen]


def test_a_tie_among_worse_trials_is_called_a_tie_and_the_worse_are_found() -> None:
    rng = np.random.default_rng(5)
    accuracies = np.array([0.9, 0.9, *np.linspace(0.5, 0.7, TRIALS - 2)])
    called, found = [], []
    for _ in range(SWEEPS):
        drawn = rights(rng, accuracies)
        best = int(drawn[:2].sum(1).argmax())
        others = np.delete(drawn, best, 0)
        p_values = tied_with_first(with_right(drawn[best]), [with_right(one) for one in others], "accuracy")
        called.append(p_values[0] > TIE_LEVEL)
        found += list(p_values[1:] <= TIE_LEVEL)
    assert np.mean(called) >= 0.95
    assert np.mean(found) > 0.95


def test_the_gate_lets_a_challenger_that_is_no_better_through_at_most_at_its_rate() -> None:
    """The challenger is the best of 20 equal trials by validation; on the test rows it is as good as the champion."""
    rng = np.random.default_rng(6)
    passed = {0.0: 0, -0.02: 0}
    for _ in range(SWEEPS):
        challenger, champion = rights(rng, np.array([0.85, 0.85]), 400)
        passed[0.0] += better(with_right(challenger), with_right(champion), "test/accuracy").better
        worse, champion = rights(rng, np.array([0.83, 0.85]), 400)
        passed[-0.02] += better(with_right(worse), with_right(champion), "test/accuracy", margin=-0.02).better
    assert passed[0.0] / SWEEPS <= 0.05
    assert passed[-0.02] / SWEEPS <= 0.05 + 0.015  # an asymptotic test: two standard errors of the simulation


@pytest.mark.parametrize("metric", ["loss", "f1", pytest.param("roc_auc", marks=pytest.mark.slow)])
def test_the_gate_of_other_metrics(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired_module, "GATE_WORK", 1)  # a thousand resamples
    rng = np.random.default_rng(7)
    passed = 0
    for _ in range(FEWER):
        challenger, champion = _equal_pair(rng)
        passed += better(challenger, champion, metric, "minimize" if metric == "loss" else "maximize").better
    assert passed / FEWER <= 0.05 + 0.022


def test_the_gate_opens_for_what_is_better() -> None:
    rng = np.random.default_rng(8)
    opened = [
        better(*[with_right(one) for one in rights(rng, np.array([0.92, 0.85]), 400)], "test/accuracy").better
        for _ in range(200)
    ]
    assert np.mean(opened) > 0.9


def _equal_pair(rng: np.random.Generator) -> tuple[Results, Results]:
    labels = (rng.random(ROWS) < 0.4).astype(int)
    shared = rng.normal(size=ROWS) + np.where(labels, 1.0, -1.0)
    chances = [1 / (1 + np.exp(-(shared + rng.normal(size=ROWS)))) for _ in range(2)]
    return tuple(Results(labels, np.stack([1 - p, p], 1)) for p in chances)  # type: ignore[return-value]
