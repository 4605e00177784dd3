"""Pictures of what the best trial gets right and wrong, from its answers to each validation row.

Neighbours: `stats` (the answers), `material` (which trial), `pictures`.
"""

from __future__ import annotations

import numpy as np

from lorasweep.reporting.material import Material, thin
from lorasweep.reporting.pictures import PALETTE, Grid, Picture, Plot, Series
from lorasweep.stats import Results

MOST_CLASSES = 30  # in the confusion matrix
MOST_ROC_CLASSES = 8
MOST_ROC_POINTS = 200
NO_CLASS = "(none)"


def pictures(material: Material) -> list[Picture]:
    """Confusion matrix and ROC of the first trial of the leaderboard; none where its answers are not kept."""
    if not material.ranked:
        return []
    trial = material.ranked[0]
    results = material.results(trial)
    return [] if results is None else of(results, f"trial {trial}, the best")


def of(results: Results, whose: str) -> list[Picture]:
    """The pictures of some answers; `whose` names them."""
    found: list[Picture | None] = [confusion(results, whose), roc(results, whose)]
    return [picture for picture in found if picture is not None]


def names_of(results: Results) -> list[str]:
    """A name for each class."""
    count = results.probabilities.shape[1]
    return list(results.label_names) if len(results.label_names) == count else [str(place) for place in range(count)]


def confusion(results: Results, whose: str) -> Grid:
    """Rows by their class and the predicted one. A row whose answer names no class counts in a column of its own."""
    names, classes = names_of(results), results.probabilities.shape[1]
    predicted = np.where(results.probabilities.any(1), results.predicted, classes)
    table = np.zeros((classes + 1, classes + 1), dtype=int)
    np.add.at(table, (results.labels, predicted), 1)
    shown = np.argsort(-table.sum(1)[:classes], kind="stable")[:MOST_CLASSES]
    note = ""
    if classes > MOST_CLASSES:
        note = f" The {MOST_CLASSES} classes with most rows of {classes} are shown."
    shown = np.sort(shown)
    if table[:, classes].any():
        shown, names = np.append(shown, classes), [*names, NO_CLASS]
    right = float(results.correct.mean())
    return Grid(
        "confusion",
        "Confusion matrix",
        f"Validation rows of {whose}: their class down, the predicted one across; the diagonal ({right:.1%}) is right."
        + note,
        "predicted",
        "really",
        [names[place] for place in shown],
        table[np.ix_(shown, shown)].tolist(),
    )


def roc(results: Results, whose: str) -> Plot | None:
    """How many rows of a class are found, against how many of the others are taken for it, as the threshold falls."""
    from sklearn.metrics import auc, roc_curve

    names, classes = names_of(results), results.probabilities.shape[1]
    wanted = [1] if classes == 2 else list(range(classes))
    wanted = [place for place in wanted if 0 < (results.labels == place).sum() < len(results)][:MOST_ROC_CLASSES]
    series: list[Series] = []
    for place in wanted:
        false, true, _ = roc_curve(results.labels == place, results.probabilities[:, place])
        points = thin(list(zip(false.tolist(), true.tolist(), strict=True)), MOST_ROC_POINTS)
        series.append(
            Series(
                [x for x, _ in points], [y for _, y in points], f"{names[place]} (AUC {auc(false, true):.3f})",
                color=PALETTE[len(series) % len(PALETTE)],
            )
        )  # fmt: skip
    if not series:
        return None
    rest = "" if classes <= MOST_ROC_CLASSES else f" The first {MOST_ROC_CLASSES} of {classes} classes."
    return Plot(
        "roc",
        "ROC",
        f"Validation rows of {whose}, each class against the others: the further up and left, the better; grey "
        "is chance." + rest,
        "share of the others taken for it",
        "share of its rows found",
        series,
        diagonal=True,
    )
