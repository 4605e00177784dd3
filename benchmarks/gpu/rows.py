"""Rows of the lengths that are measured: SST-2's own, or all of one length. Token ids are random."""

from __future__ import annotations

import torch

from lorasweep.data.encode import Encoded

# Rows of SST-2's train split (6,920) by tokens, 0, 1, 2, …, in MiniLM's tokenizer: 23.3 on average
SST2_ROWS_BY_LENGTH = [
    0, 0, 0, 12, 43, 66, 86, 128, 135, 157, 173, 193, 210, 202, 205, 206, 235, 237, 259, 248, 220, 233, 245, 241, 222,
    242, 230, 205, 198, 191, 163, 187, 155, 150, 143, 132, 113, 103, 82, 86, 94, 79, 62, 50, 46, 51, 19, 28, 22, 22,
    18, 19, 21, 14, 11, 9, 3, 2, 2, 5, 0, 2, 0, 0, 1, 1, 2, 1,
]  # fmt: skip


def make_rows(count: int, length: int | None, vocabulary: int) -> Encoded:
    """`count` rows of `length` tokens each; None: of SST-2's lengths, drawn from its histogram."""
    generator = torch.Generator().manual_seed(0)
    if length is None:
        weights = torch.tensor(SST2_ROWS_BY_LENGTH, dtype=torch.float64)
        lengths = torch.multinomial(weights, count, replacement=True, generator=generator)
    else:
        lengths = torch.full((count,), length)
    offsets = torch.zeros(count + 1, dtype=torch.int64)
    offsets[1:] = torch.cumsum(lengths, 0)
    ids = torch.randint(5, vocabulary, (int(offsets[-1]),), generator=generator)
    return Encoded(ids, offsets, torch.randint(0, 2, (count,), generator=generator), None, 0)
