"""Artifacts as files: a run's own folder, whole files or none. Neighbours: `tracking` and `report`, the users."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from lorasweep.errors import StorageError
from lorasweep.tracking_store import local_folder, open_client, readable_errors

if TYPE_CHECKING:
    from mlflow.entities import Run

    from lorasweep.config.home import Folders


def artifact_folder(run: Run) -> Path:
    """Where a run keeps its artifacts. StorageError where that is not in a local folder."""
    folder = local_folder(run.info.artifact_uri)
    if folder is None:
        raise StorageError(
            f"run {run.info.run_id} keeps its artifacts at {run.info.artifact_uri}, not in a local folder"
        )
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a text file; a reader sees the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def place(source: Path, target: Path) -> None:
    """Copy a file or folder to an artifact's place; a reader sees the old one or the whole new one, never half."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    if part.is_dir():
        shutil.rmtree(part)
    if source.is_dir():
        shutil.copytree(source, part)
        if target.is_dir():
            shutil.rmtree(target)
    else:
        shutil.copy2(source, part)
    part.replace(target)


def attach_to_sweep(folders: Folders, sweep: str, files: dict[str, Path]) -> None:
    """Copy files or folders into the artifacts of the sweep's own run; `files`: artifact path -> source.

    Raises:
        StorageError: MLflow has no run of this sweep, or cannot be written.
    """
    client = open_client(folders)
    with readable_errors(f"attach {', '.join(files)} to sweep {sweep}"):
        experiment = client.get_experiment_by_name(sweep)
        clause = "tags.`lorasweep.kind` = 'sweep'"
        runs = client.search_runs([experiment.experiment_id], clause, max_results=1) if experiment else []
        if not runs:
            raise StorageError(f"{folders.mlflow_db} has no run of sweep {sweep}; `lorasweep sweep {sweep}` makes it")
        for name, source in files.items():
            place(source, artifact_folder(runs[0]) / name)
