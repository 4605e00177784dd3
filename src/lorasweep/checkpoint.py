"""A worker's checkpoints: one file each, whole or not there, the newest two kept.

A file's name carries the sha256 of all its bytes, so what is read is what was written: a file that was cut or changed
does not match its name, and the one before it is taken instead. safetensors with the state that is no tensor as one
JSON text in its header. They lie in the tracking folder, or where every host finds them (`tracking.files`).
Neighbours: `depot` (the files), `worker` (what is saved when), `training.snapshot` (a pack's part of it).
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import failpoints
from lorasweep.config.home import Folders
from lorasweep.depot import Depot, FolderDepot, files_of
from lorasweep.errors import DiskFull, StorageError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

KEPT = 2  # the newest, and the one before it for when the newest is damaged
SINGLE = "checkpoint"  # written by one process, whose halves failpoints know
FORMAT = 1  # grows when an older reader would misread
NAME = re.compile(r"(?P<count>\d{6,})-(?P<digest>[0-9a-f]{32})\.safetensors")
FULL_WORDS = ("database or disk is full", "No space left on device")  # of sqlite, and of libraries not in Python
LOADING_SECONDS = 60.0  # that a place which fails is asked again for what a worker needs to begin
RETRY_SECONDS = 2.0  # between two tries
SHARE_FOR_RETRIES = 0.05  # of a worker's time at most, where a place that fails says so slowly; and yet
RETRY_AT_LATEST_SECONDS = 300.0  # it is asked again
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, a limit on file sizes


@dataclass(frozen=True)
class Checkpoint:
    """What `Checkpoints.save` was given. `notes`: what had to be passed over to find it, for people."""

    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)


class NotSaved(StorageError):
    """The place of checkpoints takes none at this moment; those before it are whole."""


class NotRead(StorageError):
    """The place of checkpoints cannot be read at this moment; what lies there is not lost."""


class Checkpoints:
    """The checkpoints of one worker, in a place of its own. `owner`: whose they are, kept inside each, so that one that
    was copied in from elsewhere is known; "" asks nothing."""

    def __init__(self, place: Depot | Path, kept: int = KEPT, owner: str = ""):
        self.owner = owner
        self.depot: Depot = FolderDepot(place, SINGLE) if isinstance(place, Path) else place
        self.kept = kept
        self._again_at, self._warned = 0.0, False  # time.monotonic()

    @property
    def folder(self) -> Path | None:
        """Where they lie, None where that is no folder."""
        return self.depot.folder

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Return once the checkpoint is there for good; `state` are JSON types, names of tensors are free.

        Raises:
            DiskFull: there is no room; what was there before is untouched.
            NotSaved: a place that is reached over a network takes none now.
        """
        from safetensors.torch import save

        header = {"lorasweep": json.dumps({"format": FORMAT, "owner": self.owner, **state})}
        raw = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata=header)
        try:
            earlier = self._files()
            count = earlier[0][0] + 1 if earlier else 1
            self.depot.write(f"{count:06d}-{_digest(raw)}.safetensors", raw)
        except OSError as error:
            if error.errno in FULL and self.folder is not None:
                raise disk_full(self.folder, len(raw), error) from error
            if not self.depot.shared:
                raise
            raise NotSaved(f"no checkpoint could be saved: {error.strerror or error}") from error
        failpoints.reach("checkpoint-whole")
        with self._keeping_where_away():
            for _, name in earlier[self.kept - 1 :]:
                self.depot.remove(name)

    def save_where_possible(self, state: Callable[[], tuple[dict[str, Any], dict[str, torch.Tensor]]]) -> bool:
        """`save`, where the place does not fail: a failure is warned of once and the place left alone for a while,
        because training goes on and can be repeated from the checkpoint before. Whether it is saved; `state` is not
        asked for where the place is left alone.

        Raises:
            DiskFull: as `save`.
        """
        began = time.monotonic()
        if began < self._again_at:
            return False
        try:
            self.save(*state())
        except NotSaved as error:
            if not self._warned:
                log.warning("%s. Training goes on, and it is tried again: a kill would repeat more of it", error)
            self._again_at, self._warned = again_at(began), True
            return False
        if self._warned:
            log.warning("checkpoints are saved again")
        self._warned = False
        return True

    def load(self, patience_seconds: float = LOADING_SECONDS) -> Checkpoint | None:
        """The newest whole checkpoint, None where none was ever written or all are damaged (then with a note).

        Raises:
            NotRead: a place that is reached over a network cannot be read, for so long by now.
        """
        until = time.monotonic() + patience_seconds
        while True:
            try:
                return self._load()
            except OSError as error:
                if not self.depot.shared:
                    raise
                if time.monotonic() > until:
                    raise NotRead(f"checkpoints cannot be read: {error}") from error
            time.sleep(RETRY_SECONDS)

    def _load(self) -> Checkpoint | None:
        notes: list[str] = []
        for _, name in self._files():
            found = self._read(name, notes)
            if found is not None:
                return found
        return Checkpoint({}, {}, notes) if notes else None

    def clear(self) -> None:
        """Forget all: what they were for has ended."""
        with self._keeping_where_away():
            for name in ["unfinished", *(name for _, name in self._files())]:
                self.depot.remove(name)

    @contextmanager
    def _keeping_where_away(self) -> Iterator[None]:
        """Old checkpoints that cannot be removed now stay: they harm nobody."""
        try:
            yield
        except OSError as error:
            if not self.depot.shared:
                raise
            log.warning("old checkpoints stay: %s", error.strerror or error)

    def _files(self) -> list[tuple[int, str]]:
        """(count, name), newest first."""
        found = [NAME.fullmatch(name) for name in self.depot.names()]
        return sorted(((int(match["count"]), match.string) for match in found if match), reverse=True)

    def _read(self, name: str, notes: list[str]) -> Checkpoint | None:
        from safetensors.torch import load

        match, path = NAME.fullmatch(name), self.depot.place_of(name)
        assert match is not None
        try:
            raw = self.depot.read(name)
        except OSError as error:
            if self.depot.shared and not isinstance(error, FileNotFoundError):
                raise  # a place that is away is no reason to train again what it has
            notes.append(f"checkpoint {path} cannot be read ({error}); the one before it is taken")
            return None
        if _digest(raw) != match["digest"]:
            notes.append(
                f"checkpoint {path} is damaged: its {len(raw):,} bytes are not those that were written; "
                "the one before it is taken"
            )
            return None
        try:
            header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
            state, tensors = json.loads(header["__metadata__"]["lorasweep"]), load(raw)
            written_as, owner = state.pop("format"), state.pop("owner", "")
        except Exception as error:  # its name fits, so somebody gave it that name
            notes.append(
                f"checkpoint {path} is none of lorasweep's ({type(error).__name__}); the one before it is taken"
            )
            return None
        if written_as != FORMAT:
            notes.append(f"checkpoint {path} was written by another version of lorasweep and cannot be read")
            return None
        if owner and self.owner and owner != self.owner:
            notes.append(f"checkpoint {path} is that of {owner}, not of {self.owner}; the one before it is taken")
            return None
        return Checkpoint(state, tensors, notes)


def again_at(began: float) -> float:
    """When a place that has just failed is asked again; both are time.monotonic(), `began` that of the question."""
    now = time.monotonic()
    return now + min(max(RETRY_SECONDS, (now - began) / SHARE_FOR_RETRIES), RETRY_AT_LATEST_SECONDS)


def checkpoints_of(folders: Folders, sweep: str, *place: str) -> Checkpoints:
    """The checkpoints of one place (a post, a trial) on a sweep."""
    files = files_of(folders, sweep, "checkpoints", *place, single=SINGLE)
    return Checkpoints(files, owner="/".join([sweep, *(part for part in place if part)]))


def forget_checkpoints(folders: Folders, sweep: str) -> None:
    """Remove all checkpoints of a sweep that has ended, those of dead workers too."""
    try:
        files_of(folders, sweep, "checkpoints", single=SINGLE).clear()
    except OSError as error:
        log.warning("old checkpoints stay: %s", error)


@contextmanager
def pausing_on_full_disk(sweep: str, folder: Path) -> Iterator[None]:
    """Any error that a full disk is behind of, as one DiskFull that says how the sweep goes on."""
    try:
        yield
    except Exception as error:
        if not full_disk_in(error):
            raise
        what = error if isinstance(error, DiskFull) else disk_full(folder, None, error)
        raise DiskFull(
            f"sweep {sweep} is paused: {what}. What was saved before is whole. Make room, then continue with "
            f"`lorasweep resume {sweep}`"
        ) from error


def disk_full(folder: Path, needed: int | None, error: BaseException) -> DiskFull:
    """The error that says what is missing where."""
    try:
        room = os.statvfs(folder if folder.is_dir() else folder.parent)
        free = f"{room.f_bavail * room.f_frsize / 2**20:,.1f} MiB are free"
    except (AttributeError, OSError):  # not POSIX, or the folder is gone
        free = "how much is free is not known"
    asked = f", {needed / 2**20:,.1f} MiB were to be written" if needed is not None else ""
    return DiskFull(f"the disk of {folder} takes no more ({error}): {free}{asked}")


def full_disk_in(error: BaseException) -> bool:
    """Whether an error, or what caused it, is a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if any(words in str(seen) for words in FULL_WORDS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:32]
