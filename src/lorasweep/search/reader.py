"""What a stored sweep is and holds: its settings, its trials as records, time and samples spent.

Neighbours: `storage` (below), `study` (adds asking and telling).
"""

from __future__ import annotations

import json
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorasweep.config import compose
from lorasweep.config.home import Folders
from lorasweep.config.schema import Config
from lorasweep.depot import Depot, files_of
from lorasweep.errors import StorageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search import clones
from lorasweep.search.database import place_of
from lorasweep.search.objectives import Goals
from lorasweep.search.reports import reports_of
from lorasweep.search.space import Space, parse_space
from lorasweep.search.storage import StoredStudy, StoredTrial, read

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

NEEDED_FOR_IMPORTANCES = 8  # complete trials below which a variance decomposition says nothing
MOST_FOR_IMPORTANCES = 1000

# Attributes of the study and of its trials; each holds one JSON text, so that it is written whole or not at all.
ABOUT, SECONDS, SLOTS, CLOSED = "lorasweep", "lorasweep.seconds", "lorasweep.slots", "lorasweep.closed"
OPEN = -1  # in CLOSED, which else says how many trials had ended
PARAMS, RUN_ID, RECORD, POST = "params", "run_id", "record", "post"


def finals_name(sweep: str) -> str:
    """Name of the study of a sweep's finalists; no sweep can be called so."""
    return f"{sweep}/finalists"


class StudyReader:
    """A study as it is stored; every method sees what others have written by then.

    Every method raises StorageError where the database cannot be read or written.
    """

    def __init__(self, folders: Folders, study: optuna.Study, about: dict[str, Any]):
        """`about`: identity, overrides, sweep_file and config as JSON types."""
        self.folders, self._study, self._about = folders, study, about
        self._stored = StoredStudy(folders, study)
        self._ended: dict[int, TrialRecord] = {}  # records of trials that have ended, which no longer change

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self._study.study_name

    @property
    def files(self) -> Depot:
        """Where those of its files lie that every host must find: its trials' results."""
        return files_of(self.folders, self.name)

    @property
    def metric(self) -> str:
        """The objective's metric, as it is logged."""
        return str(self._about["config"]["sweep"]["objective"]["metric"])

    @property
    def direction(self) -> str:
        """maximize or minimize."""
        return str(self._about["config"]["sweep"]["objective"]["direction"])

    @property
    def identity(self) -> dict[str, Any]:
        """What makes the sweep itself, as it was first given."""
        return dict(self._about["identity"])

    @property
    def code(self) -> str:
        """The code it was last started with, in words; "" where an older version did."""
        return str(self._about.get("code", ""))

    @property
    def overrides(self) -> list[str]:
        """The overrides it was last started with."""
        return list(self._about["overrides"])

    @property
    def sweep_file(self) -> str | None:
        """Name of its file in sweeps/; None for the study of single trials."""
        name = self._about["sweep_file"]
        return None if name is None else str(name)

    @cached_property
    def config(self) -> Config:
        """The config it was last started with."""
        return compose.from_json(self._about["config"])

    @cached_property
    def space(self) -> Space | None:
        """What varies; None for the study of single trials."""
        sweep = self.config.sweep
        return parse_space(sweep.space, self.config) if sweep.space or self.sweep_file else None

    @cached_property
    def goals(self) -> Goals:
        """Objectives and constraints."""
        return Goals(self.config)

    # -- what it holds ----------------------------------------------------------------------------------------------

    def records(self) -> list[TrialRecord]:
        """Every trial ever asked for, by number; from one read of the storage, quick for thousands of trials."""
        rows = self._stored.rows(RECORD, [RUN_ID, PARAMS, clones.CLONE])
        return [TrialRecord(**vars(self._ended.get(row.number) or self._from_row(row))) for row in rows]

    def _from_row(self, row: StoredTrial) -> TrialRecord:
        stored = row.attributes
        if row.state in ("RUNNING", "WAITING"):
            waits = row.state == "WAITING" and clones.CLONE in stored
            reason = f"waits for a slot; a clone of trial {stored[clones.CLONE]['of']}" if waits else None
            params, run_id = stored.get(PARAMS) or {}, stored.get(RUN_ID) or ""
            return TrialRecord(row.number, TrialState.RUNNING, params=params, run_id=run_id, reason=reason)
        return self._end_of(row.number, stored.get(RECORD))

    def _records(self, trials: list[FrozenTrial]) -> list[TrialRecord]:
        """The trials as records; those that have ended are kept and shared: change nothing in them."""
        return [self._ended.get(frozen.number) or self._record(frozen) for frozen in trials]

    def _record(self, frozen: FrozenTrial) -> TrialRecord:
        run_id = read(frozen, RUN_ID) or ""
        if not frozen.state.is_finished():
            params, origin = read(frozen, PARAMS) or {}, clones.clone_of(frozen)
            waits = f"waits for a slot; a clone of trial {origin['of']}" if origin else None
            reason = waits if frozen.state.name == "WAITING" else None
            return TrialRecord(frozen.number, TrialState.RUNNING, params=params, run_id=run_id, reason=reason)
        return self._end_of(frozen.number, read(frozen, RECORD))

    def _end_of(self, number: int, stored: dict[str, Any] | None) -> TrialRecord:
        if stored is None:
            raise StorageError(
                f"trial {number} of sweep {self.name!r} has ended without a record: something else wrote to "
                f"{place_of(self.folders)}; restore it from a backup, or start the sweep under another sweep.name"
            )
        return self._ended.setdefault(number, TrialRecord.from_json(stored))

    def counts(self) -> dict[str, int]:
        """State -> number of trials, every state by its name."""
        states = [record.state for record in self._records(self._stored.trials())]
        return {str(state): states.count(state) for state in TrialState}

    def run_id(self, number: int) -> str | None:
        """The trial's MLflow run, None before it has one."""
        run_id = read(self._stored.trial(number), RUN_ID)
        return None if run_id is None else str(run_id)

    def _left_adapter(self, number: int) -> bool:
        """Whether a trial's adapter is kept: in the tracking folder, or as far as is known here, by the server."""
        run_id = self.run_id(number)
        if self.folders.server is None:
            kept = self.folders.mlruns.glob(f"*/{run_id}/artifacts/adapter/adapter_model.safetensors")
            return run_id is not None and any(kept)
        record = self._record(self._stored.trial(number))
        by_hand = record.state is TrialState.PRUNED and (record.reason or "").startswith("stopped by hand")
        return record.value is not None and (record.state is TrialState.COMPLETE or by_hand)

    def samples_seen(self) -> int:
        """Training rows seen by the trials that have ended."""
        return sum(record.samples for record in self._records(self._stored.trials()))

    def add_seconds(self, seconds: float, until: float | None = None) -> None:
        """Count the so many seconds before `until` (since 1970; None: now) as spent on this sweep; what other processes
        have counted of them counts once. Adds up over restarts."""
        now = time.time() if until is None else until
        spent, counted = self._seconds()
        self._stored.set_attribute(SECONDS, [spent + max(0.0, min(seconds, now - counted)), now])

    def seconds(self) -> float:
        """Seconds of sweep so far."""
        return self._seconds()[0]

    def _seconds(self) -> tuple[float, float]:
        """(seconds counted, the moment up to which they are, in seconds since 1970)."""
        noted = json.loads(self._stored.attributes().get(SECONDS, "0.0"))
        return (noted[0], noted[1]) if isinstance(noted, list) else (float(noted), 0.0)

    @property
    def slots(self) -> int | None:
        """How many slots it last ran with: `launcher.slots=auto` takes them up again, so that a resumed sweep is the
        same whatever memory is free by then. None before it ran."""
        slots = self._stored.attributes().get(SLOTS)
        return None if slots is None else int(slots)

    def keep_slots(self, slots: int) -> None:
        """Note how many slots it runs with."""
        self._stored.set_attribute(SLOTS, slots)

    @property
    def closed(self) -> bool:
        """Whether summary and report are stored, and since then nobody has opened the sweep again and no trial or
        finalist has ended."""
        noted = self._stored.attributes().get(CLOSED)
        return noted is not None and int(noted) == self._ended_count()

    def note_closed(self) -> None:
        """Summary and report are stored, with every trial that has ended by now."""
        self._stored.set_attribute(CLOSED, self._ended_count())

    def note_open(self) -> None:
        """A process works on it again, or closes it: summary and report are to be stored anew."""
        self._stored.set_attribute(CLOSED, OPEN)

    def _ended_count(self) -> int:
        return self._stored.ended_in(self.name, finals_name(self.name))

    def importances(self, place: int = 0) -> dict[str, float]:
        """Share of the variance of the objective at this place that each key explains (fANOVA); empty where too little
        is known. Of more than MOST_FOR_IMPORTANCES complete trials an even sample is taken: its forests take minutes
        for more, and their answer no longer changes."""
        import optuna

        from lorasweep.search.views import view_study

        complete = [frozen for frozen in self._stored.trials() if frozen.state == optuna.trial.TrialState.COMPLETE]
        if len(complete) < NEEDED_FOR_IMPORTANCES or len({frozen.values[place] for frozen in complete}) < 2:
            return {}
        if not set.intersection(*(set(frozen.params) for frozen in complete)):
            return {}
        every = max(1, len(complete) / MOST_FOR_IMPORTANCES)
        sample = [complete[int(index * every)] for index in range(int(len(complete) / every))]
        view, _ = view_study(self.name, self.direction, sample)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(
            view, evaluator=evaluator, target=lambda frozen: frozen.values[place]
        )
        return {key: float(share) for key, share in shares.items()}

    def rungs_survived(self) -> dict[int, tuple[int, int]]:
        """Rung in training samples -> (trials that were judged there, those of them that went on), ascending."""
        found: dict[int, list[bool]] = {}
        for frozen in self._stored.trials():
            for samples, report in reports_of(frozen).items():
                found.setdefault(samples, []).append(report.keep)
        return {samples: (len(kept), sum(kept)) for samples, kept in sorted(found.items())}
