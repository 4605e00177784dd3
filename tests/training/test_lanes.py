"""Forwards that run side by side: the same trials as one after another, and trouble stays in its lane."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from enginelab import base_of, mixed_trials, pack_of, rows
from lorasweep.training.forwards import cut_forwards
from lorasweep.training.lanes import Lanes
from lorasweep.training.pack import Evaluated, Failed, Finished, Pack, Stepped

PathOf = Callable[[str], str]


def filled(base: Any, trials: list[Any], train: Any, lanes: int) -> Pack:
    pack = pack_of(base, len(trials), train)
    pack.lanes = Lanes(base.device, 10**9, lanes)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    return pack


def events_of(pack: Pack) -> list[Any]:
    events: list[Any] = []
    while pack.roster.training:
        events += pack.advance()
    return events


def curves(events: list[Any]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for event in events:
        if isinstance(event, Stepped):
            found.setdefault(event.number, []).append(event.loss)
    return found


@pytest.mark.parametrize("family", ["bert", "llama", "albert"])
@pytest.mark.slow
def test_lanes_train_the_same_trials(family: str, base_path: PathOf) -> None:
    """Dropout of both kinds included; evaluations and their predictions are those of one lane as well."""
    train = rows(40)
    trials = mixed_trials(
        base_path(family), 5, adapter__dropout=0.1, train__base_dropout=0.1, train__eval_every_steps=2
    )
    base = base_of(trials[0])
    one, three = (events_of(filled(base, trials, train, lanes)) for lanes in (1, 3))
    for number, losses in curves(one).items():
        assert curves(three)[number] == pytest.approx(losses, rel=1e-5)
    seen = [[event for event in events if isinstance(event, Evaluated)] for events in (one, three)]
    assert [(event.number, event.step) for event in seen[0]] == [(event.number, event.step) for event in seen[1]]
    for before, after in zip(*seen, strict=True):
        assert after.predictions == pytest.approx(before.predictions, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_lanes_repeat_bit_for_bit(base_path: PathOf) -> None:
    train = rows(40)
    trials = mixed_trials(base_path("bert"), 4, adapter__dropout=0.1)
    base = base_of(trials[0])
    first, second = (curves(events_of(filled(base, trials, train, 2))) for _ in range(2))
    assert first == second


def test_lanes_share_the_tokens_and_keep_neighbours_together(base_path: PathOf) -> None:
    trials = mixed_trials(base_path("bert"), 6, train__batch_size=8)
    pack = filled(base_of(trials[0]), trials, rows(40), 3)
    lanes = cut_forwards(pack.roster.training, pack.train, pack.limits, pack.engine, 3)
    assert [[segment.slot for forward in lane for segment in forward] for lane in lanes] == [[0, 1], [2, 3], [4, 5]]
    assert all(len(lane) == 1 for lane in lanes)


@pytest.mark.slow
def test_trouble_in_a_lane_ends_its_own_trial_alone(base_path: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    train = rows(40)
    trials = mixed_trials(base_path("bert"), 4)
    base = base_of(trials[0])
    expected = curves(events_of(filled(base, trials, train, 1)))
    pack = filled(base, trials, train, 2)
    real, threads = base.logits, set()

    def broken(batch: Any) -> torch.Tensor:
        threads.add(threading.current_thread().name)
        if any(segment.slot == 2 for segment in batch.segments):
            raise ValueError("cursed")
        return real(batch)

    monkeypatch.setattr(base, "logits", broken)
    events = events_of(pack)
    assert {"lane_0", "lane_1"} <= threads
    assert [(event.number, event.cause) for event in events if isinstance(event, Failed)] == [(2, "exception")]
    assert sorted(event.number for event in events if isinstance(event, Finished)) == [0, 1, 3]
    for number in (0, 1, 3):
        assert curves(events)[number] == pytest.approx(expected[number], rel=1e-5)


@pytest.mark.slow
def test_out_of_memory_in_lanes_loses_nothing(base_path: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    train = rows(40)
    trials = mixed_trials(base_path("bert"), 4)
    base = base_of(trials[0])
    expected = curves(events_of(filled(base, trials, train, 1)))
    pack = filled(base, trials, train, 2)
    real = base.logits

    def one_trial_at_a_time(batch: Any) -> torch.Tensor:
        if len(pack.roster.held) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch)

    monkeypatch.setattr(base, "logits", one_trial_at_a_time)
    events: list[Any] = []
    while pack.roster.training or pack.roster.parked:
        for event in pack.advance():
            events.append(event)
            if isinstance(event, Finished | Failed):
                pack.evict(event.number)
    assert not [event for event in events if isinstance(event, Failed)]
    for number, losses in curves(events).items():
        assert losses == pytest.approx(expected[number], rel=1e-5)


def test_results_keep_the_works_order_and_exceptions_come_through() -> None:
    lanes = Lanes(torch.device("cpu"), 10**6, 3)
    assert [lanes.useful(tokens) for tokens in (0, 1999, 2000, 10**6)] == [1, 1, 2, 3]
    with lanes.one_core():
        assert lanes.map(lambda item: item * 2, list(range(20)), 10**4) == [2 * item for item in range(20)]
        with pytest.raises(ZeroDivisionError):
            lanes.map(lambda item: 1 // item, [2, 1, 0, 4], 10**4)
        assert lanes.map(str, [], 0) == []
        assert lanes.map(lambda _: torch.get_num_threads(), [0], 10**5) == [3]  # large enough for all cores
        assert lanes.map(lambda _: torch.get_num_threads(), [0], 1) == [1]
