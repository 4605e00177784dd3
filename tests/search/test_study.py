"""The study: budget, states, interruption, identity, and proposals that no restart changes."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clusterkit import Postgres
from lorasweep.config.compose import compose
from lorasweep.config.home import Folders, Home
from lorasweep.config.schema import Config
from lorasweep.database import url_of
from lorasweep.errors import ConfigError, StorageError, TrialFailed, UsageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.space import parse_space
from lorasweep.search.study import Asked, SweepStudy

HOME = Home(Path("/nowhere"), Home.find().shipped)
SPACE = {
    "optimizer.lr": "tag(log, interval(1e-4, 1e-2))",
    "adapter.r": "choice(2, 4, 8)",
    "adapter.layers": "choice([0], [0,1])",
}


@pytest.fixture
def file_folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> Folders:
    """Where a study may lie: it is the same study in both."""
    if request.param == "sqlite":
        return Folders(tmp_path)
    server: Postgres = request.getfixturevalue("postgres_server")
    return Folders(tmp_path, studies=server.make_studies(f"study_{secrets.token_hex(4)}"))


def storage_url(folders: Folders) -> str:
    return url_of(folders.studies) if folders.studies else f"sqlite:///{folders.study_db}"


composed = functools.cache(lambda *overrides: compose(overrides, home=HOME))  # a composition takes a third of a second


def make_config(
    *overrides: str, space: dict[str, Any] | None = None, enqueue: list[dict[str, Any]] | None = None
) -> Config:
    config = copy.deepcopy(composed("sweep.name=trial_study", *overrides))
    config.sweep.space, config.sweep.enqueue = SPACE if space is None else space, enqueue or []
    return config


def start(folders: Folders, *overrides: str, **points: Any) -> SweepStudy:
    """Create or continue, as a new process would: nothing is shared but the files."""
    config = make_config(*overrides, **points)
    space = parse_space(config.sweep.space, config)
    identity = {"space": space.to_json(), "objective": config.sweep.objective.metric}
    return SweepStudy.open(folders, config, space, identity, list(overrides), sweep_file="trial_study")


def record(asked: Asked, state: TrialState = TrialState.COMPLETE, **fields: Any) -> TrialRecord:
    return TrialRecord(asked.number, state, params=asked.params, **{"samples": 100, "train_seconds": 1.5, **fields})


def value_of(asked: Asked) -> float:
    return -abs(math.log10(asked.params["optimizer.lr"]) + 3)


def finish(study: SweepStudy, asked: Asked) -> None:
    study.complete(asked.number, value_of(asked), record(asked, value=value_of(asked)))


def ask(study: SweepStudy) -> Asked:
    asked = study.ask()
    assert asked is not None
    return asked


def test_files_without_their_study_are_not_written_on(file_folders: Folders) -> None:
    """Metrics of new trials would end up in the runs of old ones."""
    finish(study := start(file_folders), ask(study))
    spool = file_folders.spool("trial_study")
    spool.mkdir(parents=True)
    (spool / "trial-00000.jsonl").write_text('{"trial": 0}\n')
    assert start(file_folders).counts()["complete"] == 1
    for path in file_folders.study_db.parent.glob("study.db*"):
        path.unlink()
    with pytest.raises(StorageError, match=r"holds files of sweep 'trial_study', and no study of it is in .*study\.db"):
        start(file_folders)
    (spool / "trial-00000.jsonl").unlink()
    assert start(file_folders).records() == []


def test_the_code_it_was_last_started_with_is_written_down(
    file_folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasweep import live, sweeping
    from lorasweep.progress import Silent

    before = start(file_folders)
    assert before.code.startswith("lorasweep 0")
    monkeypatch.setattr("lorasweep.search.study.code_here", lambda: "lorasweep 9")
    now, said = start(file_folders), list[str]()
    progress = Silent()
    monkeypatch.setattr(progress, "note", said.append, raising=False)
    sweeping._count_done(now, live.Tally(3, True), progress, before)
    assert said[1] == f"with other code than before ({before.code} -> lorasweep 9)"
    sweeping._count_done(now, live.Tally(3, True), progress, now)
    assert len(said) == 3 and SweepStudy.load(file_folders, "trial_study").code == "lorasweep 9"


@pytest.mark.parametrize(
    ("words", "grows"),
    [(("sampler=random",), True), (("sampler=grid",), True), (("sampler=grid", "sweep.trials=9"), False),
     (("sampler=list",), False)],
)  # fmt: skip
def test_a_sweep_grows_where_its_sampler_has_more_points(
    words: tuple[str, ...], grows: bool, file_folders: Folders
) -> None:
    points = [{"adapter.r": 2}, {"adapter.r": 4}]
    space = {"adapter.r": "choice(2, 4, 8)"}
    study = start(file_folders, "sweep.trials=2", *words, space=space, enqueue=points)
    assert not study.grows
    while (asked := study.ask()) is not None:
        study.complete(asked.number, 0.5, record(asked, value=0.5))
    assert study.grows is grows


# -- states -----------------------------------------------------------------------------------------------------------


def test_every_state_survives_reopening(folders: Folders) -> None:
    study = start(folders, "sweep.trials=5")
    complete, pruned, failed, running = (ask(study) for _ in range(4))
    study.set_run(complete.number, "run-a")
    study.set_run(running.number, "run-d")
    whole = record(
        complete, value=0.5, metrics={"eval/accuracy": 0.5}, run_id="run-a", trainable_params=7, total_params=9
    )
    study.complete(complete.number, 0.5, whole)
    study.prune(pruned.number, 0.25, record(pruned, TrialState.PRUNED, value=0.25, reason="rung 1: 0.25 < 0.5"))
    study.fail(failed.number, record(failed, TrialState.FAILED, reason="diverged: loss is nan", samples=40))

    for again in (study, start(folders, "sweep.trials=5"), SweepStudy.load(folders, "trial_study")):
        first, second, third, fourth = again.records()
        assert first == whole
        assert (second.state, second.value, second.reason) == (TrialState.PRUNED, 0.25, "rung 1: 0.25 < 0.5")
        assert (third.state, third.value, third.reason) == (TrialState.FAILED, None, "diverged: loss is nan")
        assert fourth == TrialRecord(3, TrialState.RUNNING, params=running.params, run_id="run-d")
        assert again.counts() == {"running": 1, "complete": 1, "pruned": 1, "failed": 1}
        assert again.samples_seen() == 240
        assert again.interrupted() == [running]
        assert (again.run_id(0), again.run_id(1), again.run_id(3)) == ("run-a", None, "run-d")
        assert again.remaining() == 1


def test_optuna_agrees_about_states_and_values(folders: Folders) -> None:
    import optuna

    study = start(folders)
    complete, pruned, failed, _ = (ask(study) for _ in range(4))
    study.complete(complete.number, 0.5, record(complete, value=0.5))
    study.prune(pruned.number, 0.25, record(pruned, TrialState.PRUNED, value=0.25))
    study.fail(failed.number, record(failed, TrialState.FAILED))
    theirs = optuna.load_study(study_name="trial_study", storage=storage_url(folders))
    assert [trial.state.name for trial in theirs.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING"]
    assert (theirs.best_value, theirs.trials[1].intermediate_values) == (0.5, {100: 0.25})
    assert theirs.direction.name == "MAXIMIZE"


def test_direction_is_the_objectives(folders: Folders) -> None:
    import optuna

    start(folders, "sweep.objective.metric=eval/loss", "sweep.objective.direction=minimize")
    theirs = optuna.load_study(study_name="trial_study", storage=storage_url(folders))
    assert theirs.direction.name == "MINIMIZE"
    loaded = SweepStudy.load(folders, "trial_study")
    assert (loaded.metric, loaded.direction) == ("eval/loss", "minimize")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_told(value: float, folders: Folders) -> None:
    study = start(folders)
    asked = ask(study)
    for tell in (study.complete, study.prune):
        with pytest.raises(TrialFailed, match="diverged") as caught:
            tell(asked.number, value, record(asked))
        assert caught.value.cause == "diverged"
    assert study.interrupted() == [asked]
    study.fail(asked.number, record(asked, TrialState.FAILED, reason="diverged: loss is nan"))
    assert study.counts()["failed"] == 1


def test_a_second_result_is_refused_and_the_first_stays(folders: Folders) -> None:
    study = start(folders)
    asked = ask(study)
    finish(study, asked)
    before = study.records()
    zombie = start(folders)
    for tell in (
        lambda: zombie.complete(asked.number, 9.0, record(asked, value=9.0)),
        lambda: zombie.prune(asked.number, 9.0, record(asked)),
        lambda: zombie.fail(asked.number, record(asked)),
        lambda: zombie.set_run(asked.number, "other"),
    ):
        with pytest.raises(StorageError, match="has ended already; its first result stays"):
            tell()
    assert study.records() == before


def test_unknown_trials_are_refused(folders: Folders) -> None:
    study = start(folders)
    for call in (lambda: study.run_id(3), lambda: study.complete(3, 1.0, TrialRecord(3, TrialState.COMPLETE))):
        with pytest.raises(StorageError, match="has no trial 3"):
            call()


# -- budget -----------------------------------------------------------------------------------------------------------


def test_a_budget_counts_every_trial_ever_asked(folders: Folders) -> None:
    study = start(folders, "sweep.trials=4")
    finish(study, ask(study))
    failed = ask(study)
    study.fail(failed.number, record(failed, TrialState.FAILED))
    left = ask(study)
    again = start(folders, "sweep.trials=4")
    assert again.remaining() == 1 and again.interrupted() == [left]
    finish(again, left)
    finish(again, ask(again))
    assert again.ask() is None and again.remaining() == 0 and again.interrupted() == []
    assert len(again.records()) == 4


@pytest.mark.slow
def test_a_larger_budget_is_adopted_and_a_smaller_one_stops(folders: Folders) -> None:
    study = start(folders, "sweep.trials=2")
    for _ in range(2):
        finish(study, ask(study))
    assert study.ask() is None
    larger = start(folders, "sweep.trials=3", "launcher.slots=4")
    finish(larger, ask(larger))
    assert larger.ask() is None
    loaded = SweepStudy.load(folders, "trial_study")
    assert loaded.overrides == ["sweep.trials=3", "launcher.slots=4"]
    assert (loaded.config.sweep.trials, loaded.config.launcher.slots) == (3, 4)
    smaller = start(folders, "sweep.trials=1")
    assert smaller.remaining() == 0 and smaller.ask() is None and len(smaller.records()) == 3


def test_a_list_and_a_grid_end_by_themselves(folders: Folders) -> None:
    points = [{"adapter.r": r, "optimizer.lr": 1e-3} for r in (2, 8, 32)]
    study = start(folders, "sampler=list", space={}, enqueue=points)
    assert study.remaining() == 3
    assert [ask(study).params for _ in range(3)] == points
    assert study.ask() is None
    grid = start(
        folders, "sampler=grid", "sweep.name=grid", space={"adapter.r": "choice(1, 2)", "train.seed": "range(0, 2)"}
    )
    assert grid.remaining() == 6
    drawn = [ask(grid).params for _ in range(6)]
    assert grid.ask() is None
    assert len({repr(point) for point in drawn}) == 6


def test_seconds_add_up_over_restarts(folders: Folders) -> None:
    study = start(folders)
    assert study.seconds() == 0.0
    study.add_seconds(1.5, until=100.0)
    study.add_seconds(0.25, until=100.25)
    again = start(folders)
    again.add_seconds(1.0, until=200.0)
    assert SweepStudy.load(folders, "trial_study").seconds() == 2.75
    again.add_seconds(3.0, until=201.0)  # two of them are counted: by another worker of the same time
    assert SweepStudy.load(folders, "trial_study").seconds() == 3.75
    again.add_seconds(3.0, until=150.0)  # a clock that was set back
    assert SweepStudy.load(folders, "trial_study").seconds() == 3.75


# -- proposals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["random", "tpe", "qmc", "cmaes"])
@pytest.mark.slow
def test_interruptions_change_no_proposal(kind: str, tmp_path: Path) -> None:
    words = (f"sampler={kind}", "sweep.trials=7", "sampler.startup_trials=3")
    space = {**SPACE, "adapter.dropout": "interval(0, 0.5)"}
    whole = start(Folders(tmp_path / "a"), *words, space=space)
    points = []
    while (asked := whole.ask()) is not None:
        points.append(asked.params)
        finish(whole, asked)
    parts = Folders(tmp_path / "b")
    cut: dict[int, dict[str, Any]] = {}
    for turn in range(7):
        study = start(parts, *words, space=space)
        if turn % 3 == 1:  # a process that dies after its ask
            cut[ask(study).number] = {}
            study = start(parts, *words, space=space)
        for asked in study.interrupted() or [ask(study)]:
            cut[asked.number] = asked.params
            finish(study, asked)
    assert [cut[number] for number in range(7)] == points


@pytest.mark.slow
def test_random_trial_seven_is_the_same_point_however_it_is_run(tmp_path: Path) -> None:
    words = ("sampler=random", "sampler.seed=5")
    one_by_one = start(Folders(tmp_path / "a"), *words)
    for _ in range(7):
        finish(one_by_one, ask(one_by_one))
    at_once = start(Folders(tmp_path / "b"), *words)
    asked = [ask(at_once) for _ in range(8)]
    assert ask(one_by_one) == asked[7]
    other = start(Folders(tmp_path / "c"), "sampler=random", "sampler.seed=6")
    assert ask(other).params != asked[0].params


def test_enqueued_points_are_tried_first_and_once(folders: Folders) -> None:
    points = [{"optimizer.lr": 1e-3, "adapter.r": 8, "adapter.layers": [0, 1]}, {"adapter.r": 2}]
    study = start(folders, "sweep.trials=4", enqueue=points)
    assert ask(study).params == points[0]
    again = start(folders, "sweep.trials=4", enqueue=points)
    assert ask(again).params["adapter.r"] == 2
    assert {ask(again).number, ask(again).number} == {2, 3} and again.ask() is None
    with pytest.raises(ConfigError, match=r"point 0 of `sweep\.enqueue`"):
        start(folders, enqueue=[{"adapter.r": 3}])


def test_single_trials_have_no_budget_and_no_space(folders: Folders) -> None:
    config = make_config(space={})
    study = SweepStudy.open(folders, config, None, {"kind": "single trials"}, [])
    assert study.ask() is None and study.remaining() == 0
    asked = study.ask_fixed({"optimizer.lr": 0.1, "model": "tiny_gpt2"})
    loaded = SweepStudy.load(folders, "trial_study")
    assert loaded.interrupted() == [asked] and loaded.space is None and loaded.sweep_file is None
    loaded.complete(asked.number, 0.5, record(asked, value=0.5))
    assert loaded.ask() is None and study.ask_fixed({}).number == 1


# -- identity ---------------------------------------------------------------------------------------------------------


def test_another_sweep_under_the_same_name_is_refused(folders: Folders) -> None:
    study = start(folders)
    finish(study, ask(study))
    wider = {**SPACE, "optimizer.lr": "tag(log, interval(1e-5, 1e-2))"}
    with pytest.raises(UsageError) as caught:
        start(folders, "sweep.trials=99", space=wider)
    assert "space.optimizer.lr.low: 0.0001 -> 1e-05" in str(caught.value)
    assert "lorasweep resume trial_study" in str(caught.value)
    untouched = SweepStudy.load(folders, "trial_study")
    assert untouched.config.sweep.trials == 20 and len(untouched.records()) == 1


def test_studies_live_beside_each_other(folders: Folders) -> None:
    for name in ("first", "second"):
        study = start(folders, f"sweep.name={name}")
        finish(study, ask(study))
    assert SweepStudy.names(folders) == ["second", "first"]
    assert len(SweepStudy.load(folders, "first").records()) == 1


def test_a_missing_sweep_names_the_nearest_or_says_there_is_none(
    folders: Folders, request: pytest.FixtureRequest
) -> None:
    if folders.studies:  # without tables
        server: Postgres = request.getfixturevalue("postgres_server")
        folders = replace(folders, studies=server.make_database(f"empty_{secrets.token_hex(4)}"))
    assert SweepStudy.names(folders) == []
    with pytest.raises(UsageError, match="no sweep was ever started there"):
        SweepStudy.load(folders, "x")
    assert not folders.mlruns.exists()  # asking leaves nothing behind
    start(folders)
    with pytest.raises(UsageError, match="did you mean `trial_study`"):
        SweepStudy.load(folders, "trial_stdy")


def test_loading_gives_back_what_was_started(folders: Folders) -> None:
    study = start(folders, "sweep.trials=3", "optimizer.weight_decay=0.1")
    loaded = SweepStudy.load(folders, "trial_study")
    assert loaded.config == study.config and loaded.space == study.space
    assert loaded.overrides == ["sweep.trials=3", "optimizer.weight_decay=0.1"]
    assert (loaded.name, loaded.sweep_file, loaded.identity) == ("trial_study", "trial_study", study.identity)
    assert ask(loaded).number == 0


def test_importances_need_enough_results(folders: Folders) -> None:
    study = start(folders, "sampler=random", "sweep.trials=30")
    assert study.importances() == {}
    for _ in range(16):
        finish(study, ask(study))
    shares = study.importances()
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=lambda key: shares[key]) == "optimizer.lr"


# -- crashes ----------------------------------------------------------------------------------------------------------

CHILD = """
    import os, signal, sys
    from pathlib import Path
    sys.path[:0] = [{tests!r}, {kits!r}]
    from test_study import Folders, ask, finish, start
    study = start(Folders(Path({folder!r}), studies={studies!r}), "sweep.trials=6", "sampler=tpe")
    finish(study, ask(study))
    asked = ask(study)
    study.set_run(asked.number, "run-of-the-dead")
    {last}
    print(asked.number, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def kill_in_the_middle(folders: Folders, last: str = "") -> None:
    here = Path(__file__).parent
    code = textwrap.dedent(CHILD).format(
        tests=str(here), kits=str(here.parent), folder=str(folders.tracking), studies=folders.studies, last=last
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stderr == ""  # Optuna is silent


@pytest.mark.slow
def test_a_killed_process_leaves_its_trial_to_the_next(folders: Folders) -> None:
    kill_in_the_middle(folders)
    study = start(folders, "sweep.trials=6", "sampler=tpe")
    (left,) = study.interrupted()
    assert left.number == 1 and study.run_id(1) == "run-of-the-dead"
    assert study.counts() == {"running": 1, "complete": 1, "pruned": 0, "failed": 0}
    finish(study, left)
    while (asked := study.ask()) is not None:
        finish(study, asked)
    assert [entry.trial for entry in study.records()] == list(range(6))
    assert study.counts()["complete"] == 6


@pytest.mark.slow
def test_a_kill_between_record_and_tell_trains_the_trial_again(folders: Folders) -> None:
    kill_in_the_middle(
        folders, "from test_study import record; study._stored.set(1, 'record', record(asked).to_json())"
    )
    study = start(folders, "sweep.trials=6", "sampler=tpe")
    (left,) = study.interrupted()
    assert study.records()[1].state is TrialState.RUNNING
    finish(study, left)
    assert study.records()[1].value == value_of(left)


def test_a_kill_between_ask_and_note_gives_the_same_point(file_folders: Folders, tmp_path: Path) -> None:
    study = start(file_folders, "sampler=random")
    asked = ask(study)
    with sqlite3.connect(file_folders.study_db) as database:  # as if it had died at any moment of the ask
        database.execute("DELETE FROM trial_user_attributes")
        database.execute("DELETE FROM trial_params WHERE param_name = 'adapter.r'")
    assert start(file_folders, "sampler=random").interrupted() == [asked]


def test_a_kill_before_the_study_said_what_it_is(file_folders: Folders) -> None:
    start(file_folders)
    with sqlite3.connect(file_folders.study_db) as database:
        database.execute("DELETE FROM study_user_attributes")
    assert SweepStudy.names(file_folders) == []
    with pytest.raises(UsageError, match="there is no sweep 'trial_study'"):
        SweepStudy.load(file_folders, "trial_study")
    assert ask(start(file_folders)).number == 0
    assert SweepStudy.names(file_folders) == ["trial_study"]


# -- the database -----------------------------------------------------------------------------------------------------


def test_the_database_survives_kills_and_waits_for_others(file_folders: Folders) -> None:
    study = start(file_folders)
    with sqlite3.connect(file_folders.study_db) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    asked = ask(study)
    reader = sqlite3.connect(file_folders.study_db)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM trials").fetchall()
    finish(study, asked)  # a reader does not block the writer
    reader.close()


def test_a_broken_database_is_named_and_left_alone(file_folders: Folders) -> None:
    file_folders.own.mkdir(parents=True)
    file_folders.study_db.write_bytes(b"this is no database" * 100)
    for call in (
        lambda: start(file_folders),
        lambda: SweepStudy.load(file_folders, "x"),
        lambda: SweepStudy.names(file_folders),
    ):
        with pytest.raises(StorageError, match="file is not a database") as caught:
            call()
        assert str(file_folders.study_db) in str(caught.value) and caught.value.exit_code == 1
    assert file_folders.study_db.read_bytes() == b"this is no database" * 100


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(folders: Folders) -> None:
    folders.tracking.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        start(folders)


def test_a_foreign_study_in_the_database_is_no_sweep(folders: Folders) -> None:
    import optuna

    start(folders)
    optuna.create_study(study_name="theirs", storage=storage_url(folders))
    assert SweepStudy.names(folders) == ["trial_study"]


@pytest.mark.slow
def test_optuna_is_silent(
    folders: Folders, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    for kind in ("tpe", "gp", "cmaes"):
        space = {**SPACE, "adapter.dropout": "interval(0, 0.5)"}
        study = start(folders, f"sampler={kind}", f"sweep.name={kind}", "sampler.startup_trials=2", space=space)
        for _ in range(4):
            finish(study, ask(study))
        failed = ask(study)
        study.fail(failed.number, record(failed, TrialState.FAILED))
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn if "optuna" in str(warning.category).lower()] == []


@pytest.mark.slow
def test_listing_a_sweep_imports_neither_torch_nor_mlflow(file_folders: Folders) -> None:
    finish(study := start(file_folders), ask(study))
    code = (
        "import sys, json; from pathlib import Path; from lorasweep.config.home import Folders;"
        "from lorasweep.search.study import SweepStudy;"
        f"SweepStudy.load(Folders(Path({str(file_folders.tracking)!r})), 'trial_study').records();"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert not {"torch", "mlflow", "transformers", "datasets", "hydra", "pandas"} & set(json.loads(done.stdout))


# -- verdicts and requests --------------------------------------------------------------------------------------------


def test_a_verdict_is_stored_once_and_found_again(folders: Folders) -> None:
    study = start(folders)
    asked = ask(study)
    assert study.rungs(10_000) == ()
    verdict = study.report(asked.number, 64, 0.5)
    assert verdict.keep and verdict.reason == ""
    finish(study, asked)
    replayed = start(folders)
    assert replayed.report(asked.number, 64, 0.9) == verdict
    with pytest.raises(StorageError, match="has ended already"):
        replayed.report(asked.number, 128, 0.9)  # a zombie's news
    with pytest.raises(TrialFailed, match="diverged"):
        study.report(ask(study).number, 64, math.nan)


def test_requests_reach_every_worker_and_a_pause_only_those_that_run(folders: Folders) -> None:
    start(folders)
    first, second = (SweepStudy.load(folders, "trial_study") for _ in range(2))
    asker = SweepStudy.load(folders, "trial_study")
    stop, pause = asker.request("stop", 3), asker.request("pause")
    assert {request.id for request in first.requests()} == {stop.id, pause.id}
    first.acted(stop)
    first.acted(pause)
    assert second.requests() == [pause]
    assert start(folders).requests() == []  # resumed


def test_the_reason_that_a_search_ends_is_told(folders: Folders) -> None:
    study = start(folders, "sweep.trials=2", "sweep.total_samples=150", "sweep.timeout_seconds=5")
    assert study.stop_reason() is None
    finish(study, ask(study))  # 100 samples
    assert study.stop_reason(49) is None
    assert study.stop_reason(50) == "sweep.total_samples=150 were seen (150)"
    study.add_seconds(5.0)
    assert study.stop_reason() == "sweep.timeout_seconds=5 is over (5.0 s)"
    assert study.ask() is None
    more_time = start(folders, "sweep.trials=2", "sampler=random")
    finish(more_time, ask(more_time))
    assert more_time.stop_reason() == "all 2 trials were started"


# -- clones -----------------------------------------------------------------------------------------------------------


def test_a_clone_is_asked_for_first_and_beside_the_budget(folders: Folders) -> None:
    study = start(folders, "sweep.trials=2", "sampler=random")
    first = ask(study)
    finish(study, first)
    clone = SweepStudy.load(folders, "trial_study").clone(first.number, {"adapter.r": 8, "train.seed": 7})
    assert clone == Asked(1, {**first.params, "adapter.r": 8, "train.seed": 7})
    (waiting,) = [record for record in study.records() if record.trial == 1]
    assert (waiting.state, waiting.reason) == (TrialState.RUNNING, "waits for a slot; a clone of trial 0")
    assert study.interrupted() == []  # nobody left it: it waits
    assert ask(study) == clone and study.interrupted() == [clone]
    assert study.warm_from(clone.number) is None
    finish(study, clone)
    second = ask(study)
    assert study.ask() is None and study.remaining() == 0
    later = study.clone(second.number, {})
    assert study.stop_reason() is None  # the budget is spent, and a clone waits all the same
    assert ask(study) == later
    assert study.stop_reason() == "all 2 trials were started"


def test_a_clone_shifts_no_known_point_and_samplers_learn_from_it(folders: Folders) -> None:
    import optuna

    points = [{"adapter.r": r, "optimizer.lr": 1e-3, "adapter.layers": [0]} for r in (2, 4, 8)]
    study = start(folders, "sampler=list", enqueue=points)
    assert ask(study).params == points[0]
    study.clone(0, {"optimizer.lr": 5e-3, "train.seed": 3})
    clone, second = ask(study), ask(study)
    assert clone.params == {**points[0], "optimizer.lr": 5e-3, "train.seed": 3}
    assert second.params == points[1] and second.number == 2
    assert ask(start(folders, "sampler=list", enqueue=points)).params == points[2]
    theirs = optuna.load_study(study_name="trial_study", storage=storage_url(folders))
    assert theirs.trials[1].params == {"adapter.r": 2, "optimizer.lr": 5e-3, "adapter.layers": 0}


def test_a_clone_cannot_start_from_an_adapter_that_is_not_there(folders: Folders) -> None:
    study = start(folders)
    asked = ask(study)
    with pytest.raises(UsageError, match="left no adapter to start from"):
        study.clone(asked.number, {}, warm=True)
    with pytest.raises(StorageError, match="has no trial 9"):
        study.clone(9, {})
