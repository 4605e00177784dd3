"""The token stream: what a batch lays out, and that attention over it is the padded model's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from enginelab import base_of, config, pad, rows
from lorasweep.models.attention import AttentionPlan, _group
from lorasweep.models.forward import Forward
from lorasweep.models.stream import Batch, RowStore, Segment

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "family", ["bert", "distilbert", "roberta", "gpt2", "llama", "mistral", "qwen2", "gemma", "gemma2"]
)
@pytest.mark.parametrize("longest", [20, 2])
def test_stream_gives_the_padded_models_logits(family: str, longest: int, base_path: Callable[[str], str]) -> None:
    """With sliding windows shorter than the rows (mistral, gemma2), grouped queries, soft caps and pooling."""
    encoded = rows(40, longest=longest)
    base = base_of(config(base_path(family)))
    assert base.stream
    store = RowStore(encoded, base.pad_token_id, CPU)
    batch = base.batch(store, [Segment(0, torch.arange(25)), Segment(1, torch.arange(25, 40))])
    with torch.no_grad():
        with base.running(Forward(batch, {}, torch.float32, torch.zeros(0))):
            ours = base.logits(batch)
        base.model.set_attn_implementation("eager")
        theirs = base.model(**pad(encoded, torch.arange(40), base.pad_token_id)).logits
    assert float((ours - theirs).abs().max()) < 2e-5 * float(theirs.abs().max().clamp(min=1))


@given(st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=5), st.randoms())
def test_a_batch_holds_each_slots_rows_and_nothing_else(sizes: list[list[int]], random: object) -> None:
    flat = [length for slot in sizes for length in slot]
    encoded = rows(len(flat))
    offsets = torch.zeros(len(flat) + 1, dtype=torch.int64)
    offsets[1:] = torch.cumsum(torch.tensor(flat), 0)
    ids = torch.arange(int(offsets[-1]))
    encoded = type(encoded)(ids, offsets, torch.arange(len(flat)), None, 0)
    store = RowStore(encoded, None, CPU)
    segments, first = [], 0
    for slot, lengths in enumerate(sizes):
        segments.append(Segment(slot, torch.arange(first, first + len(lengths))))
        first += len(lengths)
    batch = Batch(store, segments, stream=True, pad_token_id=0)
    for (start, end), segment, lengths in zip(batch.token_bounds, segments, sizes, strict=True):
        expected = ids[offsets[segment.rows[0]] : offsets[segment.rows[-1] + 1]]
        assert end - start >= sum(lengths)
        assert batch.ids[0, start : start + sum(lengths)].equal(expected)
        positions = torch.cat([torch.arange(length) for length in lengths])
        assert batch.positions is not None
        assert batch.positions[0, start : start + sum(lengths)].equal(positions)
        assert batch.token_places[start : start + sum(lengths)].tolist() == list(range(sum(lengths)))
    assert batch.ids[0, batch.first].equal(ids[offsets[:-1]])
    assert batch.ids[0, batch.last].equal(ids[offsets[1:] - 1])
    if batch.gaps:
        assert batch.equal_tokens


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_attention_groups_cover_every_token_once(lengths: list[int]) -> None:
    sizes = torch.tensor(lengths)
    starts = torch.cumsum(sizes, 0) - sizes
    plan = AttentionPlan(sizes, starts, int(sizes.sum()), [], torch.device("cpu"))
    assert sum(group.rows for group in plan.groups) == len(lengths)
    if plan.gather is None:
        assert len(set(lengths)) == 1
        return
    assert plan.gather[plan.scatter].equal(torch.arange(int(sizes.sum())))
    row_of = torch.repeat_interleave(torch.arange(len(lengths)), sizes)
    first = 0
    for group in plan.groups:  # every place of a group's row, padding included, reads that row alone
        block = row_of[plan.gather[first : first + group.rows * group.longest]].view(group.rows, group.longest)
        assert bool((block == block[:, :1]).all())
        first += group.rows * group.longest


def test_rows_of_like_length_share_a_group() -> None:
    assert _group([20, 19, 18], 256) == [(0, 3)]
    assert _group([400] * 2 + [20] * 50, 256) == [(0, 2), (2, 52)]


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_token_types_reach_the_base(family: str, base_path: Callable[[str], str]) -> None:
    plain = rows(9)
    types = (torch.arange(len(plain.ids)) // 3) % 2
    encoded = type(plain)(plain.ids, plain.offsets, plain.labels, types, 0)
    base = base_of(config(base_path(family)))
    store = RowStore(encoded, base.pad_token_id, CPU)
    with torch.no_grad():
        batch = base.batch(store, [Segment(0, torch.arange(9))])
        with base.running(Forward(batch, {}, torch.float32, torch.zeros(0))):
            ours = base.logits(batch)
        base.model.set_attn_implementation("eager")
        given_types = pad(type(plain)(types, plain.offsets, plain.labels, None, 0), torch.arange(9), 0)["input_ids"]
        theirs = base.model(**pad(encoded, torch.arange(9), 0), token_type_ids=given_types).logits
        untyped = base.model(**pad(encoded, torch.arange(9), 0)).logits
    assert float((ours - theirs).abs().max()) < 1e-5
    assert float((ours - untyped).abs().max()) > 1e-3
