"""Pruners: Optuna's own decisions on the same values, rungs in samples, reasons in words, stable replays."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_study import HOME, ask, finish, folders, make_config, record, storage_url  # noqa: F401  (folders is a fixture)

from lorasweep.config.compose import compose
from lorasweep.config.home import Folders
from lorasweep.config.schema import PrunerConfig
from lorasweep.errors import ConfigError
from lorasweep.records import TrialState
from lorasweep.search.pruners import Judge, rungs_of
from lorasweep.search.reports import Report, attribute
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy

optuna.logging.set_verbosity(optuna.logging.ERROR)
LONG = 1 << 11  # training samples of a whole trial
# a decision that does not read the database otherwise in PostgreSQL: the other tests run in both
ONE_STORE = pytest.mark.parametrize("folders", ["sqlite"], indirect=True)

# pruner's overrides -> Optuna's own, built here from its documentation and not by our code
THEIRS: dict[tuple[str, ...], Callable[[], optuna.pruners.BasePruner]] = {
    ("pruner=asha", "pruner.min_samples=128", "pruner.factor=2"): lambda: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=128, reduction_factor=2
    ),
    ("pruner=asha", "pruner.min_samples=64"): lambda: optuna.pruners.SuccessiveHalvingPruner(
        min_resource=64, reduction_factor=4
    ),
    ("pruner=hyperband", "pruner.min_samples=64", f"pruner.max_samples={LONG}"): lambda: optuna.pruners.HyperbandPruner(
        min_resource=64, max_resource=LONG, reduction_factor=3
    ),
    ("pruner=median", "pruner.startup_trials=3"): lambda: optuna.pruners.MedianPruner(n_startup_trials=3),
    ("pruner=percentile", "pruner.percentile=30", "pruner.startup_trials=2", "pruner.min_trials=3"): lambda: (
        optuna.pruners.PercentilePruner(30.0, n_startup_trials=2, n_min_trials=3)
    ),
    ("pruner=patience", "pruner.patience=0", "pruner.min_delta=0.01"): lambda: optuna.pruners.PatientPruner(
        None, patience=0, min_delta=0.01
    ),
    ("pruner=threshold", "pruner.lower=0.04", "pruner.upper=0.6"): lambda: optuna.pruners.ThresholdPruner(
        lower=0.04, upper=0.6
    ),
}


def open_study(folders: Folders, *overrides: str, direction: str = "maximize", name: str = "trial_study") -> SweepStudy:  # noqa: F811
    words = [f"sweep.objective.direction={direction}", "sampler=random", "sweep.trials=200", f"sweep.name={name}"]
    config = make_config(*words, *overrides)
    return SweepStudy.open(folders, config, parse_space(config.sweep.space), {}, list(overrides), sweep_file="x")


def curve(trial: int, seed: int) -> Callable[[int], float]:
    drawn = random.Random(f"{seed}:{trial}")
    good, noise = drawn.random(), drawn.random() * 0.3
    return lambda rung: good * (1 - 2.0 ** (-rung / 600)) + noise * random.Random(f"{rung}").random()


def theirs_study(pruner: optuna.pruners.BasePruner, direction: str) -> optuna.Study:
    return optuna.create_study(study_name="trial_study", direction=direction, pruner=pruner)


@ONE_STORE
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("words", THEIRS, ids=" ".join)
@pytest.mark.slow
def test_verdicts_are_optunas(words: tuple[str, ...], direction: str, folders: Folders) -> None:  # noqa: F811
    """Trials that start and report in turns, four at a time, as in a pack."""
    ours, theirs = open_study(folders, *words, direction=direction), theirs_study(THEIRS[words](), direction)
    rungs = ours.rungs(LONG)
    assert rungs
    pruned, decided, started = 0, 0, 0
    running: dict[int, tuple[Any, Any, list[int]]] = {}
    while started < 16 or running:
        while len(running) < 4 and started < 16:
            running[started] = (ask(ours), theirs.ask(), list(rungs))
            started += 1
        for number, (asked, trial, left) in list(running.items()):
            value_at = curve(number, seed=1)
            if not left:
                ours.complete(number, value_at(LONG), record(asked, value=value_at(LONG)))
                theirs.tell(trial, value_at(LONG))
                del running[number]
                continue
            rung = left.pop(0)
            verdict = ours.report(number, rung, value_at(rung))
            trial.report(value_at(rung), rung)
            decided += 1
            assert verdict.keep != trial.should_prune(), f"trial {number} at {rung}"
            if not verdict.keep:
                pruned += 1
                assert verdict.reason.startswith(f"rung {rung:,} samples: ")
                whole = record(asked, TrialState.PRUNED, value=value_at(rung), samples=rung, reason=verdict.reason)
                ours.prune(number, value_at(rung), whole)
                theirs.tell(trial, state=optuna.trial.TrialState.PRUNED)
                del running[number]
    assert 0 < pruned < decided  # a test of nothing but one answer would be none


@ONE_STORE
@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.slow
def test_wilcoxon_is_optunas_row_by_row(direction: str, folders: Folders) -> None:  # noqa: F811
    words = ("pruner=wilcoxon", "pruner.interval_samples=1500", "pruner.startup_rows=5")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = theirs_study(optuna.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=5), direction)
        ours = open_study(folders, *words, direction=direction)
        (rung,) = ours.rungs(LONG)
        pruned = 0
        for number in range(16):
            drawn = random.Random(number)
            rows = [float(drawn.random() < 0.4 + 0.03 * (number * 7 % 16)) for _ in range(80)]
            value = sum(rows) / len(rows)
            asked, trial = ask(ours), theirs.ask()
            verdict = ours.report(number, rung, value, rows)
            for row, result in enumerate(rows):
                trial.report(result, row)
            assert verdict.keep != trial.should_prune()
            if verdict.keep:
                ours.complete(number, value, record(asked, value=value))
                theirs.tell(trial, value)
            else:
                pruned += 1
                assert "80 validation rows" in verdict.reason and "Wilcoxon p=" in verdict.reason
                ours.prune(number, value, record(asked, TrialState.PRUNED, value=value, reason=verdict.reason))
                theirs.tell(trial, state=optuna.trial.TrialState.PRUNED)
        assert 0 < pruned < 16


def test_wilcoxon_compares_the_same_rows_and_keeps_what_it_cannot_compare(folders: Folders) -> None:  # noqa: F811
    study = open_study(folders, "pruner=wilcoxon", "pruner.rows=40", "pruner.interval_samples=100")
    first, second, third = ask(study), ask(study), ask(study)
    assert study.report(first.number, 100, 1.0, [1.0] * 100).keep  # nothing to compare with
    finish(study, first)
    assert study.report(second.number, 200, 0.0, [0.0] * 100).keep  # the best was never judged at this rung
    with pytest.raises(ConfigError, match="compares validation rows"):
        study.report(third.number, 100, 0.0, None)
    worse = study.report(second.number, 100, 0.0, [0.0] * 100)
    assert not worse.keep and "40 validation rows" in worse.reason


# -- replay -----------------------------------------------------------------------------------------------------------


def test_a_replay_finds_the_stored_verdicts(folders: Folders) -> None:  # noqa: F811
    words = ("pruner=asha", "pruner.min_samples=100")
    study = open_study(folders, *words)
    asked = [ask(study) for _ in range(6)]
    first = [study.report(trial.number, 100, 0.1 * trial.number) for trial in asked]
    assert [verdict.keep for verdict in first] == [True] * 6  # each was the best so far: asynchronous
    study.report(0, 400, 0.3)
    again = open_study(folders, *words)  # a new process; by now the first five would all be pruned
    assert [again.report(trial.number, 100, 0.1 * trial.number) for trial in asked] == first
    late = ask(again)
    verdict = again.report(late.number, 100, 0.45)
    assert verdict.reason == (
        "rung 100 samples: eval/accuracy 0.4500 is not the best of the 7 trials there; 0.5000 was to beat"
    )


def test_a_kill_between_verdict_and_value_is_mended_by_the_replay(
    folders: Folders,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study = open_study(folders, "pruner=asha", "pruner.min_samples=100")
    trial = ask(study)
    with monkeypatch.context() as killed:
        killed.setattr(study._stored, "set_intermediate", lambda *_: None)
        study.report(trial.number, 100, 0.5)
    assert study._stored.trial(trial.number).intermediate_values == {}
    assert study.report(trial.number, 100, 0.7).keep
    assert study._stored.trial(trial.number).intermediate_values == {100: 0.5}  # the first value, as the verdict's


def test_values_at_rungs_are_seen_by_optunas_samplers(folders: Folders) -> None:  # noqa: F811
    """TPE ranks pruned trials by the rung first: another last step would put a larger batch above a better value."""
    study = open_study(folders, "pruner=asha", "pruner.min_samples=100")
    good, bad = ask(study), ask(study)
    study.report(good.number, 100, 0.9)
    verdict = study.report(bad.number, 100, 0.2)
    study.prune(bad.number, 0.2, record(bad, TrialState.PRUNED, value=0.2, samples=112, reason=verdict.reason))
    theirs = optuna.load_study(study_name="trial_study", storage=storage_url(folders))
    assert [trial.intermediate_values for trial in theirs.trials] == [{100: 0.9}, {100: 0.2}]
    assert theirs.trials[1].value == 0.2


# -- rungs and settings -----------------------------------------------------------------------------------------------


def test_rungs_end_before_the_trial_does() -> None:
    asha = PrunerConfig(kind="asha", min_samples=100, factor=3)
    assert rungs_of(asha, 900) == (100, 300)
    assert rungs_of(asha, 901) == (100, 300, 900)
    assert rungs_of(asha, 100) == ()
    even = PrunerConfig(kind="median", interval_samples=100, warmup_samples=150)
    assert rungs_of(even, 500) == (200, 300, 400)
    assert rungs_of(PrunerConfig(), 10**9) == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pruner=threshold"], "needs `pruner.lower` or `pruner.upper`"),
        (["pruner=threshold", "pruner.lower=2", "pruner.upper=1"], r"`pruner.lower` \(2\) must be <= `pruner.upper`"),
        (
            ["pruner=hyperband", "pruner.max_samples=200"],
            r"`pruner.max_samples` \(200\) must be > `pruner.min_samples`",
        ),
        (["pruner=wilcoxon", "pruner.rows=10"], r"`pruner.startup_rows` \(30\) must be <= `pruner.rows` \(10\)"),
        (["pruner=asha", "pruner.factor=1"], r"`pruner.factor` must be >= 2"),
        (["pruner=asah"], "did you mean `asha`"),
    ],
)
def test_settings_that_cannot_work_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose(words, home=HOME)


@pytest.mark.parametrize("kind", ["none", "asha", "hyperband", "median", "percentile", "wilcoxon", "patience"])
def test_every_option_composes(kind: str) -> None:
    assert compose([f"pruner={kind}"], home=HOME).pruner.kind == kind


@pytest.mark.slow
def test_reasons_name_what_was_to_beat(folders: Folders) -> None:  # noqa: F811
    median = open_study(folders, "pruner=median", "pruner.interval_samples=100", "pruner.startup_trials=2", name="a")
    for value in (0.4, 0.6, 0.8):
        asked = ask(median)
        assert median.report(asked.number, 100, value).keep
        median.complete(asked.number, value, record(asked, value=value))
    assert median.report(ask(median).number, 100, 0.5).reason == (
        "rung 100 samples: eval/accuracy 0.5000 at best; the median of 3 complete trials, 0.6000, was to beat"
    )
    patience = open_study(folders, "pruner=patience", "pruner.patience=1", "pruner.interval_samples=10", name="b")
    asked = ask(patience)
    reasons = [
        patience.report(asked.number, 10 * rung, value).reason for rung, value in enumerate((0.5, 0.7, 0.6, 0.65), 1)
    ]
    assert reasons[:3] == ["", "", ""]
    assert reasons[3] == (
        "rung 40 samples: eval/accuracy 0.6500 at best over the last 2 rungs; 0.7000 at rung 20 was to beat"
    )
    threshold = open_study(folders, "pruner=threshold", "pruner.lower=0.5", name="c")
    assert threshold.report(ask(threshold).number, 256, 0.25).reason == (
        "rung 256 samples: eval/accuracy 0.2500 is below pruner.lower=0.5"
    )


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@pytest.mark.parametrize("kind", ["asha", "hyperband"])
@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=9, unique=True), earlier=st.lists(st.floats(0, 1), max_size=6)
)
@settings(max_examples=12, deadline=None)
def test_trials_at_a_rung_together_are_judged_beside_all_of_them(
    direction: str, kind: str, values: list[float], earlier: list[float]
) -> None:
    """Whom the pruner keeps of them is a question of their values alone: the best 1/factor of all that came there."""
    sign = 1 if direction == "maximize" else -1
    judge = Judge(PrunerConfig(kind=kind, min_samples=64, max_samples=64, factor=3), "it", direction, "m")
    trials = [optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING) for _ in [*earlier, *values]]
    for number, trial in enumerate(trials):
        trial.number = number
    for number, value in enumerate(earlier):
        store(trials[number], judge.judge(trials, number, 64, value))
    beside = {len(earlier) + place: (64, value) for place, value in enumerate(values)}
    ranked = sorted([*earlier, *values], key=lambda value: -sign * value)
    cut = ranked[max(1, len(ranked) // 3) - 1]
    for number, (_, value) in beside.items():
        report = judge.judge(trials, number, 64, value, beside=beside)
        store(trials[number], report)
        assert report.keep == (sign * value >= sign * cut), (report.reason, ranked)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
@given(turn=st.lists(st.tuples(st.sampled_from([64, 128, 256]), st.floats(0, 1)), min_size=1, max_size=9))
@settings(max_examples=12, deadline=None)
def test_whoever_is_judged_all_others_of_the_turn_have_reported_to_optuna(
    direction: str, turn: list[tuple[int, float]]
) -> None:
    """Also where a step has passed several rungs: Optuna marks the next one only if the trial was good enough."""
    judge = Judge(PrunerConfig(kind="asha", min_samples=64, factor=2), "it", direction, "m")
    trials = [optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING) for _ in turn]
    for number, trial in enumerate(trials):
        trial.number = number
    for number, (rung, value) in enumerate(turn):
        theirs = theirs_study(optuna.pruners.SuccessiveHalvingPruner(64, 2), direction)
        started = [theirs.ask() for _ in turn]
        for other, (its_rung, its_value) in enumerate(turn):
            if other != number:
                started[other].report(its_value, its_rung)
                started[other].should_prune()
        started[number].report(value, rung)
        report = judge.judge(trials, number, rung, value, beside=dict(enumerate(turn)))
        assert report.keep != started[number].should_prune(), (number, report.reason)


def test_other_pruners_do_not_look_beside(folders: Folders) -> None:  # noqa: F811
    study = open_study(folders, "pruner=median", "pruner.startup_trials=0")
    first, second = ask(study), ask(study)
    beside = {first.number: (256, 0.2), second.number: (256, 0.9)}
    assert study.report(first.number, 256, 0.2, beside=beside).keep


def store(trial: optuna.trial.FrozenTrial, report: Report) -> None:
    trial.set_user_attr(attribute(64), json.dumps(report.to_json()))
