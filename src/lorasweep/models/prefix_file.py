"""Frozen prefixes' states on disk: rows that memory has no room for, and what an earlier process computed.

One file a base, data set and depth: four bytes a row (crc32 of its states, 0 while it has none), then the states at
fixed places, so that any number of processes share a file and it takes only the room of the rows in it. A row that
does not match its sum (half written, lost with the power) counts as absent and is computed again. Neighbour:
`prefix_cache`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

log = logging.getLogger(__name__)

ENDING = ".states"
LEFT_FREE_BYTES = 2**30  # of the disk, whatever the budget says


class PrefixFolder:
    """All such files of one cache folder, together at most `limit` bytes; the least recently opened go first."""

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self._open: set[Path] = set()

    def open(self, key: str, sizes: torch.Tensor, width: int, dtype: torch.dtype) -> PrefixFile | None:
        """The file of a key (hex), or None where the folder cannot be written."""
        path = self.folder / f"prefix-{key}{ENDING}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            os.utime(path)
        except OSError as error:
            log.warning("%s cannot be opened (%s): frozen prefixes stay in memory", path, error)
            return None
        self._open.add(path)
        self._drop_oldest()
        return PrefixFile(self, handle, sizes, width, dtype)

    def room(self, wanted: int) -> bool:
        """Whether so many more bytes may be written."""
        return self.used + wanted <= self.limit and shutil.disk_usage(self.folder).free - wanted > LEFT_FREE_BYTES

    @property
    def used(self) -> int:
        """Bytes that the files take on disk; their holes take none."""
        return sum(blocks for _, blocks, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        found = []
        for path in self.folder.glob(f"prefix-*{ENDING}"):
            with contextlib.suppress(FileNotFoundError):  # another process dropped it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_blocks * 512, path))
        return sorted(found)

    def _drop_oldest(self) -> None:
        files = self._files()
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total > self.limit and path not in self._open:
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= size


class PrefixFile:
    """One open file. Row i has sizes[i] states of `width` values."""

    def __init__(self, folder: PrefixFolder, handle: int, sizes: torch.Tensor, width: int, dtype: torch.dtype):
        self.folder, self._handle, self.width, self.dtype = folder, handle, width, dtype
        state = width * dtype.itemsize
        self._bytes = (sizes * state).tolist()
        starts = (torch.cumsum(sizes, 0) - sizes) * state + 4 * len(sizes)
        self._starts = starts.tolist()

    def has(self, row: int) -> bool:
        """Whether the file says that it has a row; reading it may find it damaged."""
        return os.pread(self._handle, 4, 4 * row) not in (b"", bytes(4))

    def read(self, row: int) -> torch.Tensor | None:
        """A row's states (states, width) on the CPU; None where the file has none that are whole."""
        size = self._bytes[row]
        stored = os.pread(self._handle, 4, 4 * row)
        if len(stored) < 4 or stored == bytes(4):
            return None
        raw = os.pread(self._handle, size, self._starts[row])
        if len(raw) != size or _sum(raw) != stored:
            return None
        return torch.frombuffer(bytearray(raw), dtype=self.dtype).view(-1, self.width)

    def write(self, rows: Sequence[int], states: Sequence[torch.Tensor]) -> bool:
        """Keep the states of some rows; False where there is no room for them."""
        raws = [one.contiguous().view(torch.uint8).cpu().numpy().tobytes() for one in states]
        if not self.folder.room(sum(map(len, raws))):
            return False
        for row, raw in zip(rows, raws, strict=True):
            os.pwrite(self._handle, raw, self._starts[row])
        sums = [_sum(raw) for raw in raws]
        for row, one in zip(rows, sums, strict=True):  # last, and at once: rows that were computed together are there
            os.pwrite(self._handle, one, 4 * row)  # together, so that a killed process goes on with the same ones
        return True

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._handle)


def _sum(raw: bytes) -> bytes:
    return (zlib.crc32(raw) or 1).to_bytes(4, "little")
