"""Some of many: how many, in which order, and that the same length gives the same places."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from lorasweep.spread import evenly


@given(st.integers(0, 500), st.integers(0, 60))
def test_so_many_in_their_order_with_gaps_that_differ_by_one_at_most(count: int, most: int) -> None:
    found = evenly(range(count), most)
    assert len(found) == min(count, most) and found[:1] == ([0] if found else [])
    gaps = {after - before for before, after in itertools.pairwise([*found, count])} if found else {1}
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    assert evenly([f"row {place}" for place in range(count)], most) == [f"row {place}" for place in found]
