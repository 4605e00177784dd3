"""Keeps the frozen prefix's hidden states of every row that was asked for: in memory up to a budget, then on disk.

Whatever is computed also goes to disk where there is room, so that the next process and other workers find it and a
resumed sweep reads the very numbers it was trained on. Neighbours: `prefix` (computes states), `prefix_file` (disk),
`packed_lora` (asks for a batch's).
"""

from __future__ import annotations

import hashlib
import logging
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorasweep.models.forward import Entry
from lorasweep.models.prefix import is_pooled, states_of
from lorasweep.models.prefix_file import PrefixFile, PrefixFolder
from lorasweep.models.stream import Batch, RowStore

if TYPE_CHECKING:
    from lorasweep.models.base import LoadedBase

log = logging.getLogger(__name__)

FORMAT = "1"  # of the files; a change makes all older ones stale
FIRST_BYTES = 2**24  # a table starts with so much memory and doubles it
GIB = 2**30


class PrefixBudget:
    """What all cached states of a process may take: bytes of memory on the base's device, and a folder on disk."""

    def __init__(self, memory_gib: float, disk_gib: float = 0.0, folder: Path | None = None):
        """No memory means no cache at all; no folder or no room on disk: memory alone."""
        self.memory_bytes = int(memory_gib * GIB)
        self.disk = PrefixFolder(folder, int(disk_gib * GIB)) if folder is not None and disk_gib > 0 else None
        self.tables: weakref.WeakSet[StateTable] = weakref.WeakSet()

    @property
    def held(self) -> int:
        """Bytes of memory in use."""
        return sum(table.held for table in self.tables)

    def release(self) -> bool:
        """Give all memory back, for good, because the trials need it; False where none was held."""
        held = self.held
        for table in self.tables:
            table.forget()
        self.memory_bytes = 0
        return held > 0

    def summary(self) -> str:
        """A line for people; empty where nothing was cached."""
        rows, served = (sum(getattr(table, name) for table in self.tables) for name in ("computed", "served"))
        if not served:
            return ""
        disk = "" if self.disk is None else f", {self.disk.used / 2**20:,.0f} MiB on disk"
        return (
            f"frozen layers: computed for {rows:,} rows, used {served:,} times "
            f"({self.held / 2**20:,.0f} MiB of memory{disk})"
        )


class PrefixCache:
    """The states of one base's rows, for one engine."""

    def __init__(self, base: LoadedBase, budget: PrefixBudget):
        self.base, self.budget = base, budget
        self._tables: dict[tuple[int, int], StateTable] = {}  # (identity of the store, depth); a table holds its store
        self._lock = threading.Lock()  # forwards run side by side

    def entry(self, batch: Batch, depth: int) -> Entry:
        """Where the forward of a batch enters, its states gathered, read or computed."""
        with self._lock:
            states = self._table(batch.store, depth).gather(batch.rows)
        pooled = is_pooled(self.base, depth)
        if batch.gaps and not pooled:  # fill belongs to no row and goes nowhere: zeros will do
            whole = states.new_zeros(batch.token_count, states.shape[1])
            states = whole.index_copy_(0, batch.token_at.to(states.device), states)
        elif pooled and self.base.model.config.model_type == "gpt2":
            whole = states.new_zeros(batch.token_count, states.shape[1])
            states = whole.index_copy_(0, batch.last, states)
        return Entry(depth, states[None])

    def lacking(self, store: RowStore, rows: torch.Tensor, depth: int, tokens: int, parts: int) -> list[Fill]:
        """What is worth computing before forwards ask for these rows: in about `parts` parts of at most so many tokens.

        The parts may be computed at the same time; kept in order, they give rows the same bits in every run.
        """
        with self._lock:
            table = self._table(store, depth)
            chosen = table.absent(rows)
        if not len(chosen):
            return []
        lengths = torch.cumsum(store.lengths[chosen], 0)
        at_most = max(1, min(tokens, -(-int(lengths[-1]) // parts)))
        cuts = torch.diff((lengths - 1) // at_most).nonzero().squeeze(1) + 1
        return [Fill(table, part) for part in chosen.tensor_split(cuts)]

    def _table(self, store: RowStore, depth: int) -> StateTable:
        key = (id(store), depth)
        if key not in self._tables:
            self._tables[key] = StateTable(self.base, store, depth, self.budget)
        return self._tables[key]


@dataclass(frozen=True)
class Fill:
    """Rows whose states are computed together, ahead of the forwards that need them."""

    table: StateTable
    rows: torch.Tensor

    @property
    def tokens(self) -> int:
        """Tokens to compute."""
        return int(self.table.store.lengths[self.rows].sum())

    def compute(self) -> torch.Tensor:
        """The states, end to end; any number of threads may compute."""
        return states_of(self.table.base, self.table.store, self.rows, self.table.depth)

    @staticmethod
    def keep(fills: Sequence[Fill], states: Sequence[torch.Tensor]) -> None:
        """Put what fills computed where forwards find it, all rows of a table at once. One thread at a time."""
        tables: dict[StateTable, list[int]] = {}
        for index, fill in enumerate(fills):
            tables.setdefault(fill.table, []).append(index)
        for table, own in tables.items():
            table.keep(torch.cat([fills[index].rows for index in own]), torch.cat([states[index] for index in own]))


class StateTable:
    """States past `depth` blocks of one store's rows. Row i has sizes[i] of them: its tokens, or one where pooled."""

    def __init__(self, base: LoadedBase, store: RowStore, depth: int, budget: PrefixBudget):
        self.base, self.store, self.depth, self.budget = base, store, depth, budget
        self.sizes = torch.ones_like(store.lengths) if is_pooled(base, depth) else store.lengths
        like = states_of(base, store, store.lengths.argmin()[None], depth)
        self.memory = like.new_empty(0, like.shape[1])
        self.places = torch.full_like(self.sizes, -1)  # of a row's first state in memory
        self.taken = self.computed = self.served = 0
        self.file = self._open(like)
        budget.tables.add(self)

    def _open(self, like: torch.Tensor) -> PrefixFile | None:
        if self.budget.disk is None:
            return None
        base, store = self.base, self.store
        import transformers

        parts = (
            FORMAT, base.fingerprint, base.key.quantization, base.key.double_quant, base.key.precision, like.dtype,
            self.depth, is_pooled(base, self.depth), base.device.type, torch.__version__, transformers.__version__,
        )  # fmt: skip
        digest = hashlib.sha256(" ".join(map(str, parts)).encode())
        for tensor in (store.ids, store.type_ids, store.offsets, store.last if is_pooled(base, self.depth) else None):
            digest.update(b"-" if tensor is None else tensor.cpu().numpy().tobytes())
        return self.budget.disk.open(digest.hexdigest()[:32], self.sizes, like.shape[1], like.dtype)

    @property
    def held(self) -> int:
        """Bytes of memory."""
        return self.memory.numel() * self.memory.element_size()

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """States of the given rows, end to end, (their sizes, hidden)."""
        loose = self._fetch(rows[self.places[rows] < 0].unique())
        self.served += len(rows)
        sizes, places = self.sizes[rows], self.places[rows]
        # position of each state: its row's start in memory, plus its place within the row
        within = torch.arange(int(sizes.sum())) - torch.repeat_interleave(torch.cumsum(sizes, 0) - sizes, sizes)
        if not loose:
            at = torch.repeat_interleave(places, sizes) + within
            return self.memory.index_select(0, at.to(self.memory.device))
        starts, first = {}, 0
        for row, states in loose.items():
            starts[row] = first
            first += len(states)
        kept = places >= 0
        own = torch.tensor([starts.get(row, 0) for row in rows.tolist()])
        in_memory = torch.repeat_interleave(kept, sizes)
        at = torch.repeat_interleave(torch.where(kept, places, own), sizes) + within
        out = self.memory.new_empty(len(at), self.memory.shape[1])
        device = self.memory.device
        for chosen, source in ((in_memory, self.memory), (~in_memory, torch.cat(list(loose.values())))):
            out[chosen.to(device)] = source.index_select(0, at[chosen].to(device))
        return out

    def _fetch(self, missing: torch.Tensor) -> dict[int, torch.Tensor]:
        """Bring rows into memory from disk or by computing them; those that memory has no room for are returned."""
        if not len(missing):
            return {}
        rows, found = missing.tolist(), dict[int, torch.Tensor]()
        if self.file is not None:
            for row in rows:
                states = self.file.read(row)
                if states is not None:
                    found[row] = states.to(self.memory.device)
        lacking = [row for row in rows if row not in found]
        loose = {row: states for row, states in found.items() if not self._put(row, states)}
        if lacking:
            chosen = torch.tensor(lacking)
            loose |= self.keep(chosen, states_of(self.base, self.store, chosen, self.depth))
        return loose

    def absent(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of the rows that neither memory nor disk has, as far as there is room for them, each once."""
        missing = rows[self.places[rows] < 0].unique()
        if self.file is not None and len(missing):
            missing = missing[torch.tensor([not self.file.has(row) for row in missing.tolist()])]
        if not len(missing):
            return missing
        ends = torch.cumsum(self.sizes[missing], 0)
        if self.file is not None and self.file.folder.room(int(ends[-1]) * self._state_bytes):
            return missing
        return missing[ends <= self._room() - self.taken]

    def keep(self, rows: torch.Tensor, states: torch.Tensor) -> dict[int, torch.Tensor]:
        """Take in what was just computed, (the rows' sizes, hidden); what memory has no room for is returned."""
        numbers, parts = rows.tolist(), states.split(self.sizes[rows].tolist())
        self.computed += len(numbers)
        if self.file is not None:
            self._write(numbers, parts)
        return {row: part for row, part in zip(numbers, parts, strict=True) if not self._put(row, part)}

    def _write(self, rows: list[int], parts: Sequence[torch.Tensor]) -> None:
        assert self.file is not None
        try:
            self.file.write(rows, parts)
        except OSError as error:
            log.warning("the cache of frozen layers cannot be written (%s): it stays in memory from here on", error)
            self.file = None

    def forget(self) -> None:
        """Drop what memory holds; disk keeps what it has."""
        self.memory = self.memory.new_empty(0, self.memory.shape[1])
        self.places.fill_(-1)
        self.taken = 0

    def _put(self, row: int, states: torch.Tensor) -> bool:
        """Put a row's states into memory where there is room."""
        end = self.taken + len(states)
        if end > len(self.memory) and not self._grow(end):
            return False
        self.memory[self.taken : end] = states
        self.places[row] = self.taken
        self.taken = end
        return True

    @property
    def _state_bytes(self) -> int:
        return self.memory.shape[1] * self.memory.element_size()

    def _room(self) -> int:
        """States that this table may hold in memory, those that it does included."""
        return (self.budget.memory_bytes - self.budget.held + self.held) // self._state_bytes

    def _grow(self, wanted: int) -> bool:
        """Room for so many states in memory, if the budget has it."""
        first = FIRST_BYTES // self._state_bytes
        size = min(max(2 * len(self.memory), wanted, first), int(self.sizes.sum()), self._room())
        if size < wanted:
            return False
        try:
            memory = self.memory.new_empty(size, self.memory.shape[1])
        except RuntimeError:  # the device is full: the trials need it more
            return False
        memory[: self.taken] = self.memory[: self.taken]
        self.memory = memory
        return True
