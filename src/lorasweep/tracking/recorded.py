"""What a trial's run recorded of itself, read back: config, class names, fingerprints, checksums, metrics, adapter.

Promotion and `reproduce` start from here and from nothing else, so that a sweep file that was edited since, or a
training file that is gone, changes nothing. Neighbours: `tracking` (writes it), `promotion`, `reproduction`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from lorasweep.checksums import TAG as CHECKSUM
from lorasweep.checksums import folder_checksum
from lorasweep.config import compose
from lorasweep.config.schema import TRIAL_GROUPS
from lorasweep.errors import StorageError, UsageError
from lorasweep.provenance import REDACTED
from lorasweep.tracking.files import fetch
from lorasweep.tracking.store import open_client, place_of, readable_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from lorasweep.config.home import Folders
    from lorasweep.config.schema import Config

MAY_CHANGE = ("data.train", "data.validation", "data.test", "data.hub_id", "model.path", "train.eval_batch_size")


@dataclass(frozen=True)
class Recorded:
    """One trial's run. Every method raises StorageError where MLflow or its files cannot be read."""

    client: MlflowClient
    run: Run

    @classmethod
    def read(cls, folders: Folders, run_id: str) -> Recorded:
        """The run of this id.

        Raises:
            UsageError: there is none, it was deleted, or it is no trial's.
        """
        from mlflow.exceptions import MlflowException

        client = open_client(folders)
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise StorageError(f"MLflow could not read the run {run_id}: {error.message}") from error
            raise UsageError(
                f"there is no run {run_id!r} in {place_of(folders)}; `lorasweep leaderboard NAME --json` lists run ids"
            ) from None
        if run.info.lifecycle_stage != "active":
            raise UsageError(f"the run {run_id} was deleted; `mlflow runs restore --run-id {run_id}` brings it back")
        if run.data.tags.get("lorasweep.kind") != "trial":
            raise UsageError(f"the run {run_id} is no trial of lorasweep's; give the id of a trial's run")
        return cls(client, run)

    # -- what it says -----------------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str:
        """The run's id."""
        return str(self.run.info.run_id)

    @property
    def tags(self) -> dict[str, str]:
        """Its tags."""
        return dict(self.run.data.tags)

    @property
    def sweep(self) -> str:
        """The sweep that it belongs to."""
        return self.tags.get("lorasweep.sweep", "")

    @property
    def trial(self) -> int:
        """Its number in that sweep."""
        return int(self.tags.get("lorasweep.trial", -1))

    @property
    def state(self) -> str:
        """running, complete, pruned or failed."""
        return self.tags.get("lorasweep.state", "running")

    @cached_property
    def config(self) -> Config:
        """The whole config that the trial trained with.

        Raises:
            StorageError: config.yaml is missing or damaged, or held secrets that were not stored.
        """
        import yaml

        with self.artifact("config.yaml") as path:
            text = path.read_text(encoding="utf-8")
        if REDACTED in text:
            raise StorageError(
                f"config.yaml of run {self.run_id} held what looks like a secret, which is never stored; the trial "
                "cannot be built from it. Keep secrets in environment variables"
            )
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise StorageError(f"config.yaml of run {self.run_id} cannot be read: {error}") from None
        if not isinstance(document, dict):
            raise StorageError(f"config.yaml of run {self.run_id} holds no config; restore it from a backup")
        return compose.from_json(document)

    def config_with(self, overrides: dict[str, Any]) -> Config:
        """`config` with overrides by dotted key that make it no other trial: files that were moved, the test rows.

        Raises:
            UsageError: as `check_same`.
            ConfigError: an unknown key, a wrong type.
        """
        if not overrides:
            return self.config
        changed = compose.with_values(self.config, overrides)
        self.check_same(changed)
        return changed

    def check_same(self, changed: Config) -> None:
        """Refuse a config that would be another trial.

        Raises:
            UsageError: it differs in more than `MAY_CHANGE`.
        """
        for group in TRIAL_GROUPS:
            before, after = asdict(getattr(self.config, group)), asdict(getattr(changed, group))
            for key, value in after.items():
                if value != before[key] and f"{group}.{key}" not in MAY_CHANGE:
                    raise UsageError(
                        f"trial {self.trial} was trained with {group}.{key}={before[key]} and is taken as it is: "
                        f"`{group}.{key}={value}` would be another trial. What may be given: {', '.join(MAY_CHANGE)}, "
                        "launcher.* and tracking.*"
                    )

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the run says of its data: `labels`, `train_rows`, `validation_rows`, `fingerprint`,
        `validation_fingerprint` (not in runs of earlier versions), `name`, `source`."""
        inputs = self.run.inputs.dataset_inputs if self.run.inputs else []
        if not inputs:
            raise StorageError(f"run {self.run_id} has no data set noted; it ended before it trained")
        dataset = inputs[0].dataset
        said = json.loads(dataset.profile or "{}")
        source = json.loads(dataset.source or "{}")
        return {**said, "name": dataset.name, "source": source.get("description", dataset.name)}

    @property
    def label_names(self) -> list[str]:
        """Names of the classes in the order of their ids."""
        return [str(name) for name in self.data["labels"]]

    @property
    def metrics(self) -> dict[str, float]:
        """The newest value of each metric; of eval/* that of the kept checkpoint."""
        return {key: float(value) for key, value in self.run.data.metrics.items()}

    def history(self, key: str) -> dict[int, float]:
        """Step -> value of one metric."""
        with readable_errors(f"read {key} of run {self.run_id}"):
            return {point.step: point.value for point in self.client.get_metric_history(self.run_id, key)}

    # -- its files --------------------------------------------------------------------------------------------------

    @contextmanager
    def artifact(self, name: str) -> Iterator[Path]:
        """One of its artifacts as a file or folder here: where it lies, or a copy from the server for the time being.

        Raises:
            StorageError: it has none of this name.
        """
        with TemporaryDirectory(prefix="lorasweep-") as folder:
            with readable_errors(f"fetch {name} of run {self.run_id}"):
                found = fetch(self.client, self.run, name, Path(folder))
            if found is None:
                where = f"{self.run.info.artifact_uri}/{name}".removeprefix("file://")
                raise StorageError(f"the trial's {name} should be at {where}, and nothing is there")
            yield found

    def check(self, name: str, place: Path) -> str | None:
        """The checksum of an artifact at `place`, None where none was noted (by earlier versions of lorasweep).

        Raises:
            StorageError: its files are not those that the trial left.
        """
        noted = self.tags.get(CHECKSUM + name)
        if noted is None:
            return None
        found = folder_checksum(place)
        if found != noted:
            raise StorageError(
                f"the {name} of trial {self.trial} of sweep {self.sweep} was changed after the trial ended: its files "
                f"have sha256 {found[:12]}…, the run says {noted[:12]}… ({place}). Restore them from a backup, or "
                f"train the trial again; `lorasweep reproduce {self.run_id}` says whether that gives the same"
            )
        return found
