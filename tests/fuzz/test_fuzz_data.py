"""Any bytes under the name of a data file give rows that train, or one DataError with its repair."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from fuzzkit import both, nasty
from lorasweep.config.schema import DataConfig
from lorasweep.data.files import READERS, read_table
from lorasweep.data.sources import load_search_data
from lorasweep.errors import DataError

MARKS = [b"", b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf", b"\xff\xfe\0\0", b"\0\0\xfe\xff"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"]
characters = st.characters(exclude_categories=["Cs"])
cell = st.one_of(st.text(characters, max_size=12), st.sampled_from(["", " ", '"', '""', "a,b", "a\nb", "\0", "\ufeff"]))
json_cell = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), nasty),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "answer_start", "x"]), inner),
    max_leaves=4,
)
row = st.dictionaries(st.sampled_from(["text", "label", "question", "context", "answers", "outputs"]), json_cell)
named = st.sampled_from(["text", "label", "question", "context", "answers", "outputs", "nowhere"])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A table that was good, in any encoding, cut or with bytes changed."""
    rows = draw(st.lists(st.tuples(cell, st.sampled_from(["0", "1", "good", ""])), max_size=12))
    text = "".join(f"{a},{b}\n" for a, b in [("text", "label"), *rows])
    raw = bytearray(draw(st.sampled_from(MARKS)) + text.encode(draw(st.sampled_from(ENCODINGS)), "replace"))
    for _ in range(draw(st.integers(0, 3))):
        if raw:
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(raw[: draw(st.integers(0, len(raw)))] if draw(st.booleans()) else raw)


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


contents = st.one_of(
    st.binary(max_size=200),
    damaged(),
    st.lists(row, max_size=10).map(jsonl),
    st.lists(row, max_size=10).map(lambda rows: json.dumps(rows).encode()),
    st.lists(row, max_size=4).map(lambda rows: json.dumps({"data": [{"paragraphs": rows}]}).encode()),
)


def rows_or_an_error(
    ending: str, raw: bytes, text: str, label: str, more: str | None, drop: bool, mark: str | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"rows{ending}"
        file.write_bytes(raw)
        columns = {} if more is None else {"pair_column": more, "answers_column": "answers"}
        data = DataConfig(
            kind="file",
            train=str(file),
            text_column=text,
            label_column=label,
            drop_empty=drop,
            delimiter=mark,
            **columns,
        )
        try:
            found = load_search_data(data)
        except DataError as error:
            assert str(file) in str(error) or "data." in str(error)
            assert len(str(error)) < 2000
            return
        for split in (found.train, found.validation):
            assert len(split.texts) == len(split.labels) > 0
            assert all(0 <= number < len(found.label_names) for number in split.labels)
            "\n".join([*split.texts, *(split.pairs or []), *found.label_names]).encode()  # what files and pages hold


test_rows_or_an_error, test_rows_or_an_error_at_length = both(
    150,
    20_000,
    ending=st.sampled_from(sorted(READERS)),
    raw=contents,
    text=named,
    label=named,
    more=st.none() | named,
    drop=st.booleans(),
    mark=st.none() | st.text(max_size=2),
)(rows_or_an_error)


def what_is_written_is_read(rows: list[tuple[str, str]], encoding: str, end: str) -> None:
    """csv as the csv module writes it, blank lines between, comes back cell for cell."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL)  # by itself it leaves a lone \r bare
    writer.writerow(["text", "label"])
    for one in rows:
        writer.writerow(one)
        out.write(end)  # an empty line
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.csv"
        file.write_bytes(out.getvalue().encode(encoding))
        found = read_table(str(file), "data.train", DataConfig(kind="file")).columns
    assert found == {"text": [text for text, _ in rows], "label": [label for _, label in rows]}


test_what_is_written_is_read, test_what_is_written_is_read_at_length = both(
    40,
    5_000,
    rows=st.lists(st.tuples(cell, cell), min_size=1, max_size=6),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
)(what_is_written_is_read)


def written(folder: Path, name: str, raw: bytes) -> DataConfig:
    (folder / name).write_bytes(raw)
    return DataConfig(kind="file", train=str(folder / name))


TWENTY = [{"text": f"film {number}", "label": str(number % 2)} for number in range(20)]
FOUND = {  # what fuzzing found, with what is said now
    "half a character": ("a.jsonl", jsonl([{"text": "\ud83d", "label": "1"}]), "half a character in `text`"),
    "half a character in a label": (
        "a.jsonl",
        jsonl([{"text": "a", "label": "\udc00"}]),
        "half a character in `label`",
    ),
    "nested without end": ("a.jsonl", b"[" * 100_000, "nested too deeply"),
    "a document nested without end": ("a.json", b"[" * 100_000, "nested too deeply"),
    "a number without end": ("a.jsonl", b'{"text": "a", "label": ' + b"9" * 5000 + b"}", "a number of too many digits"),
    "a label without end": ("a.csv", b"text,label\na," + b"9" * 5000, "of 5,000 characters in `label`"),
    "two lines of label": ("a.csv", b'text,label\na,"b\nc"\n', "a label is one line"),
    "a text that is a number": ("a.jsonl", jsonl([{"text": "a", "label": {"text": 3}}]), "too few rows"),
    "UTF-16 without its mark": ("a.csv", "text,label\na,1\n".encode("utf-16-le"), "iconv -f UTF-16LE"),
    "UTF-32": ("a.tsv", "text\tlabel\na\t1\n".encode("utf-32"), "iconv -f UTF-32"),
    "half of UTF-16": ("a.csv", "text,label\na,1\n".encode("utf-16")[:-1], "is not UTF-16, as its first bytes say"),
}


@pytest.mark.parametrize("name", FOUND)
def test_found_by_fuzzing(name: str, tmp_path: Path) -> None:
    file, raw, message = FOUND[name]
    with pytest.raises(DataError) as raised:
        load_search_data(written(tmp_path, file, raw))
    assert message in str(raised.value)


@pytest.mark.parametrize("path", ["x" * 300 + ".csv", "~nosuchuser/rows.csv", "a\0b.csv", "/proc/1/mem/rows.csv"])
def test_paths_that_no_file_can_have(path: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_table(path, "data.train", DataConfig(kind="file"))


@pytest.mark.parametrize("delimiter", ['"', "\n", "\r"])
def test_delimiters_that_separate_nothing(tmp_path: Path, delimiter: str) -> None:
    data = written(tmp_path, "a.csv", b"text,label\na,1\n")
    data.delimiter = delimiter
    with pytest.raises(DataError, match=r"data\.delimiter|has no column"):
        load_search_data(data)


def test_old_line_ends_and_lone_returns_in_a_tsv(tmp_path: Path) -> None:
    table = "text\tlabel\n" + "".join(f"{row['text']}\t{row['label']}\n" for row in TWENTY)
    expected = load_search_data(written(tmp_path, "new.tsv", table.encode()))
    old = load_search_data(written(tmp_path, "old.tsv", table.replace("\n", "\r").encode()))
    assert old.fingerprint == expected.fingerprint
    inside = load_search_data(written(tmp_path, "in.tsv", table.replace("film", "fi\rlm").encode()))
    assert inside.train.texts[0].startswith("fi\rlm")


def test_a_megabyte_in_a_field(tmp_path: Path) -> None:
    for ending, raw in ((".jsonl", jsonl([{**row, "text": "y" * 2**20} for row in TWENTY])), (".csv", b"")):
        table = "text,label\n" + "".join(f'"{"y" * 2**20}",{row["label"]}\n' for row in TWENTY)
        found = load_search_data(written(tmp_path, f"big{ending}", raw or table.encode()))
        assert {len(text) for text in found.train.texts} == {2**20}


def test_labels_of_equal_number_have_one_order(tmp_path: Path) -> None:
    """`1`, `01` and `+1` are three names; a set's order would give them other ids in another process."""
    rows = [{"text": f"film {number}", "label": ["+1", "1", "01", "2"][number % 4]} for number in range(80)]
    assert load_search_data(written(tmp_path, "a.jsonl", jsonl(rows))).label_names == ["+1", "01", "1", "2"]
