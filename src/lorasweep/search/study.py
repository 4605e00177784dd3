"""One sweep's Optuna study: create or continue it, ask for points, tell what became of them.

The study is where a sweep's truth lives: which trials were asked for, with which point and MLflow run, and how they
ended. It lives in sqlite (write-ahead log, long busy timeout), which a kill at any moment leaves whole. Every asked
trial counts in the budget once, also a failed or interrupted one. A trial left RUNNING by a dead process is attached
again, never asked twice. Neighbours: `reader` (what is stored), `steering`, `samplers`, `pruners`; `worker` drives it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorasweep.config.home import Folders
from lorasweep.config.schema import Config
from lorasweep.errors import ConfigError, StorageError, TrialFailed, UsageError, nearest
from lorasweep.provenance import code_here
from lorasweep.records import TrialRecord
from lorasweep.search import budget, clones, draft, reports
from lorasweep.search.database import exists, open_storage, readable_errors
from lorasweep.search.identity import check_same
from lorasweep.search.objectives import Goals
from lorasweep.search.pruners import Judge, rungs_of
from lorasweep.search.reader import ABOUT, PARAMS, POST, RECORD, RUN_ID
from lorasweep.search.reports import Verdict
from lorasweep.search.space import Space
from lorasweep.search.steering import Asked, SteeredStudy
from lorasweep.search.storage import read, study_names

if TYPE_CHECKING:
    import optuna

    from lorasweep.search.samplers import Proposals


SEEDS = "lorasweep.seeds"  # attribute of the study: the earlier trials that its sampler starts from


class SweepStudy(SteeredStudy):
    """A study that asks for trials and is told of them."""

    # -- opening ----------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        folders: Folders,
        config: Config,
        space: Space | None,
        identity: dict[str, Any],
        overrides: list[str],
        *,
        sweep_file: str | None = None,
    ) -> SweepStudy:
        """Create the study of `config.sweep.name`, or continue it with the budget and launcher of `config`.

        `space` None: a study of single trials, which `ask_fixed` alone fills. `identity` is what makes the sweep
        itself (space, objective, data, base, …) as JSON types; budget and launcher are no part of it.

        Raises:
            UsageError: a study of this name exists and is another sweep; says what differs.
            ConfigError: an enqueued point outside the space, a sampler that cannot draw from it.
            StorageError: there is none, but files of one: new trials would write on in the runs of the old ones.
        """
        import optuna

        from lorasweep.search.samplers import Proposals

        name = config.sweep.name
        proposals = Proposals(config, space) if space is not None else None
        left = any(folders.spool(name).glob("trial-*"))  # before the names: who made them has made the study first
        is_new = name not in cls.names(folders)
        if left and is_new:
            raise StorageError(
                f"{folders.sweep(name)} holds files of sweep {name!r}, and no study of it is in "
                f"{folders.studies or folders.study_db}: bring that back from a backup, remove the folder to start "
                "again, or take another sweep.name"
            )
        if space is not None and config.sweep.warm_start and is_new:
            cls._seeds(folders, config, space)  # what is wrong shows before anything is stored
        about = {
            "identity": json.loads(json.dumps(identity)),
            "overrides": list(overrides),
            "sweep_file": sweep_file,
            "config": asdict(config),
            "code": code_here(),
        }
        with readable_errors(folders):
            study = optuna.create_study(
                study_name=name,
                storage=open_storage(folders, create=True),
                directions=[optuna.study.StudyDirection[one.direction.upper()] for one in Goals(config).objectives],
                load_if_exists=True,
            )
            stored = study.user_attrs.get(ABOUT)  # None: new, or its maker died before it could say what it is
            if stored is not None:
                check_same(name, json.loads(stored)["identity"], about["identity"])
            study.set_user_attr(ABOUT, json.dumps(about))
        opened = cls(folders, study, about)
        opened.config, opened.space = config, space
        opened.proposals = opened._seeded(proposals) if proposals is not None else None
        return opened

    @classmethod
    def load(cls, folders: Folders, name: str) -> SweepStudy:
        """A study that exists.

        Raises:
            UsageError: there is none of this name; names the nearest.
        """
        import optuna

        with readable_errors(folders):
            if not exists(folders):
                raise UsageError(
                    f"there is no sweep {name!r} in {folders.studies or folders.tracking}: no sweep was ever started "
                    "there"
                )
            storage = open_storage(folders)
            names = study_names(storage, ABOUT)
            if name not in names:
                place = folders.studies or folders.tracking
                raise UsageError(f"there is no sweep {name!r} in {place}; {nearest(name, names)}")
            study = optuna.load_study(study_name=name, storage=storage)
            about = json.loads(study.user_attrs[ABOUT])
            stored = about["config"]["tracking"]  # a server or files that moved are given anew
            server, files = folders.server or stored.get("uri"), folders.files or stored.get("files")
            return cls(replace(folders, server=server, files=files), study, about)

    @staticmethod
    def names(folders: Folders) -> list[str]:
        """Names of all studies, newest first; empty where no sweep was ever started."""
        with readable_errors(folders):
            if not exists(folders):
                return []
            return study_names(open_storage(folders), ABOUT)

    @cached_property
    def proposals(self) -> Proposals | None:
        """Who proposes points; None for the study of single trials."""
        from lorasweep.search.samplers import Proposals

        return self._seeded(Proposals(self.config, self.space)) if self.space is not None else None

    def _seeded(self, proposals: Proposals) -> Proposals:
        """The proposals with the earlier trials that they start from, chosen when they are first needed."""
        from lorasweep.search import warmstart

        if self.config.sweep.warm_start:
            attributes = self._stored.attributes()
            if SEEDS not in attributes:
                self._stored.set_attribute(SEEDS, self._seeds(self.folders, self.config, proposals.space))
                attributes = self._stored.attributes()
            proposals.earlier = warmstart.trials_of(
                proposals.space, json.loads(attributes[SEEDS]), self.config.sampler.kind
            )
        return proposals

    @classmethod
    def _seeds(cls, folders: Folders, config: Config, space: Space) -> list[dict[str, Any]]:
        from lorasweep.search import warmstart

        if config.sweep.name in config.sweep.warm_start:
            raise ConfigError(f"`sweep.warm_start` names {config.sweep.name!r}, the sweep itself; leave it out")
        names = dict.fromkeys(config.sweep.warm_start)  # one that is named twice gives its trials once
        return warmstart.seeds_of(config, space, [cls.load(folders, name) for name in names])

    @property
    def seeded_from(self) -> dict[str, int]:
        """Earlier sweep -> how many of its trials the sampler starts from."""
        found = [seed["from"][0] for seed in json.loads(self._stored.attributes().get(SEEDS, "[]"))]
        return {name: found.count(name) for name in self.config.sweep.warm_start}

    @cached_property
    def _judge(self) -> Judge:
        rows = self.config.pruner.eval_rows
        metric = f"{self.metric} over at most {rows:,} rows" if rows else self.metric
        return Judge(self.config.pruner, self.name, self.direction, metric)

    # -- asking -----------------------------------------------------------------------------------------------------

    def ask(self, post: str | None = None, samples_in_training: int = 0) -> Asked | None:
        """The next trial, a clone that waits first; None once a budget or the points are spent. One process at a time.

        `post`: who will train it, noted with the trial; `samples_in_training`: as `stop_reason`.
        """
        if self.space is None or self.proposals is None:
            return None
        if self.budget_spent(samples_in_training):
            return None
        number, waiting, self.proposals.clones = self._stored.outline(clones.CLONE)
        self._study.sampler = self.proposals
        space, point = self.space, dict[str, Any]()
        with readable_errors(self.folders):
            if waiting:
                trial = self._study.ask()
                point = read(self._stored.trial(trial.number), PARAMS)
                clones.tell_params(space, trial, point)
                return Asked(trial.number, point)

            def draw(trial: optuna.Trial) -> dict[str, str]:
                point.update(space.suggest(trial))
                return {PARAMS: json.dumps(point), **({} if post is None else {POST: json.dumps(post)})}

            return Asked(self._stored.add(draft.sketch(self._study, number, draw)), point, claimed=post is not None)

    def _informed(self, proposals: Proposals) -> Proposals:
        """The proposals, told which numbers are clones."""
        _, _, proposals.clones = self._stored.outline(clones.CLONE)
        return proposals

    def ask_fixed(self, params: dict[str, Any]) -> Asked:
        """A trial at this very point, beyond any budget: for single trials."""
        with readable_errors(self.folders):
            trial = self._study.ask()
            return self._note(trial.number, params)

    def _note(self, number: int, params: dict[str, Any]) -> Asked:
        self._stored.set(number, PARAMS, params)
        return Asked(number, params)

    def interrupted(self) -> list[Asked]:
        """Trials that a dead process left RUNNING, oldest first.

        One that died between its ask and the note of its point is given its point now: what was drawn is kept, the
        rest comes from the same seed.
        """
        import optuna

        found = []
        for frozen in self._stored.trials():
            if frozen.state != optuna.trial.TrialState.RUNNING:
                continue
            params = read(frozen, PARAMS)
            if params is None:
                with readable_errors(self.folders):
                    params = {}
                    if self.space is not None and self.proposals is not None:
                        self._study.sampler = self._informed(self.proposals)
                        params = self.space.suggest(optuna.trial.Trial(self._study, frozen._trial_id))
                    self._note(frozen.number, params)
            found.append(Asked(frozen.number, params))
        return found

    # -- telling ----------------------------------------------------------------------------------------------------

    def set_run(self, number: int, run_id: str) -> None:
        """Note the trial's MLflow run, so that a restart continues it."""
        self._stored.set(number, RUN_ID, run_id)

    def rungs(self, max_samples: int) -> tuple[int, ...]:
        """Training samples at which a trial that trains `max_samples` at most is judged, ascending."""
        return rungs_of(self.config.pruner, max_samples)

    def report(
        self,
        number: int,
        samples: int,
        value: float,
        results: list[float] | None = None,
        beside: dict[int, tuple[int, float]] | None = None,
    ) -> Verdict:
        """Whether a trial that has this value of the objective at the rung `samples` trains on, and if not, why.

        `results`: one number a validation row, higher is better where the objective is maximized; wilcoxon needs them.
        `beside`: number -> (rung, value) of trials that report at the same moment; they count as having done so.
        Asked again for the same rung, also of a trial that has ended, the first verdict is the answer and nothing
        changes.

        Raises:
            TrialFailed: the value is not finite; nothing was stored.
            StorageError: the trial has ended and was never judged at this rung.
        """
        if not math.isfinite(value):
            raise TrialFailed("diverged", f"trial {number}: {self.metric} is {value}; a value must be finite")
        trial = self._stored.trial(number)
        found = reports.reports_of(trial).get(samples)
        if found is None:
            found = self._judge.judge(self._stored.trials(), number, samples, value, results, beside)
            self._stored.set(number, reports.attribute(samples), found.to_json())
        noted = samples in trial.intermediate_values or trial.state.is_finished()
        if not noted and not self.goals.several:  # also where a kill came in between
            self._stored.set_intermediate(number, samples, found.value)
        return found.verdict

    def complete(self, number: int, value: float, record: TrialRecord) -> None:
        """Tell a finished trial. Ask `goals.problem` first where there are several objectives or constraints.

        Raises:
            TrialFailed: the value is not finite (Optuna would count inf as a result), or that of another objective or
                constraint is missing; nothing was told.
            StorageError: the trial has ended already; its first result stays.
        """
        if not math.isfinite(value):
            raise TrialFailed("diverged", f"trial {number}: {self.metric} is {value}; a value must be finite")
        problem = self.goals.problem(record)
        if problem is not None:
            raise TrialFailed("objective", f"trial {number}: {problem}")
        self._tell(number, record, "COMPLETE", value)

    def prune(self, number: int, value: float | None, record: TrialRecord) -> None:
        """Tell a trial that was stopped early, with its last value at `record.samples`; None: it was never evaluated.

        Raises:
            TrialFailed, StorageError: as `complete`.
        """
        if value is not None and not math.isfinite(value):
            raise TrialFailed("diverged", f"trial {number}: {self.metric} is {value}; a value must be finite")
        self._tell(number, record, "PRUNED", value)

    def fail(self, number: int, record: TrialRecord) -> None:
        """Tell a failed trial; `record.reason` says why.

        Raises:
            StorageError: the trial has ended already; its first result stays.
        """
        self._tell(number, record, "FAIL", None)

    def _tell(self, number: int, record: TrialRecord, state: str, value: float | None) -> None:
        import optuna

        values = None if value is None else [value, *self.goals.values(record)[1:]]

        # the record first: a kill in between leaves the trial RUNNING, and it is trained again
        self._stored.set(number, RECORD, record.to_json())
        with readable_errors(self.folders):
            if self.proposals is not None:
                self._study.sampler = self.proposals
            for constraint, excess in self.goals.excesses(record).items():
                self._stored.set_constraint(number, constraint, excess)
            if state == "PRUNED":  # Optuna takes its last report as a pruned trial's value
                values = None
                if value is not None and not self.goals.several and not self._stored.trial(number).intermediate_values:
                    self._stored.set_intermediate(number, record.samples, value)
            self._study.tell(number, values=values, state=optuna.trial.TrialState[state])

    # -- budgets ----------------------------------------------------------------------------------------------------

    def budget(self) -> int:
        """Number of trials that the sweep may have in all."""
        return budget.trials_in_all(self.config, self.proposals.points if self.proposals else None)

    def remaining(self) -> int:
        """Trials that may still be asked for, clones aside."""
        number, _, cloned = self._stored.outline(clones.CLONE)
        return self._left(number - len(cloned))

    def _left(self, counted: int) -> int:
        return max(0, self.budget() - counted) if self.space is not None else 0

    @property
    def grows(self) -> bool:
        """Whether a larger `sweep.trials` would let it go on: that number has ended it, and its sampler has more."""
        points = self.proposals.points if self.proposals else None
        if self.space is None or self.remaining() or self.config.sampler.kind == "list":
            return False
        return points is None or self.config.sweep.trials < points

    def budget_spent(self, samples_in_training: int = 0) -> bool:
        """Whether no further trial may start."""
        return self.stop_reason(samples_in_training) is not None

    def stop_reason(self, samples_in_training: int = 0) -> str | None:
        """Which budget is used up, in words; None while further trials may start.

        `samples_in_training`: training rows seen by the trials that have not ended.
        """
        number, waiting, cloned = self._stored.outline(clones.CLONE)
        if waiting:
            return None
        sweep, seen, reached = self.config.sweep, 0, None
        if sweep.total_samples is not None or sweep.target_value is not None:  # else no trial need be read
            records = self._records(self._stored.trials())
            seen = sum(record.samples for record in records) + samples_in_training
            reached = budget.reached(sweep, self.goals, records)
        left = self._left(number - len(cloned))
        return budget.spent(sweep, self.budget(), left, self.seconds, seen) or reached


__all__ = ["Asked", "SweepStudy"]
