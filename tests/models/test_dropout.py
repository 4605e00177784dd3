"""Dropout masks: the right rate, independent of each other, and a function of the slot's own stream alone."""

from __future__ import annotations

import pytest
import torch

from lorasweep.models.dropout import column_hash, keep_mask, row_hashes, stream_key, threshold


def mask(key: int, layer: int, rate: float, rows: int = 600, width: int = 256, first: int = 0) -> torch.Tensor:
    keys = torch.full((rows,), key, dtype=torch.int32)
    places = torch.arange(first, first + rows, dtype=torch.int32)
    hashes = row_hashes(keys, places, range(layer, layer + 1))[0]
    limits = torch.full((rows, 1), threshold(rate), dtype=torch.int32)
    return keep_mask(hashes, column_hash(width, torch.device("cpu")), limits)


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.5, 0.9])
def test_rate_is_kept_overall_and_in_every_row_and_column(rate: float) -> None:
    kept = mask(stream_key(3, 7, 0), 4, rate).double()
    deviation = (rate * (1 - rate)) ** 0.5
    assert abs(float(kept.mean()) - (1 - rate)) < 5 * deviation / kept.numel() ** 0.5
    assert float((kept.mean(1) - (1 - rate)).abs().max()) < 5 * deviation / 256**0.5
    assert float((kept.mean(0) - (1 - rate)).abs().max()) < 5 * deviation / 600**0.5


def test_seeds_steps_layers_rows_and_columns_are_uncorrelated() -> None:
    base = mask(stream_key(0, 0, 0), 0, 0.5)
    others = [
        mask(stream_key(1, 0, 0), 0, 0.5),
        mask(stream_key(0, 1, 0), 0, 0.5),
        mask(stream_key(0, 0, 1), 0, 0.5),
        mask(stream_key(0, 0, 0), 1, 0.5),
        base.roll(1, 0),
        base.roll(1, 1),
        base.roll(17, 0),
    ]
    limit = 5 / base.numel() ** 0.5
    for other in others:
        agreement = float((base == other).double().mean())
        assert abs(2 * agreement - 1) < limit


def test_a_row_draws_the_same_wherever_it_stands() -> None:
    key = stream_key(5, 2, 1)
    assert mask(key, 3, 0.3)[100:200].equal(mask(key, 3, 0.3, rows=100, first=100))


def test_a_rate_of_zero_keeps_everything() -> None:
    assert bool(mask(stream_key(0, 0, 0), 0, 0.0).all())
