"""Token streams and their cache: equal to the tokenizer's own output, safe against damage and changed tokenizers."""

import multiprocessing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lorasweep.data import encode as room
from lorasweep.data.encode import Encoded, encode, tokenise, tokenizer_fingerprint
from lorasweep.data.sources import Split
from lorasweep.models.builtin import NAMES, resolve

ROWS = Split(["A good film.", "Not a dull film at all, and the plot is superb.", "x"], None, [1, 0, 1])
PAIRS = Split(["Who designed it?", "When?"], ["Anna Berg designed it. It is old.", "It opened in 1921."], [1, 0])


def load(name: str = "tiny_encoder"):
    return AutoTokenizer.from_pretrained(resolve(f"builtin:{name}"))


def same(one: Encoded, other: Encoded) -> bool:
    tensors = all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("ids", "offsets", "labels"))
    types = (one.type_ids is None) == (other.type_ids is None) and (
        one.type_ids is None or torch.equal(one.type_ids, other.type_ids)
    )
    return tensors and types and one.truncated_rows == other.truncated_rows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("split", [ROWS, PAIRS], ids=["single", "pairs"])
def test_rows_are_what_the_tokenizer_gives(name: str, split: Split) -> None:
    tokenizer = load(name)
    encoded = tokenise(split, tokenizer, 64)
    for number, text in enumerate(split.texts):
        alone = tokenizer(text, split.pairs[number] if split.pairs else None)
        assert encoded.row(number).tolist() == alone["input_ids"]
        if encoded.type_ids is not None:
            start, end = encoded.offsets[number : number + 2].tolist()
            assert encoded.type_ids[start:end].tolist() == alone["token_type_ids"]
    assert encoded.labels.tolist() == split.labels and len(encoded) == len(split)
    assert encoded.lengths.sum() == len(encoded.ids) and encoded.truncated_rows == 0
    assert {encoded.ids.dtype, encoded.offsets.dtype, encoded.labels.dtype} == {torch.int64}


def test_pairs_have_type_ids_where_the_tokenizer_gives_them() -> None:
    bert = tokenise(PAIRS, load("tiny_encoder"), 64)
    assert bert.type_ids is not None and set(bert.type_ids.tolist()) == {0, 1}
    assert tokenise(PAIRS, load("tiny_gpt2"), 64).type_ids is None


def test_truncated_rows_are_counted_exactly() -> None:
    tokenizer = load()
    lengths = tokenise(ROWS, tokenizer, 64).lengths.tolist()
    for limit in range(3, max(lengths) + 2):
        encoded = tokenise(ROWS, tokenizer, limit)
        assert encoded.truncated_rows == sum(length > limit for length in lengths)
        assert encoded.lengths.max() <= limit


def test_truncated_rows_of_a_tokenizer_without_encodings() -> None:
    class Slow:
        """The calls that `tokenise` makes, as a tokenizer written in Python answers them."""

        def __init__(self) -> None:
            self.fast = load()
            self.unk_token_id = self.fast.unk_token_id

        def __call__(self, *texts, **settings):
            return dict(self.fast(*texts, **settings))

    assert tokenise(ROWS, Slow(), 5).truncated_rows == tokenise(ROWS, load(), 5).truncated_rows == 2


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=st.text(min_size=1, max_size=40))
def test_any_text_has_tokens(name: str, text: str) -> None:
    encoded = tokenise(Split([text], None, [0]), load_once(name), 16)
    assert 1 <= len(encoded.row(0)) <= 16
    assert encoded.ids.max() < len(load_once(name))


TOKENIZERS: dict[str, object] = {}


def load_once(name: str):
    return TOKENIZERS.setdefault(name, load(name))


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_select_is_row_by_row(rows: list[int]) -> None:
    encoded = tokenise(ROWS, load_once("tiny_encoder"), 64)
    chosen = encoded.select(torch.tensor(rows))
    assert [chosen.row(place).tolist() for place in range(len(rows))] == [encoded.row(row).tolist() for row in rows]
    assert chosen.labels.tolist() == [ROWS.labels[row] for row in rows]
    assert chosen.type_ids is not None and len(chosen.type_ids) == len(chosen.ids)


def test_cache_is_read_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load()
    first = encode(PAIRS, tokenizer, 12, tmp_path / "cache", "train")
    (file,) = (tmp_path / "cache").iterdir()
    assert file.name.startswith("train-") and file.suffix == ".safetensors"
    monkeypatch.setattr(room, "tokenise", lambda *_: pytest.fail("tokenised again"))
    assert same(encode(PAIRS, tokenizer, 12, tmp_path / "cache", "train"), first)
    assert first.truncated_rows > 0


def test_no_cache_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encode(ROWS, load(), 12, None, "test")
    assert not list(tmp_path.iterdir())


def test_anything_that_changes_the_tokens_is_another_entry(tmp_path: Path) -> None:
    tokenizer = load()
    encode(ROWS, tokenizer, 12, tmp_path, "train")
    encode(ROWS, tokenizer, 13, tmp_path, "train")
    encode(Split([*ROWS.texts[:2], "y"], None, ROWS.labels), tokenizer, 12, tmp_path, "train")
    encode(ROWS, load("tiny_gpt2"), 12, tmp_path, "train")
    tokenizer.add_tokens(["superb!"])
    encode(ROWS, tokenizer, 12, tmp_path, "train")
    assert len(list(tmp_path.iterdir())) == 5


def test_fingerprint_is_not_the_state_of_the_last_call() -> None:
    tokenizer = load()
    before = tokenizer_fingerprint(tokenizer)
    tokenizer(["a", "b c"], truncation=True, max_length=4, padding=True)
    assert tokenizer_fingerprint(tokenizer) == before == tokenizer_fingerprint(load())


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "other rows"])
def test_damaged_cache_is_built_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = load()
    good = encode(ROWS, tokenizer, 12, tmp_path, "train")
    (file,) = tmp_path.iterdir()
    raw = file.read_bytes()
    if damage == "other rows":
        room.write_cached(good.select(torch.tensor([0])), file)
    else:
        file.write_bytes({"cut": raw[: len(raw) // 2], "empty": b"", "garbage": b"\xff" * 200}[damage])
    assert same(encode(ROWS, tokenizer, 12, tmp_path, "train"), good)
    assert "is damaged" in caplog.text and file.read_bytes() == raw


def test_half_written_file_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(room.os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        encode(ROWS, load(), 12, tmp_path, "train")
    assert not list(tmp_path.iterdir())


def encode_in_a_loop(folder: str) -> int:
    tokenizer = load()
    wanted = tokenise(ROWS, tokenizer, 12)
    for _ in range(30):
        for file in Path(folder).glob("train-*"):
            file.unlink(missing_ok=True)
        if not same(encode(ROWS, tokenizer, 12, Path(folder), "train"), wanted):
            return 1
    return 0


@pytest.mark.slow
def test_writers_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(encode_in_a_loop, [str(tmp_path)] * 2) == [0, 0]
    assert not list(tmp_path.glob(".*.part"))
