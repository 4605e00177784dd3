"""The aliases `champion` and `challenger`: read, moved by one promotion at a time, rolled back.

Promotions that share a tracking folder, or a server from one host, wait for each other at a file lock, which the kernel
lets go of however its holder ends. Where two hosts share a server no lock reaches both: so the alias is read again
right before it moves, and right after, and a promotion that finds another champion than it was compared with does not
win. Neighbours: `registry` (decides), `tracking.store` (the client).
"""

from __future__ import annotations

import getpass
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.config.home import check_name
from lorasweep.errors import PromotionRefused
from lorasweep.registry.serve import known_models
from lorasweep.tracking.store import database_uri, open_client, readable_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from lorasweep.config.home import Folders

log = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
PREVIOUS = "lorasweep.previous_champion"


class ChampionMoved(Exception):
    """Another promotion moved the alias since this one looked."""


@contextmanager
def one_promotion_at_a_time(folders: Folders) -> Iterator[None]:
    """Wait until no other promotion runs, then hold the lock for the body."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with _lock_file(folders).open("r+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another promotion is under way; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _lock_file(folders: Folders) -> Path:
    """In the tracking folder, where that holds the registry; for a server in a place that all its users here share."""
    uri = database_uri(folders)
    if not uri.startswith(("http://", "https://")):
        folders.own.mkdir(parents=True, exist_ok=True)
        path = folders.own / "promotion.lock"
        path.touch()
        return path
    name = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"lorasweep-promotion-{name}.lock"
    if not path.exists():  # Linux refuses to "create" another user's file in /tmp even where it may be written
        path.touch(mode=0o666)
        path.chmod(0o666)  # whatever the umask: another user of this host must be able to hold it
    return path


def alias_of(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that carries an alias, None where there is no such model or alias.

    Raises:
        StorageError: the registry cannot be read, or the alias points to a version that is gone.
    """
    from mlflow.exceptions import MlflowException

    with readable_errors(f"read the model {name}"):
        try:
            aliases = client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return client.get_model_version(name, str(aliases[alias])) if alias in aliases else None


def version_of(version: ModelVersion | None) -> str | None:
    """Its number as text."""
    return None if version is None else str(version.version)


def move_champion(client: MlflowClient, name: str, version: str, before: ModelVersion | None) -> None:
    """Make `version` the champion in place of `before`, which becomes the challenger.

    Raises:
        ChampionMoved: `before` is no longer the champion; nothing was changed.
        PromotionRefused: another promotion moved the alias at the same moment and has it.
    """
    if version_of(alias_of(client, name, CHAMPION)) != version_of(before):
        raise ChampionMoved
    client.set_registered_model_alias(name, CHAMPION, version)
    now = version_of(alias_of(client, name, CHAMPION))
    if now != version:
        raise PromotionRefused(
            f"version {version} of {name} was promoted at the same moment as version {now}, from another host, and "
            f"version {now} has the alias `{CHAMPION}`. The two were not compared: promote again"
        )
    if before is not None:
        client.set_registered_model_alias(name, CHALLENGER, str(before.version))
        client.set_model_version_tag(name, str(before.version), "lorasweep.replaced_by", version)


def rollback(folders: Folders, name: str, reason: str | None = None) -> tuple[ModelVersion, ModelVersion]:
    """Give the alias `champion` back to the version that had it before: (that version, the one that had it till now),
    which becomes the challenger.

    Raises:
        PromotionRefused: there is no champion, or none before it.
    """
    from mlflow.exceptions import MlflowException

    check_name(name, "model name")
    client = open_client(folders)
    with one_promotion_at_a_time(folders), readable_errors(f"roll back {name}"):
        now = alias_of(client, name, CHAMPION)
        if now is None:
            raise PromotionRefused(f"the model {name} has no champion to roll back; {known_models(client, name)}")
        previous = now.tags.get(PREVIOUS)
        if previous is None:
            raise PromotionRefused(f"version {now.version} is the first champion of {name}; there is none before it")
        try:
            back = client.get_model_version(name, previous)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise PromotionRefused(
                f"version {previous} of {name}, the champion before version {now.version}, was deleted from the "
                f"registry; nothing changed. Promote another trial with --trial N"
            ) from None
        try:
            move_champion(client, name, previous, now)
        except ChampionMoved:
            raise PromotionRefused(
                f"another promotion moved the champion of {name} at this moment; nothing changed. Look, and try again"
            ) from None
        said = f"{stamp()} by {who()}" + (f": {reason}" if reason else "")
        client.set_model_version_tag(name, str(now.version), "lorasweep.rolled_back", said)
        client.set_model_version_tag(name, previous, "lorasweep.restored", said)
    return back, now


def champion(folders: Folders, name: str) -> dict[str, Any] | None:
    """{"version", "run_id", "tags"} of the champion, None where there is none."""
    check_name(name, "model name")
    found = alias_of(open_client(folders), name, CHAMPION)
    return None if found is None else {"version": str(found.version), "run_id": found.run_id, "tags": dict(found.tags)}


def stamp() -> str:
    """Now, as it stands in tags."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def who() -> str:
    """The user of this process, as far as the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in some containers
        return "unknown"


__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "ChampionMoved",
    "alias_of",
    "champion",
    "move_champion",
    "one_promotion_at_a_time",
    "rollback",
    "stamp",
    "version_of",
    "who",
]
