"""Who proposes a trial's point: a function of sampler settings, trial number and history, never of restarts.

Optuna's samplers are built afresh for each trial, seeded by the sweep's seed and the trial's number: a reloaded
sampler with one fixed seed would repeat its first proposals. What needs no history (enqueued points, grid, list,
Sobol points) is a function of the number alone. Neighbours: `space` (what can be drawn), `study` (which asks).
"""

from __future__ import annotations

import hashlib
import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lorasweep.config.schema import Config, SamplerConfig
from lorasweep.errors import ConfigError
from lorasweep.search.space import Space
from lorasweep.search.warmstart import SeededStudy

LARGEST_GRID = 100_000  # points; a grid is listed in memory
# Which keys all finished trials have in common: the same for every sampler of a study, and slow to learn afresh
SPACES_SEEN = ("_search_space", "_intersection_search_space")


def seed_of(sweep_seed: int, number: int) -> int:
    """A trial's own seed, 32 bits; the same on every machine and Python."""
    return int.from_bytes(hashlib.sha256(f"{sweep_seed}:{number}".encode()).digest()[:4], "big")


class Proposals(BaseSampler):
    """What trial n tries: points known by number first, else Optuna's sampler seeded by the number.

    Holds no state between trials, so any process may ask for any trial.
    """

    def __init__(self, config: Config, space: Space):
        self.settings, self.space = config.sampler, space
        self.dimensions = {dimension.key: dimension for dimension in space.dimensions}
        self.enqueued = [dict(point) for point in config.sweep.enqueue]
        kind = config.sampler.kind
        for number, point in enumerate(self.enqueued):
            space.check_point(point, f"point {number} of `sweep.enqueue`")
            missing = ", ".join(one.key for one in space.dimensions if one.exists(point) and one.key not in point)
            if kind == "list" and missing:
                raise ConfigError(
                    f"point {number} of `sweep.enqueue` lacks {missing}: with sampler=list each point names every key"
                )
        if kind == "list" and not self.enqueued:
            raise ConfigError("sampler=list tries the points of `sweep.enqueue`, which is empty; add points there")
        if kind == "cmaes" and sum(dimension.kind != "categorical" for dimension in space.dimensions) < 2:
            raise ConfigError("sampler=cmaes needs at least two numeric keys in `sweep.space`; use sampler=tpe")
        self.clones: list[int] = []  # numbers that no sampler proposed
        self.earlier: list[FrozenTrial] = []  # trials of other sweeps that the model starts from
        self._built: tuple[int, BaseSampler] = (-1, RandomSampler(0))
        self.grid = self._unvisited_grid() if kind == "grid" else []

    @property
    def points(self) -> int | None:
        """How many points there are in all; None: no end."""
        if self.settings.kind == "list":
            return len(self.enqueued)
        return len(self.enqueued) + len(self.grid) if self.settings.kind == "grid" else None

    def known_point(self, number: int) -> dict[str, Any]:
        """Key -> value of what the number alone decides; empty where a sampler draws everything."""
        if number in self.clones:
            return {}
        place = number - sum(clone < number for clone in self.clones)
        if place < len(self.enqueued):
            return self.enqueued[place]
        if self.settings.kind == "grid":
            return self.grid[place - len(self.enqueued)]
        if self.settings.kind == "qmc":
            return sobol_point(self.space, self.settings.seed, place - len(self.enqueued))
        return {}

    def _unvisited_grid(self) -> list[dict[str, Any]]:
        """Every point of the grid that is not enqueued, in an order drawn from the seed: a cut grid stays fair."""
        for dimension in self.space.dimensions:
            if dimension.count is None:
                raise ConfigError(
                    f"sampler=grid needs steps, but `{dimension.key}` is an interval from {dimension.low} to "
                    f"{dimension.high}; write range(low, high, step) or choice(…), or take another sampler"
                )
        points = list(itertools.islice(self.space.every_point(), LARGEST_GRID + 1))
        if len(points) > LARGEST_GRID:
            raise ConfigError(
                f"sampler=grid over `sweep.space` has too many points, at most {LARGEST_GRID:,} work; widen its steps"
            )
        points = [point for point in points if point not in self.enqueued]
        random.Random(seed_of(self.settings.seed, -1)).shuffle(points)
        return points

    # -- Optuna's interface ---------------------------------------------------------------------------------------

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """What Optuna's sampler draws jointly; nothing where the point is known."""
        if self.known_point(trial.number):
            return {}
        return self._sampler(trial.number).infer_relative_search_space(*self._seen(study, trial))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A joint draw from the model of the space."""
        if self.known_point(trial.number):
            return {}
        return self._sampler(trial.number).sample_relative(*self._seen(study, trial), search_space)

    def _seen(self, study: Study, trial: FrozenTrial) -> tuple[Study, FrozenTrial]:
        """Study and trial as the model of the space sees them."""
        if not (self.earlier or self.clones) or self.settings.kind == "cmaes":  # it takes earlier trials by itself
            return study, trial
        seeded = SeededStudy(study, self.earlier, self.space)
        return seeded, seeded.shifted(trial)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """One key's value: the known one, else a random one from this trial's and key's own stream."""
        known = self.known_point(trial.number)
        if param_name in known:
            return self.dimensions[param_name].stored(known[param_name])
        stream = seed_of(seed_of(self.settings.seed, trial.number), list(self.dimensions).index(param_name))
        return RandomSampler(stream).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Pass on to Optuna's sampler."""
        self._sampler(trial.number).before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Pass on to Optuna's sampler: cmaes learns here."""
        self._sampler(trial.number).after_trial(study, trial, state, values)

    def _sampler(self, number: int) -> BaseSampler:
        if self._built[0] != number:
            built = optuna_sampler(self.settings, number, self.space.conditional, self.earlier)
            if not (self.earlier or self.clones):  # which shift numbers as these samplers see them
                for name in SPACES_SEEN:
                    if hasattr(self._built[1], name) and hasattr(built, name):
                        setattr(built, name, getattr(self._built[1], name))
            self._built = (number, built)
        return self._built[1]


@dataclass(frozen=True)
class Draw:
    """What a sampler of one trial is made for. `conditional`: keys exist only at times; `earlier`: trials of other
    sweeps that the model starts from."""

    seed: int
    startup: int  # trials before the first that a model proposes
    conditional: bool
    earlier: list[FrozenTrial]


# sampler.kind -> Optuna's sampler; the other kinds know points by number, and draw at random what they do not know.
# Where keys exist only at times, tpe models each group of keys that occur together, gp and cmaes the keys that always
# exist. multivariate is said outright, because for several objectives Optuna's default draws key by key.
MAKERS: dict[str, Callable[[Draw], BaseSampler]] = {
    "tpe": lambda draw: TPESampler(
        seed=draw.seed, n_startup_trials=draw.startup, multivariate=True, group=draw.conditional
    ),
    "gp": lambda draw: GPSampler(seed=draw.seed, n_startup_trials=draw.startup, warn_independent_sampling=False),
    "cmaes": lambda draw: CmaEsSampler(
        seed=draw.seed, n_startup_trials=max(1, draw.startup), warn_independent_sampling=False,
        source_trials=draw.earlier or None,
    ),
}  # fmt: skip


def optuna_sampler(
    settings: SamplerConfig, number: int, conditional: bool = False, earlier: list[FrozenTrial] | None = None
) -> BaseSampler:
    """Optuna's own sampler for one trial; random where the kind keeps no model of the space."""
    draw = Draw(seed_of(settings.seed, number), settings.startup_trials, conditional, earlier or [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return MAKERS[settings.kind](draw) if settings.kind in MAKERS else RandomSampler(draw.seed)


def sobol_point(space: Space, seed: int, index: int) -> dict[str, Any]:
    """Point `index` (from 0) of a scrambled Sobol sequence over the whole space, choices included."""
    from scipy.stats import qmc

    sequence = qmc.Sobol(len(space.dimensions), scramble=True, rng=seed)
    if index:
        sequence.fast_forward(index)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # "balance properties require n to be a power of 2": we draw singly
        (units,) = sequence.random(1)
    unit_of = dict(zip((dimension.key for dimension in space.dimensions), units, strict=True))
    return space.point(lambda dimension: dimension.at(float(unit_of[dimension.key])))
