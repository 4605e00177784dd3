"""Swept keys as dimensions, and points of the space that they span; some keys exist only at some values of others.

Pure but for `suggest`, which draws through Optuna's trial. Neighbours: `space` (reads them from a sweep file),
`samplers` (draws), `sweeping` and `planning` (probe points).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lorasweep.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial


@dataclass(frozen=True)
class Dimension:
    """One swept key. `low` and `high` are both included; `choices` only where `kind` is categorical.

    `when`: keys of other dimensions, each with the values at which this one exists; all must hold.
    """

    key: str
    kind: str  # float, int or categorical
    low: float | None = None
    high: float | None = None
    step: float | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def exists(self, point: dict[str, Any]) -> bool:
        """Whether this key is part of a point that holds the keys it depends on."""
        return all(parent in point and point[parent] in values for parent, values in self.when)

    def suggest(self, trial: Trial) -> Any:
        """Draw a value through Optuna's trial."""
        if self.kind == "categorical":
            if self.by_position:
                return self.choices[trial.suggest_categorical(self.key, range(len(self.choices)))]
            return trial.suggest_categorical(self.key, self.choices)
        assert self.low is not None and self.high is not None
        if self.kind == "int":
            step = 1 if self.step is None else int(self.step)
            return trial.suggest_int(self.key, int(self.low), int(self.high), step=step, log=self.log)
        drawn = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return float(drawn) if self.step is None else self.value(round((drawn - self.low) / self.step))

    @property
    def distribution(self) -> BaseDistribution:
        """What Optuna's storage says of this dimension."""
        from optuna import distributions

        if self.kind == "categorical":
            return distributions.CategoricalDistribution(range(len(self.choices)) if self.by_position else self.choices)
        assert self.low is not None and self.high is not None
        if self.kind == "int":
            step = 1 if self.step is None else int(self.step)
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return distributions.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    @property
    def by_position(self) -> bool:
        """Whether Optuna keeps a choice by its position: lists and dicts are no values of its storage."""
        return any(isinstance(choice, list | dict) for choice in self.choices)

    def stored(self, value: Any) -> Any:
        """A value of this dimension as Optuna keeps it."""
        if self.kind == "categorical":
            place = self.choices.index(value)
            return place if self.by_position else self.choices[place]
        return int(value) if self.kind == "int" else float(value)

    @property
    def count(self) -> int | None:
        """How many values there are; None where they are a continuum."""
        if self.kind == "categorical":
            return len(self.choices)
        assert self.low is not None and self.high is not None
        if self.kind == "int":
            return (int(self.high) - int(self.low)) // int(self.step or 1) + 1
        if self.step is None:
            return None if self.low < self.high else 1
        return round((self.high - self.low) / self.step) + 1

    def value(self, place: int) -> Any:
        """The value at a place from 0 to `count` - 1, in order."""
        if self.kind == "categorical":
            return self.choices[place]
        assert self.low is not None
        if self.kind == "int":
            return int(self.low) + place * int(self.step or 1)
        return self.low if self.step is None else stepped(self.low, self.step, place)

    def values(self) -> list[Any] | None:
        """Every value, in order; None where they are a continuum."""
        return None if self.count is None else [self.value(place) for place in range(self.count)]

    def at(self, unit: float) -> Any:
        """The value at a share of the way, `unit` in [0, 1): for sequences that fill the unit cube evenly."""
        count = self.count
        if count is not None and not self.log:
            return self.value(min(int(unit * count), count - 1))
        assert self.low is not None and self.high is not None
        if not self.log:
            return self.low + unit * (self.high - self.low)
        margin = 0.5 if self.kind == "int" else 0.0  # each integer gets its share of the logarithmic line
        low, high = math.log(self.low - margin), math.log(self.high + margin)
        drawn = min(max(math.exp(low + unit * (high - low)), self.low), self.high)
        return round(drawn) if self.kind == "int" else drawn

    def contains(self, value: Any) -> bool:
        """Whether the sampler could draw this value."""
        if self.kind == "categorical":
            return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in self.choices)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        assert self.low is not None and self.high is not None
        if self.kind == "int" and value != int(value):
            return False
        if not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step is not None else 0.0
        return abs(steps - round(steps)) < 1e-6

    def edges(self) -> list[Any]:
        """Values that touch every bound or choice."""
        if self.kind == "categorical":
            return list(self.choices)
        assert self.low is not None and self.high is not None
        return [int(self.low), int(self.high)] if self.kind == "int" else [self.low, self.high]

    def to_json(self) -> dict[str, Any]:
        """The entry of `plan --json`; what does not apply is left out."""
        entry: dict[str, Any] = {"kind": self.kind}
        if self.kind == "categorical":
            entry["choices"] = list(self.choices)
        else:
            low, high = self.edges()
            entry |= {"low": low, "high": high, "log": self.log}
        if self.step is not None:
            entry["step"] = self.step
        return {**entry, "when": {key: list(values) for key, values in self.when}} if self.when else entry


@dataclass(frozen=True)
class Space:
    """All swept keys of a sweep, in the order of the file but for keys that depend on others: those come after them."""

    dimensions: tuple[Dimension, ...]

    def point(self, value_of: Callable[[Dimension], Any]) -> dict[str, Any]:
        """One point, key by key; keys that do not exist at the values before them are left out."""
        point: dict[str, Any] = {}
        for dimension in self.dimensions:
            if dimension.exists(point):
                point[dimension.key] = value_of(dimension)
        return point

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """One point, drawn key by key."""
        return self.point(lambda dimension: dimension.suggest(trial))

    @property
    def conditional(self) -> bool:
        """Whether some keys exist only at times."""
        return any(dimension.when for dimension in self.dimensions)

    def every_point(self) -> Iterator[dict[str, Any]]:
        """All points, the last key varying fastest. Every dimension must have a count."""
        yield from self._every_point({}, 0)

    def _every_point(self, point: dict[str, Any], place: int) -> Iterator[dict[str, Any]]:
        if place == len(self.dimensions):
            yield point
        elif not self.dimensions[place].exists(point):
            yield from self._every_point(point, place + 1)
        else:
            for value in self.dimensions[place].values() or []:
                yield from self._every_point({**point, self.dimensions[place].key: value}, place + 1)

    def reaching(self, dimension: Dimension) -> dict[str, Any] | None:
        """Values of other keys at which this dimension exists; None where there are none."""
        needed = {key for key, _ in dimension.when}
        for other in reversed(self.dimensions):
            if other.key in needed:
                needed |= {key for key, _ in other.when}
        ancestors = Space(tuple(other for other in self.dimensions if other.key in needed))
        return next((point for point in ancestors.every_point() if dimension.exists(point)), None)

    def to_json(self) -> dict[str, Any]:
        """Key -> what varies, as `plan --json` prints it."""
        return {dimension.key: dimension.to_json() for dimension in self.dimensions}

    def probe_points(self) -> list[dict[str, Any]]:
        """Points that touch every bound and choice, one key at a time over the first edge of the others."""
        points = [self.point(lambda dimension: dimension.edges()[0])]
        for dimension in self.dimensions:
            around = self.reaching(dimension) or {}
            for edge in dimension.edges():
                fixed = {**around, dimension.key: edge}
                point = self.point(lambda other, fixed=fixed: fixed.get(other.key, other.edges()[0]))  # type: ignore[misc]
                if point not in points:
                    points.append(point)
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
                    f"{where} sets `{key}`, which is not in `space` ({', '.join(known)}); add it there, or set it for "
                    "the whole sweep"
                )
            if not known[key].contains(value):
                raise ConfigError(
                    f"{where}: `{key}`={value!r} is outside the space {known[key].to_json()}; change one of the two"
                )
            for parent, values in known[key].when:
                if parent not in point or point[parent] not in values:
                    there = f"`{parent}`={point[parent]!r}" if parent in point else f"no `{parent}`"
                    raise ConfigError(
                        f"{where} sets `{key}`, which exists only when {parent} is {either(values)}, and has {there}; "
                        f"set both or leave `{key}` out"
                    )


def parents_first(dimensions: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    """The dimensions in their order, but each after those that it depends on.

    Raises:
        ConfigError: a condition on a key that is not swept or has no countable values, on a value that it never takes,
            or one that can never hold; keys that depend on each other.
    """
    known = {dimension.key: dimension for dimension in dimensions}
    for dimension in dimensions:
        for parent, values in dimension.when:
            _check_condition(dimension.key, known.get(parent), parent, values)
    ordered: list[Dimension] = []
    waiting = list(dimensions)
    while waiting:
        placed = {dimension.key for dimension in ordered}
        ready = next((one for one in waiting if all(parent in placed for parent, _ in one.when)), None)
        if ready is None:
            raise ConfigError(
                f"`sweep.space`: {', '.join(one.key for one in waiting)} depend on each other by `when`; one of them "
                "must exist always"
            )
        ordered.append(ready)
        waiting.remove(ready)
    space = Space(tuple(ordered))
    for dimension in ordered:
        if dimension.when and space.reaching(dimension) is None:
            raise ConfigError(
                f"`sweep.space` key `{dimension.key}` never exists: its `when` asks for what cannot be at once; "
                "take one condition away"
            )
    return space.dimensions


def _check_condition(key: str, parent: Dimension | None, name: str, values: tuple[Any, ...]) -> None:
    if parent is None:
        raise ConfigError(
            f"`sweep.space` key `{key}` exists when {name} is {either(values)}, but `{name}` is not in the space; add "
            f"it there, or write the values of `{key}` without `when`"
        )
    if parent.count is None:
        raise ConfigError(
            f"`sweep.space` key `{key}` depends on `{name}`, an interval: no draw hits a value exactly; depend on a "
            "choice(…) or range(…)"
        )
    for value in values:
        if not parent.contains(value):
            raise ConfigError(
                f"`sweep.space` key `{key}` exists when {name} is {value!r}, which it never is: {parent.to_json()}; "
                "change one of the two"
            )


def either(values: tuple[Any, ...]) -> str:
    """`a`, or `a or b`."""
    return " or ".join(str(value) for value in values)


def stepped(first: Any, step: Any, place: int) -> Any:
    """`first` + `place` steps as decimals are added: 0.3, not 0.30000000000000004."""
    if isinstance(first, int) and isinstance(step, int):
        return first + place * step
    return float(Decimal(repr(first)) + place * Decimal(repr(step)))
