"""A worker's checkpoints on disk: one file each, whole or not there, the newest two kept.

A file is written under a temporary name, synced, and renamed to one that carries the sha256 of all its bytes, so what
is read is what was written: a file that was cut or changed does not match its name, and the one before it is taken
instead. safetensors with the state that is no tensor as one JSON text in its header. Neighbours: `worker` (what is
saved when), `training.snapshot` (a pack's part of it).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import failpoints
from lorasweep.config.home import Folders, sync_folder
from lorasweep.errors import DiskFull

if TYPE_CHECKING:
    import torch

KEPT = 2  # the newest, and the one before it for when the newest is damaged
FORMAT = 1  # grows when an older reader would misread
NAME = re.compile(r"(?P<count>\d{6,})-(?P<digest>[0-9a-f]{32})\.safetensors")
FULL_WORDS = ("database or disk is full", "No space left on device")  # of sqlite, and of libraries not in Python
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota, a limit on file sizes


@dataclass(frozen=True)
class Checkpoint:
    """What `Checkpoints.save` was given. `notes`: what had to be passed over to find it, for people."""

    state: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)


class Checkpoints:
    """The checkpoints of one worker, in a folder of its own."""

    def __init__(self, folder: Path, kept: int = KEPT):
        self.folder, self.kept = folder, kept

    def save(self, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        """Return once the checkpoint is on the disk; `state` are JSON types, names of tensors are free.

        Raises:
            DiskFull: there is no room; what was there before is untouched.
        """
        from safetensors.torch import save

        header = {"lorasweep": json.dumps({"format": FORMAT, **state})}
        raw = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata=header)
        earlier = self._files()
        count = earlier[0][0] + 1 if earlier else 1
        part = self.folder / "new.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                half = len(raw) // 2
                file.write(raw[:half])
                failpoints.reach("checkpoint-half")
                file.write(raw[half:])
                file.flush()
                os.fsync(file.fileno())
            failpoints.reach("checkpoint-unnamed")
            part.replace(self.folder / f"{count:06d}-{_digest(raw)}.safetensors")
            sync_folder(self.folder)
        except BaseException as error:  # a second Ctrl-C too
            part.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in FULL:
                raise disk_full(self.folder, len(raw), error) from error
            raise
        failpoints.reach("checkpoint-whole")
        for _, path in earlier[self.kept - 1 :]:
            path.unlink(missing_ok=True)

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, None where none was ever written or all are damaged (then with a note)."""
        notes: list[str] = []
        for _, path in self._files():
            found = _read(path, notes)
            if found is not None:
                return found
        return Checkpoint({}, {}, notes) if notes else None

    def clear(self) -> None:
        """Forget all: what they were for has ended."""
        for path in [self.folder / "new.part", *(path for _, path in self._files())]:
            path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[int, Path]]:
        """(count, path), newest first."""
        if not self.folder.is_dir():
            return []
        found = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted(((int(match["count"]), path) for match, path in found if match), reverse=True)


def checkpoints_of(folders: Folders, sweep: str, *place: str) -> Checkpoints:
    """The checkpoints of one place (a post, a trial) on a sweep."""
    return Checkpoints(folders.sweep(sweep).joinpath("checkpoints", *place))


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


def _read(path: Path, notes: list[str]) -> Checkpoint | None:
    from safetensors import safe_open

    match = NAME.fullmatch(path.name)
    assert match is not None
    try:
        raw = path.read_bytes()
    except OSError as error:
        notes.append(f"checkpoint {path} cannot be read ({error}); the one before it is taken")
        return None
    if _digest(raw) != match["digest"]:
        notes.append(
            f"checkpoint {path} is damaged: its {len(raw):,} bytes are not those that were written; "
            "the one before it is taken"
        )
        return None
    with safe_open(path, framework="pt") as file:
        state = json.loads(file.metadata()["lorasweep"])
        if state.pop("format") != FORMAT:
            notes.append(f"checkpoint {path} was written by another version of lorasweep and cannot be read")
            return None
        # an offset of the tensor into the file's mapping would outlive the file: copy
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    return Checkpoint(state, tensors, notes)


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:32]
