"""A place of whole files: a folder (of this machine, or one that all hosts mount), or a store such as s3://.

What is written is there whole or not at all, and a reader sees the old file or the new one, never half. Checkpoints and
per-row results lie in such places, so that a trial whose node died goes on elsewhere (`tracking.files`). All trouble is
an OSError, as a disk's would be; FileNotFoundError for a name that is not there. A request to a store is given seconds
and few tries: whoever writes knows when to try again. Neighbours: `checkpoint` and `results` (the users),
`config.address` (what an address may be).
"""

from __future__ import annotations

import errno
import os
import uuid
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from lorasweep import failpoints
from lorasweep.config import address
from lorasweep.config.home import Folders, sync_folder
from lorasweep.errors import StorageError

CONNECT_SECONDS, READ_SECONDS = 5, 20  # of one request to an S3 store
TRIES = 2  # of one request, and of what s3fs itself would try again
PATIENCE_SECONDS = 30.0  # for one file with all its requests, and further time by its size:
SLOWEST_BYTES_PER_SECOND = 1 << 20
CHECK_SECONDS = 10.0
SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


class Depot(Protocol):
    """Files by name in one place; names hold no slash. Every method may raise OSError."""

    @property
    def folder(self) -> Path | None:
        """The folder, None where it is none of this machine's file system."""

    @property
    def shared(self) -> bool:
        """Whether it is reached over a network, so that trouble may pass."""

    def at(self, *parts: str) -> Depot:
        """A place below; nothing need be there yet."""

    def place_of(self, name: str) -> str:
        """Where a file lies, for people."""

    def names(self) -> list[str]:
        """Names of the whole files, in no order; empty where nothing was ever written."""

    def read(self, name: str) -> bytes:
        """All of a file."""

    def write(self, name: str, raw: bytes) -> None:
        """Return once the file is there under its name and would outlive a crash; replaces the one before it."""

    def remove(self, name: str) -> None:
        """Make sure that no file has this name."""

    def clear(self) -> None:
        """Remove every file here and below."""


@dataclass(frozen=True)
class FolderDepot:
    """Files in a folder: written under another name, synced, renamed.

    `single`: what the one process that writes here writes, as `failpoints` calls it. Its unfinished file is always
    `new.part`, where the next process finds it; None: several write, each file beside its name."""

    folder: Path
    single: str | None = None
    shared: bool = False

    def at(self, *parts: str) -> FolderDepot:
        """See `Depot`."""
        return replace(self, folder=self.folder.joinpath(*parts))

    def place_of(self, name: str) -> str:
        """See `Depot`."""
        return str(self.folder / name)

    def names(self) -> list[str]:
        """See `Depot`."""
        try:
            return [path.name for path in self.folder.iterdir() if path.suffix != ".part" and path.is_file()]
        except FileNotFoundError:
            return []

    def read(self, name: str) -> bytes:
        """See `Depot`."""
        return (self.folder / name).read_bytes()

    def write(self, name: str, raw: bytes) -> None:
        """See `Depot`."""
        part = self._part(name)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)  # what a kill left, or a link out of here that somebody else laid
            with part.open("xb") as file:  # never through a link
                half = len(raw) // 2
                file.write(raw[:half])
                self._reach("half")
                file.write(raw[half:])
                file.flush()
                os.fsync(file.fileno())
            self._reach("unnamed")
            part.replace(self.folder / name)
            sync_folder(self.folder)
        except BaseException:  # no room, for one, or a second Ctrl-C: no half file stays
            part.unlink(missing_ok=True)
            raise

    def remove(self, name: str) -> None:
        """See `Depot`."""
        for path in (self.folder / name, self._part(name)):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """See `Depot`. Folders stay."""
        for path in self.folder.rglob("*"):
            if not path.is_dir():
                path.unlink(missing_ok=True)

    def _part(self, name: str) -> Path:
        return self.folder / ("new.part" if self.single else f"{Path(name).stem}.part")

    def _reach(self, where: str) -> None:
        if self.single:
            failpoints.reach(f"{self.single}-{where}")


@dataclass(frozen=True)
class StoreDepot:
    """Files below an address that fsspec knows, s3://bucket/prefix foremost; a put is whole or not there. Nothing of
    the store is remembered between calls: others write to it. `place` holds no login: the store's client finds it in
    the environment or in its own files."""

    place: str
    patience_seconds: float = PATIENCE_SECONDS

    @property
    def folder(self) -> None:
        """See `Depot`."""
        return

    @property
    def shared(self) -> bool:
        """See `Depot`."""
        return True

    def at(self, *parts: str) -> StoreDepot:
        """See `Depot`."""
        return replace(self, place="/".join([self.place, *(part for part in parts if part)]))

    def place_of(self, name: str) -> str:
        """See `Depot`."""
        return f"{self.place}/{name}"

    def names(self) -> list[str]:
        """See `Depot`."""
        try:
            found = self._ask("ls", "", detail=True)
        except FileNotFoundError:
            return []
        return [item["name"].rsplit("/", 1)[-1] for item in found if item["type"] == "file"]

    def read(self, name: str) -> bytes:
        """See `Depot`."""
        return bytes(self._ask("cat_file", name))

    def write(self, name: str, raw: bytes) -> None:
        """See `Depot`."""
        self._ask("pipe_file", name, raw, seconds=len(raw) / SLOWEST_BYTES_PER_SECOND)

    def remove(self, name: str) -> None:
        """See `Depot`."""
        try:
            self._ask("rm_file", name)
        except FileNotFoundError:
            return

    def clear(self) -> None:
        """See `Depot`."""
        try:
            found = self._ask("find", "")
        except FileNotFoundError:
            return
        here = self._system()._strip_protocol(self.place)
        for path in found:
            self.remove(path.removeprefix(f"{here}/"))

    def _system(self) -> Any:
        """The file system of this address: fsspec keeps one a process, also where this process was forked."""
        import fsspec

        scheme = self.place.partition("://")[0]
        options: dict[str, Any] = {"use_listings_cache": False}
        if scheme in ("s3", "s3a"):
            retries = {"total_max_attempts": TRIES, "mode": "standard"}
            limits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": retries}
            options["config_kwargs"] = limits
        system = fsspec.filesystem(scheme, **options)
        if hasattr(system, "retries"):
            system.retries = TRIES
        return system

    def _ask(self, what: str, name: str, *values: Any, seconds: float = 0.0, **options: Any) -> Any:
        """One operation, its errors as OSErrors that say where. `seconds`: further ones that its size may take."""
        from fsspec.asyn import sync

        try:
            system = self._system()
            path = system._strip_protocol(f"{self.place}/{name}".rstrip("/"))
            system.invalidate_cache()
            if not system.async_impl:
                return getattr(system, what)(path, *values, **options)
            bound = self.patience_seconds + seconds
            return sync(system.loop, partial(getattr(system, f"_{what}"), path, *values, **options), timeout=bound)
        except FileNotFoundError as error:
            said = getattr(error.__cause__, "response", {}).get("Error", {})  # botocore's
            if said.get("Code") == "NoSuchBucket":  # s3fs has one error for that and for no such file
                raise OSError(errno.ENXIO, f"{self.place}: {_short(error)}") from error
            raise
        except Exception as error:  # a client's own, of botocore for one
            kind = getattr(error, "errno", None) or _kind_of(error)
            raise OSError(kind, f"{self.place}: {_short(error)}") from error


def files_of(folders: Folders, sweep: str, *place: str, single: str | None = None) -> Depot:
    """The place of what belongs to a sweep and must be found from every host: below `tracking.files`, else beside the
    sweep's spool. `single`: as `FolderDepot`."""
    parts = [part for part in place if part]
    if folders.files is None:
        return FolderDepot(folders.sweep(sweep).joinpath(*parts), single)
    return _root(folders.files, single).at(folders.sweep(sweep).name, *parts)


def _root(files: str, single: str | None = None, patience_seconds: float = PATIENCE_SECONDS) -> Depot:
    """The place that `tracking.files` names."""
    if address.is_store(files):
        return StoreDepot(files.rstrip("/"), patience_seconds)
    return FolderDepot(Path(files), single, shared=True)


def check_files(folders: Folders) -> None:
    """See, within seconds and before anything else is stored, that a file can be written to `tracking.files`, listed,
    read and removed; nothing where it is not set.

    Raises:
        StorageError: what is wrong, and how to mend it.
    """
    if folders.files is None:
        return
    depot = _root(folders.files, patience_seconds=CHECK_SECONDS)
    name, raw = f"lorasweep-check-{uuid.uuid4().hex}", os.urandom(64)
    try:
        depot.write(name, raw)
        try:
            whole = name in depot.names() and depot.read(name) == raw
        finally:
            depot.remove(name)
    except OSError as error:
        mend = "Choose a folder that you may write"
        cause = _cause(error) if depot.folder is None else f"{error.strerror or error}. {mend}"
        raise StorageError(f"`tracking.files`={folders.files} cannot be used: {cause}") from error
    if not whole:
        raise StorageError(
            f"`tracking.files`={folders.files} cannot be used: what was written there is not what is read back. "
            "Checkpoints need a place where a file that was written is seen by everybody at once"
        )


def _kind_of(error: Exception) -> int:
    if isinstance(error, ImportError):
        return errno.ENOPKG
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"):
        return errno.EACCES
    if isinstance(error, TimeoutError) or "Timeout" in name:
        return errno.ETIMEDOUT
    return errno.ENXIO if name == "ParamValidationError" else errno.EIO


def _short(error: Exception) -> str:
    """What a client says, on one line and without the secrets that it was given."""
    text = " ".join(str(error.strerror if isinstance(error, OSError) and error.strerror else error).split())
    for secret in filter(None, map(os.environ.get, SECRETS)):
        text = text.replace(secret, "…")
    return (text or type(error).__name__)[:300]


def _cause(error: OSError) -> str:
    """Rule and repair of what a store answered."""
    said, cause = str(error.strerror or error), error.__cause__
    said = said.partition(": ")[2] or said
    if isinstance(cause, ImportError):
        return f"{_short(cause)}. Install what reads it: pip install 'lorasweep[s3]' for s3://"
    if isinstance(cause, ValueError) and "rotocol" in said:  # fsspec's word for a scheme that it does not know
        return f"{said}. Write a folder, or s3://bucket/prefix"
    if error.errno in (errno.EACCES, errno.EPERM) or isinstance(cause, PermissionError):
        return (
            f"the store does not let us in ({said}). Its keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE or ~/.aws, and must allow to list, read, write and delete there"
        )
    if error.errno == errno.ENXIO or isinstance(cause, FileNotFoundError):
        return f"{said}. The bucket must exist: make it, or mend its name"
    return (
        f"the store does not answer ({said}). Another store than Amazon's is named by AWS_ENDPOINT_URL, which is "
        f"{os.environ.get('AWS_ENDPOINT_URL') or 'not set'}"
    )
