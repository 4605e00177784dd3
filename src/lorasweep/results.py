"""What each trial's kept checkpoint answered on every validation row: one small file a trial, for whoever compares.

`results/trial-00007.safetensors` among the sweep's files: labels, probabilities (float32, as the metrics were computed
from them) and losses, so that every metric can be computed again, and any two trials of a sweep be compared row by row.
Written whole or not at all, before the study hears of the trial's end. Neighbours: `depot` (the files), `stats` (what
reads are for), `outcomes` (writes), `ranking` (reads). Without torch, so that a leaderboard needs none.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from lorasweep.depot import Depot, files_of
from lorasweep.errors import StorageError
from lorasweep.stats import Results

if TYPE_CHECKING:
    from lorasweep.config.home import Folders

log = logging.getLogger(__name__)

FORMAT = 1
WRITING_SECONDS = 120.0  # that a store which fails is asked again to take a trial's results
RETRY_SECONDS = 2.0
SCORE = "score."  # tensors: what each row has of a metric


class Away(StorageError):
    """The place of results cannot be read now; what lies there is not lost."""


def place_of(files: Depot) -> Depot:
    """Where the trials of one study leave theirs; `files` is what belongs to that study."""
    return files.at("results")


def name_of(trial: int) -> str:
    """The name of a trial's file."""
    return f"trial-{trial:05d}.safetensors"


def write(place: Depot, trial: int, results: Results, about: dict[str, Any] | None = None) -> None:
    """Store a trial's results; `about` are further JSON types for people. What was there before is replaced at once.

    Raises:
        OSError: it cannot be written; what was there before stays.
        StorageError: a place that is reached over a network takes nothing, for two minutes by now.
    """
    from safetensors.numpy import save

    tensors = {
        "labels": np.ascontiguousarray(results.labels, dtype=np.min_scalar_type(max(1, int(results.labels.max())))),
        "probabilities": np.ascontiguousarray(results.probabilities, dtype=np.float32),
        **{f"{SCORE}{name}": np.ascontiguousarray(rows, dtype=np.float64) for name, rows in results.scores.items()},
    }
    if results.losses is not None:
        tensors["losses"] = np.ascontiguousarray(results.losses, dtype=np.float32)
    ours = {"format": FORMAT, "trial": trial, "label_names": results.label_names, "rows_id": results.rows_id}
    header = json.loads(json.dumps({**ours, **(about or {})}))  # as it will be read
    header["sha256"] = _sum(header, tensors)
    raw, warned = save(tensors, metadata={"lorasweep": json.dumps(header)}), False
    until = time.monotonic() + WRITING_SECONDS
    while True:
        try:
            return place.write(name_of(trial), raw)
        except OSError as error:
            if not place.shared or error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            what = f"the answers of trial {trial} cannot be stored: {error.strerror or error}"
            if time.monotonic() > until:
                raise StorageError(f"{what}; gave up after {WRITING_SECONDS:g} s. The trial stays open") from error
            if not warned:
                log.warning("%s. Its end waits for that", what)
            warned = True
        time.sleep(RETRY_SECONDS)


def read(folders: Folders, sweep: str, trial: int) -> Results | None:
    """The results of a search's trial; None where it left none: it did not complete, or an older version ran it.

    Raises:
        StorageError: the file was damaged, or cannot be read now.
    """
    return read_in(place_of(files_of(folders, sweep)), trial)


def read_in(place: Depot, trial: int) -> Results | None:
    """The results of a trial in one place, None where there are none.

    Raises:
        Away: they cannot be read now.
        StorageError: the file was damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        raw = place.read(name_of(trial))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Away(f"what trials answered cannot be read: {error}") from error
    try:
        about = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["lorasweep"])
        tensors, noted = load(raw), about.pop("sha256", None)
        if noted is not None and noted != _sum(about, tensors):  # older versions noted none
            raise ValueError("it was changed")
        if about.get("trial", trial) != trial:
            raise ValueError(f"it is that of trial {about['trial']}")
        scores = {name.removeprefix(SCORE): rows for name, rows in tensors.items() if name.startswith(SCORE)}
        return Results(
            tensors["labels"].astype(np.int64),
            tensors["probabilities"],
            tensors.get("losses"),
            about["label_names"],
            scores,
            about["rows_id"],
        )
    except (SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StorageError(
            f"{place.place_of(name_of(trial))} is not what lorasweep wrote there ({type(error).__name__}: {error}); "
            "restore it from a backup, or delete it: its trial is then ranked without ties"
        ) from error


def _sum(about: dict[str, Any], tensors: dict[str, Any]) -> str:
    """sha256 (hex) of all that a file holds."""
    whole = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, rows in sorted(tensors.items()):
        whole.update(f"{name} {rows.dtype} {rows.shape}".encode() + rows.tobytes())
    return whole.hexdigest()
