"""Metrics against scikit-learn called directly, and where they are not defined."""

import os
import socket
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from lorasweep.metrics.classification import (
    calibration_error,
    classification_metrics,
    confusion_matrix,
    log_loss,
    precision_recall_f1,
    roc_auc,
)


def random_case(rows: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.random((rows, classes)).astype(np.float32)
    return scores / scores.sum(-1, keepdims=True), rng.integers(0, classes, rows)


@pytest.mark.parametrize("average", ["macro", "weighted", "binary"])
@pytest.mark.parametrize("classes", [2, 4])
@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 60), seed=st.integers(0, 10_000))
def test_agree_with_sklearn(average: str, classes: int, rows: int, seed: int) -> None:
    if average == "binary" and classes != 2:
        return
    probabilities, labels = random_case(rows, classes, seed)
    got = classification_metrics(probabilities, labels, average)
    predicted = probabilities.argmax(-1)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert got["f1"] == pytest.approx(sk.f1_score(labels, predicted, average=average, zero_division=0))
    assert got["precision"] == pytest.approx(sk.precision_score(labels, predicted, average=average, zero_division=0))
    assert got["recall"] == pytest.approx(sk.recall_score(labels, predicted, average=average, zero_division=0))
    wide = probabilities.astype(np.float64)
    wide /= wide.sum(-1, keepdims=True)
    assert got["log_loss"] == pytest.approx(sk.log_loss(labels, wide, labels=list(range(classes))))
    if len(set(labels.tolist())) < classes:
        assert "roc_auc" not in got
    elif classes == 2:
        assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, probabilities[:, 1]))
    else:
        assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, wide, multi_class="ovr"), abs=1e-6)


def test_known_values() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]], dtype=np.float32)
    got = classification_metrics(probabilities, np.array([0, 1, 0, 1]), "binary")
    assert {name: got[name] for name in ("accuracy", "f1", "precision", "recall", "roc_auc")} == {
        "accuracy": 0.5,
        "f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "roc_auc": 0.75,
    }


def test_examples_of_scikit_learns_documentation() -> None:
    """As printed at scikit-learn.org for each function, version 1.7."""
    animals = {"cat": 0, "dog": 1, "pig": 2}
    wanted = [animals[name] for name in ("cat", "dog", "pig", "cat", "dog", "pig")]
    predicted = [animals[name] for name in ("cat", "pig", "dog", "cat", "cat", "dog")]
    for average in ("macro", "weighted"):
        scores = precision_recall_f1(predicted, wanted, average)
        assert (round(scores["precision"], 2), round(scores["recall"], 2), round(scores["f1"], 2)) == (0.22, 0.33, 0.27)
    assert confusion_matrix([0, 0, 2, 2, 0, 2], [2, 0, 2, 2, 0, 1]).tolist() == [[2, 0, 0], [0, 0, 1], [1, 0, 2]]
    spam = np.array([[0.1, 0.9], [0.9, 0.1], [0.8, 0.2], [0.35, 0.65]])
    assert log_loss(spam, [1, 0, 0, 1]) == pytest.approx(0.21616, abs=5e-6)
    scores_of_1 = np.array([0.1, 0.4, 0.35, 0.8])
    assert roc_auc(np.stack([1 - scores_of_1, scores_of_1], -1), [0, 0, 1, 1]) == 0.75


def test_calibration_error_of_torchmetrics_documentation() -> None:
    """The example of MulticlassCalibrationError(num_classes=3, n_bins=3, norm='l1'): 0.2000."""
    probabilities = np.array([[0.25, 0.20, 0.55], [0.55, 0.05, 0.40], [0.10, 0.30, 0.60], [0.90, 0.05, 0.05]])
    assert calibration_error(probabilities, [0, 1, 2, 0], bins=3) == pytest.approx(0.2)


def test_calibration_error_of_the_sure_and_the_unsure() -> None:
    sure = np.array([[1.0, 0.0]] * 4)
    assert calibration_error(sure, [0, 0, 0, 0]) == 0.0
    assert calibration_error(sure, [1, 1, 1, 1]) == 1.0
    assert calibration_error(np.full((4, 2), 0.5), [0, 1, 0, 1]) == 0.0


def test_a_row_without_a_class_is_wrong_whatever_it_is() -> None:
    probabilities = np.array([[0.0, 0.0], [0.0, 0.0], [0.2, 0.8], [0.9, 0.1]], dtype=np.float32)
    got = classification_metrics(probabilities, np.array([0, 1, 1, 0]), "macro")
    assert got["accuracy"] == 0.5 and got["recall"] == 0.5 and got["precision"] == 1.0
    assert got["log_loss"] > 15 and np.isfinite(got["log_loss"])
    assert got["calibration_error"] == pytest.approx((0.2 + 0.1) / 4)
    binary = classification_metrics(probabilities, np.array([0, 1, 1, 0]), "binary")
    assert (binary["precision"], binary["recall"]) == (1.0, 0.5)
    assert confusion_matrix([-1, -1, 1, 0], [0, 1, 1, 0], classes=2).tolist() == [[1, 0], [0, 1]]


def test_a_confusion_matrix_holds_classes_that_never_occur() -> None:
    assert confusion_matrix([0, 0], [0, 0], classes=3).tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_no_roc_auc_from_probabilities_that_are_not_finite() -> None:
    probabilities, labels = random_case(20, 2, 0)
    probabilities[3] = np.nan
    assert set(classification_metrics(probabilities, labels, "macro")) == {"accuracy", "f1", "precision", "recall"}


def test_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    probabilities, labels = random_case(20, 3, 1)
    assert set(classification_metrics(probabilities, labels, "macro")) == {
        "accuracy",
        "calibration_error",
        "f1",
        "log_loss",
        "precision",
        "recall",
        "roc_auc",
    }


def test_one_evaluation_is_cheap() -> None:
    probabilities, labels = random_case(900, 2, 0)
    seconds = []
    for _ in range(7):
        start = time.thread_time() if os.name == "posix" else time.perf_counter()
        classification_metrics(probabilities, labels, "macro")
        seconds.append((time.thread_time() if os.name == "posix" else time.perf_counter()) - start)
    assert sorted(seconds)[3] < 0.1  # 20 ms on an idle core; the room is for loaded machines
