"""The command `promote`: find the trial and what its run recorded, open its sealed test split, ask the registry.

The only caller of `load_test_split`. A trial is promoted as it was trained: its config, class names and checkpoint are
those that its run recorded, whatever the sweep file says today and wherever the training file went.
Neighbours: `search.study` (which trial), `tracking.recorded` (what it was), `registry` (the gate), `cli`.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from lorasweep import finalists, publishing, results
from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS, Config
from lorasweep.errors import DataError, LorasweepError, PromotionRefused, UsageError
from lorasweep.records import TrialRecord
from lorasweep.registry import promote as registry
from lorasweep.registry.alias import who
from lorasweep.registry.candidate import unserved, untrained
from lorasweep.registry.promote import PromotionResult
from lorasweep.search.study import SweepStudy
from lorasweep.search.whereabouts import kept_where
from lorasweep.stats import Results
from lorasweep.tracking.recorded import Recorded

if TYPE_CHECKING:
    import numpy as np

    from lorasweep.data.sources import Split
    from lorasweep.registry.serve import Score
    from lorasweep.tasks import Task


def promote(
    name: str,
    overrides: list[str],
    model_name: str | None = None,
    trial: int | None = None,
    force: str | None = None,
) -> PromotionResult:
    """Score the best complete trial (or `trial`) on the test split, register it, and make it champion if it is better.

    `overrides` may name the test rows with data.test=PATH, and files that were moved since. The model's name is the
    sweep's where none is given. `force`: the reason to promote it even where it is not better.

    Raises:
        UsageError: no such sweep or trial, or an override that would make it another trial.
        PromotionRefused: nothing to promote, or not better than the champion, or not what was trained.
        DataError, ModelError: there is no test split; data or base were changed since.
    """
    home = Home.find()
    folders = compose.tracking_place(overrides, home)
    study = SweepStudy.load(folders, name)
    folders = study.folders  # with the server that keeps its runs
    record, why = _choose(study, trial)
    recorded = Recorded.read(folders, record.run_id)
    config = _as_recorded(recorded, study, overrides, home)
    candidate = make_candidate(recorded, record, config, results.read(folders, name, record.trial))
    try:
        return registry.promote(folders, replace(candidate, why=why), model_name or name, force=force)
    finally:
        with suppress(LorasweepError):  # for people who look at MLflow's page; what was decided stands without it
            publishing.describe_model(study, folders, model_name or name)


def _choose(study: SweepStudy, trial: int | None) -> tuple[TrialRecord, str]:
    """(the trial that was asked for, or that leads the leaderboard; why it is this one).

    Raises:
        UsageError: there is no trial of this number.
        PromotionRefused: it is not complete, or none is.
    """
    if trial is not None:
        return registry.choose(study.records(), study.direction, trial), "it was asked for by its number"
    found = finalists.best(study)
    if found is not None:
        return found.record, found.why
    broken = {record.trial: study.goals.broken(record) for record in study.records()}
    told = next((f"; trial {number}: {why}" for number, why in broken.items() if why), "")
    raise PromotionRefused(f"sweep {study.name} has no ranked trial to promote{told}. `lorasweep leaderboard` says why")


def rollback(
    name: str, overrides: list[str], model_name: str | None = None, reason: str | None = None
) -> PromotionResult:
    """Give the alias `champion` of a sweep's model back to the version before.

    Raises:
        PromotionRefused: there is none before it.
    """
    home = Home.find()
    folders = kept_where(compose.tracking_place(overrides, home), name)
    return registry.rollback(folders, model_name or name, reason)


def reason_of(force: bool, reason: str | None) -> str | None:
    """Why a promotion is forced; None: it is not. A person at a terminal is asked; a script that gives none is noted as
    such.

    Raises:
        UsageError: an empty reason, or one for nothing.
    """
    if not force:
        if reason is not None:
            raise UsageError("--reason says why --force or --rollback; this promotion is neither")
        return None
    if reason is None and sys.stdin.isatty() and sys.stderr.isatty():
        print("Why is it promoted even if it is not better? ", end="", file=sys.stderr, flush=True)
        reason = sys.stdin.readline()
    if reason is None:
        return f"no reason was given (by {who()}, not at a terminal)"
    if not reason.strip():
        raise UsageError("--force needs a reason, which is kept with the version: --force --reason TEXT")
    return reason.strip()


def make_candidate(recorded: Recorded, record: TrialRecord, config: Config, kept: Results | None) -> registry.Candidate:
    """The trial with its data and base, checked against what the run recorded; the sealed test split is opened here.
    `kept`: what its checkpoint answered on the validation rows.

    Raises:
        PromotionRefused: it is of a task that no model here can serve.
        DataError, ModelError: as `promote`.
    """
    from lorasweep.data.sources import load_test_split
    from lorasweep.models.unchanged import unchanged_base
    from lorasweep.tasks import make_task

    if found := unserved(config):
        this = f", or write this one as files: `lorasweep export {recorded.sweep} DIR --trial {record.trial}`"
        files = "" if untrained(config) else this
        what = ", ".join(f"{key}={value}" for key, value in found.items())
        raise PromotionRefused(
            f"trial {record.trial} has {what}: what can be registered is a fine-tuned model with a classification head "
            "(task=classify). Choose another trial with --trial N"
            f"{files}"
        )
    names = recorded.label_names
    base = unchanged_base(config.model, recorded.tags.get("lorasweep.fingerprint.base"), record.trial)
    validation, unread = _validation(recorded, config, names)
    _check_training_rows(recorded, config, validation is not None)
    return registry.Candidate(
        record=record,
        recorded=recorded,
        config=config,
        base=base,
        label_names=names,
        test=load_test_split(config.data, names),
        score=_scorer(make_task(config, names)),
        validation=validation,
        unread=unread,
        expected=kept,
    )


# -- as it was trained ------------------------------------------------------------------------------------------------


def _as_recorded(recorded: Recorded, study: SweepStudy, overrides: list[str], home: Home) -> Config:
    """The run's config, with the overrides that make it no other trial."""
    given = compose.parse_overrides(overrides)
    if not any(key in GROUPS for key in given):
        return recorded.config_with(given)
    # a group needs a composition: of the sweep as it is today
    params = next(record.params for record in study.records() if record.trial == recorded.trial)
    changed = compose.compose_trial([*study.overrides, *overrides], study.sweep_file, params, home)
    recorded.check_same(changed)
    changed.sweep = recorded.config.sweep
    return changed


def _validation(recorded: Recorded, config: Config, names: list[str]) -> tuple[Split | None, str]:
    """The validation rows, or None and why they cannot be read.

    Raises:
        DataError: they are not the rows that the trial was evaluated on.
    """
    from lorasweep.data.sources import load_validation_split

    try:
        rows = load_validation_split(config.data, names)
    except DataError as error:
        return None, f"its rows cannot be read ({error})"
    noted = recorded.data.get("validation_fingerprint")
    if noted is not None and rows.fingerprint() != noted:
        raise DataError(_changed(recorded, "validation rows"))
    return rows, ""


def _check_training_rows(recorded: Recorded, config: Config, readable: bool) -> None:
    """Where the test split is carved from the training file, that file must be the one of the sweep: from another one
    rows would be drawn that the trial was trained on."""
    from lorasweep.data.sources import DEMOS, load_search_data

    if config.data.test is not None or config.data.kind in DEMOS or not readable:
        return
    if load_search_data(config.data).fingerprint != recorded.data["fingerprint"]:
        raise DataError(_changed(recorded, "training rows, which the test split is carved from,"))


def _changed(recorded: Recorded, what: str) -> str:
    return (
        f"the {what} of trial {recorded.trial} ({recorded.data['source']}) were changed after it was trained: their "
        "fingerprint is not that of the run. Restore the file, or give its place with data.train=PATH or "
        "data.validation=PATH"
    )


def _scorer(task: Task) -> Score:
    def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        import numpy as np

        chosen = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)
        return task.metrics(probabilities, labels, -np.log(chosen))

    return score
