"""What training asks of a task: `classify`, `instruct` and `qa` are some.

A task owns encoding, loss units, predictions and metrics; it holds no model and no state of a trial, so one instance
serves all slots of a pack. Rows are asked in two ways: training rows are read for their losses (`encode`), and an
evaluation sits an `Exam`: rows that are read once, and prompts that are continued. What comes of it is, by
`Task.answers`,

- "classes": a table (rows, classes) float32 of probabilities, against class ids (rows,) int64; where a generated
  answer names no class, its row is all zeros: no class is predicted, and the row is wrong whatever it is;
- "texts": `Answers`, against one list of accepted answers a row, which is empty where there is none;
- "none": nothing but losses.

Neighbours: `data.encode` (tokens), `metrics` (numbers), `training` (who calls).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lorasweep.config.schema import DataConfig
from lorasweep.data.encode import Encoded
from lorasweep.data.sources import Split

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Answers:
    """Texts that a model gave, one a row; "" where it gave none. no_answer (rows,) float32: the probability that a row
    has no answer; None where the task always has one. empty: rows for which it wrote nothing at all."""

    texts: list[str]
    no_answer: np.ndarray | None = None
    empty: int = 0


Predictions = Any  # (rows, classes) float32, or Answers
References = Any  # (rows,) int64, or list[list[str]]


@dataclass(frozen=True)
class Exam:
    """What an evaluation asks of every trial. `rows` are read once for losses and scores; `prompts` are continued by at
    most `max_new_tokens` tokens, which `decode` turns into text; 0: nothing is generated. Where there are prompts, each
    of the rows begins with one of them, the number of which is its `extras["prompt"]`. `references` are in the order of
    the split, however many rows each of its rows became."""

    rows: Encoded
    references: References
    prompts: Encoded | None = None
    max_new_tokens: int = 0
    end_ids: tuple[int, ...] = ()  # tokens that end a generated answer
    decode: Callable[[list[int]], str] | None = None
    contexts: list[str] | None = None  # what answers are cut out of


@dataclass(frozen=True)
class Sitting:
    """What one trial made of an exam: `outputs` (units, …) of `Task.predictions`, None where it keeps none; losses
    (units,) float32; the tokens that continue each prompt, end tokens left out."""

    outputs: np.ndarray | None
    losses: np.ndarray
    units: np.ndarray  # (rows of the exam,) int64: how many units each has
    generated: list[list[int]] | None = None


class Task(Protocol):
    """A task over encoded rows. A *unit* is what the loss is the mean of: a classified row, or a response's token."""

    head: str  # which model class carries it: "classification", "causal_lm" or "question_answering"
    answers: str  # what an evaluation yields: "classes", "texts" or "none"
    label_names: list[str]

    def encode(self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = ...) -> Encoded:
        """Training rows as tokens; `cache` None: no cache."""
        ...

    def exam(self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = ...) -> Exam:
        """What an evaluation over a split asks."""
        ...

    def unit_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Losses (units,) float32, differentiable; a slot's loss is the mean over its units."""
        ...

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor | None:
        """What is kept of an evaluation's forward beside its losses, (units, …) float32; None: nothing."""
        ...

    def read(self, exam: Exam, sitting: Sitting) -> tuple[Predictions, np.ndarray]:
        """What a trial answered, in the split's order, and its unit losses on the right answers."""
        ...

    def references(self, split: Split) -> References:
        """What the right answers of a split are."""
        ...

    def blank(self, references: References) -> Predictions:
        """Predictions of a model that knows nothing: whoever asks which metrics there are scores them."""
        ...

    def metrics(self, predictions: Predictions, references: References, losses: np.ndarray) -> dict[str, float]:
        """Metrics by the names they are logged under, `eval/…`."""
        ...
