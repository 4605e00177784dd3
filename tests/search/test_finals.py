"""The study of finalists: planned once, over seeds that are fresh, asked for by exactly one worker, told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from boardkit import study_of
from lorasweep.config.schema import Config
from lorasweep.ranking.board import Leaderboard
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.finals import FinalsStudy, found_in
from lorasweep.search.study import SweepStudy

C, F = TrialState.COMPLETE, TrialState.FAILED


def searched(folder: Path, params: list[dict[str, object]] | None = None) -> SweepStudy:
    points = params or [{"adapter.r": 2}, {"adapter.r": 4}, {"adapter.r": 8}]
    records = [TrialRecord(n, C, 0.9 - n / 100, params=dict(point), run_id=f"run{n}") for n, point in enumerate(points)]
    return study_of(folder, records)


def planned(study: SweepStudy, top: int = 2, seeds: int = 3) -> FinalsStudy:
    finals = FinalsStudy.of(study, create=True)
    assert finals is not None
    finals.plan(study.records()[:top], seeds)
    return finals


def tell(finals: FinalsStudy, value: float | None) -> tuple[int, int]:
    asked = finals.ask()
    assert asked is not None
    state = F if value is None else C
    record = TrialRecord(asked.number, state, value, params=asked.params, run_id=f"f{asked.number}")
    if value is None:
        record.reason = "diverged: NaN"
        finals.fail(asked.number, record)
    else:
        finals.complete(asked.number, value, record)
    return finals.origin(asked.number)


def test_a_sweep_without_finalists_has_none(tmp_path: Path) -> None:
    study = searched(tmp_path)
    assert FinalsStudy.of(study) is None and found_in(study) == {}
    assert all(row["finalist"] is None for row in Leaderboard.of(study).rows)


def test_they_wait_in_turn_and_the_search_does_not_know_them(tmp_path: Path) -> None:
    study = searched(tmp_path)
    finals = planned(study)
    assert SweepStudy.names(study.folders) == ["many"]
    assert len(study.records()) == 3 and study.counts()["running"] == 0 and study.remaining() == 0
    asked = finals.ask()
    assert asked is not None and asked.params == {"adapter.r": 2, "train.seed": 1}
    other = FinalsStudy.of(SweepStudy.load(study.folders, "many"))
    assert other is not None
    second = other.ask()
    assert second is not None and second.params == {"adapter.r": 4, "train.seed": 1}
    assert [one.number for one in finals.interrupted()] == [0, 1]
    rest = [finals.ask() for _ in range(5)]
    assert [one.params["train.seed"] for one in rest if one] == [2, 2, 3, 3] and rest[4] is None
    assert finals.budget_spent() and finals.unfinished and len(study.records()) == 3
    assert study.name == finals.name and finals.files == study.files.at("finalists")


def test_planning_again_adds_what_is_new(tmp_path: Path) -> None:
    study = searched(tmp_path)
    planned(study)
    assert len(planned(study).records()) == 6
    assert len(planned(study, seeds=4).records()) == 8
    finals = planned(study, top=3, seeds=4)
    assert len(finals.records()) == 12
    assert len({finals.origin(record.trial) for record in finals.records()}) == 12


def test_seeds_of_the_search_are_not_fresh(tmp_path: Path) -> None:
    study = searched(tmp_path, [{"train.seed": 1}, {"train.seed": 3}, {"adapter.r": 8}])
    finals = planned(study, top=1, seeds=3)
    assert [record.params["train.seed"] for record in finals.records()] == [2, 4, 5]


def test_what_they_gave(tmp_path: Path) -> None:
    study = searched(tmp_path)
    finals = planned(study)
    assert [tell(finals, value) for value in (0.80, 0.86, 0.82, None, 0.84)] == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3)]
    found = found_in(study)
    assert found[0].values == [0.80, 0.82, 0.84] and found[0].seeds == [1, 2, 3] and found[0].runs == ["f0", "f2", "f4"]
    assert found[1].values == [0.86] and found[1].failed == {2: "diverged: NaN"} and found[1].waiting == 1
    shown = found[0].to_json(0.9, "maximize")
    assert shown["mean"] == pytest.approx(0.82) and shown["overstated"] == pytest.approx(0.08)
    assert shown["interval"][0] < 0.82 < shown["interval"][1]
    assert found[0].to_json(0.9, "minimize")["overstated"] == pytest.approx(-0.08)
    rows = Leaderboard.of(study).rows
    assert [(row["trial"], row["rank"]) for row in rows] == [
        (0, 1),
        (1, 2),
        (2, 3),
    ]  # one whose seed failed comes after
    assert rows[1]["finalist"]["interval"] is None and rows[2]["finalist"] is None


def test_the_mean_over_seeds_ranks(tmp_path: Path) -> None:
    study = searched(tmp_path)
    finals = planned(study, seeds=2)
    for value in (0.70, 0.80, 0.72, 0.82):
        tell(finals, value)
    board = Leaderboard.of(study)
    assert [row["trial"] for row in board.rows] == [1, 0, 2]
    assert board.best is not None and board.best["finalist"]["mean"] == pytest.approx(0.81)


def test_a_finalist_is_never_pruned_and_hears_of_a_pause_alone(tmp_path: Path) -> None:
    config = Config()
    config.pruner.kind = "asha"
    study = study_of(tmp_path, [TrialRecord(0, C, 0.9, params={})], config)
    finals = planned(study, top=1)
    assert finals.rungs(4096) == study.rungs(4096) != ()
    asked = finals.ask()
    assert asked is not None and finals.report(asked.number, 256, 0.01).keep
    study.request("stop", 0)
    assert finals.requests() == []
    study.request("pause")
    assert [request.kind for request in finals.requests()] == ["pause"]


def test_time_of_finalists_is_none_of_the_search(tmp_path: Path) -> None:
    study = searched(tmp_path)
    finals = planned(study)
    finals.add_seconds(100)
    assert study.seconds() == 0 and finals.seconds() == 100


def test_a_sweep_is_closed_with_its_finalists(tmp_path: Path) -> None:
    study = searched(tmp_path)
    study.note_closed()
    assert study.closed
    finals = planned(study, top=1, seeds=1)
    assert study.closed
    tell(finals, 0.8)
    assert not study.closed
