"""Where a base's files are: a folder, the hub, or its cache; and what they are known by (a fingerprint).

One quick look decides, so that a machine without network hears it in seconds instead of after a chain of retries.
Neighbours: `base` (loads what is found here), `builtin` (bases that ship with us).
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from lorasweep.config.home import exists, given_path
from lorasweep.config.scale import HINT
from lorasweep.config.schema import ModelConfig
from lorasweep.errors import ConfigError, ModelError
from lorasweep.models.builtin import resolve

HUB_TIMEOUT_SECONDS = 5.0
HASH_WHOLE_BYTES = 2 * 2**30  # larger weight files are known by size, first and last 4 MiB
HASH_ENDS_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Source:
    """Where to load from: a folder's path or a hub id. `offline`: read the hub's cache alone."""

    path: str
    revision: str | None
    local: bool
    offline: bool


def locate(model: ModelConfig) -> Source:
    """Find a base's files.

    Raises:
        ConfigError: model.path is empty.
        ModelError: neither a folder with a config.json nor a hub id that can be reached or is cached.
    """
    path = resolve(model.path)
    if not path:
        raise ConfigError("model.path is empty; give a hub id or a folder, for example model.path=bert-base-uncased")
    folder = given_path(path)
    if exists(folder, Path.is_dir):
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.path={path}: the folder has no config.json, so it is not a Transformers checkpoint"
            )
        return Source(str(folder), None, local=True, offline=True)
    if exists(folder, Path.is_file):
        raise ModelError(f"model.path={path} is a file; give the folder that holds config.json and the weights")
    if not is_hub_id(path):
        raise ModelError(f"model.path={path}: there is no such folder, and it cannot be a hub id (NAME or OWNER/NAME)")
    return _on_hub(path, model.revision)


def is_hub_id(path: str) -> bool:
    """Whether a path that is no folder could name a model of the hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        return False
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def _on_hub(path: str, revision: str | None) -> Source:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    unreachable: tuple[type[BaseException], ...] = (*HfHubHTTPError.__bases__, OSError, OfflineModeIsEnabled)
    why = "HF_HUB_OFFLINE is set"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "TRUE", "YES", "ON"):
        try:
            get_hf_file_metadata(hf_hub_url(path, "config.json", revision=revision), timeout=HUB_TIMEOUT_SECONDS)
            return Source(path, revision, local=False, offline=False)
        except GatedRepoError as error:
            raise ModelError(
                f"model.path={path} is gated: accept its terms on the hub and run `hf auth login`"
            ) from error
        except HfHubHTTPError as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status is not None and status < 500 and status != 429:
                asked = f" at revision {revision}" if revision else ""
                raise ModelError(
                    f"model.path={path}{asked}: no such folder here, and the hub has no such model with a config.json "
                    f"for you (HTTP {status}). Check the spelling; a private model needs `hf auth login`"
                ) from error
            why = f"the hub answered HTTP {status}"
        except unreachable as error:  # the first of them are those of its HTTP library, whichever it uses
            why = f"the hub cannot be reached ({type(error).__name__})"
    if isinstance(try_to_load_from_cache(path, "config.json", revision=revision), str):
        return Source(path, revision, local=False, offline=True)
    raise ModelError(
        f"model.path={path} is neither a folder here nor in the hub's cache, and {why}. Give a checkpoint's folder, "
        f"or connect once so that the model can be fetched; {HINT}"
    )


def fingerprint(source: Source, commit: str | None) -> str:
    """sha256 (hex) that stands for config and weights: file contents of a folder, id and commit of a hub model."""
    digest = hashlib.sha256()
    if not source.local:
        digest.update(f"{source.path}@{commit or source.revision}".encode())
        return digest.hexdigest()
    folder = Path(source.path)
    weights = sorted(file for ending in ("*.safetensors", "*.bin") for file in folder.glob(ending))
    files = [folder / "config.json", *weights]
    return _digest_of(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.cache
def _digest_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files by path, size and time: a start asks more than once for the same gigabytes."""
    digest = hashlib.sha256()
    for file, _, _ in files:
        digest.update(f"{file.name}:{file.stat().st_size};".encode())
        with file.open("rb") as raw:
            if file.stat().st_size <= HASH_WHOLE_BYTES:
                while block := raw.read(HASH_ENDS_BYTES):
                    digest.update(block)
            else:
                digest.update(raw.read(HASH_ENDS_BYTES))
                raw.seek(-HASH_ENDS_BYTES, os.SEEK_END)
                digest.update(raw.read())
    return digest.hexdigest()
