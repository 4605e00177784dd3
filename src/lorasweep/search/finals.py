"""The repeats of a sweep's best trials over fresh seeds: a study of their own, beside the sweep's in one database.

No sampler, pruner or budget of the sweep sees them. They wait in that study with their points, so any number of workers
share them as they share trials, and exactly one gets each. All workers meet the same seeds, and a seed of the search is
none of them: a first look was chosen for being high, a fresh one was not. Neighbours: `study` (what is repeated),
`finalists` (who decides which, and trains them), `ranking` (ranks by what they gave).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorasweep.depot import Depot, files_of
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search import clones
from lorasweep.search.database import readable_errors
from lorasweep.search.reader import PARAMS, finals_name
from lorasweep.search.reports import Verdict
from lorasweep.search.requests import PAUSE, Request
from lorasweep.search.steering import Asked
from lorasweep.search.storage import read
from lorasweep.search.study import SweepStudy
from lorasweep.stats import mean_interval

if TYPE_CHECKING:
    from optuna.study import Study

    from lorasweep.search.samplers import Proposals

FINALIST = "finalist"  # attribute of a repeat: {"of": number, "seed": seed}
SEEDS = "lorasweep.finalist_seeds"  # attribute of the study: the fresh seeds, in the order in which they are taken
SEED_KEY = "train.seed"


@dataclass
class Finalist:
    """What the repeats of one trial gave. `values` are the objective's, by `seeds`; `failed`: seed -> why it has none;
    `waiting`: seeds that have not ended. `overstated`: by how much the first look was better than the mean."""

    trial: int
    seeds: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    waiting: int = 0

    def to_json(self, first_look: float | None, direction: str) -> dict[str, Any]:
        """The key `finalist` of the trial's row."""
        mean = sum(self.values) / len(self.values) if self.values else None
        sign = 1.0 if direction == "maximize" else -1.0
        known = mean is not None and first_look is not None
        interval = mean_interval(self.values)
        return {
            "mean": mean,
            "interval": None if interval is None else list(interval),
            "overstated": sign * (first_look - mean) if known else None,  # type: ignore[operator]
            "seeds": self.seeds,
            "values": self.values,
            "runs": self.runs,
            "failed": {str(seed): reason for seed, reason in self.failed.items()},
            "waiting": self.waiting,
        }


class FinalsStudy(SweepStudy):
    """The repeats, asked for and told like a sweep's trials."""

    def __init__(self, sweep: SweepStudy, study: Study):
        self.sweep = sweep
        super().__init__(sweep.folders, study, sweep._about)
        self.config = sweep.config

    @classmethod
    def of(cls, sweep: SweepStudy, create: bool = False) -> FinalsStudy | None:
        """The finalists of a sweep; None where it has none and `create` is not set."""
        import optuna

        name = finals_name(sweep.name)
        storage = sweep._stored.storage
        with readable_errors(sweep.folders):
            if create:
                study = optuna.create_study(
                    study_name=name, storage=storage, directions=sweep._study.directions, load_if_exists=True
                )
                return cls(sweep, study)
            try:
                return cls(sweep, optuna.load_study(study_name=name, storage=storage))
            except KeyError:
                return None

    @property
    def name(self) -> str:
        """The sweep's name: it is the same sweep to people."""
        return self.sweep.name

    @property
    def files(self) -> Depot:
        """Where the files of finalists lie."""
        return files_of(self.folders, self.sweep.name, "finalists")

    @cached_property
    def proposals(self) -> Proposals | None:
        """Nobody proposes finalists."""
        return None

    # -- who they are -----------------------------------------------------------------------------------------------

    def plan(self, chosen: list[TrialRecord], seeds: int) -> None:
        """Let these trials wait to be repeated over so many fresh seeds; what is planned already is not planned again.
        One process at a time."""
        there = {(origin["of"], origin["seed"]) for origin in self._origins().values()}
        for seed in self._fresh_seeds(seeds):
            for record in chosen:
                if (record.trial, seed) not in there:
                    self._add(record, seed)

    def _add(self, record: TrialRecord, seed: int) -> None:
        import optuna

        waiting = optuna.trial.create_trial(
            state=optuna.trial.TrialState.WAITING,
            user_attrs={
                PARAMS: json.dumps({**record.params, SEED_KEY: seed}),
                FINALIST: json.dumps({"of": record.trial, "seed": seed}),
            },
        )
        with readable_errors(self.folders):
            self._stored.storage.create_new_trial(self._study._study_id, template_trial=waiting)

    def _fresh_seeds(self, count: int) -> list[int]:
        """The first so many seeds that no trial of the search has had; noted, so that they stay what they are."""
        noted = [int(seed) for seed in json.loads(self._stored.attributes().get(SEEDS, "[]"))]
        first = self.config.train.seed
        taken = {first, *noted, *(record.params.get(SEED_KEY, first) for record in self.sweep.records())}
        seed = first
        while len(noted) < count:
            seed += 1
            if seed not in taken:
                noted.append(seed)
        self._stored.set_attribute(SEEDS, noted)
        return noted[:count]

    def origin(self, number: int) -> tuple[int, int]:
        """(trial that it repeats, seed) of a finalist."""
        origin = read(self._stored.trial(number), FINALIST)
        return int(origin["of"]), int(origin["seed"])

    def _origins(self) -> dict[int, dict[str, int]]:
        return {frozen.number: read(frozen, FINALIST) for frozen in self._stored.trials()}

    @property
    def unfinished(self) -> bool:
        """Whether some wait or were left."""
        return any(not frozen.state.is_finished() for frozen in self._stored.trials())

    def found(self) -> dict[int, Finalist]:
        """Trial -> what its repeats gave so far."""
        origins, found = self._origins(), dict[int, Finalist]()
        for record in self.records():
            origin = origins[record.trial]
            one = found.setdefault(origin["of"], Finalist(origin["of"]))
            if record.state is TrialState.COMPLETE and record.value is not None and not self.goals.broken(record):
                one.seeds.append(origin["seed"])
                one.values.append(record.value)
                one.runs.append(record.run_id)
            elif record.state is TrialState.RUNNING:
                one.waiting += 1
            else:
                reason = record.reason or self.goals.broken(record) or f"it is {record.state}"
                one.failed[origin["seed"]] = reason
        return found

    # -- asking and telling -------------------------------------------------------------------------------------------

    def ask(self, post: str | None = None, samples_in_training: int = 0) -> Asked | None:
        """The next that waits, in the order of the plan; its worker claims it itself."""
        if self.budget_spent():
            return None
        with readable_errors(self.folders):
            trial = self._study.ask()
            return Asked(trial.number, read(self._stored.trial(trial.number), PARAMS))

    def budget_spent(self, samples_in_training: int = 0) -> bool:
        """Whether all have been asked for."""
        _, waiting, _ = self._stored.outline(clones.CLONE)
        return not waiting

    def report(
        self,
        number: int,
        samples: int,
        value: float,
        results: list[float] | None = None,
        beside: dict[int, tuple[int, float]] | None = None,
    ) -> Verdict:
        """A finalist is evaluated where its trial was, and always trains on."""
        return Verdict(True)

    def warm_from(self, number: int) -> str | None:
        """Where the trial that it repeats started from."""
        return self.sweep.warm_from(self.origin(number)[0])

    def _requests(self) -> list[Request]:
        return [request for request in self.sweep._requests() if request.kind == PAUSE]


def found_in(sweep: SweepStudy) -> dict[int, Finalist]:
    """Trial -> what its repeats gave; empty for a sweep without finalists."""
    finals = FinalsStudy.of(sweep)
    return {} if finals is None else finals.found()
