"""What is read from and written to the database of all studies, below Optuna's own interface where that is slow.

Used by `study` and its neighbours; `database` opens it and words its errors.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lorasweep.config.home import Folders
from lorasweep.errors import StorageError
from lorasweep.search.database import readable_errors

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial
    from sqlalchemy import Engine


def study_names(storage: RDBStorage, attribute: str) -> list[str]:
    """Names of the studies that carry a user attribute, newest first."""
    studies = sorted(storage.get_all_studies(), key=lambda study: study._study_id, reverse=True)
    return [study.study_name for study in studies if attribute in study.user_attrs]


@dataclass(frozen=True)
class StoredTrial:
    """A trial as the database has it: its number, Optuna's name of its state, and attributes by key."""

    number: int
    state: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunningRow:
    """A running trial, one of its attributes, and seconds since its last sign of life; None where there was none."""

    number: int
    attribute: Any
    silent_seconds: float | None


class StoredStudy:
    """One study's trials and attributes in the database. An attribute holds one JSON text, so that it is written whole
    or not at all. Every method raises StorageError where the database cannot be read or written."""

    def __init__(self, folders: Folders, study: optuna.Study):
        self.folders, self.study = folders, study
        self.storage = study._storage  # Optuna's own handle: the public Study writes no attribute of a trial
        self._ids: dict[int, int] = {}  # trial number -> id in the storage
        self._marked: dict[str, tuple[int, list[int]]] = {}  # attribute -> (newest id looked at, numbers that have it)

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.study.study_name)

    def attributes(self) -> dict[str, Any]:
        """The study's own attributes, their texts unread."""
        with readable_errors(self.folders):
            return dict(self.study.user_attrs)

    def set_attribute(self, key: str, value: Any) -> None:
        """Write one of the study's own attributes."""
        with readable_errors(self.folders):
            self.study.set_user_attr(key, json.dumps(value))

    def trials(self) -> list[FrozenTrial]:
        """All trials, by number. Not copies: change nothing in them."""
        with readable_errors(self.folders):
            trials = self.study.get_trials(deepcopy=False)
        self._ids.update((frozen.number, frozen._trial_id) for frozen in trials)
        return trials

    def rows(self, ended: str, running: Sequence[str]) -> list[StoredTrial]:
        """All trials by number, with the attribute `ended` of each and those in `running` of those that have not: two
        queries however many trials there are, where Optuna builds each trial with all that it ever reported. Trials
        come first: what ended by then has its record."""
        from sqlalchemy import bindparam, text

        trials = text("select trial_id, number, state from trials where study_id = :study order by number")
        attributes = text(
            "select a.trial_id, a.key, a.value_json from trial_user_attributes a join trials t"
            " on t.trial_id = a.trial_id where t.study_id = :study"
            " and (a.key = :ended or (a.key in :keys and t.state in ('RUNNING', 'WAITING')))"
        ).bindparams(bindparam("keys", expanding=True))
        study = {"study": self.study._study_id}
        with readable_errors(self.folders), self._engine.connect() as connection:
            found = {row.trial_id: StoredTrial(row.number, str(row.state)) for row in connection.execute(trials, study)}
            for row in connection.execute(attributes, {**study, "ended": ended, "keys": list(running)}):
                if row.trial_id in found:  # a trial that came since has none of the first answer's
                    found[row.trial_id].attributes[row.key] = json.loads(json.loads(row.value_json))
        return list(found.values())

    def add(self, draft: FrozenTrial) -> int:
        """Store a running trial whole in one transaction, with its first sign of life; its number, the next one.

        Optuna's own way of storing one takes a query and more for each of its parameters and attributes.
        """
        from optuna.distributions import distribution_to_json
        from optuna.storages._rdb import models
        from sqlalchemy import func, insert, select

        trials = models.TrialModel.__table__
        study = models.StudyModel.__table__
        mine = study.c.study_id == self.study._study_id
        count = select(func.count()).select_from(trials).where(trials.c.study_id == self.study._study_id)
        row = {
            "study_id": self.study._study_id,
            "state": draft.state,
            "number": count.scalar_subquery(),
            "datetime_start": datetime.now(UTC).replace(tzinfo=None),
        }
        with readable_errors(self.folders), self._engine.begin() as connection:
            connection.execute(select(study.c.study_id).where(mine).with_for_update())  # nobody else adds one now
            stored = insert(trials).values(row).returning(trials.c.trial_id, trials.c.number)
            trial_id, number = connection.execute(stored).one()
            own = {"trial_id": trial_id}
            params = [
                {
                    **own,
                    "param_name": name,
                    "param_value": distribution.to_internal_repr(draft.params[name]),
                    "distribution_json": distribution_to_json(distribution),
                }
                for name, distribution in draft.distributions.items()
            ]
            texts = [{**own, "key": key, "value_json": json.dumps(text)} for key, text in draft.user_attrs.items()]
            hidden = [{**own, "key": key, "value_json": json.dumps(it)} for key, it in draft.system_attrs.items()]
            for model, rows in (
                (models.TrialParamModel, params),
                (models.TrialUserAttributeModel, texts),
                (models.TrialSystemAttributeModel, hidden),
                (models.TrialHeartbeatModel, [own]),
            ):
                if rows:
                    connection.execute(insert(model.__table__), rows)
        self._ids[number] = trial_id
        return int(number)

    def running(self, key: str) -> list[RunningRow]:
        """Running trials by number, with their attribute `key` and the age of their last sign of life by its own
        clock; one cheap query however many trials there are."""
        from sqlalchemy import text

        age = (
            "extract(epoch from current_timestamp::timestamp - h.heartbeat)"
            if self.folders.shared
            else "strftime('%s', 'now') - strftime('%s', h.heartbeat)"
        )
        query = text(
            f"select t.trial_id, t.number, a.value_json, {age} from trials t"
            " left join trial_user_attributes a on a.trial_id = t.trial_id and a.key = :key"
            " left join trial_heartbeats h on h.trial_id = t.trial_id"
            " where t.study_id = :study and t.state = 'RUNNING' order by t.number"
        )
        study = {"study": self.study._study_id, "key": key}
        with readable_errors(self.folders), self._engine.connect() as connection:
            rows = list(connection.execute(query, study))
        self._ids.update((number, trial_id) for trial_id, number, *_ in rows)
        return [
            RunningRow(
                number,
                None if value is None else json.loads(json.loads(value)),
                None if seconds is None else float(seconds),
            )
            for _, number, value, seconds in rows
        ]

    def beat(self, numbers: Iterable[int]) -> None:
        """Note a sign of life of these trials, at the database's time: one statement for all that had one before."""
        from optuna.storages._rdb import models
        from sqlalchemy import func, insert, select, update

        beats = models.TrialHeartbeatModel.__table__
        ids = sorted(self.id_of(number) for number in numbers)
        if not ids:
            return
        these = beats.c.trial_id.in_(ids)
        with readable_errors(self.folders), self._engine.begin() as connection:
            known = connection.execute(update(beats).where(these).values(heartbeat=func.current_timestamp()))
            if known.rowcount < len(ids):  # a clone or a finalist at its first
                there = set(connection.execute(select(beats.c.trial_id).where(these)).scalars())
                connection.execute(insert(beats), [{"trial_id": one} for one in ids if one not in there])

    def outline(self, marked: str) -> tuple[int, int, list[int]]:
        """(trials in all, of them WAITING, numbers of those that have the attribute `marked`); no trial is read. To be
        called where nobody adds one meanwhile."""
        from sqlalchemy import text

        last, known = self._marked.get(marked, (-1, []))
        study = {"study": self.study._study_id, "last": last}
        states = text("select state, count(*), max(trial_id) from trials where study_id = :study group by state")
        numbers = text(  # marks are as old as their trials: those that were looked at need no second look
            "select t.number from trials t join trial_user_attributes a on t.trial_id = a.trial_id"
            " where t.study_id = :study and t.trial_id > :last and a.key = :key order by t.number"
        )
        with readable_errors(self.folders), self._engine.connect() as connection:
            rows = [(str(state), int(count), int(newest)) for state, count, newest in connection.execute(states, study)]
            found = [int(number) for (number,) in connection.execute(numbers, {**study, "key": marked})]
        counts = {state: count for state, count, _ in rows}
        self._marked[marked] = (max((newest for *_, newest in rows), default=-1), [*known, *found])
        return sum(counts.values()), counts.get("WAITING", 0), list(self._marked[marked][1])

    @property
    def _engine(self) -> Engine:
        backend: Any = getattr(self.storage, "_backend", self.storage)  # below Optuna's cache
        return backend.engine

    def ended_in(self, *names: str) -> int:
        """How many trials of these studies have ended; one query."""
        from sqlalchemy import bindparam, text

        query = text(
            "select count(*) from trials t join studies s on s.study_id = t.study_id"
            " where s.study_name in :names and t.state not in ('RUNNING', 'WAITING')"
        ).bindparams(bindparam("names", expanding=True))
        with readable_errors(self.folders), self._engine.connect() as connection:
            return int(connection.execute(query, {"names": list(names)}).scalar_one())

    def trial(self, number: int) -> FrozenTrial:
        """One trial as it is now.

        Raises:
            StorageError: there is none of this number.
        """
        with readable_errors(self.folders):
            return self.storage.get_trial(self.id_of(number))

    def id_of(self, number: int) -> int:
        """A trial's id in the storage.

        Raises:
            StorageError: there is none of this number.
        """
        if number not in self._ids:
            self.trials()
        if number not in self._ids:
            raise StorageError(f"sweep {self.name!r} has no trial {number}; it has {len(self._ids)}")
        return self._ids[number]

    def set(self, number: int, key: str, value: Any) -> None:
        """Write an attribute of a trial.

        Raises:
            StorageError: the trial has ended.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        with readable_errors(self.folders):
            try:
                self.storage.set_trial_user_attr(self.id_of(number), key, json.dumps(value))
            except UpdateFinishedTrialError:
                raise StorageError(
                    f"trial {number} of sweep {self.name!r} has ended already; its first result stays. Is another "
                    "process working on this sweep?"
                ) from None

    def set_intermediate(self, number: int, samples: int, value: float) -> None:
        """Note a value for readers that know Optuna alone, and for its samplers: TPE ranks pruned trials by it."""
        with readable_errors(self.folders):
            self.storage.set_trial_intermediate_value(self.id_of(number), samples, value)

    def set_constraint(self, number: int, constraint: str, excess: float) -> None:
        """Note by how much a trial breaks a constraint, where Optuna's samplers look for it; at most 0: it does not."""
        with readable_errors(self.folders):
            self.storage.set_trial_system_attr(self.id_of(number), f"constraints:{constraint}", excess)


def read(frozen: FrozenTrial, key: str) -> Any:
    """An attribute of a trial; None where it was never written."""
    text = frozen.user_attrs.get(key)
    return None if text is None else json.loads(text)
