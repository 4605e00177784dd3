"""Offline data sets from a seed: `demo_reviews` (sentiment) and `demo_qa` (is the question answered?).

Cuts the streams of `reviews` and `questions` into splits that share no row, and adds label noise. A row's text decides
by its checksum whether it may serve the demo or the pretraining of the tiny bases (`models.pretrain`), so no seed of
the demo ever shows a base a row that it was pretrained on.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorasweep.data.questions import Question, write_question
from lorasweep.data.reviews import NEGATIVE, POSITIVE, ReviewWriter
from lorasweep.errors import DataError

LABEL_NOISE = 0.04
REVIEW_NAMES = {
    2: ["negative", "positive"],
    3: ["negative", "positive", "neutral"],
    4: ["negative", "positive", "neutral", "mixed"],
}
QA_NAMES = ["unanswerable", "answerable"]
SPLITS = ("train", "validation", "test")
PRETRAIN_SHARE = 4  # one text in four belongs to pretraining


@dataclass(frozen=True)
class Review:
    """One review; `label` is what a data set would show, `true_label` what was written (they differ in about 4%)."""

    text: str
    label: int
    true_label: int


def for_pretraining(text: str) -> bool:
    """Whether a generated text belongs to the pretraining of the tiny bases rather than to the demo data sets."""
    return zlib.crc32(text.lower().encode()) % PRETRAIN_SHARE == 0


def demo_reviews(rows: int, seed: int = 0, classes: int = 2) -> dict[str, list[Review]]:
    """Splits `train` (`rows` rows), `validation` and `test` (a quarter each), classes balanced before the noise.

    Noise: in every split each row's label is replaced with probability 4% by another class drawn uniformly, so even a
    perfect model scores about 96% on validation and test. No text stands in two splits or twice in one.
    DataError where `classes` is not 2, 3 or 4.
    """
    if classes not in REVIEW_NAMES:
        raise DataError(
            f"data.classes={classes}: demo_reviews has 2 classes (negative, positive), 3 (also neutral) or 4 (also "
            "mixed)"
        )
    rng = random.Random(f"demo_reviews {classes} {seed}")
    writer = ReviewWriter(rng)

    def write(label: int) -> str:
        if classes == 2:
            return writer.two_class((NEGATIVE, POSITIVE)[label])
        return writer.four_class(REVIEW_NAMES[classes][label])

    def noisy(label: int) -> int:
        return (label + rng.randrange(1, classes)) % classes if rng.random() < LABEL_NOISE else label

    splits = _distinct_splits(rows, classes, write, lambda text: text, rng)
    return {name: [Review(text, noisy(label), label) for text, label in split] for name, split in splits.items()}


def ids_among(ours: list[str], wanted: list[str]) -> list[int]:
    """The place of each of our classes among the wanted names: by name, whatever its case, and where no class of ours
    is called so, in order."""
    lower = [name.lower() for name in wanted]
    places = {name: lower.index(name) for name in ours if name in lower}
    rest = [place for place in range(len(wanted)) if place not in places.values()]
    return [places[name] if name in places else rest.pop(0) for name in ours]


def demo_qa(rows: int, seed: int = 0) -> dict[str, list[Question]]:
    """Splits `train` (`rows` rows), `validation` and `test` (a quarter each), half of them answerable, no noise."""
    rng = random.Random(f"demo_qa {seed}")
    splits = _distinct_splits(
        rows, 2, lambda label: write_question(rng, bool(label)), lambda row: f"{row.question} {row.context}", rng
    )
    return {name: [question for question, _ in split] for name, split in splits.items()}


def _distinct_splits(
    rows: int, classes: int, write: Callable[[int], Any], text_of: Callable[[Any], str], rng: random.Random
) -> dict[str, list[tuple[Any, int]]]:
    """Rows by split with their labels, shuffled; each text at most once over all splits, none of pretraining's."""
    seen: set[str] = set()
    splits: dict[str, list[tuple[Any, int]]] = {}
    for name in SPLITS:
        size = rows if name == "train" else max(rows // 4, classes)
        split: list[tuple[Any, int]] = []
        while len(split) < size:
            label = len(split) % classes
            row = write(label)
            text = text_of(row).lower()
            if text not in seen and not for_pretraining(text):
                seen.add(text)
                split.append((row, label))
        rng.shuffle(split)
        splits[name] = split
    return splits
