"""Pretraining text and the pretraining itself, cut to a few steps: seeded, and apart from the demo's rows."""

import itertools
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorasweep.data.demo import demo_qa, demo_reviews, for_pretraining
from lorasweep.models.builtin import NAMES
from lorasweep.models.corpus import passages, telling_words
from lorasweep.models.pretrain import SEED, Recipe, batches, pace, pretrain, weighted


def test_passages_are_seeded_and_apart_from_the_demo() -> None:
    texts = passages(3000, SEED)
    assert texts == passages(3000, SEED) != passages(3000, SEED + 1)
    assert all(for_pretraining(text.first) for text in texts)
    seen = {text.first.lower() for text in texts}
    shown = {row.text.lower() for classes in (2, 4) for rows in demo_reviews(2400, 0, classes).values() for row in rows}
    asked = {f"{row.question} {row.context}".lower() for rows in demo_qa(2400).values() for row in rows}
    assert not seen & shown and not seen & asked


def test_every_passage_has_a_telling_word() -> None:
    telling = set(telling_words())
    for text in passages(500, 1):
        assert telling & set(text.follows.lower().replace(".", "").split()), text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_same_seed_same_bytes(name: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for folder in ("one", "two"):
            pretrain(name, tmp_path / folder, say=lambda _: None, rows=200, steps=2)
    finally:
        torch.set_num_threads(threads)
    files = sorted(file.name for file in (tmp_path / "one" / name).iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    for file in files:
        assert (tmp_path / "one" / name / file).read_bytes() == (tmp_path / "two" / name / file).read_bytes(), file
    AutoTokenizer.from_pretrained(tmp_path / "one" / name)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "one" / name)


def test_learning_rate_warms_up_and_falls() -> None:
    shares = [pace(step, 100, 10) for step in range(100)]
    assert shares[0] < 0.11 and max(shares) == max(shares[8:12]) > 0.95
    assert shares[-1] == pytest.approx(0.05, abs=0.01)


def test_telling_words_weigh_more() -> None:
    logits, wanted = torch.randn(6, 5), torch.randint(0, 5, (6,))
    telling = torch.tensor([True, False, False, True, False, False])
    losses = -logits.log_softmax(-1)[torch.arange(6), wanted]
    expected = losses[telling].mean() + 0.3 * losses[~telling].mean()
    torch.testing.assert_close(weighted(logits, wanted, telling), expected)


@pytest.mark.parametrize("rows", [5, 96, 200])
def test_batches_go_on_for_ever_in_chunks_of_like_length(rows: int) -> None:
    lengths = [(7 * row) % 31 for row in range(rows)]
    order = batches(lengths, Recipe(steps=1, batch_rows=96, lr=1e-3), random.Random(0))
    for chunks in itertools.islice(order, 5):
        flat = [row for chunk in chunks for row in chunk]
        assert len(flat) == len(set(flat)) == min(rows, 96)
        assert [lengths[row] for row in flat] == sorted(lengths[row] for row in flat)
