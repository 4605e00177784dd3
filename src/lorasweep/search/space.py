"""The sweep file's `space`, in Hydra's override grammar, as dimensions that a sampler can draw from.

The grammar means what Hydra's Optuna sweeper makes of it: `range(1,3)` is an integer dimension that includes 3,
`shuffle(range(1,3))` the choice of 1 and 2, `interval(1,5)` a float, `int(interval(1,5))` an integer, `tag(log, …)`
logarithmic, `a,b` a choice. Neighbours: `study` (draws), `sweep` (checks every bound before training).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorasweep.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

EXAMPLES = "interval(1e-4, 1e-2), tag(log, interval(1e-5, 1e-3)), int(interval(1, 8)), range(50, 201, 50), choice(2, 4, 8)"


@dataclass(frozen=True)
class Dimension:
    """One swept key. `low` and `high` are both included; `choices` only where `kind` is categorical."""

    key: str
    kind: str  # float, int or categorical
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()

    def suggest(self, trial: Trial) -> Any:
        """Draw a value through Optuna's trial."""
        if self.kind == "categorical":
            # lists are no Optuna choices: their position is drawn
            if any(isinstance(choice, list) for choice in self.choices):
                return self.choices[trial.suggest_categorical(self.key, range(len(self.choices)))]
            return trial.suggest_categorical(self.key, self.choices)
        assert self.low is not None and self.high is not None
        if self.kind == "int":
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)

    def distribution(self) -> BaseDistribution:
        """The Optuna distribution that `suggest` draws from."""
        from optuna import distributions

        if self.kind == "categorical":
            return distributions.CategoricalDistribution(tuple(self.stored(choice) for choice in self.choices))
        assert self.low is not None and self.high is not None
        if self.kind == "int":
            step = 1 if self.step is None else int(self.step)
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return distributions.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def stored(self, value: Any) -> Any:
        """The value as Optuna keeps it: a list by its position among the choices."""
        if self.kind == "categorical" and any(isinstance(choice, list) for choice in self.choices):
            return self.choices.index(value)
        return value

    def contains(self, value: Any) -> bool:
        """Whether the sampler could draw this value."""
        if self.kind == "categorical":
            return any(value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        assert self.low is not None and self.high is not None
        if self.kind == "int" and value != int(value):
            return False
        on_grid = self.step is None or abs((value - self.low) / self.step - round((value - self.low) / self.step)) < 1e-9
        return self.low <= value <= self.high and on_grid

    def edges(self) -> list[Any]:
        """Values that touch every bound or choice."""
        if self.kind == "categorical":
            return list(self.choices)
        assert self.low is not None and self.high is not None
        return [int(self.low), int(self.high)] if self.kind == "int" else [self.low, self.high]

    def to_json(self) -> dict[str, Any]:
        """The entry of `plan --json`; what does not apply is left out."""
        if self.kind == "categorical":
            return {"kind": self.kind, "choices": list(self.choices)}
        low, high = self.edges()
        entry: dict[str, Any] = {"kind": self.kind, "low": low, "high": high, "log": self.log}
        return entry if self.step is None else {**entry, "step": self.step}


@dataclass(frozen=True)
class Space:
    """All swept keys of a sweep, in the order of the file."""

    dimensions: tuple[Dimension, ...]

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """One point, drawn key by key."""
        return {dimension.key: dimension.suggest(trial) for dimension in self.dimensions}

    def to_json(self) -> dict[str, Any]:
        """Key -> what varies, as `plan --json` prints it."""
        return {dimension.key: dimension.to_json() for dimension in self.dimensions}

    def probe_points(self) -> list[dict[str, Any]]:
        """Points that touch every bound and choice, one key at a time over the first edge of the others."""
        first = {dimension.key: dimension.edges()[0] for dimension in self.dimensions}
        points = [first]
        for dimension in self.dimensions:
            points += [{**first, dimension.key: edge} for edge in dimension.edges()[1:]]
        return points

    def check_point(self, point: dict[str, Any], where: str) -> None:
        """Check an enqueued point.

        Raises:
            ConfigError: a key that is not swept, or a value that the space does not hold.
        """
        known = {dimension.key: dimension for dimension in self.dimensions}
        for key, value in point.items():
            if key not in known:
                raise ConfigError(
                    f"{where} sets `{key}`, which is not in `space` ({', '.join(known)}); add it there, or fix it for the "
                    "whole sweep"
                )
            if not known[key].contains(value):
                raise ConfigError(
                    f"{where}: `{key}`={value!r} is outside the space {known[key].to_json()}; change one of the two"
                )


def parse_space(space: dict[str, Any], allow_empty: bool = False) -> Space:
    """Read `sweep.space`.

    Raises:
        ConfigError: an empty space, unknown grammar, bounds upside down, log of what is not > 0.
    """
    if not space and not allow_empty:
        raise ConfigError(
            "`sweep.space` is empty: there is nothing to vary. Add a key, for example optimizer.lr: "
            '"tag(log, interval(1e-4, 1e-2))", or use `lorasweep train` for one trial'
        )
    return Space(tuple(_dimension(key, value) for key, value in space.items()))


def _dimension(key: str, value: Any) -> Dimension:
    if isinstance(value, list):
        return _choice(key, value, str(value))
    if isinstance(value, dict):
        raise ConfigError(f"`space` key `{key}` must be text or a list, got {value}. Values look like {EXAMPLES}")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    override = _parse(key, text)
    if not override.is_sweep_override():
        return _choice(key, [_plain(override.value())], text)
    swept = override.value()
    if override.is_interval_sweep():
        return _interval(key, swept, text)
    if override.is_range_sweep():
        return _range(key, swept, text)
    return _choice(key, [_plain(item) for item in override.sweep_iterator()], text)


def _parse(key: str, text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"cannot read `space` key `{key}`: {text} ({first}). Values look like {EXAMPLES}") from None


def _interval(key: str, swept: Any, text: str) -> Dimension:
    low, high = swept.start, swept.end
    whole = isinstance(low, int) and isinstance(high, int) and "int(" in text.replace(" ", "")
    log = "log" in swept.tags
    _check_tags(key, swept.tags, text)
    _check_bounds(key, low, high, log, text)
    return Dimension(key, "int" if whole else "float", low if whole else float(low), high if whole else float(high), log=log)


def _range(key: str, swept: Any, text: str) -> Dimension:
    if swept.shuffle:
        return _choice(key, list(swept.range()), text)
    low, high, step = swept.start, swept.stop, swept.step
    _check_tags(key, swept.tags, text)
    if step == 0:
        raise ConfigError(f"`space` key `{key}`: {text} has a step of 0; leave it out or make it > 0")
    if step < 0:
        low, high, step = high, low, -step
    _check_bounds(key, low, high, "log" in swept.tags, text)
    whole = all(isinstance(number, int) for number in (low, high, step))
    if not whole:  # the last value that the steps reach; Optuna would warn and do the same
        high = low + math.floor((high - low) / step + 1e-9) * step
    else:
        high = low + (high - low) // step * step
    if "log" in swept.tags:
        if step != 1:
            raise ConfigError(f"`space` key `{key}`: {text} cannot be logarithmic and have a step; use tag(log, interval(…))")
        return Dimension(key, "int", low, high, log=True)
    if whole:
        return Dimension(key, "int", low, high, step=step if step != 1 else None)
    return Dimension(key, "float", float(low), float(high), step=float(step))


def _choice(key: str, choices: list[Any], text: str) -> Dimension:
    if not choices:
        raise ConfigError(f"`space` key `{key}`: {text} holds no value; give at least one")
    seen: list[Any] = []
    for choice in choices:
        if choice in seen:  # 1, 1.0 and true are equal, for Python and for Optuna
            raise ConfigError(f"`space` key `{key}`: {text} holds {choice!r} twice; drop one")
        seen.append(choice)
    return Dimension(key, "categorical", choices=tuple(choices))


def _check_tags(key: str, tags: set[str], text: str) -> None:
    unknown = tags - {"log"}
    if unknown:
        raise ConfigError(f"`space` key `{key}`: {text} has the tag {', '.join(sorted(unknown))}; only `log` has a meaning")


def _check_bounds(key: str, low: Any, high: Any, log: bool, text: str) -> None:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"`space` key `{key}`: {text} needs two finite bounds")
    if low > high:
        raise ConfigError(f"`space` key `{key}`: {text} is upside down: {low} > {high}; swap the bounds")
    if log and low <= 0:
        raise ConfigError(f"`space` key `{key}`: {text} is logarithmic, so its lower bound must be > 0, got {low}")


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return getattr(value, "text", value)
