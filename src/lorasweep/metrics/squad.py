"""SQuAD v2's exact match and F1 as its official evaluation defines them, and the best threshold for giving no answer.

(Rajpurkar, Jia and Liang, "Know What You Don't Know: Unanswerable Questions for SQuAD", ACL 2018; evaluate-v2.0.py.)
A question without answers is answered right by the empty text alone. Pure; nothing but the standard library.
Neighbours: `modules` (an `evaluate.Metric` of it), `text`, `tasks` (who calls `qa_metrics`).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, without the articles a, an, the, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1 where both read the same once normalized, else 0."""
    return float(normalize(prediction) == normalize(answer))


def token_f1(prediction: str, answer: str) -> float:
    """Harmonic mean of the shares of words, counted with repeats, that prediction and answer have in common; where
    either has no words, whether both have none."""
    predicted, wanted = normalize(prediction).split(), normalize(answer).split()
    if not predicted or not wanted:
        return float(predicted == wanted)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def question_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of one question: each the best over its answers; no answer that has words: over the empty
    text."""
    wanted = [answer for answer in answers if normalize(answer)] or [""]
    return (
        max(exact_match(prediction, answer) for answer in wanted),
        max(token_f1(prediction, answer) for answer in wanted),
    )


def qa_metrics(
    texts: Sequence[str],
    references: Sequence[Sequence[str]],
    no_answer: Sequence[float] | None = None,
    threshold: float = 1.0,
    *,
    with_text_metrics: bool = True,
) -> dict[str, float]:
    """What a task of questions and answers logs, as fractions of one but for BLEU (0 to 100).

    exact_match and f1; of questions that have answers answerable_exact_match and answerable_f1, of those that have none
    unanswerable_accuracy, where there are any. With the probability that each question has no answer also
    best_exact_match and best_f1, and no_answer_threshold, above which giving no answer makes best_f1; above `threshold`
    it counts as not answered in all that is not the best. Then `text.text_metrics` of the questions that have answers.
    """
    from lorasweep.metrics.text import text_metrics

    found = squad_v2(texts, references, no_answer, threshold)
    names = {
        "exact": "exact_match",
        "f1": "f1",
        "HasAns_exact": "answerable_exact_match",
        "HasAns_f1": "answerable_f1",
        "NoAns_exact": "unanswerable_accuracy",
        **({} if no_answer is None else {"best_exact": "best_exact_match", "best_f1": "best_f1"}),
    }
    scores = {name: found[official] / 100 for official, name in names.items() if official in found}
    if no_answer is not None:
        scores["no_answer_threshold"] = found["best_f1_thresh"]
    if not with_text_metrics:
        return scores
    if no_answer is not None:
        texts = ["" if chance > threshold else text for text, chance in zip(texts, no_answer, strict=True)]
    return {**scores, **text_metrics(texts, references)}


def squad_v2(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    no_answer_probabilities: Sequence[float] | None = None,
    threshold: float = 1.0,
) -> dict[str, float]:
    """The numbers of the official script, under its names and in its percent.

    predictions: one text a question, empty for "no answer"; answers: the accepted texts of each, none where it cannot
    be answered. A question whose no-answer probability (all 0 where not given) is above `threshold` counts as not
    answered. exact, f1, total; the same of questions with answers (HasAns_…) and without (NoAns_…), where there are
    any; best_exact, best_f1 with the probability (best_…_thresh) above which giving no answer scores best.

    Raises:
        ValueError: no question at all, or lists of unlike length.
    """
    if not predictions or len(predictions) != len(answers):
        raise ValueError(f"{len(predictions)} predictions and {len(answers)} questions: one for each, at least one")
    probabilities = [0.0] * len(predictions) if no_answer_probabilities is None else list(no_answer_probabilities)
    if len(probabilities) != len(predictions):
        raise ValueError(f"{len(predictions)} predictions and {len(probabilities)} no-answer probabilities")
    answerable = [bool(accepted) for accepted in answers]
    scores = [question_scores(text, accepted) for text, accepted in zip(predictions, answers, strict=True)]
    kept = [
        (float(not has), float(not has)) if probability > threshold else score
        for score, has, probability in zip(scores, answerable, probabilities, strict=True)
    ]
    found = _means("", kept)
    for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
        part = [score for score, has in zip(kept, answerable, strict=True) if has is wanted]
        found |= _means(prefix, part) if part else {}
    for place, name in enumerate(("exact", "f1")):
        best, at = _best_threshold(predictions, [score[place] for score in scores], probabilities, answerable)
        found |= {f"best_{name}": best, f"best_{name}_thresh": at}
    return found


def _means(prefix: str, scores: list[tuple[float, float]]) -> dict[str, float]:
    exact, f1 = (100 * sum(score[place] for score in scores) / len(scores) for place in (0, 1))
    return {f"{prefix}exact": exact, f"{prefix}f1": f1, f"{prefix}total": len(scores)}


def _best_threshold(
    predictions: Sequence[str], scores: list[float], probabilities: list[float], answerable: list[bool]
) -> tuple[float, float]:
    """(percent, probability): start with no question answered, then answer them by ascending probability; the best
    point on the way."""
    now = best = float(answerable.count(False))
    at = 0.0
    for number in sorted(range(len(scores)), key=lambda number: probabilities[number]):
        if answerable[number]:
            now += scores[number]
        elif predictions[number]:
            now -= 1
        if now > best:
            best, at = now, probabilities[number]
    return 100 * best / len(scores), at
