"""The sweep file's `space`, in Hydra's override grammar, as dimensions that a sampler can draw from.

The grammar means what Hydra's Optuna sweeper makes of it: `range(1,3)` is an integer dimension that includes 3,
`shuffle(range(1,3))` the choice of 1 and 2, `interval(1,5)` a float, `int(interval(1,5))` an integer, `tag(log, …)`
logarithmic, `a,b` a choice. Neighbours: `study` (draws), `sweep` (checks every bound before training).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from lorasweep.config.explain import keys, nearest_key
from lorasweep.config.schema import GROUPS, TRIAL_GROUPS, Config
from lorasweep.errors import ConfigError

if TYPE_CHECKING:
    from optuna.trial import Trial

EXAMPLES = (
    "interval(1e-4, 1e-2), tag(log, interval(1e-5, 1e-3)), int(interval(1, 8)), range(50, 201, 50), choice(2, 4, 8)"
)


LARGEST = 1e15  # of a bound: beyond it, neighbouring integers and steps are the same float in Optuna's storage
MOST_STEPS = 1e9  # of a float range, counted from zero: finer ones drown in a float's 16 digits
MOST_CHOICES = 10_000


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
        return self.low if self.step is None else _stepped(self.low, self.step, place)

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
                    f"{where} sets `{key}`, which is not in `space` ({', '.join(known)}); add it there, or set it for "
                    "the whole sweep"
                )
            if not known[key].contains(value):
                raise ConfigError(
                    f"{where}: `{key}`={value!r} is outside the space {known[key].to_json()}; change one of the two"
                )


def parse_space(space: dict[str, Any], config: Config | None = None, *, allow_empty: bool = False) -> Space:
    """Read `sweep.space`. With a `config` whose sampler is `list`, an empty space holds what is enqueued.

    Raises:
        ConfigError: an empty space, an unknown key or grammar, bounds upside down, log of what is not > 0.
    """
    if not space and config is not None and config.sampler.kind == "list":
        space = _enqueued_values(config.sweep.enqueue)
    if not space and not allow_empty:
        raise ConfigError(
            "`sweep.space` is empty: there is nothing to vary. Add a key, for example optimizer.lr: "
            '"tag(log, interval(1e-4, 1e-2))", or use `lorasweep train` for one trial'
        )
    for key in space:
        _check_key(key)
    dimensions = tuple(_dimension(key, value) for key, value in space.items())
    for dimension in dimensions:
        if dimension.kind == "float" and keys().get(dimension.key, "").startswith("int"):
            raise ConfigError(
                f"`sweep.space` key `{dimension.key}`: {space[dimension.key]} draws fractions, and the setting is an "
                "integer; write int(interval(low, high)) or range(low, high, step)"
            )
    return Space(dimensions)


def _enqueued_values(points: list[dict[str, Any]]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {}
    for point in points:
        for key, value in point.items():
            seen = values.setdefault(key, [])
            if value not in seen:
                seen.append(value)
    return values


def _check_key(key: str) -> None:
    group = key.partition(".")[0]
    if group in GROUPS and group not in TRIAL_GROUPS:
        raise ConfigError(
            f"`sweep.space` varies `{key}`, but {group} is one for the whole sweep; what can vary: "
            f"{', '.join(TRIAL_GROUPS)}"
        )
    if key in TRIAL_GROUPS or (group in TRIAL_GROUPS and key in keys()):
        return
    raise ConfigError(f"`sweep.space` varies `{key}`, and there is no such setting; {nearest_key(key)}")


def _dimension(key: str, value: Any) -> Dimension:
    if isinstance(value, list):
        return _choice(key, value, str(value))
    if isinstance(value, dict):
        dotted = f"{key}.{next(iter(value))}" if value else f"{key}.NAME"
        raise ConfigError(
            f"`sweep.space` key `{key}` must be text or a list, got {value}. Write keys in one piece ({dotted}: …); "
            f"values look like {EXAMPLES}"
        )
    if value is None:
        raise ConfigError(f"`sweep.space` key `{key}` has no values; values look like {EXAMPLES}")
    text = str(value).lower() if isinstance(value, bool) else str(value)
    override = _parse(key, text)
    if not override.is_sweep_override():
        return _choice(key, [_plain(override.value())], text)
    swept = override.value()
    if override.is_interval_sweep():
        return _interval(key, swept, text)
    if override.is_range_sweep():
        return _range(key, swept, text)
    if not hasattr(swept, "list"):
        raise ConfigError(
            f"`sweep.space` key `{key}`: {text} depends on what files there are; write choice(a, b) instead"
        )
    return _choice(
        key, [_plain(item) for item in swept.list], text
    )  # shuffle() changes nothing: a sampler has no order


def _parse(key: str, text: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"cannot read `sweep.space` key `{key}`: {text} ({first}). Values look like {EXAMPLES}"
        ) from None


def _interval(key: str, swept: Any, text: str) -> Dimension:
    low, high, log = swept.start, swept.end, "log" in swept.tags
    _check_tags(key, swept.tags, text)
    _check_bounds(key, low, high, log, text)
    whole = isinstance(low, int) and isinstance(high, int)  # only int(interval(…)) leaves integers
    return Dimension(key, "int" if whole else "float", low, high, log=log)


def _range(key: str, swept: Any, text: str) -> Dimension:
    _check_tags(key, swept.tags, text)
    first, last, step, log = swept.start, swept.stop, swept.step, "log" in swept.tags
    if first is None or last is None or not step:
        wrong = (
            f"has a step of {step}; leave it out or make it another number" if step == 0 else "needs a start and a stop"
        )
        raise ConfigError(f"`sweep.space` key `{key}`: {text} {wrong}")
    if not all(not isinstance(number, bool) and abs(number) <= LARGEST for number in (first, last, step)):
        raise ConfigError(f"`sweep.space` key `{key}`: {text} needs finite numbers within ±{LARGEST:g}")
    if swept.shuffle:
        count = max(0, math.ceil((last - first) / step - 1e-9))  # as Python's range: the end is not among them
        return _choice(key, [_stepped(first, step, place) for place in range(min(count, MOST_CHOICES + 1))], text)
    whole = all(isinstance(number, int) for number in (first, last, step))
    if step < 0:
        _check_bounds(key, last, first, log, text)
    else:
        _check_bounds(key, first, last, log, text)
    if log and (not whole or abs(step) != 1):
        raise ConfigError(
            f"`sweep.space` key `{key}`: {text} cannot be logarithmic and have steps; use tag(log, interval(low, high))"
        )
    if not whole and max(abs(first), abs(last)) / abs(step) > MOST_STEPS:
        raise ConfigError(
            f"`sweep.space` key `{key}`: {text} has steps too fine to tell apart; use interval(low, high)"
        )
    # the steps count from `first`, so the far bound is the last value that they reach
    reached = _stepped(first, step, math.floor((last - first) / step + 1e-9))
    low, high = sorted((first, reached))
    if whole:
        return Dimension(key, "int", low, high, step=abs(step) if abs(step) != 1 else None, log=log)
    return Dimension(key, "float", float(low), float(high), step=float(abs(step)))


def _choice(key: str, choices: list[Any], text: str) -> Dimension:
    if not choices:
        raise ConfigError(f"`sweep.space` key `{key}`: {text} holds no value; give at least one")
    if len(choices) > MOST_CHOICES:
        raise ConfigError(
            f"`sweep.space` key `{key}`: {text} holds over {MOST_CHOICES:,} choices; use range or interval"
        )
    seen: list[Any] = []
    for choice in choices:
        if not isinstance(choice, str | int | float | list | dict | None):
            raise ConfigError(f"`sweep.space` key `{key}`: {text} holds a sweep in a sweep; write one flat choice(…)")
        if isinstance(choice, float) and not math.isfinite(choice):
            raise ConfigError(f"`sweep.space` key `{key}`: {text} holds {choice}; every number must be finite")
        if choice in seen:  # 1, 1.0 and true are equal, for Python and for Optuna
            raise ConfigError(f"`sweep.space` key `{key}`: {text} holds {choice!r} twice; drop one")
        seen.append(choice)
    return Dimension(key, "categorical", choices=tuple(choices))


def _check_tags(key: str, tags: set[str], text: str) -> None:
    unknown = tags - {"log"}
    if unknown:
        raise ConfigError(
            f"`sweep.space` key `{key}`: {text} has the tag {', '.join(sorted(unknown))}; only `log` has a meaning"
        )


def _check_bounds(key: str, low: Any, high: Any, log: bool, text: str) -> None:
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise ConfigError(f"`sweep.space` key `{key}`: {text} needs two finite bounds")
    if max(abs(low), abs(high)) > LARGEST:
        raise ConfigError(f"`sweep.space` key `{key}`: {text} needs finite numbers within ±{LARGEST:g}")
    if low > high:
        raise ConfigError(f"`sweep.space` key `{key}`: {text} is upside down: {low} > {high}; swap the bounds")
    if log and low <= 0:
        raise ConfigError(
            f"`sweep.space` key `{key}`: {text} is logarithmic, so its lower bound must be > 0, got {low}"
        )


def _stepped(first: Any, step: Any, place: int) -> Any:
    """`first` + `place` steps as decimals are added: 0.3, not 0.30000000000000004."""
    if isinstance(first, int) and isinstance(step, int):
        return first + place * step
    return float(Decimal(repr(first)) + place * Decimal(repr(step)))


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return getattr(value, "text", value)
