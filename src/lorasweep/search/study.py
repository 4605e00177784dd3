"""One sweep's Optuna study: create or continue it, ask for points, tell what became of them.

The study is where a sweep's truth lives: which trials were asked for, with which point and MLflow run, and how they
ended. It lives in sqlite (write-ahead log, long busy timeout), which a kill at any moment leaves whole. Every asked
trial counts in the budget once, also a failed or interrupted one. A trial left RUNNING by a dead process is attached
again, never asked twice. Neighbours: `space`, `samplers`; `worker` drives it, `leaderboard` reads `records()`.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorasweep.config import compose
from lorasweep.config.home import Folders
from lorasweep.config.schema import Config
from lorasweep.errors import ConfigError, StorageError, TrialFailed, UsageError, nearest
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.samplers import grid_size, make_sampler
from lorasweep.search.space import Space, parse_space

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

BUSY_TIMEOUT_SECONDS = 60
NEEDED_FOR_IMPORTANCES = 8  # complete trials below which a variance decomposition says nothing


@dataclass(frozen=True)
class Asked:
    """A trial to train: its number in the study and its point, override key -> value."""

    number: int
    params: dict[str, Any]


class SweepStudy:
    """A study in storage. One process works on it at a time; every method sees what earlier ones stored."""

    def __init__(self, folders: Folders, study: optuna.Study, config: Config, space: Space):
        self.folders, self.config, self.space = folders, config, space
        self._study = study
        self._storage = study._storage  # the public Study has no way to re-attach to its storage

    # -- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        folders: Folders,
        config: Config,
        space: Space,
        identity: dict[str, Any],
        overrides: list[str],
        sweep_file: str | None,
    ) -> SweepStudy:
        """Create the study of `config.sweep.name`, or continue it.

        `identity` is what makes the sweep itself (space, objective, data, base, …) as JSON types; the budget and the
        launcher are no part of it, so larger budgets are adopted.

        Raises:
            UsageError: a study of this name exists and is another sweep; says what differs.
            ConfigError: an enqueued point outside the space, a grid without steps.
        """
        import optuna

        name = config.sweep.name
        for index, point in enumerate(config.sweep.enqueue):
            space.check_point(point, f"`sweep.enqueue` point {index}")
        make_sampler(config.sampler, space, 0)  # a grid without steps shows here
        storage = _storage(folders, create=True)
        with _readable_errors(folders):
            if name in _names(storage):
                study = optuna.load_study(study_name=name, storage=storage)
                _compare(name, json.loads(study.user_attrs["identity"]), identity)
                study.set_user_attr("config", json.dumps(asdict(config)))
                return cls(folders, study, config, space)
            study = optuna.create_study(
                study_name=name, storage=storage, direction=config.sweep.objective.direction, sampler=None
            )
            study.set_user_attr("identity", json.dumps(identity))
            study.set_user_attr("overrides", json.dumps(overrides))
            study.set_user_attr("sweep_file", sweep_file)
            study.set_user_attr("seconds", 0.0)
            study.set_user_attr("config", json.dumps(asdict(config)))
            return cls(folders, study, config, space)

    @classmethod
    def load(cls, folders: Folders, name: str) -> SweepStudy:
        """A study that exists.

        Raises:
            UsageError: there is none of this name; names the nearest.
        """
        import optuna

        names = cls.names(folders)
        if name not in names:
            hint = nearest(name, names) if names else "no sweep was ever started there"
            raise UsageError(f"there is no sweep {name!r} in {folders.tracking}; {hint}")
        with _readable_errors(folders):
            study = optuna.load_study(study_name=name, storage=_storage(folders))
            config = compose.from_json(json.loads(study.user_attrs["config"]))
        return cls(folders, study, config, parse_space(config.sweep.space, allow_empty=True))

    @staticmethod
    def names(folders: Folders) -> list[str]:
        """Names of all studies, newest first; empty where no sweep was ever started."""
        if not folders.study_db.exists():
            return []
        with _readable_errors(folders):
            return _names(_storage(folders))

    # -- what it is -------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self._study.study_name

    @property
    def metric(self) -> str:
        """The objective's metric, as it is logged."""
        return self.config.sweep.objective.metric

    @property
    def direction(self) -> str:
        """maximize or minimize."""
        return self.config.sweep.objective.direction

    @property
    def overrides(self) -> list[str]:
        """The overrides it was started with."""
        return list(json.loads(self._study.user_attrs["overrides"]))

    @property
    def sweep_file(self) -> str | None:
        """Name of its file in sweeps/; None for the study of single trials."""
        return self._study.user_attrs["sweep_file"]

    # -- asking -----------------------------------------------------------------------------------------------------

    def ask(self) -> Asked | None:
        """The next trial, or None once the budget of trials is spent."""
        if self.remaining() <= 0:
            return None
        number = len(self._asked())
        self._study.sampler = make_sampler(self.config.sampler, self.space, number)
        points = self.config.sweep.enqueue
        queued = len(self._trials()) > number  # by a process that died before its ask
        if number < len(points) and not queued:
            stored = {d.key: d.stored(points[number][d.key]) for d in self.space.dimensions if d.key in points[number]}
            self._study.enqueue_trial(stored)
        trial = self._study.ask()
        return self._note(trial.number, self.space.suggest(trial))

    def ask_fixed(self, params: dict[str, Any]) -> Asked:
        """A trial at this very point, beyond any budget: for single trials."""
        return self._note(self._study.ask().number, params)

    def _note(self, number: int, params: dict[str, Any]) -> Asked:
        self._set(number, "params", params)
        return Asked(number, params)

    def interrupted(self) -> list[Asked]:
        """Trials that a dead process left RUNNING, oldest first.

        One that died between its ask and the note of its point is given its point now: the sampler depends on the
        trial's number and history alone, so it is the point that it would have had.
        """
        import optuna

        found = []
        for frozen in self._trials():
            if frozen.state != optuna.trial.TrialState.RUNNING:
                continue
            params = self._read(frozen, "params")
            if params is None:
                self._study.sampler = make_sampler(self.config.sampler, self.space, frozen.number)
                params = self.space.suggest(optuna.trial.Trial(self._study, frozen._trial_id))
                self._set(frozen.number, "params", params)
            found.append(Asked(frozen.number, params))
        return found

    # -- telling ----------------------------------------------------------------------------------------------------

    def set_run(self, number: int, run_id: str) -> None:
        """Note the trial's MLflow run, so that a restart continues it."""
        self._set(number, "run_id", run_id)

    def run_id(self, number: int) -> str | None:
        """The trial's MLflow run, None before it has one."""
        return self._read(self._trials()[number], "run_id")

    def complete(self, number: int, value: float, record: TrialRecord) -> None:
        """Tell a finished trial.

        Raises:
            TrialFailed: the value is not finite; nothing was told.
        """
        if not math.isfinite(value):
            raise TrialFailed("diverged", f"trial {number}: {self.metric} is {value}; a value must be finite")
        self._tell(number, record, value, "COMPLETE")

    def prune(self, number: int, value: float, record: TrialRecord) -> None:
        """Tell a trial that was stopped early, with its last value."""
        self._tell(number, record, value, "PRUNED")

    def fail(self, number: int, record: TrialRecord) -> None:
        """Tell a failed trial; `record.reason` says why."""
        self._tell(number, record, None, "FAIL")

    def _tell(self, number: int, record: TrialRecord, value: float | None, state: str) -> None:
        import optuna

        self._set(number, "record", record.to_json())
        told = {"values": value} if value is not None and state == "COMPLETE" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.tell(number, state=optuna.trial.TrialState[state], **told)

    # -- reading ----------------------------------------------------------------------------------------------------

    def records(self) -> list[TrialRecord]:
        """Every trial ever asked for, by number; from one read of the storage."""
        return [self._record(frozen) for frozen in self._asked()]

    def _record(self, frozen: FrozenTrial) -> TrialRecord:
        stored = self._read(frozen, "record")
        if stored is not None and frozen.state.is_finished():
            return TrialRecord.from_json(stored)
        params = self._read(frozen, "params") or dict(frozen.params)
        return TrialRecord(
            frozen.number, TrialState.RUNNING, params=params, run_id=self._read(frozen, "run_id") or ""
        )

    def counts(self) -> dict[str, int]:
        """State -> number of trials; states without a trial are left out."""
        found: dict[str, int] = {}
        for record in self.records():
            found[str(record.state)] = found.get(str(record.state), 0) + 1
        return found

    def budget(self) -> int:
        """Number of trials that the sweep may have in all."""
        match self.config.sampler.kind:
            case "list":
                return len(self.config.sweep.enqueue)
            case "grid":
                return min(self.config.sweep.trials, grid_size(self.space))
            case _:
                return self.config.sweep.trials

    def remaining(self) -> int:
        """Trials that may still be asked for."""
        return max(0, self.budget() - len(self._asked()))

    def samples_seen(self) -> int:
        """Training rows seen by the trials that have ended."""
        return sum(record.samples for record in self.records())

    def add_seconds(self, seconds: float) -> None:
        """Count time spent on this sweep; adds up over restarts."""
        self._study.set_user_attr("seconds", self.seconds() + seconds)

    def seconds(self) -> float:
        """Seconds of sweep so far."""
        return float(self._study.user_attrs["seconds"])

    def importances(self) -> dict[str, float]:
        """Share of the objective's variance that each key explains (fANOVA); empty where too little is known."""
        import optuna

        complete = [t for t in self._trials() if t.state == optuna.trial.TrialState.COMPLETE]
        if len(complete) < NEEDED_FOR_IMPORTANCES or len({t.value for t in complete}) < 2:
            return {}
        if not set.intersection(*(set(trial.params) for trial in complete)):
            return {}
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(self._study, evaluator=evaluator)
        return {key: float(share) for key, share in shares.items()}

    def _asked(self) -> list[FrozenTrial]:
        """Trials that were asked for; one that is merely queued (WAITING) is none yet."""
        import optuna

        return [frozen for frozen in self._trials() if frozen.state != optuna.trial.TrialState.WAITING]

    def _trials(self) -> list[FrozenTrial]:
        with _readable_errors(self.folders):
            return self._study.get_trials(deepcopy=False)

    def _set(self, number: int, key: str, value: Any) -> None:
        with _readable_errors(self.folders):
            self._storage.set_trial_user_attr(self._trials()[number]._trial_id, key, json.dumps(value))

    @staticmethod
    def _read(frozen: FrozenTrial, key: str) -> Any:
        text = frozen.user_attrs.get(key)
        return None if text is None else json.loads(text)


# -- storage --------------------------------------------------------------------------------------------------------


def _storage(folders: Folders, create: bool = False) -> RDBStorage:
    """The sqlite storage. The write-ahead log survives a kill and lets readers in beside the writer."""
    import optuna
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    optuna.logging.set_verbosity(logging.WARNING)
    if create:
        folders.own.mkdir(parents=True, exist_ok=True)

    def use_wal(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    url = f"sqlite:///{folders.study_db}"
    event.listen(Engine, "connect", use_wal)
    try:
        with _readable_errors(folders):
            return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS}})
    finally:
        event.remove(Engine, "connect", use_wal)


def _names(storage: RDBStorage) -> list[str]:
    return [study.study_name for study in reversed(storage.get_all_studies())]


@contextmanager
def _readable_errors(folders: Folders) -> Iterator[None]:
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        first = str(error.__cause__ or error).splitlines()[0]
        raise StorageError(
            f"the study database {folders.study_db} cannot be used: {first}. `lorasweep doctor` looks closer; what it "
            "holds is untouched"
        ) from error


def _compare(name: str, was: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to continue a sweep as another one."""
    before, after = _flat(was), _flat(now)
    changed = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    if changed:
        lines = "\n".join(f"  {key}: {before.get(key)!r} -> {after.get(key)!r}" for key in changed[:12])
        raise UsageError(
            f"sweep {name!r} was started as another sweep (was -> now):\n{lines}\n`lorasweep resume {name}` continues it "
            "as it was; sweep.name=NEW starts another one beside it"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        flat: dict[str, Any] = {}
        for key, value in node.items():
            flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
        return flat
    return {prefix: node}


__all__ = ["Asked", "ConfigError", "SweepStudy"]
