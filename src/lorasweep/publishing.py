"""Keeps MLflow's page about a sweep current: its saved views, its descriptions, and those of its registered model.

Called when a sweep ends, when `lorasweep ui` opens it and when a model of it is promoted, so that a running sweep's
page is current whenever it is opened by us. Neighbours: `ranking` (rows), `tracking.publish` (stores); `sweeping`,
`ui` and `promotion` call.
"""

from __future__ import annotations

from lorasweep.config.home import Folders
from lorasweep.ranking.board import Leaderboard
from lorasweep.records import TrialState
from lorasweep.search.study import SweepStudy
from lorasweep.tracking import publish as tracking_publish
from lorasweep.tracking.notes import Subject, model_note, sweep_note
from lorasweep.tracking.publish import Place
from lorasweep.tracking.views import USUAL_KEYS, Shown

BEST_SHOWN = 5  # trials in the view Finalists, where the sweep repeats none


def publish(study: SweepStudy, folders: Folders) -> None:
    """Write what changed since the last time.

    Raises:
        StorageError: MLflow's database cannot be read or written.
    """
    place = tracking_publish.find(folders, study.name)
    if place is None:
        return
    board = Leaderboard.of(study)
    best = {row["run_id"]: row["trial"] for row in board.rows if row["rank"] is not None and row["run_id"]}
    repeated = any(row.get("finalist") for row in board.rows)  # the repeats' own runs carry the mark, and the originals
    first = None if repeated else dict(list(best.items())[:BEST_SHOWN])
    note = sweep_note(_subject(study, board, place))
    tracking_publish.publish(folders, place, _shown(study, board), note, first)


def describe_model(study: SweepStudy, folders: Folders, model: str) -> None:
    """Write the description of a model that this sweep's trials are versions of.

    Raises:
        StorageError: as `publish`; there is no such model.
    """
    place = tracking_publish.find(folders, study.name)
    if place is not None:
        note = model_note(_subject(study, Leaderboard.of(study), place), model)
        tracking_publish.describe_model(folders, model, note)


def _subject(study: SweepStudy, board: Leaderboard, place: Place) -> Subject:
    config = study.config
    objectives = [(one.metric, one.direction) for one in study.goals.objectives]
    data = config.data.train if config.data.kind == "file" else config.data.hub_id or config.data.kind
    return Subject(
        study.name, objectives, board.rows, study.counts(), place.experiment_id, place.sweep_run_id,
        config.model.name or config.model.path, str(data),
    )  # fmt: skip


def _shown(study: SweepStudy, board: Leaderboard) -> Shown:
    logged = {name for row in board.rows for name in row["metrics"]}
    if any(row["state"] == TrialState.COMPLETE for row in board.rows):
        logged.add("train/loss")
    keys = [dimension.key for dimension in study.space.dimensions] if study.space is not None else []
    objectives = [(one.metric, one.direction) for one in study.goals.objectives]
    return Shown(objectives, keys or list(USUAL_KEYS), sorted(logged))
