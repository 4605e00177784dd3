"""adapter=none: the pretrained model as it is, evaluated once, beside trials that train."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from enginelab import NAMES, base_of, build_base, config, pack_of, pad, rows
from lorasweep.errors import ModelError
from lorasweep.models.base import load_base
from lorasweep.training.events import Evaluated, Finished, Stepped


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_its_predictions_are_the_checkpoints_own(family: str, tmp_path: Path) -> None:
    path = build_base(family, tmp_path, classifier=True)
    validation = rows(12, seed=9)
    pack = pack_of(base_of(config(path)), 2, rows(30), validation)
    pack.admit(0, config(path, adapter__kind="none"))
    pack.admit(1, config(path, train__max_steps=2))
    evaluated, finished = pack.advance()
    assert isinstance(evaluated, Evaluated) and isinstance(finished, Finished)
    assert (evaluated.number, evaluated.step, finished.samples, finished.reason) == (0, 0, 0, "steps")
    theirs = AutoModelForSequenceClassification.from_pretrained(path).eval()
    for row in range(len(validation)):
        with torch.no_grad():
            wanted = theirs(**pad(validation, torch.tensor([row]), 0)).logits.softmax(-1)[0]
        np.testing.assert_allclose(evaluated.predictions[row], wanted, atol=1e-5)
    counts = pack.counts(0)
    assert (counts.trainable, counts.total) == (0, sum(p.numel() for p in theirs.parameters()))
    assert [type(event) for event in pack.advance()] == [Stepped]  # its neighbour trains on
    pack.export(0, tmp_path / "kept")
    assert (tmp_path / "kept" / "adapter_config.json").is_file()


def test_a_head_that_would_be_drawn_says_nothing(tmp_path: Path) -> None:
    path = build_base("bert", tmp_path)
    pack = pack_of(base_of(config(path)), 1, rows(30))
    with pytest.raises(ModelError, match=r"as it is.*no weights of its own for classifier.*adapter=head"):
        pack.admit(0, config(path, adapter__kind="none"))


def test_it_is_saved_and_restored_like_any_trial(tmp_path: Path) -> None:
    path = build_base("bert", tmp_path, classifier=True)
    pack = pack_of(base_of(config(path)), 1, rows(30))
    pack.admit(0, config(path, adapter__kind="none"))
    tensors, fields = pack.state(0)
    pack.evict(0)
    pack.load_state(0, config(path, adapter__kind="none"), tensors, fields)
    assert [type(event) for event in pack.advance()] == [Evaluated, Finished]


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_a_checkpoints_classes_are_put_into_the_datas_order(family: str, tmp_path: Path) -> None:
    path = build_base(family, tmp_path, classifier=True)
    told = AutoModelForSequenceClassification.from_pretrained(path)
    told.config.id2label = dict(enumerate(["MAYBE", "No", "YES"]))
    told.config.label2id = {name: number for number, name in told.config.id2label.items()}
    told.save_pretrained(path)
    base = load_base(config(path), "classification", NAMES)
    last = base.head_layers[-1]
    found, wanted = base.model.get_submodule(last), told.get_submodule(last)
    assert torch.equal(found.weight, wanted.weight[[1, 2, 0]])
    assert found.bias is None or torch.equal(found.bias, wanted.bias[[1, 2, 0]])
    assert base.model.config.id2label == dict(enumerate(NAMES))
