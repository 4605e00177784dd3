"""One trial's run while it is written: points go from its spool to MLflow, each confirmed; then its files and its end.

A point is confirmed in the spool only after MLflow took it, and is sent again with its first timestamp until then. NaN
is stored as it is. MLflow would store an infinite value as 1.8e308: it is logged as NaN, and the tag
lorasweep.nonfinite says what it was; the spool keeps it.
Neighbours: `tracker` (the only user: when to write), `spool`, `files` (artifacts), `entities` (MLflow's types).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorasweep.tracking.entities import batches_of, metric_entities, tag_entities
from lorasweep.tracking.files import Artifacts
from lorasweep.tracking.spool import Spool
from lorasweep.tracking.store import readable_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass
class RunWriter:
    """Writes the run of one trial of `sweep`. `sent_at`: time.monotonic() of the last batch.

    Raises, from both methods:
        StorageError: MLflow did not take it. What it has not confirmed waits in the spool.
    """

    client: MlflowClient
    sweep: str
    number: int
    run_id: str
    spool: Spool
    artifacts: Artifacts
    sent_at: float = field(default_factory=time.monotonic)
    nonfinite: dict[str, str] = field(default_factory=dict)

    def send(self, tags: dict[str, str] | None = None) -> None:
        """Pass on all waiting points in as few batches as MLflow allows, confirming each batch in the spool."""
        tags = dict(tags or {})
        points = self.spool.waiting()
        told = len(self.nonfinite)
        for point in points:
            for key, value in point.metrics.items():
                if math.isinf(value):
                    self.nonfinite.setdefault(key, f"{key}={value} at step {point.step}")
        if len(self.nonfinite) > told:
            tags["lorasweep.nonfinite"] = "; ".join(self.nonfinite.values())
        with readable_errors(f"store metrics of trial {self.number}"):
            for batch in batches_of(points):
                self.client.log_batch(
                    self.run_id, metrics=metric_entities(batch), tags=tag_entities(tags), synchronous=True
                )
                self.spool.confirm(batch[-1])
                tags = {}
            if tags:
                self.client.log_batch(self.run_id, tags=tag_entities(tags), synchronous=True)
        self.sent_at = time.monotonic()

    def end(self) -> None:
        """Bring the run to the end that its spool notes, with all that waits, and close the spool."""
        ending = self.spool.ending
        assert ending is not None
        self.send(ending.tags)
        with readable_errors(f"end the run of trial {self.number} of sweep {self.sweep}"):
            self.artifacts.send()
            self.client.set_terminated(self.run_id, ending.status)
        self.spool.confirm_end()
        self.spool.close()
