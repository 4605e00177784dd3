"""SQuAD v2's numbers: cases that others published, the rules of its script one by one, and its own answers."""

import json
import os
from pathlib import Path

import pytest

from lorasweep.metrics.squad import exact_match, normalize, qa_metrics, question_scores, squad_v2, token_f1

SHARED = Path(os.environ.get("LORASWEEP_SHARED", Path(__file__).parents[2].parent / "shared"))
QUESTIONS = SHARED / "data/squad_v2/dev-v2.0.json"


def test_examples_of_the_metric_card() -> None:
    """Those of huggingface.co/spaces/evaluate-metric/squad_v2, with all that it prints."""
    names = ("exact", "f1", "HasAns_exact", "HasAns_f1", "best_exact", "best_f1")
    for texts, answers, percent in (
        (["1976"], [["1976"]], 100.0),
        (["1999"], [["1976"]], 0.0),
        (["1976", "Beyonce", "climate change"], [["1976"], ["Beyoncé and Bruno Mars"], ["climate change"]], 200 / 3),
    ):
        found = squad_v2(texts, answers)
        assert found == {
            **dict.fromkeys(names, pytest.approx(percent)),
            **dict.fromkeys(("best_exact_thresh", "best_f1_thresh"), 0.0),
            **dict.fromkeys(("total", "HasAns_total"), len(texts)),
        }


def test_normalisation_drops_case_punctuation_articles_and_spaces() -> None:
    assert normalize("  The U.S.A.,\n an  apple; theatre ") == "usa apple theatre"
    assert normalize("A-the B") == "athe b"  # punctuation goes first, so that no article is left to find
    assert exact_match("the Normans!", "Normans") == 1.0


def test_f1_counts_repeated_words() -> None:
    assert token_f1("x x y", "x y y") == pytest.approx(2 / 3)
    assert token_f1("10th century", "10th and 11th centuries") == pytest.approx(2 * (1 / 2) * (1 / 4) / (3 / 4))


def test_an_answer_without_words_is_no_answer() -> None:
    assert question_scores("", []) == (1.0, 1.0)
    assert question_scores("the", []) == (1.0, 1.0)  # an article alone reads as nothing
    assert question_scores("anything", []) == (0.0, 0.0)
    assert question_scores("", ["the", "!"]) == (1.0, 1.0)
    assert question_scores("", ["the", "word"]) == (0.0, 0.0)


def test_the_best_of_several_answers_counts() -> None:
    assert question_scores("in the 10th and 11th centuries", ["10th", "in the 10th and 11th centuries"]) == (1.0, 1.0)


def test_answers_and_no_answers_are_told_apart() -> None:
    found = squad_v2(["red", "", "blue", ""], [["red"], [], [], ["green"]])
    assert (found["HasAns_exact"], found["NoAns_exact"], found["exact"]) == (50.0, 50.0, 50.0)
    assert (found["HasAns_total"], found["NoAns_total"], found["total"]) == (2, 2, 4)


def test_the_threshold_turns_answers_into_no_answer() -> None:
    texts, answers, probabilities = ["red", "blue", "green"], [["red"], [], ["grey"]], [0.1, 0.9, 0.6]
    assert squad_v2(texts, answers, probabilities)["exact"] == pytest.approx(100 / 3)
    cut = squad_v2(texts, answers, probabilities, threshold=0.5)
    assert cut["exact"] == pytest.approx(200 / 3)
    assert cut["best_exact"] == pytest.approx(200 / 3) and cut["best_exact_thresh"] == 0.1
    assert cut["best_f1"] == pytest.approx(200 / 3)


def test_the_best_threshold_by_trying_all() -> None:
    texts = ["a1", "b1 b2", "", "d1", "e1", "f1 f2"]
    answers = [["a1"], ["b1"], [], [], ["e1 e2"], []]
    probabilities = [0.3, 0.2, 0.9, 0.4, 0.5, 0.1]
    found = squad_v2(texts, answers, probabilities)
    for name in ("exact", "f1"):
        tried = {at: squad_v2(texts, answers, probabilities, at)[name] for at in (-1.0, *probabilities)}
        assert found[f"best_{name}"] == pytest.approx(max(tried.values()))
        at = found[f"best_{name}_thresh"]
        assert tried.get(at, tried[-1.0]) == pytest.approx(max(tried.values()))


def test_no_questions_or_unlike_lists_are_refused() -> None:
    for texts, answers, probabilities in (([], [], None), (["a"], [], None), (["a"], [[]], [0.1, 0.2])):
        with pytest.raises(ValueError, match=r"predictions and \d"):
            squad_v2(texts, answers, probabilities)


def test_what_a_task_logs_are_fractions() -> None:
    texts, answers, probabilities = ["red car", "blue", ""], [["red car"], [], ["grey"]], [0.1, 0.9, 0.6]
    plain, found = qa_metrics(texts, answers), qa_metrics(texts, answers, probabilities)
    assert (plain["exact_match"], plain["f1"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (plain["answerable_exact_match"], plain["unanswerable_accuracy"]) == (0.5, 0.0)
    assert "best_f1" not in plain and {"bleu", "rougeL", "meteor"} < set(plain)
    assert found["best_f1"] == pytest.approx(2 / 3) and found["no_answer_threshold"] == 0.1


@pytest.mark.skipif(not QUESTIONS.is_file(), reason="the shared data are not here")
def test_the_development_questions_answered_by_people() -> None:
    paragraphs = [
        paragraph for article in json.loads(QUESTIONS.read_text())["data"] for paragraph in article["paragraphs"]
    ]
    answers = [[answer["text"] for answer in qa["answers"]] for paragraph in paragraphs for qa in paragraph["qas"]]
    found = squad_v2([accepted[0] if accepted else "" for accepted in answers], answers)
    assert (found["exact"], found["f1"], found["total"]) == (100.0, 100.0, 6078)
    assert (found["NoAns_total"], found["HasAns_total"]) == (3168, 2910)
    silent = squad_v2([""] * len(answers), answers)
    assert silent["exact"] == silent["f1"] == pytest.approx(100 * 3168 / 6078)
