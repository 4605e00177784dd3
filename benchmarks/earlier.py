"""Writes thousands of complete trials into a study at once, as if they had been trained: points drawn from its space.

Straight into Optuna's tables, since its own interface takes milliseconds a trial. Used by `overhead` and `leaderboard`.
"""

from __future__ import annotations

import json
import math
import random
from datetime import datetime

import optuna
from sqlalchemy import Table, insert
from sqlalchemy.orm import Session


def drawn(distribution: optuna.distributions.BaseDistribution, draw: random.Random) -> object:
    """A random value of a dimension."""
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return draw.choice(distribution.choices)
    if isinstance(distribution, optuna.distributions.IntDistribution):
        return draw.randrange(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, optuna.distributions.FloatDistribution)
    if not distribution.log:
        return draw.uniform(distribution.low, distribution.high)
    return math.exp(draw.uniform(math.log(distribution.low), math.log(distribution.high)))


def write(study: optuna.Study, count: int, seed: int = 0) -> None:
    """Complete trials up to so many in all, made up from the study's first one: its record with other points and
    values between 0.3 and 0.9."""
    from optuna.storages._rdb import models

    first, storage = study.trials[0], getattr(study._storage, "_backend", study._storage)
    draw, now = random.Random(seed), datetime.now()
    record = json.loads(first.user_attrs["record"])
    with Session(storage.engine) as session:
        numbers = range(len(study.trials), count)
        trials: Table = models.TrialModel.__table__
        rows = [
            {"number": number, "study_id": study._study_id, "state": "COMPLETE", "datetime_start": now,
             "datetime_complete": now} for number in numbers
        ]  # fmt: skip
        session.execute(insert(trials), rows)
        found = session.query(models.TrialModel.number, models.TrialModel.trial_id)
        ids = dict(found.filter(models.TrialModel.study_id == study._study_id).all())
        params, values, attributes, system = [], [], [], []
        for number in numbers:
            point = {name: drawn(distribution, draw) for name, distribution in first.distributions.items()}
            value, own = draw.uniform(0.3, 0.9), {"trial_id": ids[number]}
            values.append({**own, "objective": 0, "value": value, "value_type": "FINITE"})
            for name, distribution in first.distributions.items():
                inner, text = distribution.to_internal_repr(point[name]), _json(distribution)
                params.append({**own, "param_name": name, "param_value": inner, "distribution_json": text})
            told = {**record, "trial": number, "value": value, "params": point}
            texts = {**first.user_attrs, "params": json.dumps(point), "record": json.dumps(told)}
            attributes += [{**own, "key": key, "value_json": json.dumps(text)} for key, text in texts.items()]
            system += [{**own, "key": key, "value_json": json.dumps(it)} for key, it in first.system_attrs.items()]
        for model, all_rows in (
            (models.TrialParamModel, params), (models.TrialValueModel, values),
            (models.TrialUserAttributeModel, attributes), (models.TrialSystemAttributeModel, system),
        ):  # fmt: skip
            if all_rows:
                session.execute(insert(model.__table__), all_rows)
        session.commit()


def _json(distribution: optuna.distributions.BaseDistribution) -> str:
    return optuna.distributions.distribution_to_json(distribution)
