"""One sweep's runs in MLflow: found again by their tags, created where there are none, never twice.

A trial's run is created before its id is noted anywhere of ours; when a kill comes between, it is found by its tags.
Neighbours: `tracking`, the only user.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorasweep import failpoints
from lorasweep.tracking.entities import PARAMS_PER_BATCH, clean_tags, param_entities
from lorasweep.tracking.server import asked_once

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUNNING = "RUNNING"


@dataclass(frozen=True)
class Series:
    """Which runs of a sweep are meant: their tag `lorasweep.kind`, the folder of their spools, and by a trial's number
    the tags and the name of its run beside the sweep's."""

    kind: str
    spool: Path
    tags_of: Callable[[int], dict[str, str]] = lambda number: {}
    name_of: Callable[[int], str] = str


@dataclass(frozen=True)
class Runs:
    """The runs of one series of `sweep` in one experiment. Every method raises what MLflow raises."""

    client: MlflowClient
    experiment_id: str
    sweep: str
    series: Series

    def open_trial(self, number: int, noted: str | None, begun: bool, tags: dict[str, str]) -> tuple[Run, bool]:
        """A trial's run, open for writing, and whether it is new.

        `noted`: the run that its spool names; `begun`: it has a spool, so that a run may exist that nobody noted.
        """
        run = self.living(noted)
        if run is None and begun:
            run = self.find(
                self.series.kind, f" and tags.`lorasweep.trial` = '{number}' and attributes.status = 'RUNNING'"
            )
        if run is not None:
            if run.info.status != RUNNING:
                self.client.update_run(run.info.run_id, status=RUNNING)
                self.client.set_tag(run.info.run_id, "lorasweep.state", "running")
            return run, False
        ours = {
            "lorasweep.kind": self.series.kind,
            "lorasweep.sweep": self.sweep,
            "lorasweep.trial": str(number),
            "lorasweep.state": "running",
            **self.series.tags_of(number),
            **who(),
        }
        run = self.create({**tags, **ours}, f"{self.sweep} {self.series.name_of(number)}")
        failpoints.reach("run-created")
        return run, True

    def create(self, tags: dict[str, str], name: str) -> Run:
        """A new run, asked for once: where the answer is lost, the next try finds it by its tags."""
        with asked_once():
            return self.client.create_run(self.experiment_id, tags=clean_tags(tags), run_name=name)

    def living(self, run_id: str | None) -> Run | None:
        """The run of this id, None where there is none or it was deleted."""
        from mlflow.exceptions import MlflowException

        if run_id is None:
            return None
        try:
            run = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return run if run.info.lifecycle_stage == "active" else None

    def find(self, kind: str, more: str = "") -> Run | None:
        """The newest run of a kind (trial, finalist or sweep), with `more` of a filter; None where there is none."""
        clause = f"tags.`lorasweep.kind` = '{kind}' and tags.`lorasweep.sweep` = '{self.sweep}'{more}"
        runs = self.client.search_runs([self.experiment_id], clause, max_results=1)
        return runs[0] if runs else None

    def delete_strays(self) -> int:
        """Delete runs of this series that are still open; once none of its trials is. A server that answered so late
        that nobody waited any more has made such a run, and another one was made in its place."""
        clause = (
            f"tags.`lorasweep.kind` = '{self.series.kind}' and tags.`lorasweep.sweep` = '{self.sweep}'"
            f" and attributes.status = '{RUNNING}'"
        )
        strays = self.client.search_runs([self.experiment_id], clause)
        for run in strays:
            self.client.delete_run(run.info.run_id)
        return len(strays)

    def log_params(self, run: Run, settings: dict[str, str], is_new: bool) -> None:
        """Store the settings that the run does not have yet."""
        there = {} if is_new else run.data.params
        params = param_entities({key: value for key, value in settings.items() if key not in there})
        for start in range(0, len(params), PARAMS_PER_BATCH):
            self.client.log_batch(run.info.run_id, params=params[start : start + PARAMS_PER_BATCH], synchronous=True)


def who() -> dict[str, str]:
    """MLflow's own tags of who made a run."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in some containers
        user = ""
    return {"mlflow.user": user, "mlflow.source.name": "lorasweep", "mlflow.source.type": "LOCAL"}
