"""Drawn evaluation results: no training, the truth is known."""

from __future__ import annotations

import numpy as np

from lorasweep.stats.scores import Results


def drawn(seed: int, rows: int = 120, classes: int = 2, decimals: int = 2) -> Results:
    """Answers somewhat better than chance; rounded, so that scores tie."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.normal(size=(rows, classes))
    logits[np.arange(rows), labels] += 1
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Results(labels, probabilities.round(decimals).astype(np.float32))


def with_right(right: np.ndarray) -> Results:
    """Results that are right on exactly these rows."""
    certain = np.where(right, 0.9, 0.1)
    return Results(np.ones(len(right), int), np.stack([1 - certain, certain], 1))


def pair(wins: int, losses: int, both: int, neither: int) -> tuple[Results, Results]:
    first = np.repeat([True, False, True, False], [wins, losses, both, neither])
    second = np.repeat([False, True, True, False], [wins, losses, both, neither])
    return with_right(first), with_right(second)
