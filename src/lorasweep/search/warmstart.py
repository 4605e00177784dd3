"""Trials of earlier sweeps that a sampler starts from, and the study as it sees it with them.

They are chosen when a sweep is made and kept in its study, so that what it proposes does not depend on what becomes of
the others. Only the sampler sees them: they count in no budget, and no leaderboard, counter or report shows them.
Neighbours: `study` (keeps them), `samplers` (looks through the view).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Container, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS, Config
from lorasweep.errors import ConfigError
from lorasweep.records import TrialRecord
from lorasweep.records import TrialState as State
from lorasweep.search.dimensions import Dimension, Space
from lorasweep.search.objectives import Goals

if TYPE_CHECKING:
    from lorasweep.search.reader import StudyReader

LEARNING = ("tpe", "gp", "cmaes")  # samplers that history means something to


def seeds_of(config: Config, space: Space, earlier: Sequence[StudyReader]) -> list[dict[str, Any]]:
    """Complete trials of earlier sweeps that are points of this space, as JSON types.

    A key that was fixed there has its fixed value. A trial that has no value for a key, or one outside of the space,
    is left out, as is one that lacks what this sweep's objectives and constraints need.

    Raises:
        ConfigError: a sampler that ignores history, a sweep that looked for something else, or one that is none.
    """
    if config.sampler.kind not in LEARNING:
        raise ConfigError(
            f"`sweep.warm_start` is for samplers that learn ({', '.join(LEARNING)}), and sampler={config.sampler.kind} "
            "does not; leave one of the two out"
        )
    goals, seeds = Goals(config), []
    for study in earlier:
        if study.sweep_file is None:
            raise ConfigError(
                f"`sweep.warm_start` names {study.name!r}, which holds single trials of `lorasweep train`: each had a "
                "config of its own, so they are no points of one space; name sweeps"
            )
        sought = (goals.objectives[0].metric, goals.objectives[0].direction)
        if (study.metric, study.direction) != sought:
            raise ConfigError(
                f"`sweep.warm_start` names {study.name!r}, which had {study.metric} {study.direction}d, and this sweep "
                f"has {sought[0]} {sought[1]}d: their values do not compare"
            )
        for record in study.records():
            point = _point_of(space, record, study.config) if _usable(goals, record) else None
            if point is not None:
                seeds.append(
                    {
                        "from": [study.name, record.trial],
                        "params": point,
                        "values": goals.values(record),
                        "excesses": goals.excesses(record),
                    }
                )
    return seeds


def _usable(goals: Goals, record: TrialRecord) -> bool:
    if record.state is not State.COMPLETE or record.value is None:
        return False
    return all(math.isfinite(value) for value in goals.values(record)) and goals.problem(record) is None


def _point_of(space: Space, record: TrialRecord, config: Config) -> dict[str, Any] | None:
    point = space.point(lambda dimension: _value_of(dimension, record, config))
    inside = all(dimension.contains(point[dimension.key]) for dimension in space.dimensions if dimension.key in point)
    return point if inside else None


def _value_of(dimension: Dimension, record: TrialRecord, config: Config) -> Any:
    key = dimension.key
    if key in record.params:
        return record.params[key]
    if key not in GROUPS:
        group, _, name = key.partition(".")
        return getattr(getattr(config, group), name)
    home, was = Home.find(), asdict(getattr(config, key))
    for option in dimension.choices:  # which option of the group was fixed there
        if asdict(getattr(compose.compose_trial([], None, {key: option}, home), key)) == was:
            return option
    return None


def trials_of(space: Space, seeds: list[dict[str, Any]], sampler: str) -> list[FrozenTrial]:
    """Seeds as Optuna's trials, numbered from 0; for cmaes with the keys alone that it models."""
    dimensions = {dimension.key: dimension for dimension in space.dimensions}
    if sampler == "cmaes":
        dimensions = {key: one for key, one in dimensions.items() if one.low != one.high and not one.when}
    trials = []
    for number, seed in enumerate(seeds):
        params = {key: dimensions[key].stored(value) for key, value in seed["params"].items() if key in dimensions}
        trial = create_trial(
            state=TrialState.COMPLETE,
            values=seed["values"],
            params=params,
            distributions={key: dimensions[key].distribution for key in params},
            user_attrs={"lorasweep.from": " ".join(map(str, seed["from"]))},
            system_attrs={f"constraints:{name}": excess for name, excess in seed["excesses"].items()},
        )
        trial.number = number
        trials.append(trial)
    return trials


class SeededStudy(Study):
    """The study as a sampler sees it: earlier trials first, this sweep's after them under shifted numbers, those left
    out that are no whole points of the space (clones with a value of their own), which would narrow its model."""

    def __init__(self, study: Study, earlier: list[FrozenTrial], space: Space):
        self.__dict__.update(study.__dict__)
        self.earlier, self.space = earlier, space

    def shifted(self, trial: FrozenTrial) -> FrozenTrial:
        """The trial under its number here."""
        moved = copy.copy(trial)
        moved.number = trial.number + len(self.earlier)
        return moved

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        own = super()._get_trials(deepcopy, states, use_cache)
        whole = [self.shifted(trial) for trial in own if not trial.state.is_finished() or self._is_whole(trial)]
        return [trial for trial in self.earlier if states is None or trial.state in states] + whole

    def _is_whole(self, trial: FrozenTrial) -> bool:
        point = {key: self._value(key, stored) for key, stored in trial.params.items()}
        return set(self.space.point(lambda dimension: point.get(dimension.key))) == set(point)

    def _value(self, key: str, stored: Any) -> Any:
        dimension = next(one for one in self.space.dimensions if one.key == key)
        return dimension.choices[stored] if dimension.by_position else stored
