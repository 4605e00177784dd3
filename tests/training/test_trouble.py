"""A trial in trouble ends alone: exceptions are isolated, memory that runs out parks trials, rungs are evaluated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from enginelab import base_of, clone, config, mixed_trials, pack_of, rows, run
from lorasweep.training.pack import Evaluated, Failed, Finished, Pack, Rated, Stepped

PathOf = Callable[[str], str]


def until_over(pack: Pack, evict: bool = True) -> list[Any]:
    """All events; trials that end are evicted at once, as the worker does."""
    events: list[Any] = []
    while pack.roster.training or pack.roster.parked:
        found = pack.advance()
        events += found
        for event in found:
            if evict and isinstance(event, Failed | Finished):
                pack.evict(event.number)
    return events


def losses_of(events: list[Any], number: int) -> list[float]:
    return [event.loss for event in events if isinstance(event, Stepped) and event.number == number]


def alone(base: Any, trial: Any, train: Any) -> list[float]:
    pack = pack_of(base, 1, train)
    pack.admit(0, trial)
    return losses_of(until_over(pack), 0)


def test_an_exception_ends_its_own_trial_alone(base_path: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    train = rows(30)
    trials = mixed_trials(base_path("bert"), 3)
    base = base_of(trials[0])
    pack = pack_of(base, 3, train)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    real = base.logits

    def broken(batch: Any) -> torch.Tensor:
        if any(segment.slot == 1 for segment in batch.segments):
            raise ValueError("the second slot is cursed")
        return real(batch)

    monkeypatch.setattr(base, "logits", broken)
    events = until_over(pack)
    monkeypatch.undo()
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.number, failed.cause) == (1, "exception")
    assert "ValueError: the second slot is cursed" in failed.message
    assert "test_trouble.py" in failed.message
    for number in (0, 2):
        assert losses_of(events, number) == pytest.approx(alone(base, trials[number], train), rel=1e-5)


def test_an_exception_in_evaluation_ends_its_own_trial_alone(
    base_path: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = rows(30)
    trials = [config(base_path("bert"), train__seed=k, train__max_steps=4, train__eval_every_steps=2) for k in (0, 1)]
    pack = pack_of(base_of(trials[0]), 2, train)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    real = pack.task.metrics
    calls: list[int] = []

    def breaks_once_in_every_pair(table: np.ndarray, labels: Any, losses: Any) -> dict[str, float]:
        calls.append(1)
        if len(calls) in (2, 4):  # the second of the shared evaluation, then the second alone
            raise ZeroDivisionError("no rows")
        return real(table, labels, losses)

    monkeypatch.setattr(pack.task, "metrics", breaks_once_in_every_pair)
    events = until_over(pack)
    (failed,) = [event for event in events if isinstance(event, Failed)]
    assert (failed.number, failed.cause) == (1, "exception")
    assert "evaluation at step 2: ZeroDivisionError: no rows" in failed.message
    assert [event.number for event in events if isinstance(event, Finished)] == [0]


@pytest.mark.slow
def test_memory_for_one_slot_alone_parks_the_others_and_loses_nothing(
    base_path: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even one row fits while more than one trial is on the device: each trains in its turn, to the same end."""
    train = rows(30)
    trials = mixed_trials(base_path("bert"), 4, adapter__dropout=0.1)
    base = base_of(trials[0])
    pack = pack_of(base, 4, train)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    before = [event for _ in range(3) for event in pack.advance()]
    real, widths = base.logits, []

    def one_at_a_time(batch: Any) -> torch.Tensor:
        widths.append(len(pack.roster.held))
        if len(pack.roster.held) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch)

    monkeypatch.setattr(base, "logits", one_at_a_time)
    events = before + until_over(pack)
    monkeypatch.undo()
    assert not [event for event in events if isinstance(event, Failed)]
    assert sorted(event.number for event in events if isinstance(event, Finished)) == [0, 1, 2, 3]
    assert widths[-1] == 1
    for number, trial in enumerate(trials):
        assert losses_of(events, number) == pytest.approx(alone(base, trial, train), rel=1e-5), f"trial {number}"


def test_a_trial_that_does_not_fit_beside_others_waits(base_path: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    train = rows(30)
    trials = [config(base_path("bert"), train__seed=k, train__max_steps=3) for k in range(3)]
    pack = pack_of(base_of(trials[0]), 3, train)
    real = type(pack.engine).admit

    def tight(self: Any, index: int, trial: Any) -> None:
        if pack.roster.held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(self, index, trial)

    monkeypatch.setattr(type(pack.engine), "admit", tight)
    pack.admit(0, trials[0])
    pack.admit(1, trials[1])
    assert (pack.active, pack.free) == ([0, 1], 0)
    assert pack.max_steps(1) == 3
    assert pack.counts(1) == pack.counts(0)
    events = until_over(pack)
    assert [event.number for event in events if isinstance(event, Finished)] == [0, 1]
    pack.admit(2, trials[2])
    pack.evict(2)
    assert pack.active == []


def test_rungs_are_evaluated_once_reached(base_path: PathOf) -> None:
    trial = config(base_path("bert"), train__max_steps=10, train__batch_size=4, train__accumulation=2)
    pack = pack_of(base_of(trial), 1, rows(30))
    pack.admit(0, trial, rungs=(8, 20, 21, 60))
    events = until_over(pack)
    assert [event.step for event in events if isinstance(event, Evaluated)] == [1, 3, 8, 10]
    rated = [(event.step, event.samples, event.rung) for event in events if isinstance(event, Rated)]
    assert rated == [(1, 8, 8), (3, 24, 21), (8, 64, 60)]


def test_rungs_survive_saving(base_path: PathOf) -> None:
    trial = config(base_path("bert"), train__max_steps=4, train__batch_size=4)
    pack = pack_of(base_of(trial), 1, rows(30))
    pack.admit(0, trial, rungs=(12,))
    run(pack, 1)
    tensors, fields = pack.state(0)
    other = pack_of(pack.base, 1, rows(30))
    other.load_state(0, clone(trial), tensors, fields)
    assert [event.rung for event in until_over(other) if isinstance(event, Rated)] == [12]


def test_evaluations_that_do_not_fit_together_are_made_apart(
    base_path: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [config(base_path("bert"), train__seed=k, train__max_steps=2) for k in range(3)]
    base = base_of(trials[0])
    pack = pack_of(base, 3, rows(30))
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    real, widths = base.logits, []

    def one_slot_in_evaluation(batch: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            widths.append(len(batch.segments))
            if len(batch.segments) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch)

    monkeypatch.setattr(base, "logits", one_slot_in_evaluation)
    events = until_over(pack)
    assert sorted(event.number for event in events if isinstance(event, Finished)) == [0, 1, 2]
    assert {1, 3} <= set(widths)
