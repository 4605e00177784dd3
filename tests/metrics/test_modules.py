"""The `evaluate` modules: equal to the functions, offline, found by name, with `evaluate`'s own habits."""

import socket
import subprocess
import sys

import numpy as np
import pytest

from lorasweep.errors import UsageError
from lorasweep.metrics import classification, load, squad, text
from lorasweep.metrics.modules import METRICS

PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.5, 0.4, 0.1]])
LABELS = [0, 1, 2, 1]
PREDICTED = PROBABILITIES.argmax(-1)
TEXTS, ACCEPTED = ["a red car", "the dog"], [["a red car", "red"], ["a cat"]]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_classes() -> None:
    rows = {"predictions": PREDICTED, "references": LABELS}
    assert load("accuracy").compute(**rows) == {"accuracy": 0.75}
    for average in ("macro", "weighted"):
        wanted = classification.precision_recall_f1(PREDICTED, LABELS, average)
        assert load("precision_recall_f1").compute(**rows, average=average) == wanted
    matrix = load("confusion_matrix").compute(**rows)["confusion_matrix"]
    assert matrix.tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize("name", ["roc_auc", "log_loss", "calibration_error"])
def test_probabilities(name: str) -> None:
    found = load(name).compute(predictions=PROBABILITIES, references=LABELS)
    assert found == {name: pytest.approx(getattr(classification, name)(PROBABILITIES, LABELS))}


def test_texts() -> None:
    for name, wanted in (("bleu", {"bleu": text.bleu(TEXTS, ACCEPTED)}), ("rouge", text.rouge(TEXTS, ACCEPTED))):
        assert load(name).compute(predictions=TEXTS, references=ACCEPTED) == wanted
    assert load("meteor").compute(predictions=TEXTS, references=ACCEPTED)["meteor"] == text.meteor(TEXTS, ACCEPTED)


def test_squad_matches_questions_by_id() -> None:
    predictions = [
        {"id": "two", "prediction_text": "", "no_answer_probability": 0.9},
        {"id": "one", "prediction_text": "1976", "no_answer_probability": 0.1},
    ]
    references = [
        {"id": "one", "answers": {"text": ["1976"], "answer_start": [97]}},
        {"id": "two", "answers": {"text": [], "answer_start": []}},
    ]
    found = load("squad_v2").compute(predictions=predictions, references=references)
    assert found == squad.squad_v2(["1976", ""], [["1976"], []], [0.1, 0.9]) and found["exact"] == 100.0


def test_batches_add_up() -> None:
    metric = load("accuracy")
    metric.add_batch(predictions=[0, 1], references=[0, 1])
    metric.add_batch(predictions=[0], references=[1])
    assert metric.compute()["accuracy"] == pytest.approx(2 / 3)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean `accuracy`"):
        load("acuracy")


def test_all_describe_themselves() -> None:
    for name in METRICS:
        metric = load(name)
        assert metric.description and metric.citation and metric.inputs_description, name


@pytest.mark.slow
def test_sweeps_do_not_pay_for_evaluate() -> None:
    code = (
        "import sys, numpy as np, lorasweep.metrics.classification as c;"
        "c.classification_metrics(np.eye(2), np.array([0, 1]), 'macro'); assert 'evaluate' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
