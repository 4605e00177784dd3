"""What keeps the frozen prefix's states: memory up to a budget, then disk, across packs and processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from enginelab import base_of, config, pack_of, rows, run
from lorasweep.models.base import LoadedBase
from lorasweep.models.forward import Entry
from lorasweep.models.prefix import states_of
from lorasweep.models.prefix_cache import GIB, PrefixBudget, PrefixCache, StateTable
from lorasweep.models.stream import RowStore, Segment

PathOf = Callable[[str], str]
STATE_BYTES = 32 * 4  # one token of the small bases


@pytest.fixture
def base(base_path: PathOf) -> LoadedBase:
    return base_of(config(base_path("bert")))


def store_of(base: LoadedBase, count: int = 30) -> RowStore:
    return RowStore(rows(count), base.pad_token_id, base.device)


def check_gathers(table: StateTable) -> None:
    whole = states_of(table.base, table.store, torch.arange(len(table.store)), table.depth)
    ends = torch.cumsum(table.sizes, 0)
    for chosen in ([3], [5, 3, 5, 0], list(range(29, -1, -1)), [7, 7]):
        expected = torch.cat([whole[ends[row] - table.sizes[row] : ends[row]] for row in chosen])
        found = table.gather(torch.tensor(chosen))
        assert found.shape == expected.shape
        assert float((found - expected).abs().max()) < 1e-6


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("tokens", [0.5, 60, 10**6])
@pytest.mark.parametrize("disk", [True, False])
def test_rows_come_back_whatever_memory_holds(
    depth: int, tokens: float, disk: bool, base: LoadedBase, tmp_path: Path
) -> None:
    """Memory for no row, for some, for all; what it has no room for comes from disk, or is computed again."""
    budget = PrefixBudget(tokens * STATE_BYTES / GIB, 1.0 if disk else 0.0, tmp_path)
    table = StateTable(base, store_of(base), depth, budget)
    check_gathers(table)
    check_gathers(table)
    assert budget.held <= budget.memory_bytes
    if disk or tokens == 10**6:
        assert table.computed == 30
    elif tokens == 0.5:
        assert table.computed > 60
    assert bool((table.places >= 0).any()) == (tokens > 1)


def test_memory_is_shared_by_all_tables_and_comes_back_with_a_pack(base: LoadedBase) -> None:
    budget = PrefixBudget(100 * STATE_BYTES / GIB)
    stores = [store_of(base), store_of(base)]
    cache = PrefixCache(base, budget)
    for store in stores:
        cache.entry(base.batch(store, [Segment(0, torch.arange(30))]), 1)
    assert len(budget.tables) == 2
    assert 0 < budget.held <= budget.memory_bytes
    del cache
    assert budget.held == 0


def test_a_later_process_reads_what_an_earlier_one_computed(base: LoadedBase, tmp_path: Path) -> None:
    first = StateTable(base, store_of(base), 1, PrefixBudget(1.0, 1.0, tmp_path))
    kept = first.gather(torch.tensor([4, 9]))
    later = StateTable(base, store_of(base), 1, PrefixBudget(1.0, 1.0, tmp_path))
    later.gather(torch.tensor([9]))
    assert torch.equal(later.gather(torch.tensor([4, 9])), kept)
    assert (first.computed, later.computed) == (2, 0)


@pytest.mark.parametrize("change", ["depth", "rows", "base", "precision"])
def test_other_bases_data_and_depths_have_other_files(
    change: str, base: LoadedBase, base_path: PathOf, tmp_path: Path
) -> None:
    budget = PrefixBudget(1.0, 1.0, tmp_path)
    StateTable(base, store_of(base), 1, budget).gather(torch.arange(30))
    if change == "base":
        base = base_of(config(base_path("roberta")))
    if change == "precision":
        base = base_of(config(base_path("bert"), train__precision="bf16"))
    store = store_of(base) if change != "rows" else RowStore(rows(30, seed=1), base.pad_token_id, base.device)
    other = StateTable(base, store, 2 if change == "depth" else 1, budget)
    other.gather(torch.arange(30))
    assert other.computed == 30
    assert len(list(tmp_path.glob("*.states"))) == 2


def test_fill_and_pooled_rows_lie_where_the_stream_has_them(base_path: PathOf) -> None:
    """A filled stream's states are the uncached forward's, at every token of a row."""
    base = base_of(config(base_path("gpt2")))
    encoded = rows(30)
    store, cache = RowStore(encoded, base.pad_token_id, base.device), PrefixCache(base, PrefixBudget(1.0))
    lengths = store.lengths.tolist()
    by_length = sorted(range(30), key=lengths.__getitem__)
    segments = [Segment(0, torch.tensor([by_length[-1]])), Segment(1, torch.tensor([by_length[-4]]))]
    batch = base.batch(store, segments)
    assert batch.gaps
    entry = cache.entry(batch, 1)
    assert entry.states is not None
    whole = states_of(base, store, batch.rows, 1)
    assert entry.states.shape[1] == batch.token_count
    assert float((entry.states[0][batch.token_at] - whole).abs().max()) < 1e-6
    pooled = cache.entry(batch, 2)
    assert isinstance(pooled, Entry)
    assert pooled.states is not None
    alone = states_of(base, store, batch.rows, 2)
    assert float((pooled.states[0][batch.last] - alone).abs().max()) < 1e-6


def test_a_sweep_over_a_small_budget_trains_the_same(base_path: PathOf, tmp_path: Path) -> None:
    trial = config(base_path("bert"), adapter__layers=1, train__max_steps=8)
    losses = []
    for budget in (
        None,
        PrefixBudget(60 * STATE_BYTES / GIB, 1.0, tmp_path),  # spills
        PrefixBudget(0.0, 1.0, tmp_path / "off"),
    ):
        pack = pack_of(base_of(trial), 2, rows(30), prefixes=budget)
        for number in range(2):
            pack.admit(number, trial)
        losses.append([event.loss for event in run(pack)[1]])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == losses[0]
    assert not (tmp_path / "off").exists()


def test_the_summary_counts_rows(base: LoadedBase, tmp_path: Path) -> None:
    budget = PrefixBudget(1.0, 1.0, tmp_path)
    assert budget.summary() == ""
    table = StateTable(base, store_of(base), 1, budget)
    table.gather(torch.tensor([1, 1, 2]))
    table.gather(torch.tensor([2]))
    assert "computed for 2 rows, used 4 times" in budget.summary()
