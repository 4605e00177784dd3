"""The commands that act on a sweep while it runs: stop a trial, clone one, pause the sweep. From any terminal.

They write what is asked into the study; running workers look there and act at their next turn. Neighbours:
`search.study` (where requests lie), `posts` (who works), `worker` (who acts), `cli` (who calls).
"""

from __future__ import annotations

from typing import Any

from lorasweep import posts
from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.config.schema import TRIAL_GROUPS
from lorasweep.errors import ConfigError, UsageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.requests import PAUSE, STOP
from lorasweep.search.study import Asked, SweepStudy

RESHAPING = ("model", "quantization", "adapter", "task")  # groups that decide which weights an adapter has
NO_WEIGHTS = ("adapter.dropout", "adapter.alpha")


def stop(name: str, trial: int, overrides: list[str]) -> list[str]:
    """Ask that a running trial ends as pruned, with what it has; ids of the processes that work on the sweep now.

    Raises:
        UsageError: no such sweep or trial, or the trial has ended.
    """
    study, _ = _open(name, compose.place_alone(overrides, "stop"))
    record = _trial(study, trial)
    if record.state is not TrialState.RUNNING:
        raise UsageError(f"trial {trial} of sweep {name!r} has ended already: it is {record.state}")
    if not any(request.kind == STOP and request.trial == trial for request in study.requests()):
        study.request(STOP, trial)
    return posts.holders(study.folders, study.name)


def pause(name: str, overrides: list[str]) -> list[str]:
    """Ask the processes that work on this sweep to save and leave; their ids.

    Raises:
        UsageError: no such sweep, or no process works on it.
    """
    study, _ = _open(name, compose.place_alone(overrides, "pause"))
    processes = posts.holders(study.folders, study.name)
    if not processes:
        raise UsageError(f"no process works on sweep {name!r}: there is nothing to pause")
    study.request(PAUSE)
    return processes


def clone(name: str, trial: int, overrides: list[str], warm: bool = False) -> Asked:
    """A new trial from the point of another one, with `overrides` to it; it waits for a slot.

    Raises:
        UsageError: no such sweep or trial; `warm` and there is no adapter, or one of another shape.
        ConfigError: an override that is no setting of a trial, or a config that cannot work.
    """
    study, home = _open(name, overrides)
    record = _trial(study, trial)
    words = [word for word in overrides if not word.startswith("tracking.")]
    changes = compose.parse_overrides(words)
    for key in changes:
        if key.partition(".")[0] not in TRIAL_GROUPS:
            raise ConfigError(
                f"`{key}` is one for the whole sweep; a clone can change settings of {', '.join(TRIAL_GROUPS)}"
            )
    params = {**record.params, **changes}
    if warm:
        _check_warm(record, changes)
    compose.compose_trial(study.overrides, study.sweep_file, params, home)
    with posts.asking(study.folders, study.name):  # who asks counts on the next trial's number
        return study.clone(trial, changes, warm)


def _check_warm(record: TrialRecord, changes: dict[str, Any]) -> None:
    reshaped = [
        key
        for key, value in changes.items()
        if key.partition(".")[0] in RESHAPING and key not in NO_WEIGHTS and record.params.get(key) != value
    ]
    if reshaped:
        raise UsageError(
            f"`{reshaped[0]}` changes which weights there are, so trial {record.trial}'s adapter cannot be its start; "
            "leave --warm out, or that override"
        )


def _open(name: str, overrides: list[str]) -> tuple[SweepStudy, Home]:
    home = Home.find()
    return SweepStudy.load(compose.tracking_place(overrides, home), name), home


def _trial(study: SweepStudy, number: int) -> TrialRecord:
    records = study.records()
    found = next((record for record in records if record.trial == number), None)
    if found is None:
        there = f"0 to {len(records) - 1}" if records else "none yet"
        raise UsageError(f"sweep {study.name!r} has no trial {number}; there are {there}")
    return found
