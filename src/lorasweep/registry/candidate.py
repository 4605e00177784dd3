"""What is promoted: a complete trial with what its promotion needs, and then with its scores on the test split.

Neighbours: `registry` (scores), `registry.gate` (decides), `registry.proof`; `promotion` makes candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorasweep.config.schema import TRANSFORMER, Config, ObjectiveConfig
from lorasweep.records import TrialRecord
from lorasweep.registry.serve import Score
from lorasweep.stats import Results

if TYPE_CHECKING:
    from lorasweep.data.sources import Split
    from lorasweep.registry.card import Facts
    from lorasweep.tracking.recorded import Recorded


def unserved(config: Config) -> dict[str, str]:
    """Settings that keep a trial of this config from being registered, with their values: what is registered is a
    fine-tuned model with a classification head. Empty: it can be."""
    return ({"task.kind": config.task.kind} if config.task.kind != "classify" else {}) | untrained(config)


def untrained(config: Config) -> dict[str, str]:
    """Those of a trial that trained nothing, and so has nothing to export."""
    found = {"model.kind": config.model.kind} if config.model.kind != TRANSFORMER else {}
    return found | ({"adapter.kind": config.adapter.kind} if config.adapter.kind == "none" else {})


@dataclass(frozen=True)
class Candidate:
    """A complete trial and what its promotion needs.

    `config` is the trial's own, `base` a folder or a hub id (`builtin:` resolved), `label_names` those it was trained
    with, `test` the sealed split, `validation` the rows that it was chosen by, None where they cannot be read
    (`unread` says why). `score` takes probabilities (rows, classes) float32 and labels (rows,) int64 and gives metrics
    by their names `eval/…`. `expected`: what training had of the validation rows, None: not kept. `why`: why
    it is this trial.
    """

    record: TrialRecord
    recorded: Recorded
    config: Config
    base: str
    label_names: list[str]
    test: Split
    score: Score
    validation: Split | None = None
    unread: str = ""
    expected: Results | None = None
    why: str = ""

    @property
    def objective(self) -> ObjectiveConfig:
        """What the sweep looked for."""
        return self.config.sweep.objective

    @property
    def sweep(self) -> str:
        """The sweep that it is of."""
        return self.recorded.sweep


@dataclass(frozen=True)
class Scored:
    """A candidate with what its packed model says on the test split, and the card made of it."""

    candidate: Candidate
    results: Results
    metrics: dict[str, float]
    metric: str  # the objective, as test/…
    facts: Facts
    base_tag: str

    @property
    def value(self) -> float:
        """The objective on the test split."""
        return self.metrics[self.metric]

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Its 95% interval."""
        found = next(score for score in self.facts.test if score.name == self.metric)
        return None if found.low is None or found.high is None else (found.low, found.high)
