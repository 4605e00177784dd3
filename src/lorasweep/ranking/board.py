"""The ranked table of a sweep, from its study and its own files: no MLflow, so that it answers at once and without a
server.

Finalists are ranked by their mean over seeds, then complete trials by the objective in its direction; equal values
share a rank. Running, pruned and failed trials follow with their reason and have none. Neighbours: `search.study` and
`results` (read), `ranking.ties` (who is as good as the first), `ranking.query` (--where, --sort),
`ranking.table` (terminal, CSV); `cli`, `sweeping` and `reporting` show it.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorasweep import results
from lorasweep.errors import StorageError
from lorasweep.ranking import query as leaderboard_query
from lorasweep.ranking import ties as leaderboard_ties
from lorasweep.ranking.table import AFTER_THE_RANKED, show, table, write_csv
from lorasweep.ranking.ties import Ties
from lorasweep.records import TrialRecord, TrialState
from lorasweep.stats import Results

if TYPE_CHECKING:
    from lorasweep.search.objectives import Goals
    from lorasweep.search.study import SweepStudy

__all__ = ["Leaderboard", "load", "rank", "show", "table", "write_csv"]


@dataclass
class Leaderboard:
    """`rows` are those of `leaderboard --json`, best first. `of_rows` are all of them where some were left out."""

    sweep: str
    metric: str
    direction: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    goals: dict[str, Any] = field(default_factory=dict)  # `objectives` where there are several, `constraints`
    ties: Ties | None = None
    notes: list[str] = field(default_factory=list)  # what could not be read
    of_rows: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, study: SweepStudy) -> Leaderboard:
        """The study's trials as they are now, from few reads of its storage and the answers of those that may be tied
        with the first."""
        from lorasweep.search.finals import found_in

        goals, records = study.goals, study.records()
        looks = {record.trial: record.value for record in records}
        finalists = {
            number: found.to_json(looks.get(number), study.direction) for number, found in found_in(study).items()
        }
        rows = rank(records, study.direction, goals, finalists)
        board = cls(study.name, study.metric, study.direction, rows, goals.to_json())
        place, away = results.place_of(study.files), False

        def read(trial: int) -> Results | None:
            nonlocal away
            try:
                return None if away else results.read_in(place, trial)
            except StorageError as error:
                board.notes.append(str(error))
                away = isinstance(error, results.Away)  # each question would cost seconds
                return None

        board.ties = leaderboard_ties.mark(rows, read, study.metric, study.config.task.average, study.direction)
        return board

    @property
    def best(self) -> dict[str, Any] | None:
        """The first row where it is ranked; of equal values that of the earliest trial."""
        rows = self.rows if self.of_rows is None else self.of_rows
        return rows[0] if rows and rows[0]["rank"] is not None else None

    def why_none(self) -> str | None:
        """Where no row is ranked, what most of them ended with."""
        if self.best is not None:
            return None
        if not self.rows:
            return "no trial was started"
        reasons = [row["reason"] or str(row["state"]) for row in self.rows]
        ((cause, count),) = Counter(reason.partition(":")[0] for reason in reasons).most_common(1)
        first = next(reason for reason in reasons if reason.partition(":")[0] == cause)
        return f"no trial is complete; {count} of {len(reasons)}: {first}"

    def select(self, where: list[str], sort: str | None) -> Leaderboard:
        """The same with the rows that keep all conditions, in another order; ranks and ties stay what they are.

        Raises:
            UsageError: an unknown key, or a condition that cannot be read.
        """
        if not where and sort is None:
            return self
        return dataclasses.replace(self, rows=leaderboard_query.select(self.rows, where, sort), of_rows=self.rows)

    def to_json(self, top: int | None = None) -> dict[str, Any]:
        """The document of `leaderboard --json`; `top` K: the first K rows."""
        document = {"sweep": self.sweep, "objective": {"metric": self.metric, "direction": self.direction}}
        document |= self.goals
        if self.ties is not None:
            document["ties"] = self.ties.to_json()
        if self.notes:
            document["notes"] = self.notes
        return {**document, "rows": self.rows[:top]}


def load(name: str, overrides: list[str], where: list[str] | None = None, sort: str | None = None) -> Leaderboard:
    """The leaderboard of a stored sweep, of it the rows that keep all conditions (see `ranking.query`).

    Raises:
        UsageError: there is no sweep of this name, or an unknown key in `where` or `sort`.
    """
    from lorasweep.config.compose import place_alone, tracking_place
    from lorasweep.config.home import Home
    from lorasweep.search.study import SweepStudy

    home = Home.find()
    board = Leaderboard.of(SweepStudy.load(tracking_place(place_alone(overrides, "leaderboard"), home), name))
    return board.select(where or [], sort)


def rank(
    records: list[TrialRecord],
    direction: str,
    goals: Goals | None = None,
    finalists: Mapping[int, dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Rows in the order of the leaderboard; `rank` is None for what is not a complete trial with a finite value, and
    for one that breaks a constraint, which is its reason. With several objectives `pareto` says whether a trial is on
    the front. `finalists`: trial -> what its seeds gave; those with a mean come first, those of which a seed failed
    last among them."""
    sign = -1.0 if direction == "maximize" else 1.0
    broken = {record.trial: goals.broken(record) for record in records} if goals else {}
    front = goals.front(records) if goals and goals.several else None
    repeated = {number: found for number, found in (finalists or {}).items() if found["mean"] is not None}

    def ranked(record: TrialRecord) -> bool:
        known = record.value is not None and math.isfinite(record.value)
        return record.state is TrialState.COMPLETE and known and not broken.get(record.trial)

    def standing(record: TrialRecord) -> tuple[int, float]:
        """What ranks it: how well it is known, and how good it is."""
        if ranked(record) and record.trial in repeated:
            found = repeated[record.trial]
            return int(bool(found["failed"])), sign * found["mean"]
        known = record.value is not None and math.isfinite(record.value)
        return 2, sign * record.value if known and record.value is not None else math.inf

    def place(record: TrialRecord) -> tuple[bool, int, tuple[int, float], int]:
        return not ranked(record), AFTER_THE_RANKED.index(record.state), standing(record), record.trial

    rows: list[dict[str, Any]] = []
    before: tuple[int, float] | None = None
    for position, record in enumerate(sorted(records, key=place), start=1):
        row: dict[str, Any] = {"rank": None, **_finite(record.to_json())}
        if ranked(record):
            same = before == standing(record)
            row["rank"] = rows[-1]["rank"] if same else position
            before = standing(record)
        elif record.state is TrialState.COMPLETE:
            row["reason"] = row["reason"] or broken.get(record.trial)
        row["cost"] = goals.quantity(record, "cost") if goals else None
        row["finalist"] = (finalists or {}).get(record.trial)
        if front is not None:
            row["pareto"] = record.trial in front
        rows.append(row)
    return rows


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null stands for both."""
    metrics = {key: value if math.isfinite(value) else None for key, value in row["metrics"].items()}
    value = row["value"]
    return {**row, "value": value if value is not None and math.isfinite(value) else None, "metrics": metrics}
