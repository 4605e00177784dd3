"""What training asks of a task; `classify` is one.

A task owns encoding, loss units, predictions and metrics; it holds no model and no state of a trial, so one instance
serves all slots of a pack.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lorasweep.config.schema import DataConfig
from lorasweep.data.encode import Encoded
from lorasweep.data.sources import Split

if TYPE_CHECKING:
    import numpy as np
    import torch


class Task(Protocol):
    """A task over encoded rows. A *unit* is what the loss is the mean of: for classification, a row."""

    head: str  # which model class carries it: "classification"
    label_names: list[str]

    def encode(self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = ...) -> Encoded:
        """Rows to tokens; `cache` None: no cache."""
        ...

    def unit_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Losses (units,) float32, differentiable; a slot's loss is the mean over its units."""
        ...

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        """What is kept of an evaluation: (rows, classes) float32 probabilities."""
        ...

    def metrics(self, probabilities: np.ndarray, labels: np.ndarray, losses: np.ndarray) -> dict[str, float]:
        """Metrics by the names they are logged under, `eval/…`."""
        ...
