"""Metrics of resamples against scikit-learn, and influences against what they are the derivative of."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from lorasweep.stats.intervals import resample_counts
from lorasweep.stats.scores import AVERAGED, Results, influence, resampled, value_of
from statslab import drawn


def reference(results: Results, metric: str, average: str) -> float:
    labels, probabilities = results.labels, results.probabilities
    if metric == "accuracy":
        return sk.accuracy_score(labels, results.predicted)
    if metric in ("loss", "log_loss"):
        probabilities = probabilities / probabilities.sum(1, keepdims=True, dtype=np.float64)
        chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        return float(-np.log(np.maximum(chosen, 1e-12)).mean())
    if metric == "roc_auc":
        columns = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
        return float(np.mean([sk.roc_auc_score(labels == one, probabilities[:, one]) for one in columns]))
    scores = sk.precision_recall_fscore_support(labels, results.predicted, average=average, zero_division=0.0)
    return scores[("precision", "recall", "f1").index(metric)]


CASES = [
    (metric, average, classes)
    for classes in (2, 3, 5)
    for metric in ("accuracy", "loss", "log_loss", "roc_auc", *AVERAGED)
    for average in ("macro", "weighted", "binary")
    if (average == "macro" or metric in AVERAGED) and (average != "binary" or classes == 2)
]


@pytest.mark.parametrize(("metric", "average", "classes"), CASES)
def test_values_and_resamples_are_scikit_learns(metric: str, average: str, classes: int) -> None:
    results = drawn(classes, classes=classes)
    assert value_of(results, f"eval/{metric}", average) == pytest.approx(reference(results, metric, average), abs=1e-12)
    weights = resample_counts(len(results), 5, seed=3)
    found = resampled(results, metric, weights, average)
    for value, counts in zip(found, weights, strict=True):
        rows = np.repeat(np.arange(len(results)), counts.astype(int))
        assert value == pytest.approx(reference(results.take(rows), metric, average), abs=1e-6)


@pytest.mark.parametrize(("metric", "average", "classes"), CASES)
def test_an_influence_is_the_derivative_by_a_rows_weight(metric: str, average: str, classes: int) -> None:
    results = drawn(classes + 10, classes=classes)
    moves = influence(results, metric, average)
    assert moves is not None and abs(moves.mean()) < 1e-12
    rows, step = len(results), 1e-5
    weights = np.ones((rows, rows)) + step * np.eye(rows)
    changed = (resampled(results, metric, weights, average) - value_of(results, metric, average)) / step
    assert changed * rows == pytest.approx(moves, abs=2e-3)


@pytest.mark.parametrize("metric", ["accuracy", "loss", "roc_auc", "f1"])
def test_its_standard_error_is_the_bootstraps(metric: str) -> None:
    results = drawn(1, rows=400)
    moves = influence(results, metric)
    assert moves is not None
    bootstrap = resampled(results, metric, resample_counts(400, 4000)).std()
    assert moves.std() / np.sqrt(400) == pytest.approx(bootstrap, rel=0.06)


def test_a_class_without_rows_or_answers() -> None:
    labels, probabilities = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1, 0.0]] * 4)
    results = Results(labels, probabilities)
    for metric in AVERAGED:
        assert value_of(results, metric) == pytest.approx(reference(results, metric, "macro"))
        assert np.isfinite(influence(results, metric)).all()
    assert np.isnan(value_of(results, "roc_auc"))


def test_any_other_metric_is_asked_of_the_score() -> None:
    results = drawn(2)

    def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {"eval/brier": float(((probabilities[:, 1] - labels) ** 2).mean())}

    assert value_of(results, "test/brier", score=score) == score(results.probabilities, results.labels)["eval/brier"]
    found = resampled(results, "test/brier", resample_counts(120, 50), score=score)
    assert found.std() > 0 and found.mean() == pytest.approx(value_of(results, "test/brier", score=score), abs=0.03)
    with pytest.raises(ValueError, match="score"):
        value_of(results, "test/brier")


def test_results_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        Results(np.zeros(3, int), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="at least one row"):
        Results(np.zeros(0, int), np.zeros((0, 2)))


def test_an_answer_that_names_no_class_is_wrong_and_no_class() -> None:
    results = Results(np.array([0, 1, 0]), np.array([[0.0, 0.0], [0.2, 0.8], [0.9, 0.1]]))
    assert list(results.predicted) == [-1, 1, 0] and value_of(results, "accuracy") == pytest.approx(2 / 3)
    assert value_of(results, "recall") == pytest.approx(0.75)


def test_texts_are_known_by_their_rows_scores() -> None:
    matches = np.array([1.0, 0.0, 1.0, 1.0])
    texts = Results(np.arange(4), np.zeros((4, 0)), np.ones(9), scores={"exact_match": matches})
    assert texts.knows("eval/exact_match") and texts.knows("eval/loss") and not texts.knows("eval/f1")
    assert value_of(texts, "eval/exact_match") == 0.75 and value_of(texts, "eval/loss") == 1.0
    assert influence(texts, "exact_match") == pytest.approx(matches - 0.75)
    assert influence(texts, "accuracy") is None
    assert resampled(texts, "exact_match", np.array([[2, 2, 0, 0]])) == pytest.approx([0.5])
