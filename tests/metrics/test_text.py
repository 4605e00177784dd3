"""BLEU, ROUGE and METEOR against the libraries that define them, on examples of their own documentation."""

import logging
import subprocess
import sys

import pytest
from nltk.translate.meteor_score import meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

from lorasweep.metrics import text

GUIDE = "It is a guide to action which ensures that the military always obeys the commands of the party"
GUIDES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]


def test_bleu_of_sacrebleus_documentation() -> None:
    """Its README's example: three sentences, two references each."""
    system = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ["The dog bit the man.", "It was not unexpected.", "The man bit him first."],
        ["The dog had bit the man.", "No one was surprised.", "The man had bitten the dog."],
    ]
    found = text.bleu(system, list(zip(*references, strict=True)))
    assert found == pytest.approx(48.530827, abs=1e-6) and found == corpus_bleu(system, references).score


def test_bleu_takes_unlike_numbers_of_references() -> None:
    found = text.bleu(["hello there general kenobi", "on our way"], [["hello there general kenobi"], ["we go", "on"]])
    assert (
        found
        == corpus_bleu(
            ["hello there general kenobi", "on our way"], [["hello there general kenobi", "we go"], [None, "on"]]
        ).score
    )


def test_rouge_is_the_mean_of_rouge_scores_best_f() -> None:
    """The sentences are rouge-score's README's."""
    target, prediction = "The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."
    found = text.rouge([prediction, "a"], [[target, "no"], ["b"]])
    wanted = RougeScorer(list(text.ROUGE_TYPES)).score(target, prediction)
    assert found == {name: pytest.approx(wanted[name].fmeasure / 2) for name in text.ROUGE_TYPES}
    assert found["rouge1"] == pytest.approx(0.70588 / 2, abs=1e-5)


@pytest.mark.slow
def test_rouge_leaves_logging_as_it_was() -> None:
    code = (
        "import logging; from lorasweep.metrics.text import rouge; rouge(['a'], [['a']]); print(logging.root.handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_meteor_of_nltks_documentation() -> None:
    assert text.meteor([GUIDE], [GUIDES]) == pytest.approx(0.6944, abs=5e-5)
    assert text.meteor(["non matching hypothesis"], [["this is a cat"]]) == 0.0
    assert text.meteor([GUIDE, ""], [GUIDES, ["a"]]) == pytest.approx(0.6944 / 2, abs=5e-5)


def test_meteor_says_that_it_lacks_synonyms(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(text, "wordnet_folder", lambda: None)
    text.wordnet.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert text.meteor(["an automobile"], [["a car"]]) == 0.0
        assert "without synonyms" in caplog.text and "wordnet" in caplog.text
    finally:
        text.wordnet.cache_clear()


@pytest.mark.skipif(text.wordnet_folder() is None, reason="WordNet is not installed")
def test_meteor_knows_synonyms_where_wordnet_is_installed() -> None:
    folder = text.wordnet_folder()
    assert folder is not None
    opened = text.open_wordnet(folder)
    assert text.meteor(["automobile"], [["car"]]) == meteor_score([["car"]], ["automobile"], wordnet=opened) > 0


def test_rows_without_a_reference_are_left_out() -> None:
    both = text.text_metrics(["the car", "nonsense"], [["the car"], []])
    assert both == text.text_metrics(["the car"], [["the car"]])
    assert text.text_metrics(["a", ""], [[], [" "]]) == {}
    assert set(both) == {"bleu", "meteor", *text.ROUGE_TYPES}


def test_an_empty_answer_scores_nothing() -> None:
    assert set(text.text_metrics([""], [["two words"]]).values()) == {0.0}
