"""Trials read from Optuna's tables are those that Optuna itself reads."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from test_study import ask, finish, folders, record, start, storage_url  # noqa: F401  (folders is a fixture)

from lorasweep.config.home import Folders
from lorasweep.records import TrialState
from lorasweep.search.tables import QuickStorage


def plain(trial: optuna.trial.FrozenTrial) -> str:
    """All that a trial holds, in an order that means nothing; as a text, since NaN is not equal to itself."""
    return repr({name: sorted(it.items()) if isinstance(it, dict) else it for name, it in vars(trial).items()})


@pytest.mark.slow
def test_the_same_trials_come_out(folders: Folders) -> None:  # noqa: F811
    study = start(folders, "sampler=tpe", "sweep.trials=30")
    for _ in range(3):
        finish(study, ask(study))
    pruned, failed = ask(study), ask(study)
    study.report(pruned.number, 100, 0.25)
    study.prune(pruned.number, 0.25, record(pruned, TrialState.PRUNED, value=0.25))
    study.fail(failed.number, record(failed, TrialState.FAILED, reason="diverged: so it is"))
    study.clone(0, {"adapter.r": 8})
    running = ask(study)
    study.set_run(running.number, "r" * 32)
    study._stored.set_constraint(running.number, "params", -1.5)
    study._stored.set_intermediate(running.number, 5, float("nan"))
    theirs = optuna.load_study(
        study_name="trial_study", storage=optuna.storages.RDBStorage(storage_url(folders), skip_table_creation=True)
    )
    ours = optuna.load_study(study_name="trial_study", storage=QuickStorage(storage_url(folders)))
    expected, found = theirs.get_trials(), ours.get_trials()
    assert len(expected) == 6 and {trial.state.name for trial in expected} == {"RUNNING", "COMPLETE", "PRUNED", "FAIL"}
    assert [plain(trial) for trial in found] == [plain(trial) for trial in expected]
    for state in optuna.trial.TrialState:
        some = [plain(trial) for trial in theirs.get_trials(states=[state])]
        assert [plain(trial) for trial in ours.get_trials(states=[state])] == some
    for trial in expected:
        assert plain(QuickStorage(storage_url(folders)).get_trial(trial._trial_id)) == plain(trial)


def test_a_trial_that_is_not_there(tmp_path: Path) -> None:
    study = start(Folders(tmp_path))
    with pytest.raises(KeyError):
        study._stored.storage.get_trial(12345)
