"""The tiny bases: found by name, whole, small, and what their families promise."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorasweep.data.demo import demo_qa, demo_reviews
from lorasweep.errors import ModelError
from lorasweep.models import builtin
from lorasweep.models.builtin import FOLDER, NAMES, resolve

FAMILIES = {"tiny_encoder": "bert", "tiny_decoder": "llama", "tiny_gpt2": "gpt2"}


def test_other_paths_stay_as_they_are() -> None:
    assert resolve("distilbert-base-uncased") == "distilbert-base-uncased"
    assert resolve("/some/folder") == "/some/folder"


def test_unknown_name_hints_at_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"builtin:tiny_encodr: no base of that name .*did you mean `tiny_encoder`"):
        resolve("builtin:tiny_encodr")


def test_installation_without_its_files_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    with pytest.raises(ModelError, match=r"lacks model\.safetensors; .*Reinstall lorasweep"):
        resolve("builtin:tiny_gpt2")


def test_together_under_six_megabytes_and_nothing_pickled() -> None:
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 6_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors"}


@pytest.mark.parametrize("name", NAMES)
def test_loads_whole_in_fp32_without_dropout(name: str) -> None:
    folder = resolve(f"builtin:{name}")
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.float32, output_loading_info=True
    )
    fresh = {key.split(".")[0] for key in info["missing_keys"]}
    assert fresh <= {"classifier", "score"}  # the head alone is new: the backbone, pooler included, is in the file
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["model_type"] == FAMILIES[name]
    assert not any(rate for key, rate in config.items() if "drop" in key and isinstance(rate, float))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.is_fast and tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize("name", NAMES)
def test_demo_rows_are_short_and_known(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(f"builtin:{name}"))
    texts = [row.text for row in demo_reviews(400)["train"]]
    rows = tokenizer(texts)["input_ids"]
    assert sum(map(len, rows)) / len(rows) < 24
    assert not any(tokenizer.unk_token_id in row for row in rows)
    pairs = demo_qa(200)["train"]
    assert max(map(len, tokenizer([row.question for row in pairs], [row.context for row in pairs])["input_ids"])) <= 96


@pytest.mark.parametrize("text", ["Ünïcode 日本語 🙂", "RuntimeError: 0x1F", "\u200b", "a" * 5000, "œuvre\tnaïve\n"])
@pytest.mark.parametrize("name", NAMES)
def test_any_text_goes_through(name: str, text: str) -> None:
    folder = resolve(f"builtin:{name}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=torch.float32)
    batch = tokenizer([text, "a film"], truncation=True, max_length=64, padding=True, return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()
