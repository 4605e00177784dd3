"""Accuracy, precision, recall, F1 and ROC AUC as local `evaluate.Metric` modules over scikit-learn.

`evaluate.load` would fetch a script from the hub; these subclasses work offline and compose like any other module.
Neighbours: `tasks.classify` (who calls `classification_metrics`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn import metrics as sk

CITATION = "scikit-learn: Machine Learning in Python, Pedregosa et al., JMLR 12, 2011."
INPUTS = "predictions: class ids, or class probabilities for roc_auc; references: class ids."


class ClassMetric(evaluate.Metric):
    """What the modules here share: class ids in, one row each, nothing written to disk."""

    description = ""
    prediction: Any = datasets.Value("int64")

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": self.prediction, "references": datasets.Value("int64")})
        return evaluate.MetricInfo(
            description=self.description, citation=CITATION, inputs_description=INPUTS, features=features
        )


class Accuracy(ClassMetric):
    """Rows whose predicted class is the reference, over all rows."""

    description = "Share of rows predicted right."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": float(sk.accuracy_score(references, predictions))}


class PrecisionRecallF1(ClassMetric):
    """Per class, right predictions over all predictions of it (precision) and over all its rows (recall), averaged.

    `average`: macro (mean over the classes that occur), weighted (by rows), binary (class 1 alone). 0 where a class
    is never predicted.
    """

    description = "Precision, recall and their harmonic mean."

    def _compute(self, predictions: Any, references: Any, average: str = "macro") -> dict[str, float]:
        precision, recall, f1, _ = sk.precision_recall_fscore_support(
            references, predictions, average=average, zero_division=0.0
        )
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall)}


class RocAuc(ClassMetric):
    """Area under the ROC curve of probabilities (rows, classes): that of class 1 for two classes, else the macro mean
    of each class against the rest. Every class needs a row; `classification_metrics` asks only then."""

    description = "Area under the ROC curve."
    prediction = datasets.Sequence(datasets.Value("float64"))

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        scores = np.asarray(predictions, dtype=np.float64)
        if scores.shape[1] == 2:
            return {"roc_auc": float(sk.roc_auc_score(references, scores[:, 1]))}
        # one against the rest needs each column alone: unlike sklearn's multi_class, rows need not sum to one exactly
        labels = np.asarray(references)
        areas = [sk.roc_auc_score(labels == number, scores[:, number]) for number in range(scores.shape[1])]
        return {"roc_auc": float(np.mean(areas))}


@cache
def modules() -> tuple[Accuracy, PrecisionRecallF1, RocAuc]:
    """One instance of each for the process; making them touches the disk."""
    return Accuracy(), PrecisionRecallF1(), RocAuc()


def classification_metrics(probabilities: np.ndarray, labels: np.ndarray, average: str) -> dict[str, float]:
    """accuracy, f1, precision, recall and, where it is defined, roc_auc.

    probabilities (rows, classes); labels (rows,) class ids; average macro, weighted or binary. The predicted class is
    the likeliest, the first of equals. roc_auc is left out where a class has no row or a probability is not finite.
    """
    accuracy, averaged, area = modules()
    predicted = probabilities.argmax(-1)
    scores = accuracy.compute(predictions=predicted, references=labels)
    scores |= averaged.compute(predictions=predicted, references=labels, average=average)
    every_class = len(np.unique(labels)) == probabilities.shape[1]
    if every_class and np.isfinite(probabilities).all():
        scores |= area.compute(predictions=probabilities, references=labels)
    return scores
