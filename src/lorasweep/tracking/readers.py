"""What commands other than a worker do with a tracked sweep: find it in MLflow, and pass on what still waits for it.

Neighbours: `tracking` (the worker's side), `spool` (what waits); `ui` and `sweeping` call.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from lorasweep.errors import LorasweepError
from lorasweep.tracking import spool as spools
from lorasweep.tracking.entities import batches_of, metric_entities
from lorasweep.tracking.runs import Series
from lorasweep.tracking.spool import Point
from lorasweep.tracking.store import open_client, place_of, readable_errors
from lorasweep.tracking.tracker import Tracker
from lorasweep.tracking.views import TAG

if TYPE_CHECKING:
    from lorasweep.config.home import Folders

log = logging.getLogger(__name__)


def replay(folders: Folders, sweep: str) -> int:
    """Send what a dead process left in the sweep's spools, and return how many points that were.

    For readers such as the UI; safe beside a running sweep, because points that are sent twice are stored once. Where
    several hosts share the sweep nothing is sent: another worker may have reported the same steps by now.
    """
    if folders.shared:
        return 0
    left: list[tuple[int, str, list[Point]]] = []
    for folder in (folders.spool(sweep), folders.finalists_spool(sweep)):
        for trial in spools.trials_in(folder):
            run_id, points = spools.unsent(spools.path_of(folder, trial))
            if run_id and points:
                left.append((trial, run_id, points))
    if not left:
        return 0
    client = open_client(folders)
    for trial, run_id, points in left:
        try:
            with readable_errors(f"store metrics of trial {trial}"):
                for batch in batches_of(points):
                    client.log_batch(run_id, metrics=metric_entities(batch), synchronous=True)
        except LorasweepError as error:
            log.warning("%s", error)
    return sum(len(points) for _, _, points in left)


def newest_experiment(folders: Folders, sweep: str | None) -> tuple[str, str] | None:
    """(name, id) of the sweep's experiment (`sweep` None: of the sweep written to last), None where there is none."""
    found = [item for item in _sweep_experiments(folders) if sweep in (None, item.name)]
    newest = max(found, key=lambda item: item.last_update_time or 0, default=None)
    return (newest.name, newest.experiment_id) if newest else None


def sweep_names(folders: Folders) -> list[str]:
    """Names of the sweeps that are tracked here."""
    return sorted(item.name for item in _sweep_experiments(folders))


def _sweep_experiments(folders: Folders) -> list[Any]:
    with readable_errors(f"list the experiments of {place_of(folders)}"):
        return [item for item in open_client(folders).search_experiments() if TAG in item.tags]


def settle(folders: Folders, sweep: str) -> None:
    """Pass on what a finished sweep's processes could not: metrics and ends of its runs.

    Raises:
        StorageError: MLflow cannot be written now either; nothing is lost.
    """
    for series in (Series("trial", folders.spool(sweep)), Series("finalist", folders.finalists_spool(sweep))):
        if all(spools.is_settled(series.spool, number) for number in spools.trials_in(series.spool)):
            continue
        tracker = Tracker(folders, sweep, series=series)
        tracker.connect()
        tracker.take_up_ends()
        tracker.close()
