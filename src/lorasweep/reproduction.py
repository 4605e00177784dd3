"""The command `reproduce`: train one trial again from what its run recorded, and say whether the numbers are the same.

Nothing is stored: no study, no run; the trial trains alone in a pack of one. Alone on the same machine and versions,
a trial that trained alone comes out with the same bits; one that trained beside others differs in the last of them.
Neighbours: `tracking.recorded` (what the run says), `workbench`, `training.pack` (the loop), `cli`.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.config.schema import Config
from lorasweep.errors import DataError, ModelError, StorageError, TrialFailed, UsageError
from lorasweep.models.unchanged import changed_base
from lorasweep.records import at_rung
from lorasweep.search.study import SweepStudy
from lorasweep.tracking.recorded import Recorded

if TYPE_CHECKING:
    from lorasweep.config.home import Folders
    from lorasweep.training.snapshot import AnyPack
    from lorasweep.workbench import Workbench

TOLERANCE = 1e-4  # of a metric's value, or of 1 where that is less
LOOSE_TOLERANCE = 1e-2  # on GPUs, in half precision, over 4-bit weights
COMPARED = ("train/loss", "train/grad_norm", "train/lr", "train/samples")  # and all of eval/*
PACE = ("eval/seconds", "eval/samples_per_second")
FACTS = {  # what may explain a difference, by its tag
    "lorasweep.version": "lorasweep",
    "lorasweep.git.commit": "commit",
    "lorasweep.git.dirty": "changes to tracked files",
    "lorasweep.python": "Python",
    "lorasweep.device": "device",
}
Series = dict[str, dict[int, float]]  # metric -> step -> value


@dataclass(frozen=True)
class Compared:
    """One metric of both: its newest value, and the largest difference over all points that both have."""

    name: str
    recorded: float
    again: float | None
    difference: float
    points: int
    same: bool


@dataclass(frozen=True)
class Reproduction:
    """What training again showed. `changed`: what is not as it was then, in words; `failed`: how it failed this time,
    None where it did not."""

    run_id: str
    sweep: str
    trial: int
    state: str
    tolerance: float
    metrics: list[Compared]
    changed: list[str] = field(default_factory=list)
    failed: str | None = None
    failed_before: str | None = None

    @property
    def same(self) -> bool:
        """Whether every metric is within the tolerance, and it failed where it had failed."""
        alike = (self.failed or "").partition(":")[0] == (self.failed_before or "").partition(":")[0]
        return alike and all(one.same for one in self.metrics)

    @property
    def identical(self) -> bool:
        """Whether every number has the same bits."""
        return self.same and all(one.difference == 0 for one in self.metrics)

    def to_json(self) -> dict[str, Any]:
        """The document of `reproduce --json`."""
        rows = {
            one.name: {
                "recorded": _finite(one.recorded),
                "again": _finite(one.again),
                "difference": _finite(one.difference),
                "points": one.points,
                "same": one.same,
            }
            for one in self.metrics
        }
        return {
            "run_id": self.run_id,
            "sweep": self.sweep,
            "trial": self.trial,
            "state": self.state,
            "same": self.same,
            "identical": self.identical,
            "tolerance": self.tolerance,
            "metrics": rows,
            "changed": self.changed,
            "failed": self.failed,
        }

    def describe(self) -> str:
        """What to tell a person: a line a metric, then the verdict."""
        wide = max((len(one.name) for one in self.metrics), default=6)
        lines = [f"{'metric':<{wide}}  {'recorded':>12}  {'again':>12}  {'difference':>10}  points"]
        for one in self.metrics:
            again = "-" if one.again is None else f"{one.again:.6g}"
            mark = "" if one.same else "  differs"
            numbers = f"{one.recorded:>12.6g}  {again:>12}  {one.difference:>10.2g}  {one.points:>6}"
            lines.append(f"{one.name:<{wide}}  {numbers}{mark}")
        who = f"Trial {self.trial} of {self.sweep}"
        if self.failed:
            lines.append(
                f"{who} failed again: {self.failed}" if self.same else f"{who} failed this time: {self.failed}"
            )
        elif self.identical:
            lines.append(f"{who} is reproduced, bit for bit.")
        elif self.same:
            lines.append(f"{who} is reproduced: every difference is at most {self.tolerance:g}.")
        else:
            lines.append(f"{who} is NOT reproduced: a difference is above {self.tolerance:g}.")
        lines += [f"  not as it was: {change}" for change in self.changed]
        return "\n".join(lines)


def reproduce(run_id: str, overrides: list[str], tolerance: float | None = None, quiet: bool = False) -> Reproduction:
    """Train the trial of a run again and compare. `overrides` may name files that were moved, launcher.*, tracking.*.

    Raises:
        UsageError: no such run, one that has not ended, or an override that would make it another trial.
        DataError, ModelError: data or base are not what the run was trained on.
        StorageError: the run does not hold what is needed.
    """
    home = Home.find()
    folders = compose.tracking_place(overrides, home)
    recorded = Recorded.read(folders, run_id)
    if recorded.state == "running":
        raise UsageError(f"trial {recorded.trial} of {recorded.sweep} has not ended; `lorasweep resume` trains it on")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance >= 0):
        raise UsageError(f"--tolerance is a number >= 0, got {tolerance}")
    config = recorded.config_with(compose.parse_overrides(overrides))
    before = _recorded_series(recorded)
    workbench = _workbench(recorded, config, folders)
    if not quiet:
        print(f"training trial {recorded.trial} of {recorded.sweep} again, alone", file=sys.stderr)
    again, kept, failed = _train(workbench, config, _warm_start(recorded, folders), _last_step(recorded, before))
    exact = config.train.precision == "fp32" and config.quantization.kind == "none"
    allowed = tolerance if tolerance is not None else TOLERANCE if exact and _is_cpu(recorded) else LOOSE_TOLERANCE
    reason = recorded.tags.get("lorasweep.reason") if recorded.state == "failed" else None
    return Reproduction(
        run_id=recorded.run_id,
        sweep=recorded.sweep,
        trial=recorded.trial,
        state=recorded.state,
        tolerance=allowed,
        metrics=[_compare(name, before[name], again.get(name, {}), kept.get(name), allowed) for name in before],
        changed=_changes(recorded, workbench, config),
        failed=failed,
        failed_before=reason,
    )


# -- then -------------------------------------------------------------------------------------------------------------


def _recorded_series(recorded: Recorded) -> Series:
    """Every point of the metrics that training decides. The closing point of eval/*, one step past the last, is the
    kept checkpoint's."""
    names = [name for name in recorded.metrics if name in COMPARED or name.startswith("eval/")]
    names = [name for name in names if name not in PACE and not name.endswith("_before")]  # `before`: of the base
    found = {name: recorded.history(name) for name in sorted(names)}
    if not found and recorded.state != "failed":
        raise StorageError(f"run {recorded.run_id} has no metric to compare with; was it recorded by lorasweep?")
    return found


def _last_step(recorded: Recorded, series: Series) -> float:
    """Where to stop: a pruned trial's last point; the others end by themselves."""
    if recorded.state != "pruned":
        return math.inf
    return max((step for points in series.values() for step in points), default=0)


def _is_cpu(recorded: Recorded) -> bool:
    return recorded.tags.get("lorasweep.device", "cpu").startswith("cpu")


def _workbench(recorded: Recorded, config: Config, folders: Folders) -> Workbench:
    """Data and base, checked to be those of the run."""
    from lorasweep.workbench import Workbench
    from lorasweep.worker.here import prepare

    workbench = Workbench(folders, config.sweep.objective, 1)
    now, then = workbench.data(config), recorded.tags.get("lorasweep.fingerprint.data")
    if then is not None and now.fingerprint != then:
        raise DataError(
            f"the data of trial {recorded.trial} ({now.source}) is not what it was trained on: {len(now.train)} "
            f"training and {len(now.validation)} validation rows with the fingerprint {now.fingerprint[:12]}…, the run "
            f"says {then[:12]}…. Restore it, or give its place with data.train=PATH"
        )
    prepare(config.launcher)  # before the base is loaded: packs count threads
    noted = recorded.tags.get("lorasweep.fingerprint.base")
    if noted is not None and workbench.model_fingerprint(config) != noted:
        raise ModelError(changed_base(config.model.path, recorded.trial))
    return workbench


def _warm_start(recorded: Recorded, folders: Folders) -> Recorded | None:
    """The trial whose adapter a warm clone started from; only the study knows."""
    if recorded.sweep not in SweepStudy.names(folders):
        return None
    run_id = SweepStudy.load(folders, recorded.sweep).warm_from(recorded.trial)
    return None if run_id is None else Recorded.read(folders, run_id)


# -- again ------------------------------------------------------------------------------------------------------------


def _train(
    workbench: Workbench, config: Config, warm: Recorded | None, last_step: float
) -> tuple[Series, dict[str, float], str | None]:
    """(series of this time, metrics of the kept checkpoint, how it failed). A trial that was pruned ends at
    `last_step`, where it ended then."""
    from lorasweep.training.pack import Evaluated, Failed, Finished, Rated, Stepped

    pack, series, kept, step = workbench.pack(config), Series(), dict[str, float](), 0

    def note(metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            series.setdefault(name, {})[step] = value

    try:
        _admit(pack, config, warm)
    except TrialFailed as error:
        return series, kept, str(error)
    while step < last_step:
        for event in pack.advance():
            if isinstance(event, Failed):
                return series, kept, f"{event.cause}: {event.message}"
            step = event.step
            if isinstance(event, Stepped):
                seen = {"loss": event.loss, "lr": event.lr, "grad_norm": event.grad_norm, "samples": event.samples}
                note({f"train/{name}": float(value) for name, value in seen.items()})
            elif isinstance(event, Evaluated):
                note(event.metrics)
                kept = event.metrics if event.is_best else kept
            elif isinstance(event, Rated) and event.over_part:
                note({at_rung(name): value for name, value in event.metrics.items()})
            elif isinstance(event, Finished):
                return series, event.best_metrics, None
    return series, kept, None


def _admit(pack: AnyPack, config: Config, warm: Recorded | None) -> None:
    from lorasweep.models.packed_lora import PackedLora
    from lorasweep.search.pruners import rungs_of
    from lorasweep.training.pack import Pack
    from lorasweep.training.schedule import trial_samples

    pack.admit(0, config, rungs_of(config.pruner, trial_samples(config, pack.rows)))
    if warm is not None:
        if not isinstance(pack, Pack) or not isinstance(pack.engine, PackedLora):
            raise StorageError("a trial that started from another's adapter has no adapter itself to start again")
        with warm.artifact("adapter") as adapter:
            warm.check("adapter", adapter)
            pack.engine.start_from(pack.roster.slot(0).index, adapter)


# -- both -------------------------------------------------------------------------------------------------------------


def _compare(
    name: str, before: dict[int, float], again: dict[int, float], kept: float | None, allowed: float
) -> Compared:
    """One metric at all recorded points; a point that is missing this time differs. Where the kept checkpoint is not
    the last evaluation, its value is a closing point, at a step that no training reaches."""
    newest = max(before)
    if newest not in again and kept is not None:
        again = {**again, newest: kept}
    gaps = [_gap(value, again[step]) for step, value in before.items() if step in again]
    same = len(gaps) == len(before) and all(gap <= allowed for gap in gaps)
    return Compared(name, before[newest], again.get(newest), max(gaps, default=math.inf), len(gaps), same)


def _gap(one: float, other: float) -> float:
    """The difference by the larger of the value and 1; of two that are not finite 0 where they are alike."""
    if not (math.isfinite(one) and math.isfinite(other)):
        return 0.0 if math.isnan(one) and not math.isfinite(other) else math.inf  # MLflow keeps no infinity
    return abs(one - other) / max(1.0, abs(one))


def _changes(recorded: Recorded, workbench: Workbench, config: Config) -> list[str]:
    from lorasweep.provenance import gather

    now = gather(config, workbench.data(config).fingerprint, recorded.tags.get("lorasweep.fingerprint.base", ""))
    found = [
        f"{what}: {recorded.tags[tag]}, now {now[tag]}"
        for tag, what in FACTS.items()
        if tag in recorded.tags and recorded.tags[tag] != now[tag]
    ]
    then, today = (json.loads(tags.get("lorasweep.packages", "{}")) for tags in (recorded.tags, now))
    return found + [f"{name}: {then[name]}, now {today.get(name)}" for name in then if then[name] != today.get(name)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
