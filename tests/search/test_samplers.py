"""Proposals: known points by number, each sampler inside the space, and grids that miss and repeat nothing."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest

from lorasweep.config.compose import compose
from lorasweep.config.home import Home
from lorasweep.config.schema import Config
from lorasweep.errors import ConfigError
from lorasweep.search.samplers import LARGEST_GRID, Proposals, seed_of, sobol_point
from lorasweep.search.space import Space, parse_space

HOME = Home(Path("/nowhere"), Home.find().shipped)
STEPPED = {
    "adapter.r": "choice(2, 4, 8)",
    "train.max_steps": "range(50, 201, 50)",
    "adapter.layers": "choice([0],[0,1])",
}
MIXED = {"optimizer.lr": "tag(log, interval(1e-4, 1e-2))", "adapter.dropout": "interval(0, 0.3)", **STEPPED}


def proposals(
    kind: str, space: dict[str, Any], enqueue: list[dict[str, Any]] | None = None, **sampler: int
) -> Proposals:
    config: Config = compose([f"sampler={kind}"], home=HOME)
    config.sweep.space, config.sweep.enqueue = space, enqueue or []
    for name, value in sampler.items():
        setattr(config.sampler, name, value)
    return Proposals(config, parse_space(space, config))


def draw(sampler: Proposals, count: int) -> list[dict[str, Any]]:
    """Ask and tell one after another; a good value is a small one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=sampler, direction="minimize")
    points = []
    for _ in range(count):
        trial = study.ask()
        point = sampler.space.suggest(trial)
        study.tell(trial, float(point.get("optimizer.lr", 0.0)) + point["train.max_steps"] / 1e4)
        points.append(point)
    return points


@pytest.mark.parametrize("kind", ["tpe", "random", "qmc", "gp", "cmaes"])
@pytest.mark.slow
def test_every_sampler_stays_inside_and_repeats_itself_by_seed(kind: str) -> None:
    count = 5 if kind == "gp" else 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing of Optuna's shows
        points = draw(proposals(kind, MIXED, startup_trials=3), count)
    for point in points:
        Space(parse_space(MIXED).dimensions).check_point(point, kind)
    assert points == draw(proposals(kind, MIXED, startup_trials=3), count)
    assert points != draw(proposals(kind, MIXED, startup_trials=3, seed=1), count)
    assert len({repr(point) for point in points}) == count


@pytest.mark.parametrize("kind", ["random", "qmc"])
def test_these_samplers_ignore_history(kind: str) -> None:
    sampler = proposals(kind, MIXED)
    study = optuna.create_study(sampler=sampler)
    untold = [sampler.space.suggest(study.ask()) for _ in range(6)]
    assert untold == draw(proposals(kind, MIXED), 6)


def test_keys_are_drawn_independently() -> None:
    """A sampler made afresh for each trial must not give every key the same share of its range."""
    same = {
        "optimizer.lr": "interval(1, 2)",
        "optimizer.weight_decay": "interval(1, 2)",
        "train.max_steps": "range(1, 9)",
    }
    points = draw(proposals("random", same), 5)
    assert all(point["optimizer.lr"] != point["optimizer.weight_decay"] for point in points)


def test_tpe_learns() -> None:
    points = draw(proposals("tpe", MIXED, startup_trials=10), 40)
    late, early = ([point["optimizer.lr"] for point in part] for part in (points[25:], points[:10]))
    assert sorted(late)[len(late) // 2] < sorted(early)[len(early) // 2]


def test_enqueued_points_come_first_and_missing_keys_are_drawn() -> None:
    whole = {"adapter.r": 8, "train.max_steps": 200, "adapter.layers": [0, 1]}
    for kind in ("tpe", "random", "qmc", "cmaes", "gp"):
        points = draw(
            proposals(kind, {**MIXED}, [{**whole, "optimizer.lr": 1e-3, "adapter.dropout": 0.1}, {"adapter.r": 4}]), 3
        )
        assert points[0] == {**whole, "optimizer.lr": 1e-3, "adapter.dropout": 0.1}
        assert points[1]["adapter.r"] == 4 and set(points[1]) == set(MIXED)


def test_a_grid_visits_each_point_once_and_skips_the_enqueued() -> None:
    enqueued = [{"adapter.r": 8, "train.max_steps": 100, "adapter.layers": [0]}]
    sampler = proposals("grid", STEPPED, enqueued)
    assert sampler.points == 3 * 4 * 2
    points = draw(sampler, 24)
    assert points[0] == enqueued[0]
    expected = itertools.product([2, 4, 8], [50, 100, 150, 200], [[0], [0, 1]])
    assert sorted(map(repr, (tuple(p.values()) for p in points))) == sorted(map(repr, expected))
    assert points[1:] != sorted(points[1:], key=repr)  # shuffled: a cut grid has seen every key vary
    assert len({point["adapter.r"] for point in points[:8]}) > 1


def test_a_grid_needs_steps_and_an_end() -> None:
    with pytest.raises(ConfigError, match=r"`optimizer.lr` is an interval from 0.0001 to 0.01; write range"):
        proposals("grid", MIXED)
    with pytest.raises(ConfigError, match=f"at most {LARGEST_GRID:,}"):
        proposals("grid", {"train.max_steps": "range(1, 1000)", "train.seed": "range(1, 1000)"})


def test_list_tries_whole_points_and_nothing_else() -> None:
    points = [{"adapter.r": 2, "train.max_steps": 50}, {"adapter.r": 4, "train.max_steps": 100}]
    sampler = proposals("list", {}, points)
    assert sampler.points == 2 and draw(sampler, 2) == points
    with pytest.raises(ConfigError, match=r"point 1 of `sweep\.enqueue` lacks train\.max_steps"):
        proposals("list", {}, [points[0], {"adapter.r": 4}])
    with pytest.raises(ConfigError, match="which is empty"):
        proposals("list", STEPPED)


def test_points_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"point 1 of `sweep\.enqueue`"):
        proposals("tpe", STEPPED, [{"adapter.r": 2}, {"adapter.r": 3}])
    with pytest.raises(ConfigError, match="two numeric keys"):
        proposals("cmaes", {"adapter.r": "choice(1, 2)", "train.max_steps": "range(1, 9)"})


def test_sobol_points_fill_every_axis_evenly() -> None:
    space = parse_space(MIXED)
    points = [sobol_point(space, 0, index) for index in range(64)]
    assert all(sum(point["adapter.r"] == r for point in points) in range(19, 25) for r in (2, 4, 8))
    below = sum(point["optimizer.lr"] < 1e-3 for point in points)
    assert below == 32  # half of a logarithmic range


def test_seeds_are_the_same_everywhere() -> None:
    assert seed_of(0, 7) == 737120251
    assert len({seed_of(sweep, number) for sweep in range(20) for number in range(200)}) == 4000
