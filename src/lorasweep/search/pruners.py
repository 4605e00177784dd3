"""Who stops a losing trial: Optuna's own pruners, asked about values at rungs in training samples seen.

Optuna decides on a view of the study in memory whose intermediate values are the stored reports at rungs, so a decision
depends on what is stored and on nothing else. Why a trial was pruned is said here in words, from the same values.
Neighbours: `reports` (what is stored), `study` (asks).
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lorasweep.config.schema import PrunerConfig
from lorasweep.errors import ConfigError
from lorasweep.search.reports import Report, reports_of
from lorasweep.search.views import view_study
from lorasweep.spread import evenly

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.study import Study
    from optuna.trial import FrozenTrial

GEOMETRIC = ("asha", "hyperband")  # rungs that grow by a factor; those of the others are evenly spaced
MARK = "completed_rung_"  # Optuna's attribute of a trial that passed a rung of successive halving


def rungs_of(settings: PrunerConfig, max_samples: int) -> tuple[int, ...]:
    """Training samples at which a trial that trains `max_samples` at most is judged, ascending; its end is none."""
    if settings.kind == "none":
        return ()
    if settings.kind in GEOMETRIC:
        rungs, rung = [], settings.min_samples
        while rung < max_samples:
            rungs.append(rung)
            rung *= settings.factor
        return tuple(rungs)
    every = settings.interval_samples
    first = every * max(1, math.ceil(settings.warmup_samples / every))
    return tuple(range(first, max_samples, every))


def optuna_pruner(settings: PrunerConfig) -> BasePruner:
    """Optuna's pruner of these settings. Its resource is training samples, its steps are our rungs."""
    from optuna import pruners
    from optuna.exceptions import ExperimentalWarning

    makers: dict[str, Callable[[], BasePruner]] = {
        "none": pruners.NopPruner,
        "asha": lambda: pruners.SuccessiveHalvingPruner(settings.min_samples, settings.factor),
        "hyperband": lambda: pruners.HyperbandPruner(settings.min_samples, settings.max_samples, settings.factor),
        "median": lambda: pruners.MedianPruner(settings.startup_trials, n_min_trials=settings.min_trials),
        "percentile": lambda: pruners.PercentilePruner(
            settings.percentile, settings.startup_trials, n_min_trials=settings.min_trials
        ),
        "wilcoxon": lambda: pruners.WilcoxonPruner(
            p_threshold=settings.p_threshold, n_startup_steps=settings.startup_rows
        ),
        "patience": lambda: pruners.PatientPruner(None, settings.patience, settings.min_delta),
        "threshold": lambda: pruners.ThresholdPruner(settings.lower, settings.upper),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return makers[settings.kind]()


class Judge:
    """Gives verdicts on the trials of one study."""

    def __init__(self, settings: PrunerConfig, study_name: str, direction: str, metric: str):
        self.settings, self.study_name, self.direction, self.metric = settings, study_name, direction, metric
        self._ended: dict[int, FrozenTrial] = {}  # views of trials that have ended, which no longer change

    def judge(
        self,
        trials: list[FrozenTrial],
        number: int,
        samples: int,
        value: float,
        results: list[float] | None = None,
        beside: dict[int, tuple[int, float]] | None = None,
    ) -> Report:
        """The report of trial `number` at the rung `samples`, among what `trials` have reported so far and those
        `beside` it, number -> (rung, value), report now.

        Raises:
            ConfigError: no `results`, one a validation row, where the pruner compares those.
        """
        if self.settings.kind == "none":
            return Report(value)
        rows = self._rows(results) if self.settings.kind == "wilcoxon" else []
        views = {trial.number: self._view(trial, samples) for trial in trials}
        if self.settings.kind in GEOMETRIC:  # the others compare with complete trials, or with none
            for other, (rung, its_value) in sorted((beside or {}).items()):
                if other != number and rung not in views[other].intermediate_values:
                    views[other] = self._arrived(views, other, rung, its_value)
        own = views[number] = copy.copy(views[number])
        own.intermediate_values = dict(enumerate(rows)) if rows else {**own.intermediate_values, samples: value}
        others = [view for view in views.values() if view.intermediate_values or not view.state.is_finished()]
        study, marks = view_study(self.study_name, self.direction, others)
        pruner = optuna_pruner(self.settings)
        pruned = pruner.prune(study, own)
        if not pruned:
            return Report(value, marks=marks, results=rows)
        own.system_attrs = {**own.system_attrs, **marks}
        said = explain(self.settings, pruner, study, own, self.metric)
        return Report(value, False, f"rung {samples:,} samples: {said}", marks, rows)

    def _arrived(self, views: dict[int, FrozenTrial], number: int, rung: int, value: float) -> FrozenTrial:
        """A trial's view with the value that it is about to report, marked by the pruner as arrived at its rung.

        Whoever comes to a rung is marked there, whatever others did, so it is asked about the trial alone: K trials in
        a turn do not look K(K-1)/2 times through the whole study. Only one that passed several rungs in a step has to
        be good enough among the others at each for the mark of the next.
        """
        view = copy.copy(views[number])
        view.intermediate_values = {**view.intermediate_values, rung: value}
        marks = self._marks([view], view)
        if len(marks) > 1:
            marks = self._marks([*({**views, number: view}).values()], view)
        view.system_attrs = {**view.system_attrs, **marks}
        return view

    def _marks(self, views: list[FrozenTrial], view: FrozenTrial) -> dict[str, Any]:
        """What the pruner notes on a trial that it is asked about among `views`."""
        study, marks = view_study(self.study_name, self.direction, views)
        optuna_pruner(self.settings).prune(study, view)
        return marks

    def _rows(self, results: list[float] | None) -> list[float]:
        """At most `settings.rows` of the results, evenly spread: the same rows for every trial."""
        if not results:
            raise ConfigError("pruner=wilcoxon compares validation rows, and this task has none; use pruner=asha")
        picked = [float(f"{result:.6g}") for result in evenly(results, self.settings.rows)]
        return [int(number) if number == int(number) else number for number in picked]  # 0 and 1 take less room

    def _view(self, trial: FrozenTrial, samples: int) -> FrozenTrial:
        """The trial with what it reported as its intermediate values."""
        if trial.number in self._ended:
            return self._ended[trial.number]
        view = copy.copy(trial)
        reports = reports_of(trial)
        if self.settings.kind == "wilcoxon":  # compared row by row, at this very rung
            there = reports.get(samples)
            view.intermediate_values = dict(enumerate(there.results)) if there else {}
            return view
        view.intermediate_values = {rung: report.value for rung, report in reports.items()}
        view.system_attrs = {**trial.system_attrs}
        for report in reports.values():
            view.system_attrs.update(report.marks)
        if trial.state.is_finished():
            self._ended[trial.number] = view
        return view


# -- why, in words ----------------------------------------------------------------------------------------------------


def explain(settings: PrunerConfig, pruner: BasePruner, study: Study, own: FrozenTrial, metric: str) -> str:
    """Why Optuna's pruner stopped `own`, from the values that it saw: the trial's and the one it had to beat."""
    last = max(own.intermediate_values)
    value = own.intermediate_values[last]
    if settings.kind in GEOMETRIC:
        return _halving(settings, pruner, study, own, metric)
    if settings.kind in ("median", "percentile"):
        return _percentile(settings, study, own, last, metric)
    if settings.kind == "wilcoxon":
        return _wilcoxon(settings, study, own, metric)
    if settings.kind == "patience":
        return _patience(settings, study, own, metric)
    if settings.lower is not None and value < settings.lower:
        return f"{metric} {_number(value)} is below pruner.lower={settings.lower:g}"
    return f"{metric} {_number(value)} is above pruner.upper={settings.upper:g}"


def _halving(settings: PrunerConfig, pruner: Any, study: Study, own: FrozenTrial, metric: str) -> str:
    rung = max(int(key.removeprefix(MARK)) for key in own.system_attrs if key.startswith(MARK))
    bracket, where = study, ""
    if settings.kind == "hyperband":
        place = pruner._get_bracket_id(study, own)
        bracket, where = pruner._create_bracket_study(study, place), f" of bracket {place}"
    key = f"{MARK}{rung}"
    rivals = [trial for trial in bracket.get_trials(deepcopy=False) if trial.number != own.number]
    values = sorted([own.system_attrs[key], *(t.system_attrs[key] for t in rivals if key in t.system_attrs)])
    kept = max(1, len(values) // settings.factor)
    beat = values[-kept] if study.direction.name == "MAXIMIZE" else values[kept - 1]
    among = "the best" if kept == 1 else f"among the best {kept}"
    return (
        f"{metric} {_number(own.system_attrs[key])} is not {among} of the {len(values)} trials there{where}; "
        f"{_number(beat)} was to beat"
    )


def _percentile(settings: PrunerConfig, study: Study, own: FrozenTrial, rung: int, metric: str) -> str:
    import numpy as np
    from optuna.trial import TrialState

    maximize = study.direction.name == "MAXIMIZE"
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = [trial.intermediate_values[rung] for trial in complete if rung in trial.intermediate_values]
    keep = 50.0 if settings.kind == "median" else settings.percentile
    beat = float(np.nanpercentile(values, 100 - keep if maximize else keep))
    best = (max if maximize else min)(own.intermediate_values.values())
    what = "the median" if settings.kind == "median" else f"the edge of the best {keep:g}%"
    return f"{metric} {_number(best)} at best; {what} of {len(values)} complete trials, {_number(beat)}, was to beat"


def _wilcoxon(settings: PrunerConfig, study: Study, own: FrozenTrial, metric: str) -> str:
    from scipy.stats import wilcoxon

    best = study.best_trial
    rows = sorted(set(own.intermediate_values) & set(best.intermediate_values))
    mine = [own.intermediate_values[row] for row in rows]
    theirs = [best.intermediate_values[row] for row in rows]
    side = "less" if study.direction.name == "MAXIMIZE" else "greater"
    differences = [own_row - their_row for own_row, their_row in zip(mine, theirs, strict=True)]
    chance = float(wilcoxon(differences, alternative=side, zero_method="zsplit").pvalue)
    return (
        f"{len(rows)} validation rows judged for {metric} have a mean of {_number(sum(mine) / len(rows))}; the best "
        f"trial, {best.number}, had {_number(sum(theirs) / len(rows))} there (Wilcoxon p={chance:.2g} < "
        f"{settings.p_threshold:g})"
    )


def _patience(settings: PrunerConfig, study: Study, own: FrozenTrial, metric: str) -> str:
    choose = max if study.direction.name == "MAXIMIZE" else min
    rungs = sorted(own.intermediate_values)
    early, late = rungs[: -settings.patience - 1], rungs[-settings.patience - 1 :]
    best = choose(early, key=lambda rung: own.intermediate_values[rung])
    since = choose(own.intermediate_values[rung] for rung in late)
    return (
        f"{metric} {_number(since)} at best over the last {len(late)} rungs; {_number(own.intermediate_values[best])} "
        f"at rung {best:,} was to beat" + (f" by pruner.min_delta={settings.min_delta:g}" if settings.min_delta else "")
    )


def _number(value: float) -> str:
    return f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"
