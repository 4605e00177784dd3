"""A trial that exists in memory alone until its point is drawn: asking then costs one transaction, and is whole or not.

Optuna creates a trial first and stores each parameter as it is drawn, a transaction each. Here its samplers see a
storage that holds the draft beside the stored trials and takes what is written to it; at the end all is stored at once.
Who asks must be the only one who asks: the draft's number is the next one. Neighbours: `study` (asks), `samplers`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, Trial, TrialState

ID = -1  # of the draft; no stored trial has it


def sketch(study: optuna.Study, number: int, draw: Callable[[Trial], dict[str, str]]) -> FrozenTrial:
    """The next trial, `number`, as it is to be stored: RUNNING, with what `draw` suggests on it; `draw` returns its
    user attributes."""
    import optuna

    sketched = copy.copy(study)
    storage = _StorageWithDraft(study._storage, number)
    sketched._storage = storage  # type: ignore[assignment]  # all that samplers and trials ask of a storage
    for key, text in draw(optuna.trial.Trial(sketched, ID)).items():
        storage.draft.set_user_attr(key, text)
    return storage.draft


class _StorageWithDraft:
    """A storage and one trial more. What is not about that trial goes to the storage."""

    def __init__(self, stored: BaseStorage, number: int):
        import optuna

        self._stored = stored
        self.draft = optuna.trial.FrozenTrial(
            number=number,
            trial_id=ID,
            state=optuna.trial.TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stored, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See Optuna's BaseStorage."""
        found = self._stored.get_all_trials(study_id, deepcopy=deepcopy, states=states)
        if states is not None and self.draft.state not in states:
            return found
        return [*found, copy.deepcopy(self.draft) if deepcopy else self.draft]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See Optuna's BaseStorage."""
        return self.draft if trial_id == ID else self._stored.get_trial(trial_id)

    def get_trial_number_from_id(self, trial_id: int) -> int:
        """See Optuna's BaseStorage."""
        return self.get_trial(trial_id).number

    def get_trial_params(self, trial_id: int) -> dict[str, Any]:
        """See Optuna's BaseStorage."""
        return self.get_trial(trial_id).params

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        """See Optuna's BaseStorage."""
        return self.get_trial(trial_id).system_attrs

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See Optuna's BaseStorage."""
        if trial_id != ID:
            self._stored.set_trial_param(trial_id, param_name, param_value_internal, distribution)
            return
        self.draft.params[param_name] = distribution.to_external_repr(param_value_internal)
        self.draft.distributions[param_name] = distribution

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See Optuna's BaseStorage."""
        if trial_id == ID:
            self.draft.system_attrs[key] = value
        else:
            self._stored.set_trial_system_attr(trial_id, key, value)
