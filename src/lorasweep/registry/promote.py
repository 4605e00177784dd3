"""From a complete trial to the champion: score the sealed test split, register, load back, compare, decide.

The order is fixed. The trial is packed and scored on the test split, here and nowhere else in lorasweep; registered as
a new version; loaded back from the registry by a fresh process, where it must repeat those predictions and the
validation values that training logged; compared with the champion, which that process asks about the same test rows,
by the paired test; and only then does the alias move (`registry.gate`).
Neighbours: `registry.package` (what is registered), `registry.serve` (answers), `registry.card`, `registry.alias` (who
is champion); `promotion` (the command) calls.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lorasweep.config.home import check_name
from lorasweep.config.schema import ObjectiveConfig
from lorasweep.errors import ConfigError, PromotionRefused, UsageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.registry import alias as registry_alias
from lorasweep.registry import card as registry_card
from lorasweep.registry import package as registry_package
from lorasweep.registry.alias import CHAMPION, alias_of, champion
from lorasweep.registry.candidate import Candidate, Scored
from lorasweep.registry.card import Score
from lorasweep.registry.gate import TAG, Gate
from lorasweep.registry.package import quiet
from lorasweep.registry.result import PromotionResult
from lorasweep.registry.serve import (
    Ask,
    answer_here,
    ask_fresh_process,
    mlflow_here,
    predict,
    probabilities_of,
    score_test,
    test_name,
)
from lorasweep.stats import Results, interval, kind_of
from lorasweep.tracking.store import open_client, readable_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

    from lorasweep.config.home import Folders

__all__ = ["Candidate", "PromotionResult", "champion", "choose", "predict", "promote", "rollback"]


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


def promote(
    folders: Folders,
    candidate: Candidate,
    model_name: str,
    force: str | None = None,
    ask: Ask | None = None,
) -> PromotionResult:
    """Register the trial's model and make it the champion where it is better on the test split.

    `force`: the reason to promote it even where it is not shown to be better; None: do not. `ask` answers a request of
    `registry.probe`; None: a fresh process.

    Raises:
        PromotionRefused: not better than the champion, and the new version has the alias `challenger`; or the
            registered model does not repeat what the trial did, and has no alias.
        ConfigError: a model name that MLflow cannot take, or an objective that cannot be scored on the test split.
        StorageError: MLflow or the trial's files cannot be read or written, or were changed since.
    """
    check_name(model_name, "model name")
    client = open_client(folders)
    with registry_alias.one_promotion_at_a_time(folders), mlflow_here(folders):
        before = alias_of(client, model_name, CHAMPION)
        if before is not None and before.run_id == candidate.record.run_id:
            return _kept(before, candidate)
        with tempfile.TemporaryDirectory(prefix="lorasweep-") as temporary:
            package = Path(temporary) / "model"
            scored = _pack_and_score(candidate, package, model_name)
            with readable_errors(f"register trial {candidate.record.trial} of {candidate.sweep}"):
                version = _register(client, scored, package, model_name)
                _log_test_metrics(client, candidate.record.run_id, scored.metrics)
        return Gate(client, scored, model_name, version, force, ask or ask_fresh_process).decide()


def rollback(folders: Folders, model_name: str, reason: str | None = None) -> PromotionResult:
    """Give the alias `champion` back to the version that had it before; `reason` is noted on both versions.

    Raises:
        PromotionRefused: there is none before it.
    """
    back, now = registry_alias.rollback(folders, model_name, reason)
    metric = back.tags.get(f"{TAG}test_objective", "")
    value = back.tags.get(metric)
    return PromotionResult(
        action="rolled_back",
        model=model_name,
        version=str(back.version),
        trial=int(back.tags[f"{TAG}trial"]) if f"{TAG}trial" in back.tags else None,
        run_id=back.run_id or "",
        metric=metric,
        value=float(value) if value is not None else None,
        previous_version=str(now.version),
        reason=reason,
    )


# -- scoring and registering ------------------------------------------------------------------------------------------


def _pack_and_score(candidate: Candidate, package: Path, model_name: str) -> Scored:
    import numpy as np

    test, names, recorded = candidate.test, candidate.label_names, candidate.recorded
    with recorded.artifact("adapter") as adapter:
        recorded.check("adapter", adapter)
        settings = registry_package.build(
            package, adapter, candidate.base, candidate.config, names, paired=test.pairs is not None
        )
    probabilities = probabilities_of(answer_here(package, test), names, "the packed model")
    metrics = score_test(candidate.score, probabilities, test.labels)
    metric = _test_objective(candidate.objective, metrics)
    results = Results(
        np.asarray(test.labels, dtype=np.int64), probabilities, label_names=names, rows_id=test.fingerprint()
    )
    on_test = [Score(name, value, *_bounds(candidate, results, name)) for name, value in sorted(metrics.items())]
    facts = registry_card.gather(model_name, candidate, settings, on_test, _on_validation(candidate))
    facts.save(package)
    base = "packed along" if settings["base_model"] is None else str(settings["base_model"])
    return Scored(candidate, results, metrics, metric, facts, base)


def _on_validation(candidate: Candidate) -> list[Score]:
    """The validation metrics of the trial, with intervals where its predictions were kept."""
    metrics, kept = sorted(candidate.record.metrics.items()), candidate.expected
    if kept is None:
        return [Score(name, value) for name, value in metrics]
    return [Score(name, value, *_bounds(candidate, kept, name)) for name, value in metrics]


def _bounds(candidate: Candidate, results: Results, name: str) -> tuple[float | None, float | None]:
    """A metric's 95% interval. One without a formula of its own is computed anew for each resample, which takes tens of
    seconds: the objective alone is worth it."""
    if not results.knows(name) and kind_of(name) != kind_of(candidate.objective.metric):
        return None, None
    return interval(results, name, candidate.config.task.average, score=candidate.score) or (None, None)


def _test_objective(objective: ObjectiveConfig, metrics: dict[str, float]) -> str:
    name = test_name(objective.metric)
    if name not in metrics or not math.isfinite(metrics[name]):
        raise ConfigError(
            f"the objective {objective.metric} cannot be scored on the test split as {name}; scored are "
            f"{', '.join(sorted(metrics))}"
        )
    return name


def _register(client: MlflowClient, scored: Scored, package: Path, model_name: str) -> str:
    """Register a packed model as a new version, whose number is returned."""
    from mlflow.exceptions import MlflowException

    candidate, objective = scored.candidate, scored.candidate.objective
    record, run = candidate.record, candidate.recorded.run
    tags = {
        f"{TAG}sweep": candidate.sweep,
        f"{TAG}trial": str(record.trial),
        f"{TAG}objective": f"{objective.direction} {objective.metric}",
        f"{TAG}test_objective": test_name(objective.metric),
        f"{TAG}validation_value": repr(record.value),
        f"{TAG}decision": "unfinished: registered, not yet compared",
        f"{TAG}base": scored.base_tag,
        f"{TAG}chosen": candidate.why or "it was asked for",
        **{key: text for key, text in run.data.tags.items() if key.startswith((f"{TAG}fingerprint.", f"{TAG}sha256."))},
        f"{TAG}fingerprint.test": candidate.test.fingerprint(),
        f"{TAG}test_rows": str(len(candidate.test)),
        **{key: repr(number) for key, number in scored.metrics.items()},
    }
    for score in scored.facts.test:
        if score.low is not None:
            tags[f"{score.name}.interval"] = f"{score.low!r} to {score.high!r}"
    title = f"{candidate.sweep}-{record.trial}".replace(".", "_")  # dots may be in a registered model's name alone
    logged = client.create_logged_model(
        run.info.experiment_id, title, record.run_id, tags=tags, model_type="classifier"
    )
    try:
        registry_package.address(package, record.run_id, logged.model_id, logged.artifact_location)
        with quiet():
            client.log_model_artifacts(logged.model_id, str(package))
    except BaseException:
        with contextlib.suppress(MlflowException):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    with contextlib.suppress(MlflowException), quiet():  # it exists; any other trouble shows in the next call
        client.create_registered_model(model_name)
    with quiet():
        version = client.create_model_version(
            model_name,
            f"models:/{logged.model_id}",
            record.run_id,
            tags=tags,
            model_id=logged.model_id,
            description=registry_card.description(scored.facts),
        )
    return str(version.version)


def _log_test_metrics(client: MlflowClient, run_id: str, metrics: dict[str, float]) -> None:
    """Into the trial's run at its last step; what is there with the same value is not logged again."""
    from mlflow.entities import Metric

    run = client.get_run(run_id)
    step = max((point.step for point in client.get_metric_history(run_id, "train/samples")), default=0)
    now = time.time_ns() // 1_000_000
    fresh = [Metric(key, value, now, step) for key, value in metrics.items() if run.data.metrics.get(key) != value]
    client.log_batch(run_id, metrics=fresh, synchronous=True)


def _kept(before: ModelVersion, candidate: Candidate) -> PromotionResult:
    metrics = {key: float(value) for key, value in before.tags.items() if key.startswith("test/") and "." not in key}
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
