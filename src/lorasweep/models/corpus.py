"""The text that the tiny bases are pretrained on: generated reviews with their verdicts, questions with their answers.

As in real corpora, what follows a review tells how it was meant ("Rating: five stars."), so a language model that
predicts it learns to read sentiment. Only texts that `demo.for_pretraining` grants are used: no row of a demo data set,
whatever its seed, is ever among them. Neighbours: `pretrain` (reads this), `data.reviews`, `data.questions`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lorasweep.data.demo import for_pretraining
from lorasweep.data.questions import write_question
from lorasweep.data.reviews import NEGATIVE, POSITIVE, ReviewWriter

VERDICTS = (
    "Rating: {stars} stars.",
    "Verdict: {verdict}.",
    "In short, {verdict}.",
    "{Verdict}.",
    "We {recommend} it.",
    "I was {pleased}.",
)
STARS = {POSITIVE: ("four", "five"), NEGATIVE: ("one", "two"), 0: ("three",)}
VERDICT = {POSITIVE: ("good", "great"), NEGATIVE: ("bad", "poor"), 0: ("mixed", "uneven")}
RECOMMEND = {POSITIVE: ("recommend",), NEGATIVE: ("avoid",), 0: ("mention",)}
PLEASED = {POSITIVE: ("pleased", "happy"), NEGATIVE: ("angry", "sad"), 0: ("undecided", "torn")}
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Passage:
    """A text and what follows it: a review with its verdict, or a question and context with the answer."""

    first: str
    follows: str


def passages(count: int, seed: int, question_share: float = 0.25) -> list[Passage]:
    """`count` passages, `question_share` of them questions; the same arguments give the same passages."""
    rng = random.Random(f"pretraining {seed}")
    writer = ReviewWriter(rng)
    found: list[Passage] = []
    while len(found) < count:
        passage = _question(rng) if rng.random() < question_share else _review(rng, writer)
        if passage is not None:
            found.append(passage)
    return found


def _review(rng: random.Random, writer: ReviewWriter) -> Passage | None:
    if rng.random() < 0.15:  # facts alone, or opposed clauses judged as mixed
        text, polarity = writer.four_class(rng.choice(("neutral", "mixed"))), 0
    else:
        polarity = rng.choice((POSITIVE, NEGATIVE))
        text = writer.two_class(polarity)
    return Passage(text, _verdict(rng, polarity)) if for_pretraining(text) else None


def _verdict(rng: random.Random, polarity: int) -> str:
    verdict = rng.choice(VERDICT[polarity])
    return rng.choice(VERDICTS).format(
        stars=rng.choice(STARS[polarity]),
        verdict=verdict,
        Verdict=verdict.capitalize(),
        recommend=rng.choice(RECOMMEND[polarity]),
        pleased=rng.choice(PLEASED[polarity]),
    )


def _question(rng: random.Random) -> Passage | None:
    row = write_question(rng, rng.random() < 0.5)
    text = f"{row.question} {row.context}"
    return Passage(text, f"Answer: {row.answer or UNKNOWN}.") if for_pretraining(text) else None
