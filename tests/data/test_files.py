"""Files as users have them: encodings, quotes, blank and ragged lines, and what each error says."""

from pathlib import Path

import pandas
import pytest

from lorasweep.config.schema import DataConfig
from lorasweep.data.files import read_table
from lorasweep.errors import DataError

PLAIN = DataConfig(kind="file")


def read(file: Path, data: DataConfig = PLAIN) -> dict[str, list]:
    return read_table(str(file), "data.train", data).columns


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_csv_quotes_may_hold_commas_quotes_and_newlines(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", 'text,label\n"good, ""really"" good\nfilm",1\nplain,0\n')
    assert read(file) == {"text": ['good, "really" good\nfilm', "plain"], "label": ["1", "0"]}


def test_tsv_quotes_are_plain_characters(tmp_path: Path) -> None:
    file = written(tmp_path, "a.tsv", 'text\tlabel\n"half a quote\t1\nit is 6" long\t0\n')
    assert read(file)["text"] == ['"half a quote', 'it is 6" long']


def test_quoting_can_be_turned_round(tmp_path: Path) -> None:
    tsv = written(tmp_path, "a.tsv", 'text\tlabel\n"a\tb"\t1\n')
    assert read(tsv, DataConfig(quoting="minimal"))["text"] == ["a\tb"]
    csv = written(tmp_path, "a.csv", 'text,label\n"a,1\n')
    assert read(csv, DataConfig(quoting="none"))["text"] == ['"a']


def test_other_delimiter(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "text;label\na, b;1\n")
    assert read(file, DataConfig(delimiter=";")) == {"text": ["a, b"], "label": ["1"]}
    with pytest.raises(DataError, match=r"data\.delimiter=';;': a delimiter is one character"):
        read(file, DataConfig(delimiter=";;"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    file = written(tmp_path, "a.csv", "text,label\nœuvre naïve,1\n".encode(encoding))
    assert read(file) == {"text": ["œuvre naïve"], "label": ["1"]}


def test_other_encoding_names_line_byte_and_repair(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "text,label\nfine,1\nna\xefve,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.csv is not UTF-8: byte 0xef in line 3.*iconv"):
        read(file)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_blank_lines_are_skipped_and_line_ends_do_not_matter(tmp_path: Path, name: str, end: str) -> None:
    mark = "," if name == "a.csv" else "\t"
    file = written(tmp_path, name, end.join(["", f"text{mark}label", "", f"a{mark}1", "  ", f"b{mark}0", "", ""]))
    assert read(file) == {"text": ["a", "b"], "label": ["1", "0"]}


def test_line_separators_inside_a_tsv_row_do_not_end_it(tmp_path: Path) -> None:
    file = written(tmp_path, "a.tsv", "text\tlabel\none\u2028two\x85three\t1\n")
    assert read(file)["text"] == ["one\u2028two\x85three"]


def test_ragged_line(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "text,label\nfine,1\noops, a comma,0\n")
    with pytest.raises(DataError, match=r"line 3: 3 fields where the header has 2 \(text, label\).*data\.delimiter"):
        read(file)


def test_unclosed_quote(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", 'text,label\n"never closed,1\nb,0\n')
    with pytest.raises(DataError, match=r"broken quoting .*data\.quoting=none"):
        read(file)


def test_long_field(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", f"text,label\n{'x' * 300_000},1\n")
    assert len(read(file)["text"][0]) == 300_000


def test_same_column_twice(tmp_path: Path) -> None:
    file = written(tmp_path, "a.csv", "text,label,text\na,1,b\n")
    with pytest.raises(DataError, match="names `text` more than once"):
        read(file)


@pytest.mark.parametrize(("name", "content"), [("a.csv", "text,label\n"), ("a.jsonl", "\n\n")])
def test_no_rows(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(DataError, match=r"data\.train=.* has no rows"):
        read(written(tmp_path, name, content))


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is empty; a csv or tsv file starts with a header"):
        read(written(tmp_path, "a.csv", ""))


def test_missing_file_shows_the_data_files_there(tmp_path: Path) -> None:
    written(tmp_path, "reviews.csv", "text,label\na,1\n")
    with pytest.raises(DataError, match=r"data\.train=.*review\.csv does not exist; data files there: reviews\.csv"):
        read(tmp_path / "review.csv")
    with pytest.raises(DataError, match="is a folder, not a file"):
        read(tmp_path)


def test_relative_path_counts_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "a.csv", "text,label\na,1\n")
    monkeypatch.chdir(tmp_path)
    assert read(Path("a.csv"))["text"] == ["a"]
    with pytest.raises(DataError, match=rf"data\.train=b\.csv does not exist \(looked in {tmp_path}\)"):
        read(Path("b.csv"))


def test_unknown_ending(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has the ending `\.xlsx`; a data file ends in \.csv, \.tsv"):
        read(written(tmp_path, "a.xlsx", b"PK"))


def test_jsonl_keeps_types_and_missing_keys_are_empty(tmp_path: Path) -> None:
    file = written(tmp_path, "a.jsonl", '{"text": "a\\u2028b", "label": 1}\n\n{"text": "c", "extra": true}\n')
    assert read(file) == {"text": ["a\u2028b", "c"], "label": [1, None], "extra": [None, True]}


@pytest.mark.parametrize(("line", "says"), [("{oops", "not JSON"), ("[1]", "a list where")])
def test_broken_jsonl_names_the_line(tmp_path: Path, line: str, says: str) -> None:
    with pytest.raises(DataError, match=f"line 2: {says}"):
        read(written(tmp_path, "a.jsonl", f'{{"text": "a"}}\n{line}\n'))


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pandas.DataFrame({"text": ["a", None], "label": [1, 0]}).to_parquet(file)
    assert read(file) == {"text": ["a", None], "label": [1, 0]}


def test_broken_parquet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet"):
        read(written(tmp_path, "a.parquet", b"nothing of the kind"))
