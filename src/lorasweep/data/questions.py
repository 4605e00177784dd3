"""The grammar behind `data=demo_qa`: short contexts with questions that they answer, or seem to.

An unanswerable question asks for a fact that the context does not hold about something that it names, or for a fact
that it holds about something else: shared words say little. The answer's span is kept for tasks that extract it.
Pure; `demo` cuts its stream into splits, `models.pretrain` reads another part of the stream.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lorasweep.data.reviews import words

PLACES = words("museum, library, station, theatre, market, bridge, school, garden, harbour, tower, bakery, hotel")
TOWNS = words("Oslo, Rome, Lyon, Porto, Cork, Ghent, Kyoto, Lima, Boston, Tunis, Hanoi, Bergen")
# relation: (statement, question, answers)
RELATIONS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "opened": (
        "The {subject} opened in {answer}.",
        "When did the {subject} open?",
        words("1821, 1848, 1867, 1890, 1902, 1921, 1934, 1956, 1963, 1978, 1985, 1999"),
    ),
    "architect": (
        "The {subject} was designed by {answer}.",
        "Who designed the {subject}?",
        words("Anna Berg, Omar Haddad, Lucia Moreno, Ken Sato, Maria Novak, Paul Adams, Nina Okafor, Jan Visser"),
    ),
    "price": (
        "A ticket for the {subject} costs {answer} euros.",
        "What does a ticket for the {subject} cost?",
        words("two, three, five, eight, ten, twelve, forty, fifty"),
    ),
    "colour": (
        "The doors of the {subject} are {answer}.",
        "Which colour are the doors of the {subject}?",
        words("blue, green, red, black, white, grey, yellow, brown"),
    ),
    "closed": (
        "The {subject} is closed on {answer}.",
        "On which day is the {subject} closed?",
        words("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    ),
    "material": (
        "The {subject} is built of {answer}.",
        "What is the {subject} built of?",
        words("stone, wood, brick, glass, steel, concrete, marble"),
    ),
}


@dataclass(frozen=True)
class Question:
    """One question on one context. `answer` stands in `context` from character `answer_start`; None: unanswerable."""

    question: str
    context: str
    answer: str | None
    answer_start: int | None

    @property
    def label(self) -> int:
        """1 where the context answers the question, else 0."""
        return int(self.answer is not None)


def write_question(rng: random.Random, answerable: bool) -> Question:
    """A context of three or four facts about two places, and a question that it answers or not."""
    subjects = [f"{place} in {town}" for place, town in zip(rng.sample(PLACES, 2), rng.sample(TOWNS, 2), strict=True)]
    pairs = [(subject, relation) for subject in subjects for relation in RELATIONS]
    facts = rng.sample(pairs, rng.choice((3, 4)))
    asked = rng.choice(facts) if answerable else _absent(rng, facts, subjects)
    context, answer, start = "", None, None
    for subject, relation in facts:
        statement, _, answers = RELATIONS[relation]
        said = rng.choice(answers)
        sentence = statement.format(subject=subject, answer=said)
        if (subject, relation) == asked:
            start = len(context) + statement.format(subject=subject, answer="\0").index("\0")
            answer = said
        context += sentence + " "
    question = RELATIONS[asked[1]][1].format(subject=asked[0])
    return Question(question=question, context=context.rstrip(), answer=answer, answer_start=start)


def _absent(rng: random.Random, facts: list[tuple[str, str]], subjects: list[str]) -> tuple[str, str]:
    """A question near the context: about a place that it names, preferably on a matter that it tells of the other."""
    named, told = {subject for subject, _ in facts}, {relation for _, relation in facts}
    absent = [(subject, relation) for subject in subjects for relation in RELATIONS if (subject, relation) not in facts]
    near = [pair for pair in absent if pair[0] in named]
    tempting = [pair for pair in absent if pair[1] in told]
    return rng.choice(tempting if tempting and rng.random() < 0.7 else near)
