"""Classification of rows, or of pairs of texts, by a head over the pooled row.

Neighbours: `data.encode` (tokens), `metrics.classification` (numbers), `training` (who calls).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.config.schema import DataConfig, TaskConfig
from lorasweep.data.encode import Encoded, encode
from lorasweep.data.sources import Split
from lorasweep.errors import ConfigError
from lorasweep.tasks.base import Exam, Sitting

if TYPE_CHECKING:
    import numpy as np
    import torch


class Classify:
    """One label a row, cross-entropy over the classes in `label_names` (ids in that order).

    ConfigError where task.average=binary meets other than two classes.
    """

    head = "classification"
    answers = "classes"

    def __init__(self, task: TaskConfig, label_names: list[str]):
        if task.average == "binary" and len(label_names) != 2:
            raise ConfigError(
                f"task.average=binary needs two classes and the data has {len(label_names)} "
                f"({', '.join(label_names)}). Set task.average=macro or weighted"
            )
        self.average = task.average
        self.label_names = list(label_names)

    def encode(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = "rows"
    ) -> Encoded:
        """Rows to tokens, at most data.max_length a row; `cache` None: no cache (the test split has none, ever)."""
        return encode(split, tokenizer, data_cfg.max_length, cache, key)

    def exam(self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = "rows") -> Exam:
        """The rows themselves, against their labels."""
        return Exam(self.encode(split, tokenizer, data_cfg, cache, key), self.references(split))

    def references(self, split: Split) -> np.ndarray:
        """Class ids (rows,) int64."""
        import numpy as np

        return np.asarray(split.labels, dtype=np.int64)

    def blank(self, references: np.ndarray) -> np.ndarray:
        """Even probabilities (rows, classes)."""
        import numpy as np

        return np.full((len(references), len(self.label_names)), 1 / len(self.label_names), dtype=np.float32)

    def read(self, exam: Exam, sitting: Sitting) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (rows, classes) and losses (rows,), as they are."""
        assert sitting.outputs is not None
        return sitting.outputs, sitting.losses

    def unit_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each row: logits (rows, classes) of any precision, labels (rows,) -> (rows,) float32."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits.float(), labels, reduction="none")

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Probabilities: logits (rows, classes) -> (rows, classes) float32, detached."""
        return logits.detach().float().softmax(-1)

    def metrics(self, probabilities: np.ndarray, labels: np.ndarray, losses: np.ndarray) -> dict[str, float]:
        """`eval/loss` (mean of unit losses), accuracy, precision, recall, f1 (averaged as task.average), roc_auc.

        probabilities (rows, classes), labels (rows,) ids, losses (rows,). For average=binary the positive class is the
        second. ROC AUC is that of the second class for two classes, else the macro mean of one against the rest; it is
        left out where some class has no row or a probability is not finite.
        """
        from lorasweep.metrics.classification import classification_metrics

        scores = classification_metrics(probabilities, labels, self.average)
        mean_loss = float(losses.mean(dtype="float64"))
        return {"eval/loss": mean_loss, **{f"eval/{name}": score for name, score in scores.items()}}
