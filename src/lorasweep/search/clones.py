"""Trials that a person made from another one: they wait in the study with their point, and are asked for first.

A clone is an Optuna trial in the state WAITING, so any process may make one and exactly one worker gets it. Its point
may hold keys outside the space; the others are told to Optuna as if drawn, so that samplers learn from it. Clones are
beside the budget, and shift no enqueued, grid or Sobol point. Neighbours: `study`, `control` (makes them).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lorasweep.search.dimensions import Dimension, Space
from lorasweep.search.storage import read

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial, Trial

CLONE = "clone"  # attribute of a trial: {"of": number, "warm": bool}


def clone_of(frozen: FrozenTrial) -> dict[str, Any] | None:
    """What a clone was made of; None for a trial that a sampler proposed."""
    found = read(frozen, CLONE)
    return None if found is None else dict(found)


def template(space: Space, params: dict[str, Any], params_key: str, origin: dict[str, Any]) -> FrozenTrial:
    """A trial that waits with this point."""
    import optuna

    fixed = {dimension.key: dimension.stored(params[dimension.key]) for dimension in _drawable(space, params)}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState.WAITING,
        user_attrs={params_key: json.dumps(params), CLONE: json.dumps(origin)},
        system_attrs={"fixed_params": fixed},
    )


def tell_params(space: Space, trial: Trial, params: dict[str, Any]) -> None:
    """Note in Optuna's trial what of its point lies in the space."""
    for dimension in _drawable(space, params):
        dimension.suggest(trial)


def _drawable(space: Space, params: dict[str, Any]) -> list[Dimension]:
    return [
        dimension
        for dimension in space.dimensions
        if dimension.exists(params) and dimension.key in params and dimension.contains(params[dimension.key])
    ]
