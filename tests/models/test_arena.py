"""The arena: pieces do not overlap, values move exactly between layouts, neighbours survive a new layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorasweep.config.schema import OptimizerConfig
from lorasweep.models.arena import Arena, RowLayout, carry, new_adamw

NAMES = ["a", "b", "c", "d"]
LAYOUTS = st.builds(
    lambda vectors, matrices, loras: RowLayout(
        tuple((name, 3 + len(name)) for name in vectors),
        tuple((f"head.{name}", 2, 5) for name in matrices),
        tuple((name, 7, 4) for name in loras),
    ),
    st.lists(st.sampled_from(NAMES), unique=True, max_size=3),
    st.lists(st.sampled_from(NAMES), unique=True, min_size=1, max_size=2),
    st.lists(st.sampled_from(NAMES), unique=True, max_size=4),
)


def pieces(layout: RowLayout, row: torch.Tensor, rank: int) -> list[torch.Tensor]:
    found = [layout.vector(row, name) for name, _ in layout.vectors]
    found += [layout.matrix(row, name, columns) for name, _, columns in layout.matrices]
    for name, _, _ in layout.loras:
        found += layout.lora(row, name, rank)
    return found


@given(LAYOUTS, st.integers(1, 5))
def test_pieces_do_not_overlap(layout: RowLayout, rank: int) -> None:
    row = torch.zeros(layout.size(rank))
    for piece in pieces(layout, row, rank):
        piece.add_(1)
    assert float(row.max()) == 1.0
    total = sum(piece.numel() for piece in pieces(layout, row, rank))
    assert float(row.sum()) == total


@given(LAYOUTS, LAYOUTS, st.integers(1, 4))
def test_values_move_to_a_union_and_back_exactly(mine: RowLayout, other: RowLayout, rank: int) -> None:
    row = torch.zeros(mine.size(rank))
    for piece in pieces(mine, row, rank):
        piece.copy_(torch.randn(piece.shape))
    union = other.union(mine)
    assert union.holds(mine)
    assert union.holds(other)
    assert torch.equal(carry(carry(row, mine, union, rank), union, mine, rank), row)


@pytest.mark.parametrize("newcomer", [5, 1])
def test_neighbours_keep_values_gradients_and_moments_when_the_arena_is_laid_anew(newcomer: int) -> None:
    """For a newcomer of a larger rank, or of a smaller one with pieces of its own."""
    small = RowLayout((("h", 2),), (("h", 2, 5),), (("a", 7, 4),))
    large = RowLayout((("h", 2), ("a", 4)), (("h", 2, 5),), (("b", 6, 6), ("a", 7, 4)))
    plain, grown = Arena(2, torch.device("cpu")), Arena(2, torch.device("cpu"))
    for arena in (plain, grown):
        slot = arena.take(0, small, 2)
        slot.optimizer = new_adamw([([slot.undecayed], 0.0), ([slot.decayed], 0.1)], OptimizerConfig(lr=0.1))
        generator = torch.Generator().manual_seed(0)
        for step in range(4):
            own = torch.randn(small.size(2), generator=generator)
            own = carry(own, small, small, 2)
            mask = torch.zeros_like(own)
            for piece in pieces(small, mask, 2):
                piece.add_(1)
            arena.write(0, own * mask, arena.grad_row(0))
            if arena is grown and step == 2:  # between a gradient and its step
                arena.take(1, large, newcomer)
            slot.optimizer.step()
    assert grown.layout != plain.layout
    assert torch.equal(plain.read(0, plain.row(0)), grown.read(0, grown.row(0)))
    assert torch.equal(plain.read(0, plain.grad_row(0)), grown.read(0, grown.grad_row(0)))
    mine, theirs = plain.moments(0), grown.moments(0)
    assert mine.keys() == theirs.keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert float(grown.flat[1].abs().max()) == 0.0
