"""The commands `promote` and `predict`: find the trial, open its sealed test split, hand both to the registry.

The only caller of `load_test_split`. Neighbours: `search.study` (which trial), `registry` (gate, serve), `cli`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorasweep import registry
from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.errors import PromotionRefused, UsageError
from lorasweep.registry import PromotionResult
from lorasweep.search.study import SweepStudy

if TYPE_CHECKING:
    import numpy as np

    from lorasweep.tasks import Task


def promote(
    name: str, overrides: list[str], model_name: str | None = None, trial: int | None = None, force: bool = False
) -> PromotionResult:
    """Score the best complete trial (or `trial`) on the test split, register it, and make it champion if it is better.

    `overrides` may name the test rows with data.test=PATH. The model's name is the sweep's where none is given.

    Raises:
        UsageError: no such sweep or trial.
        PromotionRefused: nothing to promote, or not better than the champion.
        DataError: there is no test split.
    """
    from lorasweep.data.sources import load_search_data, load_test_split
    from lorasweep.models.builtin import resolve
    from lorasweep.tasks import make_task

    home = Home.find()
    folders = compose.tracking_place(overrides, home)
    study = SweepStudy.load(folders, name)
    record = registry.choose(study.records(), study.direction, trial)
    config = compose.compose_trial([*study.overrides, *overrides], study.sweep_file, record.params, home)
    if config.task.kind != "classify":
        raise PromotionRefused(
            f"task={config.task.kind}: only classifiers are served from the registry so far. The adapter of trial "
            f"{record.trial} is the artifact `adapter` of run {record.run_id}; peft.PeftModel.from_pretrained opens it"
        )
    config.sweep = study.config.sweep
    data = load_search_data(config.data)
    candidate = registry.Candidate(
        sweep=name,
        record=record,
        config=config,
        base=resolve(config.model.path),
        label_names=data.label_names,
        test=load_test_split(config.data, data.label_names),
        score=_scorer(make_task(config, data.label_names)),
    )
    return registry.promote(folders, candidate, model_name or name, force=force)


def rollback(name: str, overrides: list[str], model_name: str | None = None) -> PromotionResult:
    """Give the alias `champion` of a sweep's model back to the version before.

    Raises:
        PromotionRefused: there is none before it.
    """
    home = Home.find()
    return registry.rollback(compose.tracking_place(overrides, home), model_name or name)


def predict(
    model_uri: str, texts: list[str], overrides: list[str], pairs: list[str] | None = None
) -> list[dict[str, Any]]:
    """`{"label", "score", "probabilities"}` for each text, by a registered model such as models:/NAME@champion.

    `pairs` are the second texts, for a model that was trained on pairs.

    Raises:
        UsageError: there is no such model, version or alias, or it is about pairs and these are not (or the reverse).
    """
    if pairs is not None and len(pairs) != len(texts):
        raise UsageError(f"{len(texts)} texts and {len(pairs)} second texts: give --pair once for each text")
    home = Home.find()
    return registry.predict(compose.tracking_place(overrides, home), model_uri, texts, pairs)


def _scorer(task: Task) -> registry.Score:
    def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        import numpy as np

        chosen = np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, None)
        return task.metrics(probabilities, labels, -np.log(chosen))

    return score
