"""A metric as a function of weighted evaluation rows, for whole tables of resamples at once.

What an evaluation leaves of one model is `Results`: a label, class probabilities and a loss for each row. Every test
and interval in this room needs a metric in three forms: its value, its value in many resamples of the rows (as counts
that weigh them), and how much each row moves it. Neighbours: `intervals`, `paired`, `many`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

Array = np.ndarray
Score = Callable[[Array, Array], dict[str, float]]  # probabilities (rows, classes), labels (rows,) -> metrics by name
SMALLEST = 1e-12  # a probability below it counts as this in a loss
AVERAGED = ("f1", "precision", "recall")
NO_CLASS = -1  # predicted where all probabilities are 0: an answer that names no class


@dataclass(frozen=True)
class Results:
    """What one model answered on evaluation rows.

    labels: (rows,) class ids; probabilities: (rows, classes); losses: (units,), None: minus the logarithm of the
    label's probability. scores: for metrics that are the mean of one number a row, by name, these (rows,): all there is
    of answers that are texts, whose labels are numbers that tell the rows apart, with no classes.
    """

    labels: Array
    probabilities: Array
    losses: Array | None = None
    label_names: list[str] = field(default_factory=list)
    scores: dict[str, Array] = field(default_factory=dict)
    rows_id: str = ""  # a fingerprint of the rows; "": not known

    def __post_init__(self) -> None:
        if self.probabilities.ndim != 2 or len(self.labels) != len(self.probabilities) or not len(self.labels):
            raise ValueError(
                f"results need labels (rows,) and probabilities (rows, classes) of at least one row, got "
                f"{self.labels.shape} and {self.probabilities.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predicted(self) -> Array:
        """(rows,) the likeliest class, the first of equals; `NO_CLASS` where no class has any probability."""
        return np.where(self.probabilities.any(1), self.probabilities.argmax(1), NO_CLASS)

    @cached_property
    def correct(self) -> Array:
        """(rows,) bool."""
        return self.predicted == self.labels

    @cached_property
    def unit_losses(self) -> Array:
        """(units,) float64; units are rows for classification."""
        if self.losses is not None:
            return self.losses.astype(np.float64)
        return self.log_losses

    @cached_property
    def log_losses(self) -> Array:
        """(rows,) minus the logarithm of the label's share of the row's probability."""
        table = self.probabilities.astype(np.float64)
        sums = table.sum(1)
        chosen = table[np.arange(len(self)), self.labels] / np.where(sums > 0, sums, 1.0)
        return -np.log(np.clip(chosen, SMALLEST, 1 - SMALLEST))

    def means(self, kind: str) -> Array | None:
        """(units,) what the metric is the mean of; None where it is no mean."""
        if kind in self.scores:
            return self.scores[kind].astype(np.float64)
        if kind == "loss":
            return self.unit_losses
        if not self.probabilities.shape[1]:
            return None
        return {"accuracy": lambda: self.correct.astype(np.float64), "log_loss": lambda: self.log_losses}.get(
            kind, lambda: None
        )()

    def knows(self, metric: str) -> bool:
        """Whether the metric can be computed here, without a `Score`."""
        kind = kind_of(metric)
        return kind in self.scores or kind == "loss" or (self.probabilities.shape[1] > 0 and is_known(metric))

    def same_rows(self, other: Results) -> bool:
        """Whether two results may be compared row by row."""
        known = bool(self.rows_id and other.rows_id)
        return (not known or self.rows_id == other.rows_id) and bool(np.array_equal(self.labels, other.labels))

    def take(self, rows: Array) -> Results:
        """The results on these rows alone."""
        losses = None if self.losses is None or len(self.losses) != len(self) else self.losses[rows]
        scores = {name: values[rows] for name, values in self.scores.items()}
        return Results(self.labels[rows], self.probabilities[rows], losses, self.label_names, scores)


def kind_of(metric: str) -> str:
    """`eval/accuracy` and `test/accuracy` are both `accuracy`."""
    return metric.rpartition("/")[2]


def is_known(metric: str) -> bool:
    """Whether this room has the metric's formula for classes; others are asked of a `Score`."""
    return kind_of(metric) in ("accuracy", "loss", "log_loss", "roc_auc", *AVERAGED)


def value_of(results: Results, metric: str, average: str = "macro", score: Score | None = None) -> float:
    """The metric on all rows. `score` computes those that are not known here."""
    if results.knows(metric):
        return float(values_of(results, metric, np.ones((1, units_of(results, metric))), average)[0])
    return _ask(score, metric, results)


def resampled(
    results: Results, metric: str, weights: Array, average: str = "macro", score: Score | None = None
) -> Array:
    """(resamples,) the metric in each resample; weights (resamples, units) say how often each row was drawn. NaN where
    a resample does not define it."""
    if results.knows(metric):
        return values_of(results, metric, weights, average)
    drawn = [np.repeat(np.arange(len(results)), one.astype(np.int64)) for one in weights]
    return np.array([_ask(score, metric, results.take(rows)) for rows in drawn])


def _ask(score: Score | None, metric: str, results: Results) -> float:
    if score is None:
        raise ValueError(f"{metric} has no formula here: pass `score`, which computes it")
    scored = score(results.probabilities, results.labels)
    named = {kind_of(name): value for name, value in scored.items()}
    return float(named.get(kind_of(metric), np.nan))


def units_of(results: Results, metric: str) -> int:
    """How many units are resampled: rows, or units of loss."""
    return len(results.unit_losses) if kind_of(metric) == "loss" and "loss" not in results.scores else len(results)


# -- many resamples at once -------------------------------------------------------------------------------------------


def values_of(results: Results, metric: str, weights: Array, average: str) -> Array:
    """(resamples,) as `resampled`, for the metrics that the results know."""
    kind = kind_of(metric)
    means = results.means(kind)
    if means is not None:
        return weights @ means / weights.sum(1)
    if kind == "roc_auc":
        return _areas(results, weights)
    true, said, hit = _indicators(results)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _averaged(kind, average, weights @ true, weights @ said, weights @ hit)


def _indicators(results: Results) -> tuple[Array, Array, Array]:
    """(rows, classes) each: the row is of the class, was said to be, both."""
    classes = np.arange(results.probabilities.shape[1])
    true = (results.labels[:, None] == classes).astype(np.float64)
    said = (results.predicted[:, None] == classes).astype(np.float64)
    return true, said, true * said


def _averaged(kind: str, average: str, true: Array, said: Array, hit: Array) -> Array:
    """true, said, hit: (…, classes) counts -> (…,) precision, recall or F1 as scikit-learn averages them: a class
    without predictions or rows has 0, one with neither is left out of the macro mean."""
    below = {"precision": said, "recall": true, "f1": (true + said) / 2}[kind]
    by_class = np.where(below > 0, hit / np.where(below > 0, below, 1), 0.0)
    if average == "binary":
        return by_class[..., 1]
    shares = true if average == "weighted" else ((true > 0) | (said > 0)).astype(np.float64)
    return (by_class * shares).sum(-1) / shares.sum(-1)


def _areas(results: Results, weights: Array) -> Array:
    """Area under the ROC curve: that of class 1 for two classes, else the macro mean of each against the rest."""
    classes = results.probabilities.shape[1]
    chosen = [1] if classes == 2 else range(classes)
    return np.mean([_area(results.probabilities[:, one], results.labels == one, weights) for one in chosen], axis=0)


def _area(scores: Array, positive: Array, weights: Array) -> Array:
    """Mann and Whitney's form: the share of pairs in which the positive row scores higher, equal scores half."""
    order = np.argsort(scores, kind="stable")
    ranked, is_positive = scores[order], positive[order]
    sorted_weights = weights[:, order]
    below = np.cumsum(np.where(is_positive, 0.0, sorted_weights), axis=1)  # negatives up to here
    first = np.searchsorted(ranked, ranked, side="left")
    last = np.searchsorted(ranked, ranked, side="right") - 1
    padded = np.concatenate([np.zeros((len(weights), 1)), below], axis=1)
    beaten = (padded[:, first] + below[:, last]) / 2  # negatives below, and half of those that tie
    wins = (np.where(is_positive, sorted_weights, 0.0) * beaten).sum(1)
    positives = (sorted_weights * is_positive).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return wins / (positives * (sorted_weights.sum(1) - positives))


# -- how much each row moves it ---------------------------------------------------------------------------------------


def influence(results: Results, metric: str, average: str = "macro") -> Array | None:
    """(units,) the metric's derivative by each row's weight, mean 0: its standard error is sd / sqrt(units).

    The infinitesimal jackknife (Jaeckel 1972; Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans"),
    the limit of the bootstrap's standard error; for the area under the ROC curve it is DeLong's (DeLong, DeLong and
    Clarke-Pearson, Biometrics 44, 1988). None for a metric that the results do not know.
    """
    kind = kind_of(metric)
    means = results.means(kind)
    if means is not None:
        return means - means.mean()
    if not results.knows(metric):
        return None
    if kind == "roc_auc":
        classes = results.probabilities.shape[1]
        chosen = [1] if classes == 2 else range(classes)
        return np.mean([_area_parts(results.probabilities[:, one], results.labels == one) for one in chosen], axis=0)
    return _averaged_influence(results, kind, average)


def _area_parts(scores: Array, positive: Array) -> Array:
    from scipy.stats import rankdata

    count, positives = len(scores), int(positive.sum())
    negatives = count - positives
    if not positives or not negatives:
        return np.full(count, np.nan)
    among_all = rankdata(scores)
    parts = np.empty(count)
    # Sun and Xu, IEEE Signal Processing Letters 21, 2014: structural components from ranks
    beaten = (among_all[positive] - rankdata(scores[positive])) / negatives
    beating = 1 - (among_all[~positive] - rankdata(scores[~positive])) / positives
    area = beaten.mean()
    parts[positive] = (beaten - area) * count / positives
    parts[~positive] = (beating - area) * count / negatives
    return parts


def _averaged_influence(results: Results, kind: str, average: str) -> Array:
    true, said, hit = _indicators(results)
    below = {"precision": said, "recall": true, "f1": (true + said) / 2}[kind]
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore")
        rate = np.nan_to_num(hit.mean(0) / below.mean(0))  # (classes,)
        moves = np.nan_to_num((hit - rate * below) / below.mean(0))  # (rows, classes)
    if average == "binary":
        return moves[:, 1]
    if average == "weighted":
        return (moves * true.mean(0) + rate * (true - true.mean(0))).sum(1)
    occurs = (true.any(0) | said.any(0)).astype(np.float64)
    return (moves * occurs).sum(1) / occurs.sum()
