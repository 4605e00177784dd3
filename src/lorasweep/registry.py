"""From the best trial to a served model: package, register, load back, score the sealed test split, decide, move the
alias `champion`.

The test split is scored here and nowhere else, through the model as it will be served. A challenger that is not
strictly better than the champion on the same test rows keeps its version and the alias `challenger`; the champion
stays. Neighbours: `registry_package` (what is registered), `tracking_store`; `promotion` (the command) calls.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import registry_package
from lorasweep.config.home import check_name
from lorasweep.config.schema import Config, ObjectiveConfig
from lorasweep.errors import ConfigError, LorasweepError, PromotionRefused, StorageError, UsageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.registry_package import quiet
from lorasweep.registry_serve import Score, known_models, mlflow_here, predict, probabilities_of, score_test, test_name
from lorasweep.tracking_store import local_folder, one_process_at_a_time, open_client, readable_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from lorasweep.config.home import Folders
    from lorasweep.data.sources import Split

CHAMPION, CHALLENGER = "champion", "challenger"
PREVIOUS = "lorasweep.previous_champion"
__all__ = ["Candidate", "PromotionResult", "champion", "choose", "predict", "promote", "rollback"]


@dataclass(frozen=True)
class Candidate:
    """A complete trial and what its promotion needs.

    `config` is the trial's own, `base` a folder or a hub id (`builtin:` resolved), `label_names` those it was trained
    with, `test` the sealed split. `score` takes probabilities (rows, classes) float32 and labels (rows,) int64 and
    gives metrics by their names `eval/…`.
    """

    sweep: str
    record: TrialRecord
    config: Config
    base: str
    label_names: list[str]
    test: Split
    score: Score

    @property
    def objective(self) -> ObjectiveConfig:
        """What the sweep looked for."""
        return self.config.sweep.objective


@dataclass(frozen=True)
class PromotionResult:
    """What a promotion or a rollback did. `metrics` are test/* values; `champion_value` is the former champion's
    objective on the same test rows, None where there was none."""

    action: str  # promoted, kept (it was the champion already) or rolled_back
    model: str
    version: str
    trial: int | None
    run_id: str
    metric: str
    value: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    previous_version: str | None = None
    champion_value: float | None = None
    forced: bool = False

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types, every field by its name, and the model's `uri`."""
        return {**asdict(self), "uri": f"models:/{self.model}@{CHAMPION}"}

    def describe(self) -> str:
        """What to tell a person: the decision, the numbers, how to use the model."""
        if self.action == "rolled_back":
            head = f"Rolled back: version {self.version} of {self.model} is the champion again"
            head += f" (it was version {self.previous_version})."
        elif self.action == "kept":
            head = (
                f"Trial {self.trial} is the champion of {self.model} already (version {self.version}); nothing changed."
            )
        else:
            head = f"Promoted trial {self.trial}: version {self.version} of {self.model} is the champion."
        lines = [head]
        if self.value is not None:
            against = "" if self.champion_value is None else f"; the champion before had {self.champion_value:.4f}"
            forced = ", promoted by --force" if self.forced else ""
            lines.append(f"  {self.metric} = {self.value:.4f} on the sealed test split{against}{forced}")
        others = [f"{key} {value:.4f}" for key, value in sorted(self.metrics.items()) if key != self.metric]
        lines += ["  " + ", ".join(others)] if others else []
        lines.append(f'  lorasweep predict models:/{self.model}@{CHAMPION} "a text"')
        return "\n".join(lines)


def choose(records: list[TrialRecord], direction: str, trial: int | None = None) -> TrialRecord:
    """The trial to promote: `trial`, or the best complete one, the earliest of equals.

    Raises:
        UsageError: there is no trial of this number.
        PromotionRefused: the trial is not complete, or none is.
    """
    if trial is not None:
        found = next((record for record in records if record.trial == trial), None)
        if found is None:
            known = f"0 to {max(record.trial for record in records)}" if records else "none"
            raise UsageError(f"there is no trial {trial}; trials of this sweep: {known}")
        if found.state is not TrialState.COMPLETE:
            why = f": {found.reason}" if found.reason else ""
            raise PromotionRefused(f"only a complete trial can be promoted; trial {trial} is {found.state}{why}")
        return found
    complete = [r for r in records if r.state is TrialState.COMPLETE and r.value is not None and math.isfinite(r.value)]
    if not complete:
        states = ", ".join(sorted({str(record.state) for record in records})) or "no trials at all"
        raise PromotionRefused(f"the sweep has no complete trial to promote, only: {states}")
    sign = -1.0 if direction == "maximize" else 1.0
    return min(complete, key=lambda record: (sign * (record.value or 0.0), record.trial))


def promote(folders: Folders, candidate: Candidate, model_name: str, force: bool = False) -> PromotionResult:
    """Register the trial's adapter and make it the champion where it is better on the test split.

    Test metrics are stored as `test/…` in the trial's run and in the version's tags.

    Raises:
        PromotionRefused: not strictly better than the champion; the new version keeps the alias `challenger`.
        ConfigError: a model name that MLflow cannot take, or an objective that cannot be scored on the test split.
        StorageError: MLflow or the trial's files cannot be read or written.
    """
    check_name(model_name, "model name")
    client, record = open_client(folders), candidate.record
    with one_process_at_a_time(folders.own / "promotion.lock"), mlflow_here(folders):
        before = _alias(client, model_name, CHAMPION)
        if before is not None and before.run_id == record.run_id:
            return _kept(before, candidate)
        with readable_errors(f"register trial {record.trial} of {candidate.sweep}"):
            version = _register(client, candidate, model_name)
        probabilities = probabilities_of(f"models:/{model_name}/{version}", candidate.test, candidate.label_names)
        metrics = score_test(candidate.score, probabilities, candidate.test.labels)
        metric, value = _test_objective(candidate.objective, metrics)
        with readable_errors(f"store the test metrics of trial {record.trial}"):
            _log_test_metrics(client, record.run_id, metrics)
        rival = None if before is None else _champion_value(before, candidate)
        better = before is None or (rival is not None and _strictly_better(value, rival, candidate.objective.direction))
        result = PromotionResult(
            action="promoted",
            model=model_name,
            version=version,
            trial=record.trial,
            run_id=record.run_id,
            metric=metric,
            value=value,
            metrics=metrics,
            previous_version=None if before is None else str(before.version),
            champion_value=rival,
            forced=force and not better,
        )
        with readable_errors(f"record the decision on version {version} of {model_name}"):
            _record_decision(client, candidate, result, refused=not better and not force)
    if before is not None and not better and not force:
        raise PromotionRefused(_refusal(before, candidate, result))
    return result


def rollback(folders: Folders, model_name: str) -> PromotionResult:
    """Give the alias `champion` back to the version that had it before.

    Raises:
        PromotionRefused: there is no champion, or none before it.
    """
    check_name(model_name, "model name")
    client = open_client(folders)
    with one_process_at_a_time(folders.own / "promotion.lock"), readable_errors(f"roll back {model_name}"):
        now = _alias(client, model_name, CHAMPION)
        if now is None:
            raise PromotionRefused(
                f"the model {model_name} has no champion to roll back; {known_models(client, model_name)}"
            )
        previous = now.tags.get(PREVIOUS)
        if previous is None:
            raise PromotionRefused(
                f"version {now.version} is the first champion of {model_name}; there is none before it"
            )
        client.set_registered_model_alias(model_name, CHAMPION, previous)
        client.set_model_version_tag(
            model_name, now.version, "lorasweep.rolled_back", time.strftime("%Y-%m-%dT%H:%M:%S%z")
        )
        back = client.get_model_version(model_name, previous)
    metric = back.tags.get("lorasweep.test_objective", "")
    value = back.tags.get(metric)
    return PromotionResult(
        action="rolled_back",
        model=model_name,
        version=str(previous),
        trial=int(back.tags["lorasweep.trial"]) if "lorasweep.trial" in back.tags else None,
        run_id=back.run_id or "",
        metric=metric,
        value=float(value) if value is not None else None,
        previous_version=str(now.version),
    )


def champion(folders: Folders, model_name: str) -> dict[str, Any] | None:
    """{"version", "run_id", "tags"} of the champion, None where there is none."""
    check_name(model_name, "model name")
    found = _alias(open_client(folders), model_name, CHAMPION)
    return None if found is None else {"version": str(found.version), "run_id": found.run_id, "tags": dict(found.tags)}


# -- below ----------------------------------------------------------------------------------------------------------


def _register(client: MlflowClient, candidate: Candidate, model_name: str) -> str:
    """Package the trial's adapter and register it as a new version, whose number is returned."""
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    record, objective = candidate.record, candidate.objective
    run = client.get_run(record.run_id)
    artifacts = local_folder(run.info.artifact_uri)
    if artifacts is None:
        raise StorageError(f"run {record.run_id} keeps its artifacts at {run.info.artifact_uri}, not in a local folder")
    tags = {
        "lorasweep.sweep": candidate.sweep,
        "lorasweep.trial": str(record.trial),
        "lorasweep.objective": f"{objective.direction} {objective.metric}",
        "lorasweep.test_objective": test_name(objective.metric),
        "lorasweep.validation_value": repr(record.value),
        "lorasweep.decision": "unfinished: registered, not yet scored",
        **{key: value for key, value in run.data.tags.items() if key.startswith("lorasweep.fingerprint.")},
    }
    title = f"{candidate.sweep}-{record.trial}".replace(
        ".", "_"
    )  # MLflow takes dots in a registered model's name alone
    logged = client.create_logged_model(
        run.info.experiment_id, title, record.run_id, tags=tags, model_type="classifier"
    )
    with tempfile.TemporaryDirectory(prefix="lorasweep-") as temporary:
        folder = Path(temporary) / "model"
        entry = Model(
            artifact_path=logged.artifact_location,
            run_id=record.run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
        )
        settings = registry_package.build(
            folder,
            artifacts / "adapter",
            candidate.base,
            candidate.config,
            candidate.label_names,
            entry,
            paired=candidate.test.pairs is not None,
        )
        with quiet():
            client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    tags["lorasweep.base"] = "packed along" if settings["base_model"] is None else str(settings["base_model"])
    with contextlib.suppress(MlflowException), quiet():  # it exists; any other trouble shows in the next call
        client.create_registered_model(model_name)
    with quiet():
        version = client.create_model_version(
            model_name, f"models:/{logged.model_id}", record.run_id, tags=tags, model_id=logged.model_id
        )
    return str(version.version)


def _alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise StorageError(f"MLflow could not read the model {name}: {error.message}") from error
        return None
    return client.get_model_version(name, str(aliases[alias])) if alias in aliases else None


def _test_objective(objective: ObjectiveConfig, metrics: dict[str, float]) -> tuple[str, float]:
    name = test_name(objective.metric)
    if name not in metrics or not math.isfinite(metrics[name]):
        raise ConfigError(
            f"the objective {objective.metric} cannot be scored on the test split as {name}; scored are "
            f"{', '.join(sorted(metrics))}"
        )
    return name, metrics[name]


def _strictly_better(value: float, other: float, direction: str) -> bool:
    return value > other if direction == "maximize" else value < other


def _champion_value(before: ModelVersion, candidate: Candidate) -> float | None:
    """The champion's objective on these test rows: as stored where it was scored on the same rows, else scored now.
    None where it cannot be: nothing is then known to be better than it."""
    name, test = test_name(candidate.objective.metric), candidate.test
    if before.tags.get("lorasweep.fingerprint.test") == test.fingerprint() and name in before.tags:
        return float(before.tags[name])
    try:
        probabilities = probabilities_of(f"models:/{before.name}/{before.version}", test, candidate.label_names)
    except LorasweepError:
        return None
    return score_test(candidate.score, probabilities, test.labels).get(name)


def _record_decision(client: MlflowClient, candidate: Candidate, result: PromotionResult, refused: bool) -> None:
    """The decision with its numbers on the version's tags, then the alias: a champion always says why it is one."""
    verdict = "refused" if refused else "promoted by force" if result.forced else "promoted"
    against = "no champion before" if result.previous_version is None else f"{result.champion_value!r} of the champion"
    tags = {
        "lorasweep.decision": f"{verdict}: {result.metric} {result.value!r}, {against}",
        "lorasweep.forced": str(result.forced).lower(),
        "lorasweep.fingerprint.test": candidate.test.fingerprint(),
        "lorasweep.test_rows": str(len(candidate.test)),
        **{key: repr(number) for key, number in result.metrics.items()},
    }
    if result.previous_version is not None and not refused:
        tags[PREVIOUS] = result.previous_version
    for key, text in tags.items():
        client.set_model_version_tag(result.model, result.version, key, text)
    client.set_registered_model_alias(result.model, CHALLENGER if refused else CHAMPION, result.version)


def _log_test_metrics(client: MlflowClient, run_id: str, metrics: dict[str, float]) -> None:
    """Into the trial's run at its last step; what is there with the same value is not logged again."""
    from mlflow.entities import Metric

    run = client.get_run(run_id)
    step = max((point.step for point in client.get_metric_history(run_id, "train/samples")), default=0)
    now = time.time_ns() // 1_000_000
    fresh = [Metric(key, value, now, step) for key, value in metrics.items() if run.data.metrics.get(key) != value]
    client.log_batch(run_id, metrics=fresh, synchronous=True)


def _kept(before: ModelVersion, candidate: Candidate) -> PromotionResult:
    metrics = {key: float(value) for key, value in before.tags.items() if key.startswith("test/")}
    metric = test_name(candidate.objective.metric)
    return PromotionResult(
        action="kept",
        model=before.name,
        version=str(before.version),
        trial=candidate.record.trial,
        run_id=candidate.record.run_id,
        metric=metric,
        value=metrics.get(metric),
        metrics=metrics,
    )


def _refusal(before: ModelVersion, candidate: Candidate, result: PromotionResult) -> str:
    rival = f"the champion (version {before.version}, trial {before.tags.get('lorasweep.trial', '?')})"
    if result.champion_value is None:
        against = f"{rival} cannot be scored on this test split, so nothing shows that this trial is better"
    else:
        against = f"{rival} has {result.champion_value:.4f} on the same {len(candidate.test)} rows"
    return (
        f"trial {result.trial} has {result.metric} = {result.value:.4f}; {against}. A champion gives way only to a "
        f"strictly better one. The trial is version {result.version} of {result.model} with the alias `{CHALLENGER}`; "
        "--force promotes it all the same"
    )
