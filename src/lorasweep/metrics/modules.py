"""The local metrics as `evaluate.Metric` modules, for users of that library; `lorasweep.metrics.load(NAME)` makes one.

`evaluate.load` would fetch a script from the hub; these are ordinary classes and work offline. They add input checks
and `add_batch` to the functions of `classification`, `squad` and `text`, and no definition of their own.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
import numpy as np

from lorasweep.metrics import classification, squad, text

SCIKIT = "scikit-learn: Machine Learning in Python, Pedregosa et al., JMLR 12, 2011."
INTEGER = datasets.Value("int64")
FLOATS = datasets.Sequence(datasets.Value("float64"))
TEXT = datasets.Value("string")
TEXTS = datasets.Sequence(TEXT)


class Local(evaluate.Metric):
    """What the modules share: features, a description, nothing written to disk."""

    citation = SCIKIT
    description = ""
    inputs = "predictions: class ids; references: class ids."
    prediction: Any = INTEGER
    reference: Any = INTEGER

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": self.prediction, "references": self.reference})
        return evaluate.MetricInfo(
            description=self.description, citation=self.citation, inputs_description=self.inputs, features=features
        )


class Accuracy(Local):
    """`accuracy`."""

    description = "Share of rows predicted right."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"accuracy": classification.accuracy(predictions, references)}


class PrecisionRecallF1(Local):
    """`precision`, `recall`, `f1`; average=macro, weighted or binary."""

    description = "Precision, recall and their harmonic mean."

    def _compute(self, predictions: Any, references: Any, average: str = "macro") -> dict[str, float]:
        return classification.precision_recall_f1(predictions, references, average)


class ConfusionMatrix(Local):
    """`confusion_matrix`: an array, reference class down, predicted class across."""

    description = "How many rows of each class were predicted as each class."

    def _compute(self, predictions: Any, references: Any, classes: int | None = None) -> dict[str, Any]:
        return {"confusion_matrix": classification.confusion_matrix(predictions, references, classes)}


class FromProbabilities(Local):
    """For metrics of class probabilities (rows, classes)."""

    inputs = "predictions: the probability of each class, for each row; references: class ids."
    prediction = FLOATS


class RocAuc(FromProbabilities):
    """`roc_auc`: of class 1 for two classes, else the macro mean of one class against the rest."""

    description = "Area under the ROC curve."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"roc_auc": classification.roc_auc(np.asarray(predictions), references)}


class LogLoss(FromProbabilities):
    """`log_loss`."""

    description = "Mean of minus the logarithm of the right class's probability."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"log_loss": classification.log_loss(np.asarray(predictions), references)}


class CalibrationError(FromProbabilities):
    """`calibration_error`; bins=15."""

    citation = "On Calibration of Modern Neural Networks, Guo et al., ICML 2017."
    description = "Expected calibration error over bins of equal width."

    def _compute(
        self, predictions: Any, references: Any, bins: int = classification.CALIBRATION_BINS
    ) -> dict[str, float]:
        return {"calibration_error": classification.calibration_error(np.asarray(predictions), references, bins)}


class SquadV2(Local):
    """The official script's numbers, in percent. threshold: the no-answer probability above which no answer counts."""

    citation = "Know What You Don't Know: Unanswerable Questions for SQuAD, Rajpurkar et al., ACL 2018."
    description = "Exact match and F1 of answers to questions that may have none."
    inputs = (
        "predictions: {id, prediction_text, no_answer_probability}; references: {id, answers: {text, answer_start}}."
    )
    prediction = {"id": TEXT, "prediction_text": TEXT, "no_answer_probability": datasets.Value("float64")}  # noqa: RUF012
    reference = {"id": TEXT, "answers": {"text": TEXTS, "answer_start": datasets.Sequence(INTEGER)}}  # noqa: RUF012

    def _compute(self, predictions: Any, references: Any, threshold: float = 1.0) -> dict[str, float]:
        found = {row["id"]: row for row in predictions}
        rows = [found[reference["id"]] for reference in references]
        return squad.squad_v2(
            [row["prediction_text"] for row in rows],
            [reference["answers"]["text"] for reference in references],
            [row["no_answer_probability"] for row in rows],
            threshold,
        )


class OfTexts(Local):
    """For metrics of a text against one or more others."""

    inputs = "predictions: texts; references: for each a list of accepted texts."
    prediction = TEXT
    reference = TEXTS


class Bleu(OfTexts):
    """`bleu`, 0 to 100."""

    citation = "A Call for Clarity in Reporting BLEU Scores, Post, WMT 2018."
    description = "Corpus BLEU as sacrebleu computes it."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"bleu": text.bleu(predictions, references)}


class Rouge(OfTexts):
    """`rouge1`, `rouge2`, `rougeL`, `rougeLsum`."""

    citation = "ROUGE: A Package for Automatic Evaluation of Summaries, Lin, 2004."
    description = "Mean F-measures as rouge-score computes them."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return text.rouge(predictions, references)


class Meteor(OfTexts):
    """`meteor`; without synonyms where WordNet is not installed."""

    citation = "METEOR: An Automatic Metric for MT Evaluation, Banerjee and Lavie, 2005."
    description = "Mean METEOR as nltk computes it."

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return {"meteor": text.meteor(predictions, references)}


METRICS: dict[str, type[Local]] = {
    "accuracy": Accuracy,
    "precision_recall_f1": PrecisionRecallF1,
    "roc_auc": RocAuc,
    "confusion_matrix": ConfusionMatrix,
    "log_loss": LogLoss,
    "calibration_error": CalibrationError,
    "squad_v2": SquadV2,
    "bleu": Bleu,
    "rouge": Rouge,
    "meteor": Meteor,
}
