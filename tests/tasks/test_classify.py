"""The classify task: losses, probabilities, metrics' names, and a cache that is asked for by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lorasweep.config.schema import Config, DataConfig, TaskConfig
from lorasweep.data.sources import Split
from lorasweep.errors import ConfigError
from lorasweep.models.builtin import resolve
from lorasweep.tasks import Classify, make_task


def test_unit_losses_are_rowwise_cross_entropy_in_float32() -> None:
    logits = torch.randn(5, 3, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 1, 0])
    losses = Classify(TaskConfig(), ["a", "b", "c"]).unit_losses(logits, labels)
    assert losses.shape == (5,) and losses.dtype == torch.float32
    wanted = -logits.float().log_softmax(-1)[torch.arange(5), labels]
    torch.testing.assert_close(losses, wanted)
    losses.mean().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_predictions_are_probabilities() -> None:
    logits = torch.randn(4, 2, dtype=torch.float16, requires_grad=True)
    probabilities = Classify(TaskConfig(), ["a", "b"]).predictions(logits)
    assert probabilities.dtype == torch.float32 and not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(4))


def test_metrics_are_named_as_they_are_logged_and_loss_is_the_mean_of_units() -> None:
    task = make_task(Config(), ["negative", "positive"])
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]], dtype=np.float32)
    losses = np.array([0.1, 0.2, 0.9], dtype=np.float32)
    got = task.metrics(probabilities, np.array([0, 1, 1]), losses)
    names = ("loss", "accuracy", "calibration_error", "f1", "log_loss", "precision", "recall", "roc_auc")
    assert set(got) == {f"eval/{name}" for name in names}
    assert got["eval/loss"] == pytest.approx(0.4) and got["eval/accuracy"] == pytest.approx(2 / 3)
    assert all(type(score) is float for score in got.values())


def test_average_follows_the_config() -> None:
    probabilities = np.array([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]], dtype=np.float32)
    labels, losses = np.array([0, 1, 1]), np.zeros(3)
    binary = make_task(Config(task=TaskConfig(average="binary")), ["a", "b"]).metrics(probabilities, labels, losses)
    macro = make_task(Config(task=TaskConfig(average="macro")), ["a", "b"]).metrics(probabilities, labels, losses)
    assert binary["eval/precision"] == 1.0 and macro["eval/precision"] == 0.75


def test_binary_average_of_three_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.average=binary needs two classes and the data has 3 .*macro"):
        make_task(Config(task=TaskConfig(average="binary")), ["a", "b", "c"])


def test_encode_cuts_at_max_length_and_caches_only_where_told(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve("builtin:tiny_encoder"))
    split = Split(["a good film"] * 3, None, [0, 1, 0])
    task = make_task(Config(), ["a", "b"])
    encoded = task.encode(split, tokenizer, DataConfig(max_length=4), None)
    assert encoded.lengths.tolist() == [4, 4, 4] and encoded.truncated_rows == 3
    assert not list(tmp_path.iterdir())
    task.encode(split, tokenizer, DataConfig(max_length=4), tmp_path, "train")
    assert [file.name.split("-")[0] for file in tmp_path.iterdir()] == ["train"]
