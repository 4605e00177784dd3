"""At rungs trials may be rated over a part of the rows: what is kept and how a trial ends stays with all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from enginelab import base_of, build_base, config, pack_of, rows
from lorasweep.tasks import Exam
from lorasweep.training import examine
from lorasweep.training.evaluate import Sheets, evaluate
from lorasweep.training.pack import Evaluated, Failed, Finished, Pack, Rated, Stepped

RUNGS = (8, 20)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    return build_base("bert", tmp_path_factory.mktemp("bert"))


def exam_of(count: int, seed: int) -> Exam:
    part = rows(count, seed=seed)
    return Exam(part, part.labels.numpy())


def played(pack: Pack, each: Callable[[Any], None] = lambda event: None) -> list[Any]:
    events = []
    while pack.roster.training:
        for event in pack.advance():
            events.append(event)
            each(event)
    return events


def test_ratings_are_those_of_the_part_and_change_nothing_else(path: str) -> None:
    trials = [config(path, train__seed=k, train__max_steps=6, train__batch_size=4) for k in range(2)]
    base, train, part = base_of(trials[0]), rows(30), exam_of(7, seed=5)
    without, with_part = pack_of(base, 2, train), pack_of(base, 2, train, rung_exam=part)
    expected: list[dict[str, float]] = []

    def rate_by_hand(event: Any) -> None:
        if isinstance(event, Rated) and event.step in (2, 5):
            sheets = Sheets.of(part, base.model.config.pad_token_id, base.device, False)
            slot = with_part.roster.slot(event.number)
            ((metrics, _),) = evaluate(with_part.engine, with_part.task, sheets, [slot], 500, with_part.lanes)
            expected.append(metrics)

    for pack, rungs in ((without, ()), (with_part, RUNGS)):
        for number, trial in enumerate(trials):
            pack.admit(number, trial, rungs=rungs)
    plain, events = played(without), played(with_part, rate_by_hand)
    rated = [event for event in events if isinstance(event, Rated)]
    assert [(event.number, event.step, event.rung) for event in rated] == [(0, 2, 8), (1, 2, 8), (0, 5, 20), (1, 5, 20)]
    assert all(event.over_part and list(event.references) == part.rows.labels.tolist() for event in rated)
    for event, metrics in zip(rated, expected, strict=True):
        assert event.metrics == pytest.approx(metrics, rel=1e-5)
        assert len(event.predictions) == 7
    others = [event for event in events if not isinstance(event, Rated)]
    assert [type(event) for event in others] == [type(event) for event in plain]
    for mine, theirs in zip(others, plain, strict=True):
        if isinstance(mine, Stepped):
            assert mine == theirs
        if isinstance(mine, Finished):
            assert (mine.best_step, mine.best_metrics) == (theirs.best_step, theirs.best_metrics)


def test_without_a_part_the_whole_validation_rates_and_may_be_kept(path: str) -> None:
    trial = config(path, train__max_steps=6, train__batch_size=4)
    pack = pack_of(base_of(trial), 1, rows(30))
    pack.admit(0, trial, rungs=RUNGS)
    events = played(pack)
    kinds = [type(event) for event in events if not isinstance(event, Stepped)]
    assert kinds == [Evaluated, Rated, Evaluated, Rated, Evaluated, Finished]
    seen = [event for event in events if isinstance(event, Evaluated | Rated)]
    for evaluated, rated in zip(seen[:4:2], seen[1:4:2], strict=True):
        assert (rated.metrics, rated.over_part) == (evaluated.metrics, False)


def test_both_where_both_are_due_and_none_at_the_end(path: str) -> None:
    trial = config(path, train__max_steps=6, train__batch_size=4, train__eval_every_steps=2)
    pack = pack_of(base_of(trial), 1, rows(30), rung_exam=exam_of(5, seed=5))
    pack.admit(0, trial, rungs=(8, 24))
    steps = [(type(event), event.step) for event in played(pack) if isinstance(event, Evaluated | Rated)]
    assert steps == [(Rated, 2), (Evaluated, 2), (Evaluated, 4), (Evaluated, 6)]


def test_an_objective_that_the_part_cannot_give_fails_the_trial_in_words(path: str) -> None:
    trial = config(path, train__max_steps=6, train__batch_size=4)
    part = exam_of(4, seed=5)
    alike = replace(part.rows, labels=torch.zeros_like(part.rows.labels))  # one class: no area under a curve
    exam = Exam(alike, alike.labels.numpy())
    pack = pack_of(base_of(trial), 1, rows(30), rung_exam=exam, metric="eval/roc_auc")
    pack.admit(0, trial, rungs=RUNGS)
    failed = [event for event in played(pack) if isinstance(event, Failed)]
    assert [event.cause for event in failed] == ["objective"]
    assert "eval/roc_auc" in failed[0].message and "the 4 validation rows of pruner.eval_rows" in failed[0].message


def test_a_rating_that_does_not_fit_is_made_apart(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [config(path, train__seed=k, train__max_steps=4, train__batch_size=4) for k in range(3)]
    pack = pack_of(base_of(trials[0]), 3, rows(30), rung_exam=exam_of(6, seed=5))
    whole = pack_of(pack.base, 3, rows(30), rung_exam=exam_of(6, seed=5))
    for number, trial in enumerate(trials):
        pack.admit(number, trial, rungs=(8,))
        whole.admit(number, trial, rungs=(8,))

    def tight(engine: Any, task: Any, sheets: Sheets, slots: list[Any], *rest: Any) -> Any:
        if len(slots) > 1 and sheets.exam is pack.examiner.part.exam:  # type: ignore[union-attr]
            raise torch.OutOfMemoryError("no room")
        return evaluate(engine, task, sheets, slots, *rest)

    expected = [event.metrics for event in played(whole) if isinstance(event, Rated)]
    monkeypatch.setattr(examine, "evaluate", tight)
    found = [event.metrics for event in played(pack) if isinstance(event, Rated)]
    assert len(found) == 3
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
