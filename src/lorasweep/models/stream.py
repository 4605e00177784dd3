"""How the rows of one forward are laid out: all slots end to end in one token stream.

A slot is a contiguous range of the stream whatever its rows' lengths, so no linear layer sees padding; `attention`
alone pads. Bases that cannot work so get a padded batch. Neighbours: `families` (which bases can; pooling), `layers`
(adapters over the ranges), `training` (which rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from lorasweep.models.attention import AttentionPlan
from lorasweep.models.transfer import to_device

if TYPE_CHECKING:
    from lorasweep.data.encode import Encoded

IGNORED = -100  # label of a token that nothing is asked of
FILL_AT_MOST = 0.12  # segments are filled up to equal length where that adds at most this share of tokens


@dataclass
class Segment:
    """Rows of one slot in a forward. `units` are those of the slot's whole micro-batch, `first_row` and `first_token`
    count within it: they are 0 unless it was cut into several forwards."""

    slot: int
    rows: torch.Tensor  # (rows,) int64 indexes into the store
    units: int = 0
    first_row: int = 0
    first_token: int = 0


class RowStore:
    """Encoded rows on a device, with what collation needs of each row.

    A *unit* is what a loss is the mean of: `units` (rows,) counts a row's. A classified row is one; in a causal
    language model (`causal`: labels are (tokens,), -100 where nothing is asked) so is each token whose next one has a
    label.
    `last` is where a decoder pools: the row's last token that is not padding (as transformers' sequence
    classification looks for it), counted from the row's first.
    """

    def __init__(self, encoded: Encoded, pad_token_id: int | None, device: torch.device, *, causal: bool = False):
        self.ids = encoded.ids.to(device)
        self.type_ids = None if encoded.type_ids is None else encoded.type_ids.to(device)
        self.labels = encoded.labels.to(device)
        self.offsets = encoded.offsets
        self.lengths = encoded.offsets[1:] - encoded.offsets[:-1]
        self.last = self.lengths - 1
        self.device = device
        self.next_labels: torch.Tensor | None = None
        self.units = torch.ones_like(self.lengths)
        if causal:
            self.next_labels = torch.full_like(encoded.labels, IGNORED)  # on the CPU, where batches are laid out
            self.next_labels[:-1] = encoded.labels[1:]
            self.next_labels[self.offsets[1:] - 1] = IGNORED  # a row's last token has no next one
            asked = torch.cumsum(self.next_labels != IGNORED, 0)
            ends = asked[self.offsets[1:] - 1]
            self.units = torch.diff(ends, prepend=ends.new_zeros(1))
        if pad_token_id is not None and bool((encoded.ids == pad_token_id).any()):
            token = torch.arange(len(encoded.ids)) - torch.repeat_interleave(self.offsets[:-1], self.lengths)
            token = token * (encoded.ids != pad_token_id)
            row = torch.repeat_interleave(torch.arange(len(self.lengths)), self.lengths)
            self.last = torch.zeros_like(self.lengths).scatter_reduce(0, row, token, "amax")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def unit_labels(self) -> torch.Tensor:
        """Labels of all units in the rows' order, (units,) int64."""
        if self.next_labels is None:
            return self.labels
        return self.next_labels[self.next_labels != IGNORED]

    @cached_property
    def mean_length(self) -> float:
        """Tokens of a row on average."""
        return float(self.lengths.float().mean()) if len(self) else 0.0

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.lengths.max()) if len(self) else 0


class Batch:
    """The rows of one forward, collated.

    Stream: ids, positions and type_ids are (1, tokens). Padded: (rows, longest), with `attention_mask`.
    token_bounds and row_bounds give each segment's (start, end); `equal_tokens` tells that all token ranges are of one
    length. labels (units,) are the units' in the order of the logits, unit_counts how many each segment has; in a
    causal language model `supervised` (units,) says which places of the stream (of the flattened padded batch) they
    are; None: every place.
    """

    def __init__(
        self, store: RowStore, segments: list[Segment], *, stream: bool, pad_token_id: int, left_pad: bool = False
    ):
        self.segments, self.store, self.is_stream = segments, store, stream
        self.rows = segments[0].rows if len(segments) == 1 else torch.cat([segment.rows for segment in segments])
        self.row_counts = [len(segment.rows) for segment in segments]
        self.lengths = store.lengths[self.rows]
        self.row_bounds = _bounds(self.row_counts)
        self.device = store.device
        self.supervised: torch.Tensor | None = None
        source, real = self._lay_stream() if stream else self._lay_padded(pad_token_id, left_pad)
        if store.next_labels is None:
            self.labels, self.unit_counts = store.labels[to_device(self.rows, store.device)], self.row_counts
            return
        asked = store.next_labels[source].where(real, IGNORED)
        supervised = (asked != IGNORED).nonzero().squeeze(1)
        self.labels, self.supervised = to_device(asked[supervised], store.device), to_device(supervised, store.device)
        self.unit_counts = [int(part.sum()) for part in store.units[self.rows].split(self.row_counts)]

    def _lay_stream(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Lay the rows end to end; which stored token each place reads (tokens,), and whether it is one of a row's."""
        store, lengths = self.store, self.lengths
        tokens = [int(part.sum()) for part in lengths.split(self.row_counts)]
        longest = max(tokens)
        fill = longest * len(tokens) - sum(tokens) if len(tokens) > 1 else 0
        filled = 0 < fill <= FILL_AT_MOST * sum(tokens)
        sizes = [longest] * len(tokens) if filled else tokens
        self.token_bounds = _bounds(sizes)
        self.equal_tokens = len(set(sizes)) == 1
        starts = torch.cumsum(lengths, 0) - lengths  # of each row in the stream
        gaps: list[tuple[int, int]] = []
        if filled:
            shift = [start - sum(tokens[:slot]) for slot, (start, _) in enumerate(self.token_bounds)]
            starts = starts + torch.repeat_interleave(torch.tensor(shift), torch.tensor(self.row_counts))
            gaps = [
                (start + own, end)
                for (start, end), own in zip(self.token_bounds, tokens, strict=True)
                if start + own < end
            ]
        total = self.token_bounds[-1][1]
        self.starts, self.token_count, self.gaps = starts, total, gaps
        real = torch.repeat_interleave(starts, lengths)
        place = torch.arange(len(real)) - torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths)
        source, positions = torch.zeros(total, dtype=torch.int64), torch.zeros(total, dtype=torch.int64)
        self.token_at = real + place  # (tokens of the rows,) their places in the stream
        at = self.token_at if gaps else slice(None)
        source[at] = torch.repeat_interleave(store.offsets[self.rows], lengths) + place
        positions[at] = place
        moved = to_device(source, store.device)
        self.ids = store.ids[moved][None]
        self.type_ids = None if store.type_ids is None else store.type_ids[moved][None]
        self.positions: torch.Tensor | None = to_device(positions, store.device)[None]
        self.attention_mask: torch.Tensor | None = None
        held = torch.ones(total, dtype=torch.bool)
        for start, end in gaps:
            held[start:end] = False
        return source, held

    def _lay_padded(self, pad_token_id: int, left_pad: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Pad the rows to the longest; as `_lay_stream`, over the flattened batch."""
        store, lengths = self.store, self.lengths
        longest = int(lengths.max())
        place = torch.arange(longest)[None] - ((longest - lengths)[:, None] if left_pad else 0)
        real = (place >= 0) & (place < lengths[:, None])
        source = (store.offsets[self.rows][:, None] + place.clamp(min=0)).where(real, 0)
        moved, mask = to_device(source, store.device), to_device(real, store.device)
        self.ids = store.ids[moved].where(mask, pad_token_id)
        self.type_ids = None if store.type_ids is None else store.type_ids[moved].where(mask, 0)
        self.positions, self.attention_mask, self.gaps = None, mask.long(), []
        self.token_bounds = [(start * longest, end * longest) for start, end in self.row_bounds]
        self.token_count = len(lengths) * longest
        self.equal_tokens = self.equal_rows
        self.starts = torch.arange(len(lengths)) * longest + ((longest - lengths) if left_pad else 0)
        return source.flatten(), real.flatten()

    @property
    def equal_rows(self) -> bool:
        """Whether all segments hold the same number of rows."""
        return len(set(self.row_counts)) == 1

    @cached_property
    def attention(self) -> AttentionPlan:
        """The attention groups of the stream."""
        return AttentionPlan(self.lengths, self.starts, self.token_count, self.gaps, self.device)

    @cached_property
    def tokens_of_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows, longest) place of each row's tokens in the stream (in the flattened padded batch), past a row's end
        that of its last one; and whether it is past the end."""
        place = torch.arange(int(self.lengths.max()))[None]
        last = (self.lengths - 1)[:, None]
        places = self.starts[:, None] + torch.minimum(place, last)
        return to_device(places, self.device), to_device(place > last, self.device)

    @cached_property
    def first(self) -> torch.Tensor:
        """(rows,) place of each row's first token in the stream (in the flattened padded batch)."""
        return to_device(self.starts, self.device)

    @cached_property
    def last(self) -> torch.Tensor:
        """(rows,) place of each row's last token that is not padding."""
        return to_device(self.starts + self.store.last[self.rows], self.device)

    @cached_property
    def token_places(self) -> torch.Tensor:
        """(tokens,) int64: each token's number within its slot's micro-batch, whatever its neighbours are. In a padded
        batch row << 16 | place, so that it does not depend on the longest row."""
        if not self.is_stream:
            longest = self.token_count // len(self.rows)
            place = torch.arange(longest)[None] - (self.starts - torch.arange(len(self.rows)) * longest)[:, None]
            return to_device(((self._row_places()[:, None] << 16) + place).flatten(), self.device)
        parts = [
            torch.arange(segment.first_token, segment.first_token + end - start)
            for segment, (start, end) in zip(self.segments, self.token_bounds, strict=True)
        ]
        return to_device(torch.cat(parts), self.device)

    @cached_property
    def row_places(self) -> torch.Tensor:
        """(rows,) int64: each row's number within its slot's micro-batch."""
        return to_device(self._row_places(), self.device)

    def _row_places(self) -> torch.Tensor:
        parts = [torch.arange(segment.first_row, segment.first_row + len(segment.rows)) for segment in self.segments]
        return torch.cat(parts)


def _bounds(sizes: list[int]) -> list[tuple[int, int]]:
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return bounds
