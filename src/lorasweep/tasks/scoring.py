"""Metrics of classes that were read from texts, and of texts, by the names that tasks log them under.

Neighbours: `metrics` (the definitions), `instruct`, `answering` and `extract` (who call).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lorasweep.tasks.base import Answers

if TYPE_CHECKING:
    import numpy as np


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def of_classes(probabilities: np.ndarray, labels: np.ndarray, average: str, *, parsed: bool) -> dict[str, float]:
    """What `metrics.classification` gives for probabilities (rows, classes). `parsed`: classes were read from texts, so
    that nothing is said of how likely they are, and rows of zeros, whose text names no class, are counted."""
    from lorasweep.metrics.classification import classification_metrics

    found = classification_metrics(probabilities, labels, average)
    if not parsed:
        return found
    counted = {"unparsed": float((probabilities.max(-1) == 0).sum())}
    return {name: found[name] for name in ("accuracy", "f1", "precision", "recall")} | counted


def of_texts(
    answers: Answers, references: list[list[str]], threshold: float, with_text_metrics: bool
) -> dict[str, float]:
    """What `metrics.squad.qa_metrics` says of the answers, and `empty`, the count of rows for which nothing was
    written."""
    from lorasweep.metrics.squad import qa_metrics

    chances = None if answers.no_answer is None else [float(chance) for chance in answers.no_answer]
    found = qa_metrics(answers.texts, references, chances, threshold, with_text_metrics=with_text_metrics)
    return {**found, "empty": float(answers.empty)}
