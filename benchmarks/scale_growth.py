"""What one ask and one tell cost as a study in PostgreSQL grows: complete trials written straight into its tables.

    python benchmarks/scale_growth.py [--trials 100 2000 10000] [--samplers random tpe] [--running 31] [--times 20]

One process asks and tells by the product's own code (as benchmarks/scale.py), while --running trials of another worker
run. Prints milliseconds of an ask and a tell (means), the first ask's (a tpe worker reads the history then), and how
many statements and commits each takes. Commits wait for the disk.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def fill(study: Any, trials: int) -> None:
    """Complete trials with drawn values, as the product would have stored them; its first, real trial is the model."""
    from sqlalchemy import text

    from lorasweep.records import TrialRecord, TrialState

    storage = study._stored.storage
    model = study._study.ask()
    study.space.suggest(model)
    with getattr(storage, "_backend", storage).engine.begin() as connection:

        def run(words: str, values: Any) -> Any:
            return connection.execute(text(words), values)

        first = model._trial_id
        words = "select param_name, param_value, distribution_json from trial_params where trial_id = :trial"
        drawn = run(words, {"trial": first}).all()
        run("delete from trial_params where trial_id = :trial", {"trial": first})
        run("delete from trials where trial_id = :trial", {"trial": first})
        ids = [(number, first + 1 + number) for number in range(trials)]
        run(
            "insert into trials (trial_id, number, study_id, state, datetime_start, datetime_complete)"
            " values (:id, :number, :study, 'COMPLETE', now(), now())",
            [{"id": id_, "number": number, "study": study._study._study_id} for number, id_ in ids],
        )
        params, attributes, values = [], [], []
        for number, id_ in ids:
            draw = random.Random(number)
            point = {}
            for name, kept, distribution in drawn:
                value, bounds = kept, json.loads(distribution)["attributes"]
                if "choices" in bounds:
                    value = draw.randrange(len(bounds["choices"]))
                elif bounds["log"]:
                    value = bounds["low"] * (bounds["high"] / bounds["low"]) ** draw.random()
                elif bounds["step"] is None:
                    value = draw.uniform(bounds["low"], bounds["high"])
                point[name] = value
                params.append({"id": id_, "name": name, "value": value, "distribution": distribution})
            record = TrialRecord(number, TrialState.COMPLETE, draw.random(), params=point, samples=800)
            for key, value in (("params", point), ("post", "0"), ("record", record.to_json())):
                attributes.append({"id": id_, "key": key, "value": json.dumps(json.dumps(value))})
            values.append({"id": id_, "value": record.value})
        run("insert into trial_params (trial_id, param_name, param_value, distribution_json)"
            " values (:id, :name, :value, :distribution)", params)  # fmt: skip
        run("insert into trial_user_attributes (trial_id, key, value_json) values (:id, :key, :value)", attributes)
        run(
            "insert into trial_values (trial_id, objective, value, value_type) values (:id, 0, :value, 'FINITE')",
            values,
        )
        run("select setval('trials_trial_id_seq', :last)", {"last": first + trials + 1})


class Counted:
    """Statements and commits of this process's connections."""

    def __init__(self, engines: list[Any]):
        from sqlalchemy import event

        self.statements = self.commits = 0
        for engine in engines:
            event.listen(engine, "before_cursor_execute", self._statement)
            event.listen(engine, "commit", self._commit)

    def _statement(self, *_: Any) -> None:
        self.statements += 1

    def _commit(self, *_: Any) -> None:
        self.commits += 1

    def take(self) -> str:
        found, self.statements, self.commits = f"{self.statements} / {self.commits}", 0, 0
        return found


def measure(server: Any, sampler: str, trials: int, running: int, times: int) -> list[str]:
    """One row of the table."""
    import scale

    from lorasweep import posts
    from lorasweep.database import engine_of
    from lorasweep.search.leases import Leases
    from lorasweep.worker.candidates import Queue

    with tempfile.TemporaryDirectory(prefix="lorasweep-growth-") as name:
        run = scale.Run("postgres", sampler, trials + running + times + 10, 2, "own", 0.0, True)
        place = scale.Place(Path(name), server.make_database(f"{sampler}-{trials}"), run)
        fill(place.study(create=True), trials)
        study, elsewhere = place.study(), place.study()
        folders = study.folders
        with (
            posts.enter(folders, scale.SWEEP, join=True) as other,
            posts.enter(folders, scale.SWEEP, join=True) as post,
        ):
            away = Queue(elsewhere, Leases.of(elsewhere, other), other, None)
            for _ in range(running):
                scale.ask(away, None, "")
            leases = Leases.of(study, post)
            queue = Queue(study, leases, post, None)
            begun = time.perf_counter()
            first, params = scale.ask(queue, None, "")
            opened = time.perf_counter() - begun
            scale.tell(study, leases, post, first, params)
            storage = study._stored.storage
            counted = Counted([getattr(storage, "_backend", storage).engine, engine_of(folders.studies)])
            asking = telling = 0.0
            for _ in range(times):
                begun = time.perf_counter()
                number, params = scale.ask(queue, None, "")
                asked, ask_count = time.perf_counter(), counted.take()
                scale.tell(study, leases, post, number, params)
                telling += time.perf_counter() - asked
                asking += asked - begun
                tell_count = counted.take()
    milliseconds = [f"{1000 * seconds:.0f}" for seconds in (asking / times, telling / times, opened)]
    return [sampler, f"{trials:,}", *milliseconds, ask_count, tell_count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 2000, 10_000])
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"])
    parser.add_argument("--running", type=int, default=31)
    parser.add_argument("--times", type=int, default=20)
    arguments = parser.parse_args()
    from clusterkit import postgres

    print("| sampler | trials in the study | ask ms | tell ms | first ask ms | statements / commits, ask | tell |")
    print("|" + "---|" * 7)
    with postgres(durable=True) as server:
        for sampler in arguments.samplers:
            for trials in arguments.trials:
                row = measure(server, sampler, trials, arguments.running, arguments.times)
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
