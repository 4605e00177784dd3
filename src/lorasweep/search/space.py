"""The sweep file's `space`, in Hydra's override grammar, as dimensions that a sampler can draw from.

The grammar means what Hydra's Optuna sweeper makes of it: `range(1,3)` is an integer dimension that includes 3,
`shuffle(range(1,3))` the choice of 1 and 2, `interval(1,5)` a float, `int(interval(1,5))` an integer, `tag(log, …)`
logarithmic, `a,b` a choice. Neighbours: `study` (draws), `sweeping` (checks every bound before training).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lorasweep.config.explain import keys, nearest_key
from lorasweep.config.schema import GROUPS, TRIAL_GROUPS, Config
from lorasweep.errors import ConfigError
from lorasweep.search.dimensions import Dimension, Space, parents_first, stepped

EXAMPLES = (
    "interval(1e-4, 1e-2), tag(log, interval(1e-5, 1e-3)), int(interval(1, 8)), range(50, 201, 50), choice(2, 4, 8)"
)


LARGEST = 1e15  # of a bound: beyond it, neighbouring integers and steps are the same float in Optuna's storage
MOST_STEPS = 1e9  # of a float range, counted from zero: finer ones drown in a float's 16 digits
MOST_CHOICES = 10_000


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
    return Space(parents_first(dimensions))


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
    if isinstance(value, dict) and value.keys() == {"when", "values"}:
        return replace(_dimension(key, value["values"]), when=_conditions(key, value["when"]))
    if isinstance(value, dict):
        dotted = f"{key}.{next(iter(value))}" if value else f"{key}.NAME"
        raise ConfigError(
            f"`sweep.space` key `{key}` must be text or a list, got {value}. Write keys in one piece ({dotted}: …); "
            f"values look like {EXAMPLES}, and a key that exists only at times like "
            '{when: adapter=lora, values: "choice(4, 8)"}'
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


def _conditions(key: str, when: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """`adapter=lora`, `adapter=choice(lora, full)`, or a list of such words that must all hold."""
    conditions = []
    for word in when if isinstance(when, list) else [when]:
        parent, _, text = str(word).partition("=")
        if not parent or not text:
            raise ConfigError(
                f"`sweep.space` key `{key}`: `when: {when}` is no condition; write when: key=value, or a list of them"
            )
        override = _parse(parent.strip(), text.strip())
        value = override.value()
        if override.is_sweep_override() and not override.is_choice_sweep():
            raise ConfigError(
                f"`sweep.space` key `{key}`: `when: {word}` must name values; write {parent}=choice(a, b)"
            )
        values = value.list if override.is_sweep_override() else [value]
        conditions.append((parent.strip(), tuple(_plain(item) for item in values)))
    return tuple(conditions)


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
        return _choice(key, [stepped(first, step, place) for place in range(min(count, MOST_CHOICES + 1))], text)
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
    reached = stepped(first, step, math.floor((last - first) / step + 1e-9))
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


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return getattr(value, "text", value)
