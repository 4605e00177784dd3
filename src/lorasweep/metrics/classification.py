"""Accuracy, precision, recall, F1, ROC AUC, confusion matrix, log loss and calibration error, over scikit-learn.

Plain functions over arrays; `modules` offers each as an `evaluate.Metric`. A row of probabilities that are all zero
predicts no class (a generated answer that names none): it is wrong whatever its class. Neighbours: `tasks` (who calls
`classification_metrics`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import metrics as sk

CALIBRATION_BINS = 15  # as Guo et al. 2017
NONE = -1  # the predicted class of a row without one


def predicted_classes(probabilities: np.ndarray) -> np.ndarray:
    """The likeliest class of each row, the first of equals; -1 where no class has any probability."""
    scores = np.asarray(probabilities)
    found: np.ndarray = np.where((scores == 0).all(-1), NONE, scores.argmax(-1))
    return found


def accuracy(predictions: Any, references: Any) -> float:
    """Rows whose predicted class is the reference, over all rows."""
    return float(sk.accuracy_score(references, predictions))


def precision_recall_f1(predictions: Any, references: Any, average: str = "macro") -> dict[str, float]:
    """`precision`, right predictions over all predictions of a class, `recall`, over all its rows, and their harmonic
    mean `f1`, each averaged over classes.

    `average`: macro (mean over the classes that occur), weighted (by rows), binary (class 1 alone). 0 where a class
    is never predicted.
    """
    occurring = [1] if average == "binary" else sorted({*np.unique(references), *np.unique(predictions)} - {NONE})
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        references,
        predictions,
        labels=occurring,
        average="macro" if average == "binary" else average,
        zero_division=0.0,
    )
    return {"f1": float(f1), "precision": float(precision), "recall": float(recall)}


def roc_auc(probabilities: np.ndarray, references: Any) -> float:
    """Area under the ROC curve of probabilities (rows, classes): that of class 1 for two classes, else the macro mean
    of each class against the rest. ValueError where a class has no row."""
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.shape[1] == 2:
        return float(sk.roc_auc_score(references, scores[:, 1]))
    # one against the rest needs each column alone: unlike sklearn's multi_class, rows need not sum to one exactly
    labels = np.asarray(references)
    areas = [sk.roc_auc_score(labels == number, scores[:, number]) for number in range(scores.shape[1])]
    return float(np.mean(areas))


def confusion_matrix(predictions: Any, references: Any, classes: int | None = None) -> np.ndarray:
    """(classes, classes) counts of rows: reference class down, predicted class across. `classes` None: those that
    occur. Rows without a predicted class are in no column."""
    occurring = {*np.unique(references), *np.unique(predictions)} - {NONE}
    labels = sorted(occurring) if classes is None else list(range(classes))
    matrix: np.ndarray = sk.confusion_matrix(references, predictions, labels=labels)
    return matrix


def log_loss(probabilities: np.ndarray, references: Any) -> float:
    """Mean of minus the logarithm of the probability (rows, classes) of each row's class, clipped as scikit-learn does
    at the smallest step from 1. Rows are brought to a sum of one first."""
    scores = np.asarray(probabilities, dtype=np.float64)
    sums = scores.sum(-1)
    right = scores[np.arange(len(scores)), np.asarray(references)] / np.where(sums > 0, sums, 1.0)
    smallest = np.finfo(np.float64).eps
    return float(-np.log(np.clip(right, smallest, 1 - smallest)).mean())


def calibration_error(probabilities: np.ndarray, references: Any, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017): rows in `bins` bins of equal width by their
    confidence, the probability of the likeliest class; the mean over rows of |accuracy - confidence| of their bin.

    Bin m holds confidences in ((m - 1) / bins, m / bins].
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    labels = np.asarray(references)
    confidence, right = scores.max(-1), predicted_classes(scores) == labels
    places = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(places, weights=right - confidence, minlength=bins)  # rows * (accuracy - confidence) of a bin
    return float(np.abs(gaps).sum() / len(labels))


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray, average: str) -> dict[str, float]:
    """accuracy, f1, precision, recall and, where they are defined, log_loss, calibration_error, roc_auc.

    probabilities (rows, classes); labels (rows,) class ids; average macro, weighted or binary. Where a probability is
    not finite the last three are left out; roc_auc also where a class has no row.
    """
    predicted = predicted_classes(probabilities)
    scores = {"accuracy": accuracy(predicted, labels), **precision_recall_f1(predicted, labels, average)}
    if not np.isfinite(probabilities).all():
        return scores
    scores |= {
        "log_loss": log_loss(probabilities, labels),
        "calibration_error": calibration_error(probabilities, labels),
    }
    if len(np.unique(labels)) == probabilities.shape[1]:
        scores["roc_auc"] = roc_auc(probabilities, labels)
    return scores
