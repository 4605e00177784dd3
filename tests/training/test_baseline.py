"""Baselines as trials: the calls and events of every pack, and what cannot be."""

from pathlib import Path

import numpy as np
import pytest

from lorasweep.config.schema import Config, ObjectiveConfig
from lorasweep.data.sources import SearchData, Split
from lorasweep.errors import ConfigError, UsageError
from lorasweep.models.baselines import Baseline
from lorasweep.tasks import make_task
from lorasweep.training.baseline import BaselinePack
from lorasweep.training.events import Evaluated, Failed, Finished

ROWS = Split([f"{word} film" for word in ("good", "bad", "fine", "awful") * 5], None, [1, 0, 1, 0] * 5)
DATA = SearchData(ROWS, ROWS, ["negative", "positive"], "f", "here")


def trial(kind: str = "bag_of_words") -> Config:
    made = Config()
    made.model.kind = kind
    return made


def pack_of(metric: str = "eval/accuracy", data: SearchData = DATA) -> BaselinePack:
    return BaselinePack(make_task(Config(), data.label_names), data, ObjectiveConfig(metric))


@pytest.mark.slow
def test_a_baseline_is_fitted_evaluated_and_ended_in_one_turn(tmp_path: Path) -> None:
    pack = pack_of()
    assert (pack.free, pack.active, pack.rows) == (1, [], 20)
    pack.admit(4, trial())
    assert (pack.free, pack.active, pack.samples(4), pack.best(4)) == (0, [4], 0, None)
    evaluated, finished = pack.advance()
    assert isinstance(evaluated, Evaluated) and isinstance(finished, Finished)
    assert evaluated.metrics["eval/accuracy"] == 1.0 and evaluated.predictions.shape == (20, 2)
    assert evaluated.metrics["eval/loss"] == pytest.approx(evaluated.metrics["eval/log_loss"])
    assert finished.best_metrics == evaluated.metrics and finished.samples == 20 == pack.samples(4)
    assert finished.seconds >= finished.eval_seconds > 0
    assert pack.advance() == []
    pack.export(4, tmp_path / "kept")
    assert np.array_equal(Baseline.load(tmp_path / "kept").probabilities(ROWS), evaluated.predictions)
    pack.evict(4)
    assert pack.free == 1


def test_one_at_a_time() -> None:
    pack = pack_of()
    pack.admit(1, trial())
    with pytest.raises(UsageError, match="trial 1 is being fitted"):
        pack.admit(2, trial())
    with pytest.raises(UsageError, match="not in this pack"):
        pack.evict(2)


def test_the_majority_class_has_no_auc_above_chance() -> None:
    pack = pack_of()
    pack.admit(0, trial("majority"))
    evaluated, _ = pack.advance()
    assert isinstance(evaluated, Evaluated)
    assert (evaluated.metrics["eval/accuracy"], evaluated.metrics["eval/roc_auc"]) == (0.5, 0.5)


def test_words_that_cannot_be_counted_fail_the_trial_alone() -> None:
    numbers = SearchData(Split(["1", "2"], None, [0, 1]), ROWS, ["a", "b"], "f", "here")
    pack = pack_of(data=numbers)
    pack.admit(0, trial())
    (failed,) = pack.advance()
    assert isinstance(failed, Failed) and failed.cause == "config" and "min_rows" in failed.message


def test_a_missing_objective_is_its_own_cause() -> None:
    pack = pack_of("eval/nothing")
    pack.admit(0, trial())
    (failed,) = pack.advance()
    assert isinstance(failed, Failed) and failed.cause == "objective" and "eval/nothing" in failed.message


def test_a_prompted_task_of_classes_is_the_same_to_a_baseline() -> None:
    prompted = Config()
    prompted.task.kind = "instruct"
    pack = BaselinePack(make_task(prompted, DATA.label_names), DATA, ObjectiveConfig())
    pack.admit(0, trial())
    evaluated, _ = pack.advance()
    assert isinstance(evaluated, Evaluated) and evaluated.metrics["eval/accuracy"] == 1.0


def test_tasks_of_texts_are_refused() -> None:
    task = make_task(Config(), DATA.label_names)
    task.answers = "texts"
    with pytest.raises(ConfigError, match=r"predict classes.*adapter=none"):
        BaselinePack(task, DATA, ObjectiveConfig())
