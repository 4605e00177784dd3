"""Frozen layers computed before the lanes run: every row once, and the same bits in every run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from enginelab import base_of, config, pack_of, rows, run
from lorasweep.models.prefix_cache import GIB, Fill, PrefixBudget, StateTable
from lorasweep.training.ahead import compute_ahead
from lorasweep.training.lanes import Lanes
from lorasweep.training.pack import Pack

PathOf = Callable[[str], str]


def filled(path: str, budget: PrefixBudget | None, lanes: int) -> Pack:
    """Four trials of different depths and data orders."""
    layers = (1, 0, 1, None)
    trials = [config(path, adapter__layers=n, train__max_steps=6, train__seed=k) for k, n in enumerate(layers)]
    pack = pack_of(base_of(trials[0]), 4, rows(60), prefixes=budget)
    pack.lanes = Lanes(pack.base.device, 10**9, lanes)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    return pack


def by_row(table: StateTable) -> dict[int, torch.Tensor]:
    kept = (table.places >= 0).nonzero().flatten().tolist()
    return {row: table.memory[table.places[row] : table.places[row] + table.sizes[row]] for row in kept}


@pytest.mark.slow
def test_lanes_change_no_number_and_reruns_are_the_same_bits(
    base_path: PathOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorasweep.models.packed_lora.worth_apart", lambda *_: True)
    path = base_path("bert")
    losses, states = [], []
    for lanes in (2, 2, 1):
        budget = PrefixBudget(1.0)
        pack = filled(path, budget, lanes)
        losses.append([[event.loss for event in events] for _, events in sorted(run(pack).items())])
        tables = sorted(budget.tables, key=lambda table: (len(table.sizes), table.depth))
        assert [(len(table.sizes), table.depth) for table in tables] == [(12, 1), (12, 2), (60, 1), (60, 2)]
        for table in tables:  # no row twice
            assert table.computed == len(by_row(table))
        states.append([by_row(table) for table in tables])
    assert losses[0] == losses[1]
    assert torch.tensor(losses[0]) == pytest.approx(torch.tensor(losses[2]), rel=1e-5)
    for first, second in zip(states[0], states[1], strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[row], second[row]) for row in first)


def test_forwards_find_what_was_computed_ahead(base_path: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead: list[int] = []
    original = Fill.keep

    def counted(fills: list[Fill], states: list[torch.Tensor]) -> None:
        ahead.append(sum(len(fill.rows) for fill in fills))
        original(fills, states)

    monkeypatch.setattr(Fill, "keep", staticmethod(counted))
    budget = PrefixBudget(1.0)
    pack = filled(base_path("gpt2"), budget, 2)
    pack.evict(3)  # with it in a forward, nothing is skipped
    run(pack)
    assert sum(ahead) == sum(table.computed for table in budget.tables) > 12


def test_nothing_is_computed_ahead_that_has_no_room(base_path: PathOf) -> None:
    budget = PrefixBudget(40 * 32 * 4 / GIB)  # tokens of 32 floats
    pack = filled(base_path("bert"), budget, 1)
    engine, store = pack.engine, pack.train
    fills = engine.lacking(store, [([0], torch.arange(60))], True, 10**6, 1)
    assert 0 < sum(fill.tokens for fill in fills) <= 40
    Fill.keep(fills, [fill.compute() for fill in fills])
    assert engine.lacking(store, [([0], torch.cat([fill.rows for fill in fills]))], True, 10**6, 1) == []


@pytest.mark.parametrize(("tokens", "parts", "expected"), [(10**6, 1, 1), (10**6, 3, 3), (100, 1, 7)])
def test_the_work_is_cut_for_lanes_and_memory(tokens: int, parts: int, expected: int, base_path: PathOf) -> None:
    pack = filled(base_path("bert"), PrefixBudget(1.0), 1)
    fills = pack.engine.lacking(pack.train, [([0, 2], torch.arange(60).repeat(2))], True, tokens, parts)
    assert torch.cat([fill.rows for fill in fills]).equal(torch.arange(60))
    assert expected <= len(fills) <= expected + 1
    assert max(fill.tokens for fill in fills) <= max(tokens, 20) + 20


def test_what_fails_ahead_is_left_to_the_forwards(
    base_path: PathOf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(_fill: Fill) -> Any:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Fill, "compute", failing)
    pack = filled(base_path("bert"), PrefixBudget(1.0), 2)
    lanes = pack.lanes
    compute_ahead(pack.engine, pack.train, [([0], torch.arange(9))], training=True, lanes=lanes, tokens_per_forward=100)
    assert "not computed ahead" in caplog.text
    assert "no room" in caplog.text
    assert len(run(pack)) == 4


def test_the_cache_gives_way_before_trials_shrink(base_path: PathOf, monkeypatch: pytest.MonkeyPatch) -> None:
    budget = PrefixBudget(1.0)
    pack = filled(base_path("bert"), budget, 1)
    pack.evict(3)
    pack.advance()
    assert budget.held > 0
    original, failed = pack._train, list[int]()

    def once(segments: list[Any]) -> Any:
        if not failed:
            failed.append(len(segments))
            raise torch.OutOfMemoryError("no room")
        return original(segments)

    monkeypatch.setattr(pack, "_train", once)
    before = pack.limits.tokens
    steps = run(pack)
    assert failed
    assert budget.held == 0
    assert (pack.limits.tokens, pack.limits.split_rows) == (before, False)
    plain = filled(base_path("bert"), None, 1)
    plain.evict(3)
    expected = run(plain)
    for number in range(3):
        ours, theirs = [event.loss for event in steps[number]], [event.loss for event in expected[number]]
        assert ours == pytest.approx(theirs[-len(ours) :], rel=1e-5)
