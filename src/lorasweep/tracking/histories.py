"""What MLflow has of runs' metrics, as the points of a spool: for workers on another host, and for the report there.

A spool holds what one host reported. Where several work on a sweep, MLflow alone has all of it.
Neighbours: `tracker` (goes on with a trial), `spool`; `reporting` reads curves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from lorasweep.tracking import spool as spools
from lorasweep.tracking.spool import Point
from lorasweep.tracking.store import open_client, readable_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from lorasweep.config.home import Folders

AT_ONCE = 8  # questions to the server: one metric of one run each


def stored_points(client: MlflowClient, run_id: str, keys: Iterable[str]) -> list[Point]:
    """All points of these metrics of a run, oldest first, with the times of their first reports; of a step that is
    there twice the older one. `end` is 0. Raises what MLflow raises."""
    moments: dict[tuple[int, int], dict[str, float]] = {}
    for key in keys:
        seen = set()
        for one in sorted(client.get_metric_history(run_id, key), key=lambda one: one.timestamp):
            if one.step not in seen:
                moments.setdefault((one.timestamp, one.step), {})[key] = one.value
                seen.add(one.step)
    return [Point(metrics, step, time_ms, 0) for (time_ms, step), metrics in sorted(moments.items())]


def points_of(
    folders: Folders, sweep: str, runs: dict[int, str], keys: Collection[str] | None = None
) -> Iterator[tuple[int, Iterable[Point]]]:
    """(trial, its points in the order of their reports), one after the other; `runs`: trial -> its run, "" where it has
    none yet. From the spools of this host, or where several share the sweep from MLflow: there `keys` alone (None:
    all).

    Raises:
        StorageError: MLflow cannot be read.
    """
    if not folders.shared:
        for trial in runs:
            path = spools.path_of(folders.spool(sweep), trial)
            if path.exists():
                yield trial, spools.read_points(path)
        return
    client = open_client(folders)

    def read(run_id: str) -> list[Point]:
        there = client.get_run(run_id).data.metrics
        return stored_points(client, run_id, [key for key in there if keys is None or key in keys])

    known = {trial: run_id for trial, run_id in runs.items() if run_id}
    with readable_errors(f"read the metrics of sweep {sweep}"), ThreadPoolExecutor(AT_ONCE) as pool:
        yield from zip(known, pool.map(read, known.values()), strict=True)
