"""The generated data sets keep what their docstrings promise."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from lorasweep.data.demo import LABEL_NOISE, REVIEW_NAMES, demo_qa, demo_reviews, for_pretraining, ids_among
from lorasweep.data.questions import RELATIONS
from lorasweep.data.reviews import MILD, NEGATIVE, NOUNS, POSITIVE, STRONG
from lorasweep.errors import DataError


@pytest.mark.parametrize("classes", [2, 4])
def test_reviews_are_seeded_balanced_and_sized(classes: int) -> None:
    splits = demo_reviews(400, 3, classes)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 400, "validation": 100, "test": 100}
    assert splits == demo_reviews(400, 3, classes) != demo_reviews(400, 4, classes)
    for rows in splits.values():
        counts = [sum(row.true_label == label for row in rows) for label in range(classes)]
        assert max(counts) - min(counts) <= 1
    order = [row.true_label for row in splits["train"]]
    assert order[:classes] * (400 // classes) != order  # shuffled


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), classes=st.sampled_from([2, 4]))
def test_no_text_stands_twice_nor_belongs_to_pretraining(seed: int, classes: int) -> None:
    texts = [row.text.lower() for rows in demo_reviews(300, seed, classes).values() for row in rows]
    assert len(set(texts)) == len(texts) == 450
    assert not any(map(for_pretraining, texts))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.slow
def test_label_noise_is_about_four_percent_in_every_split(classes: int, split: str) -> None:
    rows = [row for seed in range(4) for row in demo_reviews(8000, seed, classes)[split]]
    wrong = [row for row in rows if row.label != row.true_label]
    assert abs(len(wrong) / len(rows) - LABEL_NOISE) < 0.008
    assert {row.label for row in wrong} == set(range(classes))


def test_word_counts_do_not_solve_it() -> None:
    splits = demo_reviews(2400)
    words = CountVectorizer()
    counts = words.fit_transform([row.text for row in splits["train"]])
    model = LogisticRegression(max_iter=300).fit(counts, [row.label for row in splits["train"]])
    test = splits["validation"]
    accuracy = model.score(words.transform([row.text for row in test]), [row.label for row in test])
    assert 0.5 < accuracy < 0.72


def test_the_language_holds_what_it_should() -> None:
    texts = [row.text.lower() for row in demo_reviews(1500)["train"]]
    for sign in (
        "hardly",
        "not a",
        "nothing about",
        " but ",
        "although",
        " start, ",
        "very",
        "absolutely",
        "film",
        "phone",
    ):
        assert any(sign in text for text in texts), sign


def test_plain_and_opposed_reviews_read_as_their_label() -> None:
    """An independent reading of two of the simplest patterns: which polar words stand where."""
    polarity = {word: sign for table in (STRONG, MILD, NOUNS) for sign in (POSITIVE, NEGATIVE) for word in table[sign]}
    checked = 0
    for row in demo_reviews(2400)["train"]:
        _, _, second_half = row.text.partition("he first half is ")
        if not second_half and " start, " not in row.text:
            continue
        end = (second_half or row.text.split(" start, ")[1]).split(".")[0]
        signs = [polarity[word] for word in end.replace(",", "").split() if word in polarity]
        assert (signs[-1] == POSITIVE) == bool(row.true_label), row
        checked += 1
    assert checked > 50


def test_four_classes_mean_what_they_say() -> None:
    polar = {word for table in (STRONG, MILD) for sign in (POSITIVE, NEGATIVE) for word in table[sign]}
    rows = demo_reviews(800, 0, 4)["train"]
    neutral = [row.text.lower() for row in rows if row.true_label == REVIEW_NAMES[4].index("neutral")]
    assert neutral and not any(polar & set(text.replace(".", "").split()) for text in neutral)


def test_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\.classes=5"):
        demo_reviews(10, 0, 5)


def test_three_classes_are_negative_positive_and_neutral() -> None:
    three, four = demo_reviews(300, 0, 3)["train"], REVIEW_NAMES[4]
    assert REVIEW_NAMES[3] == four[:3] and {row.true_label for row in three} == {0, 1, 2}


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (["negative", "neutral", "positive"], [0, 2, 1]),
        (["Positive", "NEGATIVE", "Neutral"], [1, 0, 2]),
        (["x", "positive", "y"], [0, 1, 2]),
        (["a", "b", "c"], [0, 1, 2]),
    ],
)
def test_class_names_of_another_data_set_are_taken_by_name_then_in_order(wanted: list[str], ids: list[int]) -> None:
    assert ids_among(["negative", "positive", "neutral"], wanted) == ids


def test_questions_keep_the_answer_where_it_stands() -> None:
    splits = demo_qa(400)
    assert splits == demo_qa(400) != demo_qa(400, 1)
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 400, "validation": 100, "test": 100}
    keys = [(row.question, row.context) for rows in splits.values() for row in rows]
    assert len(set(keys)) == len(keys)
    for rows in splits.values():
        assert abs(sum(row.label for row in rows) - len(rows) / 2) <= 1
        for row in rows:
            if row.label:
                assert row.answer is not None and row.answer_start is not None
                assert row.context[row.answer_start :].startswith(row.answer)
            else:
                assert row.answer is None and row.answer_start is None


def test_unanswerable_questions_are_near_their_context() -> None:
    """They name a place of the context, or ask what the context tells of another place; half of them the latter."""
    told_of_another = 0
    rows = [row for row in demo_qa(400)["train"] if not row.label]
    for row in rows:
        (relation,) = [
            name for name, (_, question, _) in RELATIONS.items() if fits(question.replace("?", r"\?"), row.question)
        ]
        subject = re.search(r"\w+ in [A-Z]\w+", row.question)
        assert subject is not None
        told = [
            sentence for sentence in row.context.split(". ") if fits(RELATIONS[relation][0][:-1], sentence.rstrip("."))
        ]
        assert not any(subject.group() in sentence for sentence in told)
        assert told or subject.group() in row.context
        told_of_another += bool(told)
    assert told_of_another > len(rows) / 2


def fits(template: str, text: str) -> bool:
    return re.fullmatch(template.format(subject=".+", answer=".+"), text) is not None
