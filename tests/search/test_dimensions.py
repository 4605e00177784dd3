"""Conditional keys: which points exist, for every sampler; probes that reach each bound; refusals with a repair."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from test_samplers import draw, proposals

from lorasweep.config.compose import compose_trial
from lorasweep.errors import ConfigError
from lorasweep.search.space import Space, parse_space

NESTED = {
    "adapter.r": {"when": "adapter=lora", "values": "choice(4, 8)"},
    "adapter.alpha": {"when": "adapter.r=8", "values": "choice(8, 16)"},
    "adapter": "choice(lora, full)",
    "optimizer.warmup_steps": {"when": ["adapter=full", "train.batch_size=choice(8, 16)"], "values": "range(1, 3)"},
    "train.batch_size": "choice(4, 8, 16)",
    "train.max_steps": "range(50, 200, 50)",
}


def holds(point: dict[str, Any]) -> bool:
    """The conditions of NESTED, written out."""
    expected = {"adapter", "train.batch_size", "train.max_steps"}
    if point["adapter"] == "lora":
        expected |= {"adapter.r"} | ({"adapter.alpha"} if point["adapter.r"] == 8 else set())
    elif point["train.batch_size"] in (8, 16):
        expected |= {"optimizer.warmup_steps"}
    return set(point) == expected


@pytest.mark.parametrize("kind", ["random", "qmc", "tpe", "grid"])
def test_samplers_draw_a_key_where_it_exists_and_only_there(kind: str) -> None:
    points = draw(proposals(kind, NESTED, startup_trials=5), 40)
    assert all(holds(point) for point in points)
    seen = {key for point in points for key in point}
    assert seen == set(NESTED)
    assert points == draw(proposals(kind, NESTED, startup_trials=5), 40)


@pytest.mark.parametrize("kind", ["gp", "cmaes"])
@pytest.mark.slow
def test_samplers_that_model_a_fixed_space_draw_the_rest_at_random(kind: str) -> None:
    numeric = {"adapter": "choice(lora, full)", "adapter.r": {"when": "adapter=lora", "values": "range(4, 8)"}}
    space = {**numeric, "train.max_steps": "range(50, 200)", "optimizer.lr": "interval(0.1, 1)"}
    for point in draw(proposals(kind, space, startup_trials=3), 6):
        assert ("adapter.r" in point) == (point["adapter"] == "lora")


def test_a_grid_lists_each_existing_point_once() -> None:
    sampler = proposals("grid", NESTED)
    points = draw(sampler, sampler.points or 0)
    # lora: r=4, or r=8 with two alphas, at 3 batch sizes; full: 1 batch size without and 2 with three warmups
    assert len(points) == (3 * 3 + 1 + 2 * 3) * 4
    assert len({repr(sorted(point.items())) for point in points}) == len(points)
    assert all(holds(point) for point in points)


def test_tpe_learns_a_key_that_exists_at_times() -> None:
    space = {
        "adapter": "choice(lora, full)",
        "optimizer.lr": {"when": "adapter=lora", "values": "tag(log, interval(1e-4, 1e-1))"},
        "train.max_steps": "range(50, 200, 50)",
    }
    sampler = proposals("tpe", space, startup_trials=10)
    study = optuna.create_study(sampler=sampler, direction="minimize")
    points = []
    for _ in range(50):
        trial = study.ask()
        point = sampler.space.suggest(trial)
        study.tell(trial, point.get("optimizer.lr", 0.05))
        points.append(point)
    early, late = points[:10], points[30:]
    drawn = [[p["optimizer.lr"] for p in part if "optimizer.lr" in p] for part in (early, late)]
    assert sum(p["adapter"] == "lora" for p in late) > 10
    assert sorted(drawn[1])[len(drawn[1]) // 2] < sorted(drawn[0])[len(drawn[0]) // 2]


def test_parents_come_first_and_the_file_s_order_stays_otherwise() -> None:
    assert [one.key for one in parse_space(NESTED).dimensions] == [
        "adapter",
        "adapter.r",
        "adapter.alpha",
        "train.batch_size",
        "optimizer.warmup_steps",
        "train.max_steps",
    ]


def test_probe_points_reach_every_bound_and_compose() -> None:
    space = parse_space(NESTED)
    points = space.probe_points()
    assert all(holds(point) for point in points)
    for dimension in space.dimensions:
        for edge in dimension.edges():
            assert any(point.get(dimension.key) == edge for point in points)
    from test_study import HOME

    for point in points:
        compose_trial([], None, point, HOME)


def test_probe_points_of_a_plain_space_are_what_they_were() -> None:
    space = parse_space({"adapter.r": "choice(2, 4)", "train.max_steps": "range(50, 100, 50)"})
    first = {"adapter.r": 2, "train.max_steps": 50}
    assert space.probe_points() == [first, {**first, "adapter.r": 4}, {**first, "train.max_steps": 100}]


def test_the_plan_shows_conditions() -> None:
    entry = parse_space(NESTED).to_json()["optimizer.warmup_steps"]
    assert entry == {
        "kind": "int",
        "low": 1,
        "high": 3,
        "log": False,
        "when": {"adapter": ["full"], "train.batch_size": [8, 16]},
    }
    assert "when" not in parse_space(NESTED).to_json()["adapter"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"adapter.r": {"when": "adapter=lora", "values": "choice(4, 8)"}}, "`adapter` is not in the space; add it"),
        (
            {"adapter": "choice(lora, full)", "adapter.r": {"when": "adapter=loar", "values": "choice(4, 8)"}},
            "exists when adapter is 'loar', which it never is",
        ),
        (
            {"optimizer.lr": "interval(0.1, 1)", "adapter.r": {"when": "optimizer.lr=0.5", "values": "choice(4, 8)"}},
            "depends on `optimizer.lr`, an interval",
        ),
        (
            {
                "adapter.r": {"when": "train.seed=1", "values": "choice(4, 8)"},
                "train.seed": {"when": "adapter.r=4", "values": "choice(0, 1)"},
            },
            "adapter.r, train.seed depend on each other",
        ),
        (
            {
                "adapter": "choice(lora, full)",
                "adapter.r": {"when": "adapter=lora", "values": "choice(4, 8)"},
                "train.seed": {"when": ["adapter=full", "adapter.r=4"], "values": "choice(0, 1)"},
            },
            "`train.seed` never exists",
        ),
        ({"adapter": "choice(lora, full)", "adapter.r": {"when": "lora", "values": "choice(4, 8)"}}, "no condition"),
        (
            {"train.seed": "range(0, 9)", "adapter.r": {"when": "train.seed=range(0,3)", "values": "choice(4, 8)"}},
            "must name values",
        ),
        ({"adapter.r": {"when": "adapter=lora"}}, "must be text or a list"),
    ],
)
def test_conditions_that_cannot_work_are_refused(space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space(space)


def test_enqueued_points_must_exist() -> None:
    whole = {"adapter": "lora", "adapter.r": 4, "train.batch_size": 4, "train.max_steps": 50}
    assert draw(proposals("list", NESTED, [whole]), 1) == [whole]
    with pytest.raises(ConfigError, match=r"`adapter.r`, which exists only when adapter is lora, and has no `adapter`"):
        proposals("tpe", NESTED, [{"adapter.r": 4}])
    with pytest.raises(ConfigError, match=r"has `adapter`='full'; set both or leave `adapter.r` out"):
        proposals("tpe", NESTED, [{"adapter": "full", "adapter.r": 4}])
    with pytest.raises(ConfigError, match=r"lacks adapter.alpha"):
        proposals("list", NESTED, [{**whole, "adapter.r": 8}])
    assert Space(parse_space(NESTED).dimensions).conditional
