"""A study in memory over given trials: what Optuna may see where that differs from what is stored.

Optuna reads a study through its storage, so the view is a storage that answers with our list. Neighbours: `pruners`.
"""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any

from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState


class _Given(InMemoryStorage):
    """Answers with given trials; what is written on a trial is collected in `marks` and changes none of them."""

    def __init__(self, name: str, directions: list[StudyDirection], trials: list[FrozenTrial]):
        super().__init__()
        self.create_new_study(directions, name)
        self.trials, self.marks = trials, dict[str, Any]()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [trial for trial in self.trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return super(InMemoryStorage, self).get_best_trial(study_id)  # from get_all_trials

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.marks[key] = value


def view_study(name: str, direction: str, trials: list[FrozenTrial]) -> tuple[Study, dict[str, Any]]:
    """A study of this name (hyperband's brackets depend on it) over these trials, and the attributes that are set on
    any of them from here on."""
    storage = _Given(name, [StudyDirection[direction.upper()]], trials)
    return Study(name, storage, RandomSampler(0), NopPruner()), storage.marks
