"""Metrics against scikit-learn called directly, and where they are not defined."""

import os
import socket
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from lorasweep.metrics.classification import classification_metrics


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
    if len(set(labels.tolist())) < classes:
        assert "roc_auc" not in got
    elif classes == 2:
        assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, probabilities[:, 1]))
    else:
        wide = probabilities.astype(np.float64)
        wide /= wide.sum(-1, keepdims=True)
        assert got["roc_auc"] == pytest.approx(sk.roc_auc_score(labels, wide, multi_class="ovr"), abs=1e-6)


def test_known_values() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]], dtype=np.float32)
    got = classification_metrics(probabilities, np.array([0, 1, 0, 1]), "binary")
    assert got == {"accuracy": 0.5, "f1": 0.5, "precision": 0.5, "recall": 0.5, "roc_auc": 0.75}


def test_no_roc_auc_from_probabilities_that_are_not_finite() -> None:
    probabilities, labels = random_case(20, 2, 0)
    probabilities[3] = np.nan
    assert "roc_auc" not in classification_metrics(probabilities, labels, "macro")


def test_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    probabilities, labels = random_case(20, 3, 1)
    assert set(classification_metrics(probabilities, labels, "macro")) == {
        "accuracy",
        "f1",
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
