"""What a kept checkpoint answered on the validation rows: saved with its trial, so that a resumed one leaves the same.

Neighbours: `slot` (holds it beside the kept values), `roster` (saves and loads it); `results` writes it for readers.
"""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorasweep.stats import Results, kind_of
from lorasweep.tasks.base import Answers, Predictions, References

if TYPE_CHECKING:
    from lorasweep.tasks import Task

PREFIX = "answers."  # of these tensors among a trial's
LONGEST_SECONDS = 5.0  # that scoring the rows of texts one by one may take at a trial's end
SAME = 1e-6


@dataclass(frozen=True)
class Sheet:
    """predictions: a table (rows, classes), `Answers`, or None; losses (units,) on the right answers."""

    predictions: Predictions
    losses: np.ndarray

    def tensors(self) -> dict[str, torch.Tensor]:
        """All but texts, by name."""
        found = {f"{PREFIX}losses": torch.from_numpy(self.losses)}
        if self.predictions is None:
            return found
        if not isinstance(self.predictions, Answers):
            found[f"{PREFIX}table"] = torch.from_numpy(self.predictions)
        elif self.predictions.no_answer is not None:
            found[f"{PREFIX}no_answer"] = torch.from_numpy(self.predictions.no_answer)
        return found

    @property
    def texts(self) -> list[str] | None:
        """Answers that are texts; None where they are classes."""
        return list(self.predictions.texts) if isinstance(self.predictions, Answers) else None

    @classmethod
    def load(cls, tensors: dict[str, torch.Tensor], texts: list[str] | None) -> Sheet | None:
        """The inverse of `tensors` and `texts`; None where a trial was saved without."""
        found: dict[str, Any] = {
            name.removeprefix(PREFIX): tensor.to("cpu", copy=True).numpy()
            for name, tensor in tensors.items()
            if name.startswith(PREFIX)
        }
        if "losses" not in found:
            return None
        predictions = found.get("table") if texts is None else Answers(texts, found.get("no_answer"))
        return cls(predictions, found["losses"])

    def results(self, task: Task, references: References, metric: str, rows_id: str) -> Results:
        """The same for statistics; of texts with each row's score, where the metric is the mean of these."""
        if self.predictions is None:
            nothing = np.zeros((len(references), 0), np.float32)
            return Results(_row_numbers(references), nothing, self.losses, [], {}, rows_id)
        if not isinstance(self.predictions, Answers):
            labels = np.asarray(references)
            return Results(labels, self.predictions, self.losses, list(task.label_names), rows_id=rows_id)
        labels = _row_numbers(references)
        scores = _row_scores(task, self.predictions, references, self.losses, metric)
        named = {} if scores is None else {kind_of(metric): scores}
        return Results(labels, np.zeros((len(labels), 0), np.float32), self.losses, [], named, rows_id)


def _row_numbers(references: References) -> np.ndarray:
    """(rows,) numbers that tell the rows apart."""
    plain = references.tolist() if isinstance(references, np.ndarray) else references
    return np.array([zlib.crc32(json.dumps(one).encode()) for one in plain])


def _row_scores(
    task: Task, answers: Answers, references: References, losses: np.ndarray, metric: str
) -> np.ndarray | None:
    """(rows,) the metric of each row alone; None where their mean is not the metric of all, or that would take long;
    and for the loss, which its units speak for."""
    if kind_of(metric) == "loss":
        return None
    started, whole = time.monotonic(), task.metrics(answers, references, losses).get(metric)
    if whole is None or (time.monotonic() - started) > LONGEST_SECONDS:
        return None
    found = []
    for place, text in enumerate(answers.texts):
        no_answer = None if answers.no_answer is None else answers.no_answer[place : place + 1]
        alone = task.metrics(Answers([text], no_answer), references[place : place + 1], losses).get(metric)
        if alone is None or time.monotonic() - started > LONGEST_SECONDS:
            return None
        found.append(alone)
    scores = np.array(found)
    return scores if abs(scores.mean() - whole) < SAME else None
