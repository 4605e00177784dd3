"""Stores what people see of a sweep in MLflow: saved views, descriptions, the marks of its finalists.

What did not change is not written, and a description that somebody edited by hand stays theirs.
Neighbours: `tracking.views` and `tracking.notes` (build the values), `publishing` (calls).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorasweep.provenance import redact
from lorasweep.tracking.store import open_client, readable_errors
from lorasweep.tracking.views import Shown, saved_views

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from lorasweep.config.home import Folders

NOTE = "mlflow.note.content"  # MLflow's own tag of a description
WRITTEN = "lorasweep.note"  # the digest of the description that we wrote last
FINALIST = "lorasweep.finalist"


@dataclass(frozen=True)
class Place:
    """Where a sweep is in MLflow: its experiment, and the sweep's own run ("" before it has one)."""

    experiment_id: str
    sweep_run_id: str


def find(folders: Folders, sweep: str) -> Place | None:
    """The place of a sweep, None where MLflow has none."""
    if folders.server is None and not folders.mlflow_db.exists():
        return None
    client = open_client(folders)
    with readable_errors(f"look for sweep {sweep}"):
        experiment = client.get_experiment_by_name(sweep)
        if experiment is None or experiment.lifecycle_stage == "deleted":
            return None
        runs = client.search_runs([experiment.experiment_id], "tags.`lorasweep.kind` = 'sweep'", max_results=1)
        own = runs[0].info.run_id if runs else ""
        return Place(str(experiment.experiment_id), own)


def store_views(client: MlflowClient, experiment_id: str, shown: Shown, missing: bool = False) -> None:
    """Write the saved views that are new or changed; with `missing` only those that are not there."""
    experiment = client.get_experiment(experiment_id)
    shown = replace(shown, created_ms=int(experiment.creation_time or 0))
    for tag, value in saved_views(shown).items():
        if tag not in experiment.tags or not (missing or experiment.tags[tag] == value):
            client.set_experiment_tag(experiment_id, tag, value)


def publish(folders: Folders, place: Place, shown: Shown, note: str, finalists: dict[str, int] | None) -> None:
    """Views, the description of the experiment and of the sweep's own run, and a tag on the finalists' runs.

    `finalists`: run id -> trial number; None: somebody else marks them.

    Raises:
        StorageError: MLflow's database cannot be written.
    """
    client = open_client(folders)
    with readable_errors("write the views and descriptions of a sweep"):
        store_views(client, place.experiment_id, shown)
        tags = client.get_experiment(place.experiment_id).tags
        for tag, value in _note_tags(note, tags).items():
            client.set_experiment_tag(place.experiment_id, tag, value)
        if place.sweep_run_id:
            for tag, value in _note_tags(note, client.get_run(place.sweep_run_id).data.tags).items():
                client.set_tag(place.sweep_run_id, tag, value)
        if finalists is not None:
            _mark(client, place.experiment_id, finalists)


def describe_model(folders: Folders, model: str, note: str) -> None:
    """Write a registered model's description, where nobody has edited it.

    Raises:
        StorageError: there is no such model, or the database cannot be written.
    """
    client = open_client(folders)
    with readable_errors(f"describe registered model {model}"):
        found = client.get_registered_model(model)
        tags = {NOTE: found.description or "", WRITTEN: found.tags.get(WRITTEN, "")}
        wanted = _note_tags(note, tags)
        if wanted:
            client.update_registered_model(model, description=wanted[NOTE])
            client.set_registered_model_tag(model, WRITTEN, wanted[WRITTEN])


def _note_tags(note: str, there: dict[str, str]) -> dict[str, str]:
    """The tags to write; none where the note is there already, or another one that is not ours."""
    note = redact(note)
    now = there.get(NOTE, "")
    if now == note or (now and there.get(WRITTEN) != _digest(now)):
        return {}
    return {NOTE: note, WRITTEN: _digest(note)}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _mark(client: MlflowClient, experiment_id: str, finalists: dict[str, int]) -> None:
    """Tag the runs of the finalists, and no others."""
    marked = client.search_runs([experiment_id], f"tags.`{FINALIST}` LIKE '%'", max_results=1000)
    before = {run.info.run_id for run in marked}
    for run_id in before - finalists.keys():
        client.delete_tag(run_id, FINALIST)
    new = finalists.keys() - before
    if not new:
        return
    named = ", ".join(f"'{run_id}'" for run_id in sorted(new))
    for run in client.search_runs([experiment_id], f"attributes.run_id IN ({named})"):  # those that nobody deleted
        client.set_tag(run.info.run_id, FINALIST, str(finalists[run.info.run_id]))
