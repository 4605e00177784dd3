"""A run's artifacts: files in its own folder, or sent by way of a server; whole files or none.

What goes to a server lies in an outbox beside the spool until the server has it: a trial's end waits for nobody.
Neighbours: `tracking` and `closing`, the users; `tracking.server` (patience).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from lorasweep.errors import StorageError
from lorasweep.tracking import server as tracking_server
from lorasweep.tracking.store import local_folder, open_client, place_of, readable_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from lorasweep.config.home import Folders


class Artifacts(Protocol):
    """Where one run's artifacts go. Every method raises what MLflow or the file system raises."""

    def write_text(self, name: str, text: str) -> None:
        """Store a text as the artifact `name` at once."""

    def put(self, name: str, source: Path) -> None:
        """Take over a copy of a file or folder as the artifact `name`; MLflow has it after `send` at the latest."""

    def send(self) -> None:
        """Pass on what MLflow does not have yet."""


class FolderArtifacts:
    """Artifacts in a folder that this process can write."""

    def __init__(self, run: Run):
        self.folder = artifact_folder(run)

    def write_text(self, name: str, text: str) -> None:
        """See `Artifacts`."""
        write_text(self.folder / name, text)

    def put(self, name: str, source: Path) -> None:
        """See `Artifacts`."""
        place(source, self.folder / name)

    def send(self) -> None:
        """See `Artifacts`: all is there."""


class ServerArtifacts:
    """Artifacts that a server keeps. `outbox`: a folder of this run alone."""

    def __init__(self, client: MlflowClient, run_id: str, outbox: Path):
        self.client, self.run_id, self.outbox = client, run_id, outbox

    def write_text(self, name: str, text: str) -> None:
        """See `Artifacts`."""
        self.client.log_text(self.run_id, text, name)

    def put(self, name: str, source: Path) -> None:
        """See `Artifacts`."""
        place(source, self.outbox / name)

    def send(self) -> None:
        """See `Artifacts`. Sent twice, a file replaces itself."""
        if not self.outbox.is_dir():
            return
        with tracking_server.patient():
            self.client.log_artifacts(self.run_id, str(self.outbox))
        shutil.rmtree(self.outbox)


def artifacts_of(folders: Folders, client: MlflowClient, run: Run, outbox: Path) -> Artifacts:
    """Where a run's artifacts go, by where the tracking folder's runs are kept."""
    return FolderArtifacts(run) if folders.server is None else ServerArtifacts(client, run.info.run_id, outbox)


def artifact_folder(run: Run) -> Path:
    """Where a run keeps its artifacts. StorageError where that is not in a local folder."""
    folder = local_folder(run.info.artifact_uri)
    if folder is None:
        raise StorageError(
            f"run {run.info.run_id} keeps its artifacts at {run.info.artifact_uri}, not in a local folder"
        )
    return folder


def fetch(client: MlflowClient, run: Run, name: str, into: Path) -> Path | None:
    """The artifact `name` of a run as a local path: its own, or a copy below `into` from the server; None for none."""
    own = local_folder(run.info.artifact_uri)
    if own is not None:
        return own / name if (own / name).exists() else None
    with tracking_server.patient():
        if any(item.path == name for item in client.list_artifacts(run.info.run_id)):
            return Path(client.download_artifacts(run.info.run_id, name, str(into)))
    return None


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
            raise StorageError(f"{place_of(folders)} has no run of sweep {sweep}; `lorasweep sweep {sweep}` makes it")
        artifacts = artifacts_of(folders, client, runs[0], folders.spool(sweep) / "sweep.artifacts")
        for name, source in files.items():
            artifacts.put(name, source)
        artifacts.send()
