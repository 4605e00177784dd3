"""Warm start: which earlier trials count, that samplers use them, and that nothing else sees them."""

from __future__ import annotations

import math
from typing import Any

import optuna
import pytest
from test_study import HOME, Asked, ask, folders, make_config, record, storage_url  # noqa: F401  (folders is a fixture)

from lorasweep.config.home import Folders
from lorasweep.errors import ConfigError, UsageError
from lorasweep.ranking import board as leaderboard
from lorasweep.records import TrialState
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy

SPACE = {
    "optimizer.lr": "tag(log, interval(1e-5, 1e-1))",
    "adapter.r": "choice(4, 8, 16)",
    "adapter": "choice(lora, full)",
}
NUMBERS = {"optimizer.lr": "tag(log, interval(1e-5, 1e-1))", "optimizer.weight_decay": "interval(0, 0.5)"}
# a decision that does not read the database otherwise in PostgreSQL: the other tests run in both
ONE_STORE = pytest.mark.parametrize("folders", ["sqlite"], indirect=True)


def open_study(folders: Folders, name: str, *overrides: str, space: dict[str, Any] = SPACE, **sweep: Any) -> SweepStudy:  # noqa: F811
    config = make_config(f"sweep.name={name}", "sweep.trials=50", "sampler.startup_trials=5", *overrides, space=space)
    for key, value in sweep.items():
        setattr(config.sweep, key, value)
    return SweepStudy.open(folders, config, parse_space(space, config), {}, list(overrides), sweep_file=name)


def finish(study: SweepStudy, asked: Asked) -> None:
    value = 1 - abs(math.log10(asked.params["optimizer.lr"]) + 3) / 2  # best at 1e-3
    study.complete(
        asked.number, value, record(asked, value=value, metrics={"eval/accuracy": value}, trainable_params=5)
    )


@pytest.fixture
def earlier(folders: Folders) -> SweepStudy:  # noqa: F811
    study = open_study(folders, "first", "sampler=random")
    for _ in range(16):
        finish(study, ask(study))
    failed = ask(study)
    study.fail(failed.number, record(failed, TrialState.FAILED, reason="diverged: x"))
    return study


@ONE_STORE
@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.slow
def test_a_seeded_sampler_knows_at_its_first_trial(sampler: str, earlier: SweepStudy, folders: Folders) -> None:  # noqa: F811
    cold = open_study(folders, "cold", f"sampler={sampler}")
    warm = open_study(folders, "warm", f"sampler={sampler}", warm_start=["first"])
    points = {study.name: [ask(study).params for _ in range(4)] for study in (cold, warm)}
    assert points["cold"] != points["warm"]
    far = {name: [abs(math.log10(point["optimizer.lr"]) + 3) for point in drawn] for name, drawn in points.items()}
    assert sum(far["warm"]) < sum(far["cold"])  # cold draws are random over four decades
    assert warm.seeded_from == {"first": 16}
    again = open_study(folders, "again", f"sampler={sampler}", warm_start=["first"])
    assert [ask(again).params for _ in range(4)] == points["warm"]


@ONE_STORE
def test_a_sweep_that_is_named_twice_gives_its_trials_once(earlier: SweepStudy, folders: Folders) -> None:  # noqa: F811
    assert open_study(folders, "warm", warm_start=["first", "first"]).seeded_from == {"first": 16}


@ONE_STORE
def test_single_trials_are_no_points_of_a_space(folders: Folders) -> None:  # noqa: F811
    """What was fixed in one of them stands nowhere in the study: it holds the config of the last."""
    config = make_config("sweep.name=train")
    config.sweep.space = {}
    single = SweepStudy.open(folders, config, None, {"kind": "single trials"}, [], sweep_file=None)
    finish(single, single.ask_fixed({"optimizer.lr": 1e-3}))
    with pytest.raises(ConfigError, match="'train', which holds single trials"):
        open_study(folders, "warm", warm_start=["train"])
    assert "warm" not in SweepStudy.names(folders)


@pytest.mark.slow
def test_nobody_but_the_sampler_sees_earlier_trials(earlier: SweepStudy, folders: Folders) -> None:  # noqa: F811
    warm = open_study(folders, "warm", "sweep.trials=3", warm_start=["first"])
    assert (warm.remaining(), warm.records(), warm.samples_seen()) == (3, [], 0)
    for number in range(3):
        asked = ask(warm)
        assert asked.number == number
        finish(warm, asked)
    assert warm.ask() is None and len(leaderboard.Leaderboard.of(warm).rows) == 3
    theirs = optuna.load_study(study_name="warm", storage=storage_url(folders))
    assert len(theirs.trials) == 3


@ONE_STORE
@pytest.mark.slow
def test_what_becomes_of_the_earlier_sweep_changes_no_proposal(earlier: SweepStudy, folders: Folders) -> None:  # noqa: F811
    whole = open_study(folders, "a", "sampler=tpe", warm_start=["first"])
    points = []
    for _ in range(6):
        points.append(ask(whole).params)
        finish(whole, Asked(len(points) - 1, points[-1]))
    cut = open_study(folders, "b", "sampler=tpe", warm_start=["first"])
    for number in range(6):
        asked = ask(cut)
        assert asked.params == points[number]
        finish(cut, asked)
        finish(earlier, ask(earlier))
        cut = open_study(folders, "b", "sampler=tpe", warm_start=["first"])  # a restart


@ONE_STORE
@pytest.mark.slow
def test_only_points_of_this_space_count(earlier: SweepStudy, folders: Folders) -> None:  # noqa: F811
    narrow = {**SPACE, "adapter.r": "choice(4, 8)"}
    inside = [one for one in earlier.records() if one.params["adapter.r"] in (4, 8) and one.value is not None]
    assert open_study(folders, "narrow", space=narrow, warm_start=["first"]).seeded_from == {"first": len(inside)}
    wider = {
        "optimizer.lr": SPACE["optimizer.lr"],
        "train.batch_size": "choice(16, 32)",
        "data": "choice(demo_reviews)",
    }
    study = open_study(folders, "wider", space=wider, warm_start=["first"])
    assert study.seeded_from == {"first": 16}  # its fixed batch size, 16, and its fixed group lie in this space
    other = {**wider, "data": "choice(sst2)"}
    assert open_study(folders, "other", space=other, warm_start=["first"]).seeded_from == {"first": 0}


@ONE_STORE
@pytest.mark.slow
def test_cmaes_starts_from_the_numbers(folders: Folders) -> None:  # noqa: F811
    space = {**NUMBERS, "adapter.r": "choice(4, 8)"}
    first = open_study(folders, "first", "sampler=random", space=space)
    for _ in range(20):
        finish(first, ask(first))
    warm = open_study(folders, "warm", "sampler=cmaes", "sampler.startup_trials=1", space=space, warm_start=["first"])
    for _ in range(8):
        finish(warm, ask(warm))
    assert sorted(one.params["optimizer.lr"] for one in warm.records()[2:])[2] > 1e-4


@ONE_STORE
@pytest.mark.slow
def test_what_cannot_seed_is_refused_before_anything_is_stored(earlier: SweepStudy, folders: Folders) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match="for samplers that learn"):
        open_study(folders, "x", "sampler=random", warm_start=["first"])
    with pytest.raises(ConfigError, match="their values do not compare"):
        open_study(folders, "x", "sweep.objective.metric=eval/loss", warm_start=["first"])
    with pytest.raises(UsageError, match="did you mean `first`"):
        open_study(folders, "x", warm_start=["frist"])
    with pytest.raises(ConfigError, match="the sweep itself"):
        open_study(folders, "x", warm_start=["x"])
    assert SweepStudy.names(folders) == ["first"]


@ONE_STORE
def test_a_clone_outside_the_space_does_not_blind_the_sampler(folders: Folders) -> None:  # noqa: F811
    study = open_study(folders, "s", "sampler=tpe", space=NUMBERS)
    for _ in range(8):
        finish(study, ask(study))
    study.clone(0, {"optimizer.lr": 0.9})
    finish(study, ask(study))
    sampler = study.proposals
    assert sampler is not None
    trial = study._study.ask()
    drawn = sampler.infer_relative_search_space(study._study, study._stored.trial(trial.number))
    assert set(drawn) == set(NUMBERS)
