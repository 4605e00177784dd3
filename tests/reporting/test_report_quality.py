"""Confusion matrix and ROC against scikit-learn, for two classes, many, and answers that name none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from lorasweep.reporting import quality
from lorasweep.stats import Results


def drawn(rows: int, classes: int, names: list[str] | None = None) -> Results:
    generator = np.random.default_rng(3)
    labels = generator.integers(0, classes, rows)
    scores = generator.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[labels]
    probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return Results(labels, probabilities.astype(np.float32), label_names=names or [])


def test_two_classes() -> None:
    results = drawn(500, 2, ["negative", "positive"])
    matrix, roc = quality.of(results, "trial 7")
    assert matrix.names == ["negative", "positive"]
    assert matrix.counts == confusion_matrix(results.labels, results.predicted).tolist()
    assert "trial 7" in matrix.caption and f"{results.correct.mean():.1%}" in matrix.caption
    (line,) = roc.series
    assert line.name == f"positive (AUC {roc_auc_score(results.labels, results.probabilities[:, 1]):.3f})"
    assert (line.x[0], line.y[0], line.x[-1], line.y[-1]) == (0, 0, 1, 1) and len(line.x) <= 200


def test_many_classes_are_bounded() -> None:
    matrix, roc = quality.of(drawn(4000, 50), "x")
    assert len(matrix.names) == len(matrix.counts) == 30 and "30 classes with most rows of 50" in matrix.caption
    assert len(roc.series) == 8


def test_an_answer_that_names_no_class_is_its_own_column() -> None:
    results = Results(np.array([0, 1, 1]), np.array([[0.9, 0.1], [0, 0], [0.2, 0.8]]), label_names=["a", "b"])
    matrix = quality.confusion(results, "x")
    assert matrix.names == ["a", "b", "(none)"]
    assert matrix.counts == [[1, 0, 0], [0, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1]])
def test_one_class_alone_has_no_roc(labels: list[int]) -> None:
    results = Results(np.array(labels), np.full((3, 2), 0.5))
    assert quality.roc(results, "x") is None
    assert quality.confusion(results, "x").names == ["0", "1"]
