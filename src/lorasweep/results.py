"""What each trial's kept checkpoint answered on every validation row: one small file a trial, for whoever compares.

`results/trial-00007.safetensors` beside the sweep's spool: labels, probabilities (float32, as the metrics were computed
from them) and losses, so that every metric can be computed again, and any two trials of a sweep be compared row by row.
Written whole or not at all, before the study hears of the trial's end. Neighbours: `stats` (what reads are for),
`outcomes` (writes), `leaderboard` (reads). Without torch, so that a leaderboard needs none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorasweep.config.home import sync_folder
from lorasweep.errors import StorageError
from lorasweep.stats import Results

if TYPE_CHECKING:
    from lorasweep.config.home import Folders

FORMAT = 1
SCORE = "score."  # tensors: what each row has of a metric


def folder_of(files: Path) -> Path:
    """Where the trials of one study leave theirs; `files` is what belongs to that study."""
    return files / "results"


def path_of(folder: Path, trial: int) -> Path:
    """The file of a trial."""
    return folder / f"trial-{trial:05d}.safetensors"


def write(folder: Path, trial: int, results: Results, about: dict[str, Any] | None = None) -> Path:
    """Store a trial's results; `about` are further JSON types for people. What was there before is replaced at once.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    from safetensors.numpy import save

    tensors = {
        "labels": np.ascontiguousarray(results.labels, dtype=np.min_scalar_type(max(1, int(results.labels.max())))),
        "probabilities": np.ascontiguousarray(results.probabilities, dtype=np.float32),
        **{f"{SCORE}{name}": np.ascontiguousarray(rows, dtype=np.float64) for name, rows in results.scores.items()},
    }
    if results.losses is not None:
        tensors["losses"] = np.ascontiguousarray(results.losses, dtype=np.float32)
    header = {"format": FORMAT, "label_names": results.label_names, "rows_id": results.rows_id, **(about or {})}
    path = path_of(folder, trial)
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            file.write(save(tensors, metadata={"lorasweep": json.dumps(header)}))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:  # no room, for one: the worker says so, and no half file stays
        part.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return path


def read(folders: Folders, sweep: str, trial: int) -> Results | None:
    """The results of a search's trial; None where it left none: it did not complete, or an older version ran it.

    Raises:
        StorageError: the file was damaged.
    """
    return read_file(path_of(folder_of(folders.sweep(sweep)), trial))


def read_file(path: Path) -> Results | None:
    """The results in one file, None where there is none.

    Raises:
        StorageError: it was damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        about = json.loads(json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["lorasweep"])
        tensors = load(raw)
        scores = {name.removeprefix(SCORE): rows for name, rows in tensors.items() if name.startswith(SCORE)}
        return Results(
            tensors["labels"].astype(np.int64),
            tensors["probabilities"],
            tensors.get("losses"),
            about["label_names"],
            scores,
            about["rows_id"],
        )
    except (SafetensorError, KeyError, ValueError, UnicodeDecodeError) as error:
        raise StorageError(
            f"{path} is not what lorasweep wrote there ({type(error).__name__}: {error}); restore it from a backup, or "
            "delete it: its trial is then ranked without ties"
        ) from error
