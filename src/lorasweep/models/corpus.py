"""The text that the tiny bases are pretrained on: generated reviews with their verdicts, questions with their answers.

As in real corpora, what follows a review tells how it was meant ("Rating: five stars."), so a language model that
predicts it learns to read sentiment. Only texts that `demo.for_pretraining` grants are used: no row of a demo data set,
whatever its seed, is ever among them. Neighbours: `pretrain` (reads this), `data.reviews`, `data.questions`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lorasweep.data.demo import for_pretraining
from lorasweep.data.questions import RELATIONS, write_question
from lorasweep.data.reviews import NEGATIVE, POSITIVE, ReviewWriter

VERDICTS = ("Rating: {stars} stars.", "Verdict: {verdict}.", "{Verdict}.")
STARS = {POSITIVE: "five", NEGATIVE: "one", 0: "three"}
VERDICT = {POSITIVE: "good", NEGATIVE: "bad", 0: "mixed"}
UNKNOWN = "unknown"


def telling_words() -> list[str]:
    """The words of verdicts and answers that only the passage's meaning tells."""
    answers = [word.lower() for _, _, answers in RELATIONS.values() for answer in answers for word in answer.split()]
    return sorted({*STARS.values(), *VERDICT.values(), *answers, UNKNOWN})


@dataclass(frozen=True)
class Passage:
    """A text and what follows it: a review with its verdict, or a question and context with the answer."""

    first: str
    follows: str


def passages(count: int, seed: int, plain_share: float = 0.0, question_share: float = 0.15) -> list[Passage]:
    """`count` passages, `question_share` of them questions; of the reviews, `plain_share` are single plain clauses.

    The same arguments give the same passages.
    """
    rng = random.Random(f"pretraining {seed}")
    writer = ReviewWriter(rng)
    found: list[Passage] = []
    while len(found) < count:
        passage = _question(rng) if rng.random() < question_share else _review(rng, writer, plain_share)
        if passage is not None:
            found.append(passage)
    return found


def _review(rng: random.Random, writer: ReviewWriter, plain_share: float) -> Passage | None:
    polarity = rng.choice((POSITIVE, NEGATIVE))
    if rng.random() < plain_share:
        text = writer.plain(polarity)
    elif rng.random() < 0.85:
        text = writer.two_class(polarity)
    else:  # facts alone, or opposed clauses judged as mixed
        text, polarity = writer.four_class(rng.choice(("neutral", "mixed"))), 0
    return Passage(text, _verdict(rng, polarity)) if for_pretraining(text) else None


def _verdict(rng: random.Random, polarity: int) -> str:
    verdict = VERDICT[polarity]
    return rng.choice(VERDICTS).format(stars=STARS[polarity], verdict=verdict, Verdict=verdict.capitalize())


def _question(rng: random.Random) -> Passage | None:
    row = write_question(rng, rng.random() < 0.5)
    text = f"{row.question} {row.context}"
    return Passage(text, f"Answer: {row.answer or UNKNOWN}.") if for_pretraining(text) else None
