"""The space: Hydra's sweep grammar, its refusals, and values that always compose."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lorasweep.config.compose import compose, compose_trial
from lorasweep.config.explain import keys
from lorasweep.config.home import Home
from lorasweep.config.schema import TRIAL_GROUPS
from lorasweep.errors import ConfigError
from lorasweep.search.space import Dimension, Space, parse_space

HOME = Home(Path("/nowhere"), Home.find().shipped)


def one(text: Any, key: str = "optimizer.lr") -> Dimension:
    return parse_space({key: text}).dimensions[0]


def number(kind: str, low: float, high: float, step: float | None = None, log: bool = False) -> dict[str, Any]:
    entry = {"kind": kind, "low": low, "high": high, "log": log}
    return entry if step is None else {**entry, "step": step}


def choices(*values: Any) -> dict[str, Any]:
    return {"kind": "categorical", "choices": list(values)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(1, 5)", number("float", 1.0, 5.0)),
        ("interval(1e-4,1e-2)", number("float", 1e-4, 1e-2)),
        ("int(interval(1, 5))", number("int", 1, 5)),
        ("tag(log, interval(1e-4, 1e-2))", number("float", 1e-4, 1e-2, log=True)),
        ("tag(log, int(interval(1, 64)))", number("int", 1, 64, log=True)),
        ("int(tag(log, interval(1, 64)))", number("int", 1, 64, log=True)),
        ("range(1, 3)", number("int", 1, 3)),
        ("range(3)", number("int", 0, 3)),
        ("range(50, 201, 50)", number("int", 50, 200, step=50)),
        ("range(10, 2, -3)", number("int", 4, 10, step=3)),
        ("range(3, 1, -1)", number("int", 1, 3)),
        ("range(0.1, 0.5, 0.1)", number("float", 0.1, 0.5, step=0.1)),
        ("range(0, 1, 0.3)", number("float", 0.0, 0.9, step=0.3)),
        ("range(0.5, 0.1, -0.2)", number("float", 0.1, 0.5, step=0.2)),
        ("float(range(1, 3))", number("float", 1.0, 3.0, step=1.0)),
        ("tag(log, range(1, 64))", number("int", 1, 64, log=True)),
        ("sort(range(1, 5))", number("int", 1, 5)),
        ("shuffle(range(1, 3))", choices(1, 2)),
        ("shuffle(range(0.1, 0.4, 0.1))", choices(0.1, 0.2, 0.3)),
        ("choice(2, 4, 8)", choices(2, 4, 8)),
        ("2, 4, 8", choices(2, 4, 8)),
        ("a,b,c", choices("a", "b", "c")),
        ("shuffle(choice(3, 1, 2))", choices(3, 1, 2)),
        ("sort(3, 1, 2)", choices(1, 2, 3)),
        ("choice(true, false)", choices(True, False)),
        ("bool(0, 1)", choices(False, True)),
        ("choice('a b', \"c/d.e\", /abs/path)", choices("a b", "c/d.e", "/abs/path")),
        ("null,3", choices(None, 3)),
        ("choice([0, 1], [2])", choices([0, 1], [2])),
        ("str(1, 2)", choices("1", "2")),
        ("8", choices(8)),
        (8, choices(8)),
        (True, choices(True)),
        ([1e-3, 1e-2], choices(1e-3, 1e-2)),
        ("interval(2, 2)", number("float", 2.0, 2.0)),
    ],
)
def test_grammar(text: Any, expected: dict[str, Any]) -> None:
    got = one(text).to_json()
    assert got == expected
    assert repr(got) == repr(expected)  # 1 is not 1.0, nor true


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("interval(5, 1)", "upside down: 5.0 > 1.0; swap the bounds"),
        ("range(5, 1)", "upside down"),
        ("range(1, 5, -1)", "upside down"),
        ("tag(log, interval(0, 1))", "lower bound must be > 0, got 0.0"),
        ("tag(log, interval(-1, 1))", "lower bound must be > 0"),
        ("interval(0, inf)", "two finite bounds"),
        ("interval(nan, 1)", "two finite bounds"),
        ("range(0, 1, 0)", "step of 0"),
        ("tag(log, range(1, 64, 2))", "cannot be logarithmic and have steps"),
        ("tag(log, range(0.1, 1.0, 0.1))", "cannot be logarithmic and have steps"),
        ("tag(fast, interval(1, 2))", "tag fast"),
        ("choice(1, 1)", "holds 1 twice"),
        ("choice(1, true)", "twice"),
        ("choice()", "cannot read"),
        ("interval(1)", "cannot read"),
        ("choice(1, 2", "cannot read"),
        ("uniform(1, 2)", "cannot read"),
        ("glob(*)", "write choice(a, b)"),
        ("choice(nan, 1)", "every number must be finite"),
        ("choice(choice(1, 2), 3)", "a sweep in a sweep"),
        ("int(interval(0, 1e16))", "within ±1e+15"),
        ("interval(-1e308, 1e308)", "within ±1e+15"),
        ("range(0, 1e300, 3)", "within ±1e+15"),
        ("range(-1, 1, 1e-12)", "too fine to tell apart"),
        ("shuffle(range(0, 1000000000))", "over 10,000 choices"),
        ([], "no value"),
        (None, "no values"),
        ({"low": 1, "high": 2}, "must be text or a list"),
    ],
)
def test_refusals_name_key_text_and_repair(text: Any, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        one(text)
    message = str(caught.value)
    assert part in message, message
    assert "optimizer.lr" in message
    if isinstance(text, str):
        assert text in message


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("optimizer.lrr", "did you mean `optimizer.lr`?"),
        ("lr", "did you mean `optimizer.lr`?"),
        ("modle", "did you mean `model`?"),
        ("sweep.trials", "no such setting"),
        ("sampler.seed", "sampler is one for the whole sweep"),
        ("launcher", "launcher is one for the whole sweep"),
        ("optimizer.", "no such setting"),
        ("", "no such setting"),
    ],
)
def test_only_settings_of_a_trial_vary(key: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_space({key: "choice(1, 2)"})
    assert part in str(caught.value), caught.value


@pytest.mark.parametrize("text", ["interval(1, 9)", "range(1.0, 9)", "tag(log, interval(1, 9))"])
@pytest.mark.parametrize("key", ["train.max_steps", "data.max_train_rows"])
def test_fractions_of_an_integer_setting_are_refused(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"write int\(interval\(low, high\)\)"):
        parse_space({key: text})
    assert parse_space({key: f"int({text})"}).dimensions[0].kind == "int"


def test_every_setting_and_group_of_a_trial_can_vary() -> None:
    names = [*TRIAL_GROUPS, *(key for key in keys() if key.partition(".")[0] in TRIAL_GROUPS)]
    assert len(parse_space(dict.fromkeys(names, "choice(1, 2)")).dimensions) == len(names)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to vary"):
        parse_space({})
    assert parse_space({}, allow_empty=True).dimensions == ()


def test_a_list_of_points_is_its_own_space() -> None:
    config = compose(["sampler=list"], home=HOME)
    config.sweep.enqueue = [{"adapter.r": 2, "optimizer.lr": 0.1}, {"adapter.r": 4, "optimizer.lr": 0.1}]
    assert parse_space({}, config).to_json() == {"adapter.r": choices(2, 4), "optimizer.lr": choices(0.1)}


def test_probe_points_touch_every_bound_and_choice_one_at_a_time() -> None:
    space = parse_space(
        {"optimizer.lr": "interval(1, 2)", "adapter.r": "choice(2, 4, 8)", "train.seed": "range(1, 9, 4)"}
    )
    points = space.probe_points()
    assert points[0] == {"optimizer.lr": 1.0, "adapter.r": 2, "train.seed": 1}
    assert len(points) == 1 + 1 + 2 + 1
    assert {point["adapter.r"] for point in points} == {2, 4, 8}
    assert {point["optimizer.lr"] for point in points} == {1.0, 2.0}
    assert {point["train.seed"] for point in points} == {1, 9}


@pytest.mark.parametrize(
    ("key", "text", "part"),
    [
        ("adapter.r", "choice(0, 8)", "`adapter.r` must be > 0, got 0"),
        ("optimizer.lr", "interval(-1, 1)", "`optimizer.lr` must be > 0, got -1.0"),
        ("adapter.dropout", "interval(0, 1)", "`adapter.dropout` must be < 1, got 1.0"),
        ("train.max_steps", "choice(100, 2.5)", "`train.max_steps` must be an integer, got 2.5"),
        ("train.precision", "choice(fp32, fp8)", "got 'fp8'"),
        ("model", "choice(gpt2, gpt5)", "`model=gpt5` is no option"),
        ("adapter.rslora", "choice(true, maybe)", "true or false"),
    ],
)
def test_a_space_that_breaks_a_rule_shows_before_training(key: str, text: str, part: str) -> None:
    points = parse_space({key: text}).probe_points()
    with pytest.raises(ConfigError) as caught:
        for point in points:
            compose_trial([], "quickstart", point, HOME)
    assert part in str(caught.value) and "sweeps/quickstart.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("point", "part"),
    [
        ({"adapter.r": 16}, "`adapter.r`=16 is outside"),
        ({"adapter.alpha": 3}, "which is not in `space`"),
        ({"optimizer.lr": 0.02}, "is outside"),
        ({"optimizer.lr": "fast"}, "is outside"),
        ({"optimizer.lr": True}, "is outside"),
        ({"train.max_steps": 60}, "is outside"),
        ({"train.max_steps": 100.5}, "is outside"),
        ({"adapter.rslora": 1}, "is outside"),
    ],
)
def test_enqueued_points_must_lie_in_the_space(point: dict[str, Any], part: str) -> None:
    space = parse_space(
        {
            "adapter.r": "choice(2, 4)",
            "optimizer.lr": "tag(log, interval(1e-4, 1e-2))",
            "train.max_steps": "range(50, 201, 50)",
            "adapter.rslora": "choice(true, false)",
        }
    )
    space.check_point({"adapter.r": 4, "optimizer.lr": 1e-2, "train.max_steps": 200, "adapter.rslora": True}, "point 0")
    space.check_point({}, "point 0")
    with pytest.raises(ConfigError, match="point 3") as caught:
        space.check_point(point, "point 3")
    assert part in str(caught.value)


# -- for all spaces ---------------------------------------------------------------------------------------------------

FLOAT_KEY, INT_KEY, TEXT_KEY = "optimizer.lr", "adapter.r", "model.name"
FINITE = st.floats(1e-6, 1e6)


@st.composite
def intervals(draw: st.DrawFn) -> tuple[str, str]:
    log = draw(st.booleans())
    if draw(st.booleans()):
        low, high = sorted(draw(st.tuples(FINITE, FINITE)))
        text, key = f"interval({low!r}, {high!r})", FLOAT_KEY
    else:
        first, last = sorted(draw(st.tuples(st.integers(1, 4096), st.integers(1, 4096))))
        text, key = f"int(interval({first}, {last}))", INT_KEY
    return key, f"tag(log, {text})" if log else text


@st.composite
def ranges(draw: st.DrawFn) -> tuple[str, str]:
    if draw(st.booleans()):
        low, length, step = draw(st.tuples(st.integers(1, 99), st.integers(0, 99), st.integers(1, 9)))
        text = (
            f"range({low + length}, {low}, {-step})" if draw(st.booleans()) else f"range({low}, {low + length}, {step})"
        )
        return INT_KEY, text
    low, length, step = draw(st.tuples(st.integers(1, 99), st.integers(0, 99), st.integers(1, 9)))
    return FLOAT_KEY, f"range({low / 10}, {(low + length) / 10}, {step / 10})"


@st.composite
def named_choices(draw: st.DrawFn) -> tuple[str, list[Any]]:
    texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).filter(lambda text: text != "???")
    key, values = draw(st.sampled_from([(FLOAT_KEY, FINITE), (INT_KEY, st.integers(1, 999)), (TEXT_KEY, texts)]))
    return key, draw(st.lists(values, min_size=1, max_size=5, unique=True))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parts=st.lists(intervals() | ranges() | named_choices(), min_size=1, max_size=3), seed=st.integers(0, 99))
@example([("optimizer.lr", "interval(1e-06, 1.0000000000000002e-06)")], 0)  # Optuna draws numpy's float from it
@pytest.mark.slow
def test_any_value_drawn_lies_inside_and_composes_with_its_type(parts: list[tuple[str, Any]], seed: int) -> None:
    space = parse_space(dict(parts))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    drawn = [space.suggest(study.ask()) for _ in range(3)]
    at = [{d.key: d.at(unit) for d in space.dimensions} for unit in (0.0, 0.31, 0.999999)]
    for point in (*drawn, *at, *space.probe_points()):
        space.check_point(point, "a drawn point")
        config = compose_trial([], None, point, HOME)
        for key, value in point.items():
            group, name = key.split(".")
            got = getattr(getattr(config, group), name)
            assert got == value
            assert type(got) is {FLOAT_KEY: float, INT_KEY: int, TEXT_KEY: str}[key]


@settings(max_examples=150, deadline=None)
@given(part=ranges() | named_choices())
def test_values_lists_exactly_what_a_discrete_dimension_holds(part: tuple[str, Any]) -> None:
    dimension = parse_space(dict([part])).dimensions[0]
    values = dimension.values()
    assert values is not None and all(dimension.contains(value) for value in values)
    assert len(values) == len({repr(value) for value in values})
    assert {dimension.at((place + 0.5) / len(values)) for place in range(len(values))} == set(values)
    if dimension.kind != "categorical":
        assert (values[0], values[-1]) == (dimension.low, dimension.high)


@settings(max_examples=100, deadline=None)
@given(part=intervals(), units=st.lists(st.floats(0, 1, exclude_max=True), min_size=2, max_size=6))
def test_shares_of_the_way_keep_their_order(part: tuple[str, str], units: list[float]) -> None:
    dimension = Space((one(part[1], part[0]),)).dimensions[0]
    values = [dimension.at(unit) for unit in sorted(units)]
    assert values == sorted(values)
    assert all(dimension.contains(value) and math.isfinite(value) for value in values)


NUMBERS = [
    "0",
    "1",
    "-1",
    "0.1",
    "1e-5",
    "3",
    "10",
    "1e-320",
    "1e300",
    "-1e308",
    "inf",
    "nan",
    "9007199254740993",
    "null",
    "a",
]
WORDS = ["log", '"x"', "step=0.1", "step=0", "[1,2]", "{a:1}", "*", "start=1", "stop=3", "reverse=true", " ", *NUMBERS]
FUNCTIONS = [
    "interval",
    "range",
    "choice",
    "shuffle",
    "int",
    "float",
    "str",
    "bool",
    "tag",
    "sort",
    "glob",
    "extend_list",
]
CALLS = st.recursive(
    st.sampled_from(WORDS),
    lambda inner: st.builds(
        lambda name, items: f"{name}({','.join(items)})", st.sampled_from(FUNCTIONS), st.lists(inner, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=CALLS | st.text(max_size=15) | st.lists(st.sampled_from([None, True, 1, 1.0, "a", math.nan, [1]]), max_size=3)
)
def test_any_text_is_a_dimension_that_can_be_drawn_from_or_a_config_error(text: Any) -> None:
    try:
        dimension = one(text)
    except ConfigError:
        return
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(0)).ask()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # Optuna adjusts a range that does not end on a step
        drawn = dimension.suggest(trial)
    for value in [drawn, dimension.at(0.0), dimension.at(0.5), dimension.at(0.999), *dimension.edges()]:
        assert dimension.contains(value)
