"""What a sweep is after where that is more than one metric: several objectives, their Pareto front, and constraints.

A quantity is a metric of the kept checkpoint by its logged name, or a fact of the trial's record (`FACTS`). Pure.
Neighbours: `study` (tells Optuna), `ranking` (marks the front and what breaks a constraint).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorasweep.config.schema import Config, ObjectiveConfig
from lorasweep.errors import ConfigError
from lorasweep.records import TrialRecord, TrialState

# quantities of a trial that are no metrics; those of the record by their names there
RECORDED = ("trainable_params", "total_params", "samples", "train_seconds")
FACTS = (*RECORDED, "cost", "state_bytes")
STATE_BYTES = 20  # a trained parameter: value, gradient, two moments and the kept checkpoint, 4 bytes each
_CONSTRAINT = re.compile(r"\s*(?P<name>[\w/.]+)\s*(?P<relation><=|>=)\s*(?P<bound>[-+.\deE_]+)\s*")


@dataclass(frozen=True)
class Constraint:
    """`name` must be at most `bound`, or at least where `relation` is >=."""

    name: str
    relation: str
    bound: float

    def excess(self, value: float) -> float:
        """By how much a value breaks it; at most 0 where it holds, as Optuna counts constraints."""
        return value - self.bound if self.relation == "<=" else self.bound - value

    def __str__(self) -> str:
        return f"{self.name} {self.relation} {self.bound:,g}"


def read_constraint(text: str) -> Constraint:
    """`trainable_params <= 300000`, `eval/recall >= 0.8`.

    Raises:
        ConfigError: no such relation of a name and a number.
    """
    found = _CONSTRAINT.fullmatch(text)
    try:
        bound = float(found["bound"]) if found else math.nan
    except ValueError:
        bound = math.nan
    if found is None or not math.isfinite(bound):
        raise ConfigError(
            f"`sweep.constraints` holds {text!r}, which is no constraint; write NAME <= NUMBER or NAME >= NUMBER, for "
            "example trainable_params <= 300000"
        )
    return Constraint(found["name"], found["relation"], bound)


class Goals:
    """The objectives (the first ranks) and constraints of a sweep."""

    def __init__(self, config: Config):
        sweep = config.sweep
        self.objectives: list[ObjectiveConfig] = list(sweep.objectives) or [sweep.objective]
        self.price_per_hour = config.tracking.price_per_hour
        self._constraints = list(sweep.constraints)

    @cached_property
    def constraints(self) -> list[Constraint]:
        """The constraints, read."""
        return [read_constraint(text) for text in self._constraints]

    @property
    def several(self) -> bool:
        """Whether there is a Pareto front to speak of."""
        return len(self.objectives) > 1

    @property
    def names(self) -> list[str]:
        """Quantities that objectives and constraints speak of."""
        asked = [objective.metric for objective in self.objectives] + [one.name for one in self.constraints]
        return list(dict.fromkeys(asked))

    def quantity(self, record: TrialRecord, name: str) -> float | None:
        """A metric or fact of a trial; None where it has none."""
        if name in record.metrics:
            return record.metrics[name]
        if name == "cost":
            return None if self.price_per_hour is None else self.price_per_hour * record.train_seconds / 3600
        if name == "state_bytes":
            return float(record.trainable_params * STATE_BYTES)
        return float(getattr(record, name)) if name in RECORDED else None

    def values(self, record: TrialRecord) -> list[float]:
        """One value an objective, of a complete trial; NaN where it is missing."""
        first = math.nan if record.value is None else record.value
        others = [self.quantity(record, objective.metric) for objective in self.objectives[1:]]
        return [first, *(math.nan if value is None else value for value in others)]

    def problem(self, record: TrialRecord) -> str | None:
        """Why a finished trial cannot count: an objective or a constrained quantity without a finite value."""
        for name in self.names[1:]:  # the first is the trial's value itself
            value = self.quantity(record, name)
            if value is None or not math.isfinite(value):
                return f"{name} has no finite value (got {value}), and the sweep's objectives or constraints need it"
        return None

    def excesses(self, record: TrialRecord) -> dict[str, float]:
        """Constraint in words -> by how much the trial breaks it (at most 0: it does not), as far as that is known."""
        found = {}
        for constraint in self.constraints:
            value = self.quantity(record, constraint.name)
            if value is not None and math.isfinite(value):
                found[str(constraint)] = constraint.excess(value)
        return found

    def broken(self, record: TrialRecord) -> str | None:
        """The constraints that a trial breaks, with its values; None where it breaks none."""
        told = [
            f"{constraint} (has {self.quantity(record, constraint.name):,g})"
            for constraint in self.constraints
            if self.excesses(record).get(str(constraint), 0.0) > 0
        ]
        return f"breaks {', '.join(told)}" if told else None

    def front(self, records: list[TrialRecord]) -> set[int]:
        """Numbers of the complete trials that no other one beats in every objective and that break no constraint."""
        import numpy as np

        able = [record for record in records if record.state is TrialState.COMPLETE and not self.broken(record)]
        able = [record for record in able if all(math.isfinite(value) for value in self.values(record))]
        signs = [-1.0 if objective.direction == "maximize" else 1.0 for objective in self.objectives]
        table = np.array([self.values(record) for record in able]).reshape(len(able), len(signs)) * signs
        return {
            record.trial
            for record, row in zip(able, table, strict=True)
            if not bool(((table <= row).all(1) & (table < row).any(1)).any())
        }

    def check_logged(self, logged: list[str]) -> None:
        """Check that every quantity is known, given the names of the metrics that are logged.

        Raises:
            ConfigError: one that is not, or cost without a price.
        """
        for name in self.names:
            if name == "cost" and self.price_per_hour is None:
                raise ConfigError("an objective or constraint names `cost`: set tracking.price_per_hour")
            if name not in logged and name not in FACTS:
                raise ConfigError(
                    f"an objective or constraint names {name!r}, which is never logged; there are "
                    f"{', '.join([*sorted(logged), *FACTS])}"
                )

    def to_json(self) -> dict[str, Any]:
        """What `leaderboard --json` and the sweep's identity hold beside the first objective."""
        document: dict[str, Any] = {}
        if self.several:
            document["objectives"] = [{"metric": one.metric, "direction": one.direction} for one in self.objectives]
        if self.constraints:
            document["constraints"] = [str(constraint) for constraint in self.constraints]
        return document
