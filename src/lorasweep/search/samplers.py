"""Which Optuna sampler proposes a trial's point, seeded so that restarts change nothing.

A fresh sampler is made for every ask: its seed is a hash of the sweep's seed and the trial's number, so a proposal
depends on those and on the trials that have ended, never on how often the process was started. Grid and quasi-random
samplers keep their place in the study itself and need one seed throughout. Neighbours: `study`, `space`.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

from lorasweep.config.schema import SamplerConfig
from lorasweep.errors import ConfigError
from lorasweep.search.space import Dimension, Space

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def make_sampler(config: SamplerConfig, space: Space, number: int) -> BaseSampler:
    """The sampler that proposes trial `number`.

    Raises:
        ConfigError: a grid over a dimension that has no steps.
    """
    from optuna import samplers
    from optuna.exceptions import ExperimentalWarning

    seed = trial_seed(config.seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match config.kind:
            case "tpe":
                return samplers.TPESampler(seed=seed, n_startup_trials=config.startup_trials)
            case "gp":
                return samplers.GPSampler(seed=seed, n_startup_trials=config.startup_trials)
            case "cmaes":
                return samplers.CmaEsSampler(seed=seed, n_startup_trials=config.startup_trials, warn_independent_sampling=False)
            case "qmc":
                return samplers.QMCSampler(seed=config.seed, scramble=True, warn_independent_sampling=False)
            case "grid":
                return samplers.GridSampler(grid(space), seed=config.seed)
            case _:  # random; list asks for enqueued points alone
                return samplers.RandomSampler(seed=seed)


def trial_seed(sweep_seed: int, number: int) -> int:
    """A seed for one trial's proposal: the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(f"{sweep_seed}/{number}".encode()).digest()[:4], "big")


def grid(space: Space) -> dict[str, list]:
    """All values of each dimension.

    Raises:
        ConfigError: a dimension without steps has no grid.
    """
    return {dimension.key: _values(dimension) for dimension in space.dimensions}


def grid_size(space: Space) -> int:
    """Number of points of the grid."""
    size = 1
    for values in grid(space).values():
        size *= len(values)
    return size


def _values(dimension: Dimension) -> list:
    if dimension.kind == "categorical":
        return [dimension.stored(choice) for choice in dimension.choices]
    if dimension.kind == "float" and dimension.step is None:
        raise ConfigError(
            f"sampler=grid needs steps, but `{dimension.key}` is an interval from {dimension.low} to {dimension.high}; "
            "write range(low, high, step) or choice(…), or take another sampler"
        )
    assert dimension.low is not None and dimension.high is not None
    step = dimension.step or 1
    count = int((dimension.high - dimension.low) / step + 1e-9) + 1
    numbers = [dimension.low + index * step for index in range(count)]
    return [int(number) for number in numbers] if dimension.kind == "int" else numbers
