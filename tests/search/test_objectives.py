"""Several objectives with their Pareto front, constraints, and the target that ends a search."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from test_study import HOME, ask, folders, make_config, record, storage_url  # noqa: F401  (folders is a fixture)

from lorasweep.config.compose import compose
from lorasweep.config.home import Folders
from lorasweep.config.schema import ObjectiveConfig
from lorasweep.errors import ConfigError, TrialFailed
from lorasweep.ranking import board as leaderboard
from lorasweep.records import TrialState
from lorasweep.search.objectives import Goals, read_constraint
from lorasweep.search.space import parse_space
from lorasweep.search.study import Asked, SweepStudy

SPACE = {"adapter.r": "range(1, 64)", "optimizer.lr": "tag(log, interval(1e-4, 1e-1))"}


def open_study(folders: Folders, *overrides: str, objectives: tuple[Any, ...] = (), constraints: tuple[str, ...] = ()):  # noqa: F811
    config = make_config("sweep.trials=60", *overrides, space=SPACE)
    config.sweep.objectives = [ObjectiveConfig(*objective) for objective in objectives]
    config.sweep.constraints = list(constraints)
    return SweepStudy.open(folders, config, parse_space(SPACE), {}, [], sweep_file="x")


def finish(study: SweepStudy, asked: Asked, value: float, params: int, **fields: Any) -> None:
    whole = record(asked, value=value, metrics={"eval/accuracy": value}, trainable_params=params, **fields)
    study.complete(asked.number, value, whole)


SMALL_AND_GOOD = (("eval/accuracy", "maximize"), ("trainable_params", "minimize"))


def test_the_pareto_front_is_marked_and_what_optuna_says(folders: Folders) -> None:  # noqa: F811
    study = open_study(folders, "sampler=random", objectives=SMALL_AND_GOOD)
    points = [(0.9, 500), (0.8, 100), (0.85, 600), (0.9, 400), (0.7, 100), (0.95, 900)]
    for value, params in points:
        finish(study, ask(study), value, params)
    failed = ask(study)
    study.fail(failed.number, record(failed, TrialState.FAILED, reason="diverged: x"))
    board = leaderboard.Leaderboard.of(SweepStudy.load(folders, "trial_study"))
    front = {row["trial"] for row in board.rows if row["pareto"]}
    assert front == {1, 3, 5}
    theirs = optuna.load_study(study_name="trial_study", storage=storage_url(folders))
    assert {trial.number for trial in theirs.best_trials} == front
    assert board.best is not None and board.best["trial"] == 5
    assert board.to_json()["objectives"][1] == {"metric": "trainable_params", "direction": "minimize"}
    shown = _text(board)
    assert "trainable_params, minimized: 3 on the Pareto front (◆)" in shown and "◆ ★ 1" in shown


def _text(board: leaderboard.Leaderboard) -> str:
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(leaderboard.table(board))
    return console.export_text()


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.slow
def test_samplers_learn_both_objectives_beside_stopped_trials(sampler: str, folders: Folders) -> None:  # noqa: F811
    study = open_study(folders, f"sampler={sampler}", "sampler.startup_trials=6", objectives=SMALL_AND_GOOD)
    for number in range(12):
        asked = ask(study)
        if number == 3:
            study.prune(3, 0.5, record(asked, TrialState.PRUNED, value=0.5, reason="stopped by hand"))
        else:
            finish(study, asked, 1 - asked.params["adapter.r"] / 100, asked.params["adapter.r"])
    assert study.counts()["complete"] == 11


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.slow
def test_samplers_keep_to_constraints(sampler: str, folders: Folders) -> None:  # noqa: F811
    words = (f"sampler={sampler}", "sampler.startup_trials=8")
    study = open_study(folders, *words, constraints=("trainable_params <= 20",))
    for _ in range(24 if sampler == "tpe" else 12):
        asked = ask(study)
        finish(study, asked, asked.params["adapter.r"] / 64, asked.params["adapter.r"])  # larger is better: forbidden
    ranks = [asked.params["adapter.r"] for asked in study.records()]
    late = ranks[8:]
    assert sum(rank <= 20 for rank in late) / len(late) > sum(rank <= 20 for rank in ranks[:8]) / 8
    theirs = optuna.load_study(study_name="trial_study", storage=storage_url(folders))
    assert theirs.best_trial.params["adapter.r"] <= 20
    board = leaderboard.Leaderboard.of(study)
    assert board.best is not None and board.best["trial"] == theirs.best_trial.number
    broken = [row for row in board.rows if row["trainable_params"] > 20]
    assert broken and all(row["rank"] is None for row in broken)
    assert broken[0]["reason"] == f"breaks trainable_params <= 20 (has {broken[0]['trainable_params']})"
    assert board.to_json()["constraints"] == ["trainable_params <= 20"]


def test_a_quantity_that_is_missing_fails_the_trial(folders: Folders) -> None:  # noqa: F811
    study = open_study(folders, objectives=(("eval/accuracy", "maximize"), ("eval/roc_auc", "maximize")))
    asked = ask(study)
    whole = record(asked, value=0.5, metrics={"eval/accuracy": 0.5})
    assert "eval/roc_auc has no finite value" in str(study.goals.problem(whole))
    with pytest.raises(TrialFailed, match="objective"):
        study.complete(asked.number, 0.5, whole)
    assert study.interrupted() == [asked]


def test_the_target_ends_the_search_and_says_so(folders: Folders) -> None:  # noqa: F811
    study = open_study(folders, "sweep.target_value=0.9", constraints=("trainable_params <= 100",))
    finish(study, ask(study), 0.95, 200)  # breaks the constraint
    finish(study, ask(study), 0.85, 50)
    assert study.stop_reason() is None
    finish(study, ask(study), 0.91, 60)
    assert study.stop_reason() == "trial 2 reached sweep.target_value=0.9 (eval/accuracy 0.9100)"
    assert study.budget_spent()


def test_constraints_are_read() -> None:
    assert str(read_constraint("eval/recall>=.8")) == "eval/recall >= 0.8"
    assert read_constraint("trainable_params <= 3e5").excess(3e5) == 0.0
    for text in ("trainable_params < 5", "params", "x <= many", "a <= 1 <= b", "x <= nan"):
        with pytest.raises(ConfigError, match="write NAME <= NUMBER"):
            read_constraint(text)


def test_the_first_objective_is_the_one_that_trials_keep_checkpoints_by() -> None:
    words = ["sweep.objectives=[{metric: eval/f1, direction: maximize}, {metric: samples, direction: minimize}]"]
    assert compose(words, home=HOME).sweep.objective.metric == "eval/f1"
    with pytest.raises(ConfigError, match="are both given"):
        compose([*words, "sweep.objective.metric=eval/loss"], home=HOME)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pruner=asha"], "compares one objective"),
        (["sampler=cmaes"], "knows one objective"),
    ],
)
def test_what_knows_one_objective_is_refused(words: list[str], message: str) -> None:
    both = "sweep.objectives=[{metric: eval/f1, direction: maximize}, {metric: samples, direction: minimize}]"
    with pytest.raises(ConfigError, match=message):
        compose([both, *words], home=HOME)
    with pytest.raises(ConfigError, match="must be maximized or minimized"):
        compose(["sweep.objectives=[{metric: eval/f1}, {metric: samples, direction: up}]"], home=HOME)
    with pytest.raises(ConfigError, match="names a metric twice"):
        compose(["sweep.objectives=[{metric: eval/f1}, {metric: eval/f1}]"], home=HOME)


def test_quantities_must_be_logged_or_known() -> None:
    config = compose(["sweep.constraints=['cost <= 3']"], home=HOME)
    with pytest.raises(ConfigError, match=r"set tracking.price_per_hour"):
        Goals(config).check_logged(["eval/accuracy"])
    config = compose(["sweep.constraints=['param <= 3']"], home=HOME)
    with pytest.raises(ConfigError, match="names 'param', which is never logged; there are eval/accuracy, trainable_p"):
        Goals(config).check_logged(["eval/accuracy"])
