"""Data order: every epoch sees each row once, batches are full, and a cursor is all there is to resume."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasweep.training.slot import DataOrder


@given(st.integers(1, 30), st.integers(0, 5), st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_epochs_are_permutations_and_batches_full(rows: int, seed: int, sizes: list[int]) -> None:
    order = DataOrder(rows, seed)
    drawn = [order.draw(size) for size in sizes]
    assert [len(part) for part in drawn] == sizes
    flat = torch.cat(drawn).tolist()
    for epoch in range(len(flat) // rows):
        assert sorted(flat[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    resumed = DataOrder(rows, seed)
    resumed.cursor = sizes[0]
    assert torch.cat([resumed.draw(size) for size in sizes[1:]] or [torch.empty(0)]).tolist() == flat[sizes[0] :]


def test_epochs_and_seeds_differ() -> None:
    order = DataOrder(50, 0)
    first, second = order.draw(50), order.draw(50)
    assert not torch.equal(first, second)
    assert not torch.equal(first, DataOrder(50, 1).draw(50))
