"""The forward that is running: whose rows, which values, which random streams. Layers read it; nothing global does.

Neighbours: `packed_lora` and `full` (which make one for a batch), `base` (which runs it), `layers` and `prefix` (which
read it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from lorasweep.models.dropout import column_hash, keep_mask, row_hashes, threshold
from lorasweep.models.stream import Batch
from lorasweep.models.transfer import to_device

if TYPE_CHECKING:
    from lorasweep.models.decoding import KeyValues, StepBatch

Bounds = list[tuple[int, int]]

HASHED_TOGETHER = 32  # dropout layers whose row keys are hashed at once: launches, not arithmetic, are what they cost


@dataclass
class LoraPart:
    """One slot at one layer: A (r, in), B transposed (r, out) or None where it is not targeted, with gradient twins; a
    trained bias as its difference to the frozen one, or None."""

    a: torch.Tensor | None = None
    bt: torch.Tensor | None = None
    grad_a: torch.Tensor | None = None
    grad_bt: torch.Tensor | None = None
    scale: float = 1.0
    bias: torch.Tensor | None = None
    grad_bias: torch.Tensor | None = None

    @cached_property
    def a_t(self) -> torch.Tensor:
        """A transposed, (in, r)."""
        assert self.a is not None
        return self.a.t()

    @cached_property
    def b(self) -> torch.Tensor:
        """B, (out, r)."""
        assert self.bt is not None
        return self.bt.t()


@dataclass
class HeadPart:
    """One slot's own layer, of a head or another one: W (out, in), b (out,) or None, with gradient twins."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    grad_weight: torch.Tensor
    grad_bias: torch.Tensor | None


@dataclass
class Job:
    """All slots of a forward at one layer. `stacked` is one part whose tensors lead with (slots,), where all slots lie
    next to each other in the arena and take part, or on a GPU with idle ones between them: `places` are then the
    segments' places in the block. `scales` is (slots, 1, 1). `has_whole`: outside of a head, some slots have a weight
    of their own there, a HeadPart among parts that are a LoraPart or None."""

    parts: list[Any]
    stacked: Any = None
    scales: Any = None
    has_lora: bool = True
    has_whole: bool = False
    places: tuple[int, ...] = ()


@dataclass(frozen=True)
class PaddedRanges:
    """Unequal ranges as one padded block (ranges, longest), so that a GPU's launches do not grow with the ranges.

    gather (ranges * longest,): the position that each place reads, padding one of its own range; padding (ranges *
    longest, 1) bool; scatter (n,): the place of each position. has_empty: some ranges hold nothing, so that their
    padding reads another's and must be zeroed.
    """

    count: int
    gather: torch.Tensor
    padding: torch.Tensor
    scatter: torch.Tensor
    has_empty: bool = False

    @classmethod
    def of(cls, bounds: Bounds, device: torch.device, places: tuple[int, ...] = ()) -> PaddedRanges:
        """Lay out the given ranges, which follow one another without a gap. `places`: theirs among the block's ranges,
        in ascending order, those between them being empty."""
        edges = torch.zeros(places[-1] + 1 if places else len(bounds), 2, dtype=torch.int64)
        edges[list(places) if places else slice(None)] = torch.tensor(bounds)
        sizes = edges[:, 1] - edges[:, 0]
        place = torch.arange(int(sizes.max()))[None]
        padding = place >= sizes[:, None]
        gather = edges[:, :1] + torch.minimum(place, (sizes[:, None] - 1).clamp(min=0))
        scatter = (~padding).flatten().nonzero().squeeze(1)
        gather, padding, scatter = (to_device(it, device) for it in (gather.flatten(), padding.view(-1, 1), scatter))
        return cls(len(edges), gather, padding, scatter, has_empty=len(edges) > len(bounds))

    def pad(self, x: torch.Tensor) -> torch.Tensor:
        """(n, width) -> (ranges, longest, width); padding holds something finite or not, of its own range."""
        if self.has_empty:
            return self.pad_zero(x)
        return x.index_select(0, self.gather).unflatten(0, (self.count, -1))

    def pad_zero(self, x: torch.Tensor) -> torch.Tensor:
        """(n, width) -> (ranges, longest, width), zero at padding."""
        return x.index_select(0, self.gather).masked_fill_(self.padding, 0).unflatten(0, (self.count, -1))

    def unpad(self, x: torch.Tensor) -> torch.Tensor:
        """(ranges, longest, width) -> (n, width)."""
        return x.flatten(0, 1).index_select(0, self.scatter)


class Current:
    """The forward that is running over one base in this thread, if any. All its layers hold this object.

    A thread that runs none sees the one that was begun last: CUDA's backward, which recomputes activations, has a
    thread of its own (and a GPU one forward at a time).
    """

    def __init__(self) -> None:
        self._own = threading.local()
        self._last: Forward | None = None

    @property
    def forward(self) -> Forward | None:
        """What layers read."""
        return getattr(self._own, "forward", None) or self._last

    @forward.setter
    def forward(self, forward: Forward | None) -> None:
        self._own.forward = self._last = forward

    def __deepcopy__(self, memo: dict[int, Any]) -> Current:
        copy = Current()  # a private copy of the base has its own forwards
        memo[id(self)] = copy
        return copy


@dataclass
class Entry:
    """Where a forward enters the base: past its first `depth` blocks, with the hidden states that they would give,
    (1, tokens, hidden), or (1, rows, hidden) past a classifier's last block. None: record them and stop there."""

    depth: int
    states: torch.Tensor | None = None


@dataclass
class Forward:
    """One forward over a batch: whose rows, which values, which random streams.

    pad_ranges: multiply unequal ranges in one padded block. entry: None enters at the embeddings. keys: one 32-bit
    dropout key a segment, None in evaluation. adapter_rates, base_rates: dropout rates a segment; a base rate of None
    is the checkpoint's own. cache: where attention keeps and finds keys and values, in a generation.
    """

    batch: Batch | StepBatch
    jobs: dict[str, Job]
    dtype: torch.dtype
    anchor: torch.Tensor
    keys: list[int] | None = None
    adapter_rates: list[float] = field(default_factory=list)
    base_rates: list[float | None] = field(default_factory=list)
    pad_ranges: bool = False
    entry: Entry | None = None
    cache: KeyValues | None = None
    _ranges: dict[Any, PaddedRanges] = field(default_factory=dict)
    _places: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _rates: dict[Any, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    _rows: dict[Any, torch.Tensor] = field(default_factory=dict)
    _columns: dict[int, torch.Tensor] = field(default_factory=dict)
    _lowered: tuple[torch.Tensor, int, torch.Tensor] | None = None

    def flatten(
        self, x: torch.Tensor, kind: str
    ) -> tuple[torch.Tensor, Bounds, str, Callable[[torch.Tensor], torch.Tensor]]:
        """x (..., width) -> (n, width) with each segment contiguous, its bounds, "token", "row" or "" for what the
        first dimension counts, and the way back."""
        batch, lead = self.batch, x.shape[:-1]
        if kind == "second":
            flat = x.transpose(0, 1).reshape(-1, x.shape[-1])
            shape = (lead[1], lead[0])
            return flat, batch.token_bounds, "token", lambda y: y.unflatten(0, shape).transpose(0, 1)
        flat = x.reshape(-1, x.shape[-1])

        def back(y: torch.Tensor) -> torch.Tensor:
            return y.view(*lead, y.shape[-1])

        if kind in ("stream", "flat") or (kind == "grid" and len(lead) == 2 and lead[1] != 1):
            return flat, batch.token_bounds, "token", back
        if kind in ("grid", "pooled"):
            return flat, batch.row_bounds, "row", back
        return flat, [(0, len(flat))], "", back

    def lowered(self, x: torch.Tensor, flat: torch.Tensor) -> torch.Tensor:
        """x, as `flatten` laid it, in the type of the products. Layers that read the same x one after another (query,
        key and value do) share one copy."""
        if flat.dtype == self.dtype:
            return flat.detach()
        held = self._lowered
        if held is None or held[0] is not x or held[1] != x._version:
            held = self._lowered = (x, x._version, flat.detach().to(self.dtype))
        return held[2]

    def blocks(self, job: Job, bounds: Bounds) -> PaddedRanges | bool:
        """How a job's ranges are multiplied: True as one block (they are equal), a padded block, False one by one."""
        if job.stacked is None:
            return False
        if not job.places and len({end - start for start, end in bounds}) == 1:
            return True
        if not self.pad_ranges:
            return False
        key = (*bounds, *job.places)
        if key not in self._ranges:
            self._ranges[key] = PaddedRanges.of(bounds, self.batch.device, job.places)
        return self._ranges[key]

    def mask(
        self, count: str, layer: int, width: int, rates: list[float], bounds: Bounds
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """keep (n, width) bool and scale (n, 1) of a dropout layer, drawn from each slot's own stream."""
        assert self.keys is not None
        device, sizes = self.batch.device, torch.tensor([end - start for start, end in bounds])
        group = (count, layer // HASHED_TOGETHER)
        if group not in self._rows:
            if count not in self._places:
                assert isinstance(self.batch, Batch), "nothing is dropped in a generation"
                places = self.batch.token_places if count == "token" else self.batch.row_places
                keys = torch.repeat_interleave(torch.tensor(self.keys, dtype=torch.int32), sizes)
                self._places[count] = (to_device(keys, device), places.to(torch.int32))
            first = group[1] * HASHED_TOGETHER
            self._rows[group] = row_hashes(*self._places[count], range(first, first + HASHED_TOGETHER))
        if width not in self._columns:
            self._columns[width] = column_hash(width, device)
        found = (count, *rates)
        if found not in self._rates:
            limits = torch.tensor([threshold(rate) if rate else -(2**31) for rate in rates], dtype=torch.int32)
            scales = torch.tensor([1 / (1 - rate) for rate in rates], dtype=torch.float32)
            self._rates[found] = (
                to_device(torch.repeat_interleave(limits, sizes)[:, None], device),
                to_device(torch.repeat_interleave(scales, sizes)[:, None], device),
            )
        limits, scales = self._rates[found]
        rows = self._rows[group][layer % HASHED_TOGETHER]
        return keep_mask(rows, self._columns[width], limits), scales
