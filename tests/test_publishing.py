"""Views and descriptions in a real MLflow store: written, kept current, never over what somebody wrote by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasweep.config.home import Folders
from lorasweep.publishing import describe_model, publish
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy
from lorasweep.tracking.notes import LONGEST_NOTE, Subject, escape, model_note, sweep_note
from lorasweep.tracking.publish import FINALIST, NOTE
from lorasweep.tracking.store import open_client
from lorasweep.tracking.tracker import Tracker
from lorasweep.tracking.views import PREFIX, VIEWS
from trackkit import Counts, new_folders, search_data, sweep_config

pytestmark = pytest.mark.slow  # MLflow

EVIL = "<script>alert(1)</script>|`x`[a](javascript:alert(2))\n# big"


def row(rank: int | None, trial: int, **fields: object) -> dict:
    return {"rank": rank, "trial": trial, "value": 0.5, "params": {}, "run_id": f"{trial:032x}", **fields}


def test_notes_say_what_was_found_and_escape_what_users_name() -> None:
    rows = [
        row(1, 4, value=0.91234, interval=[0.89, 0.93], params={"data.label": EVIL, "optimizer.lr": 0.00123456}),
        row(2, 2, value=0.9, interval=[0.87, 0.92], tied=True),
        row(None, 3, value=None),
    ]
    note = sweep_note(Subject(EVIL, [("eval/accuracy", "maximize")], rows, {"complete": 2, "failed": 1}, "7", "r1"))
    assert "<script" not in note and "](javascript" not in note and "\n# big" not in note
    assert "0.9123 (0.8900 to 0.9300)" in note and "0.9000 (0.8700 to 0.9200) tied" in note
    assert "2 complete, 1 failed" in note and "0.001235" in note
    assert f"[4](#/experiments/7/runs/{4:032x}?workflowType=machine_learning)" in note and "| 3 |" not in note
    for key in VIEWS:
        assert f"viewStateShareKey={key}" in note
    assert "#/experiments/7/runs/r1/artifacts/report/report.html" in note
    cells = [line.count("|") - line.count("\\|") for line in note.splitlines() if line.startswith("|")]
    assert len(set(cells)) == 1, "every row of the table has as many cells as its head"


def test_a_note_of_long_values_fits() -> None:
    rows = [row(place + 1, place, params={f"key{i}.{'y' * 90}": "z" * 900 for i in range(9)}) for place in range(30)]
    subject = Subject("s", [("eval/accuracy", "maximize")], rows, {}, "7")
    assert len(sweep_note(subject)) <= LONGEST_NOTE and len(model_note(subject, "m")) <= LONGEST_NOTE
    assert escape("a_b*c") == r"a\_b\*c"


@pytest.fixture
def tracked(tmp_path: Path) -> tuple[SweepStudy, Folders]:
    """A sweep of three complete trials and a failed one, in the study and in MLflow."""
    folders, config = new_folders(tmp_path), sweep_config()
    config.sweep.space = {"optimizer.lr": "interval(1e-4, 1e-2)"}
    study = SweepStudy.open(folders, config, parse_space(config.sweep.space, config), {"a": 1}, [], sweep_file="quick")
    tracker = Tracker(folders, "quick")
    tracker.open_sweep(config, "", ["optimizer.lr"])
    for number, value in enumerate((0.7, 0.9, 0.8, None)):
        asked = study.ask()
        assert asked is not None
        run_id = tracker.start_trial(number, config, "", asked.params, {}, search_data(), Counts())
        metrics = {} if value is None else {"eval/accuracy": value, "eval/f1": value}
        state = TrialState.FAILED if value is None else TrialState.COMPLETE
        record = TrialRecord(
            number, state, value, metrics, asked.params, run_id, 160, reason=None if value else "diverged"
        )
        tracker.finish_trial(number, record, {})
        if value is None:
            study.fail(number, record)
        else:
            study.complete(number, value, record)
    tracker.close_sweep({"counts": study.counts()})
    tracker.close()
    return study, folders


def test_views_notes_and_finalists_are_stored_and_kept_current(tracked: tuple[SweepStudy, Folders]) -> None:
    study, folders = tracked
    client = open_client(folders)
    before = client.get_experiment_by_name("quick").tags
    assert all(f"{PREFIX}{key}" in before for key in VIEWS), "they are there from the start"
    publish(study, folders)
    tags = client.get_experiment_by_name("quick").tags
    columns = json.loads(json.loads(tags[f"{PREFIX}leaderboard"])["state"])["selectedColumns"]
    assert "metrics.`eval/f1`" in columns and "metrics.`eval/roc_auc`" not in columns  # the latter was never logged
    assert "0.9000" in tags[NOTE] and "1 failed" in tags[NOTE]
    (own,) = client.search_runs(["1"], "tags.`lorasweep.kind` = 'sweep'")
    assert own.data.tags[NOTE] == tags[NOTE]
    marked = client.search_runs(["1"], f"tags.`{FINALIST}` LIKE '%'")
    assert {run.data.tags[FINALIST] for run in marked} == {"0", "1", "2"}
    publish(study, folders)
    assert client.get_experiment_by_name("quick").tags == tags


def test_runs_that_were_deleted_in_mlflow_are_passed_over(tracked: tuple[SweepStudy, Folders]) -> None:
    study, folders = tracked
    client = open_client(folders)
    best = next(record.run_id for record in study.records() if record.value == 0.9)
    client.delete_run(best)
    publish(study, folders)
    marked = client.search_runs(["1"], f"tags.`{FINALIST}` LIKE '%'")
    assert {run.data.tags[FINALIST] for run in marked} == {"0", "2"}
    client.delete_experiment("1")
    publish(study, folders)  # nothing is left to write on


def test_a_description_written_by_hand_stays(tracked: tuple[SweepStudy, Folders]) -> None:
    study, folders = tracked
    client = open_client(folders)
    publish(study, folders)
    client.set_experiment_tag("1", NOTE, "our notes of Tuesday")
    publish(study, folders)
    assert client.get_experiment_by_name("quick").tags[NOTE] == "our notes of Tuesday"
    client.create_registered_model("reviews")
    describe_model(study, folders, "reviews")
    assert "models:/reviews@champion" in client.get_registered_model("reviews").description
    client.update_registered_model("reviews", description="mine")
    describe_model(study, folders, "reviews")
    assert client.get_registered_model("reviews").description == "mine"


def test_nothing_in_mlflow_is_nothing_to_publish(tmp_path: Path, tracked: tuple[SweepStudy, Folders]) -> None:
    study, _ = tracked
    publish(study, Folders(tmp_path / "elsewhere"))
    assert not (tmp_path / "elsewhere").exists()
