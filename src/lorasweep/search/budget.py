"""When a search ends: trials, seconds, training samples or a value reached, whichever comes first. Pure.

Neighbour: `study`, which knows what was spent.
"""

from __future__ import annotations

from collections.abc import Callable

from lorasweep.config.schema import Config, SweepConfig
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.objectives import Goals


def trials_in_all(config: Config, points: int | None) -> int:
    """Trials that a sweep may have: a list has its points, whatever `sweep.trials` says, a grid no more than its own.
    `points`: how many the sampler has, None: no end."""
    if points is None:
        return config.sweep.trials
    return points if config.sampler.kind == "list" else min(config.sweep.trials, points)


def spent(sweep: SweepConfig, points: int, left: int, seconds: Callable[[], float], samples: int) -> str | None:
    """Which budget is used up, in words; None while there is some of each.

    points: trials that the sweep may have in all, and how many of them are `left`; seconds: tells those of sweep so
    far, asked only where they are limited; samples: training rows seen.
    """
    if not left:
        return f"all {points} trials were started"
    if sweep.timeout_seconds is not None and (gone := seconds()) >= sweep.timeout_seconds:
        return f"sweep.timeout_seconds={sweep.timeout_seconds:g} is over ({gone:.1f} s)"
    if sweep.total_samples is not None and samples >= sweep.total_samples:
        return f"sweep.total_samples={sweep.total_samples:,} were seen ({samples:,})"
    return None


def reached(sweep: SweepConfig, goals: Goals, records: list[TrialRecord]) -> str | None:
    """Which complete trial reached `sweep.target_value` and breaks no constraint, in words; None for none."""
    target, objective = sweep.target_value, goals.objectives[0]
    if target is None:
        return None
    for record in records:
        if record.state is not TrialState.COMPLETE or record.value is None or goals.broken(record):
            continue
        if record.value >= target if objective.direction == "maximize" else record.value <= target:
            return f"trial {record.trial} reached sweep.target_value={target:g} ({objective.metric} {record.value:.4f})"
    return None
