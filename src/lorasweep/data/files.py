"""Reads a user's csv, tsv, json, jsonl or parquet file into a Table, or says exactly what is wrong with it and where.

The csv module rather than pandas: it refuses ragged rows and broken quotes, which pandas would silently mend.
Neighbours: `table` (what comes out), `sources` (who asks).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorasweep.config.home import exists, given_path, named_home
from lorasweep.config.schema import DataConfig
from lorasweep.data.table import Table
from lorasweep.errors import DataError, shortened

UTF16_LE, UTF16_BE = b"\xff\xfe", b"\xfe\xff"  # byte order marks
PEEKED_BYTES = 4096  # of a file, to tell its encoding
MAX_FIELD_CHARS = 1 << 27  # csv's own limit of 128 KiB is shorter than some documents


def read_table(path: str, setting: str, data: DataConfig) -> Table:
    """The rows of one file, its format by its ending. `setting` (data.train, …) names the place to mend in errors.

    Relative paths count from LORASWEEP_HOME, then from the current folder. Raises DataError: no such file, unknown
    ending, not UTF-8, ragged or broken rows (with their line), nothing but a header.
    """
    file = given_path(path)
    if not exists(file, Path.is_file):
        what = "is a folder, not a file" if exists(file, Path.is_dir) else "does not exist"
        looked = dict.fromkeys(str(folder) for folder in (named_home(), Path.cwd()) if folder)
        hint = "" if file.is_absolute() else f" (looked in {' and '.join(looked)})"
        near = (
            [other.name for other in sorted(file.parent.iterdir()) if reader_of(other)]
            if exists(file.parent, Path.is_dir)
            else []
        )
        there = f"; data files there: {', '.join(near[:10])}" if near else ""
        raise DataError(f"{setting}={path} {what}{hint}{there}. Give the path of a {', '.join(READERS)} file")
    reader = reader_of(file)
    if reader is None:
        raise DataError(
            f"{setting}={path} has the ending `{file.suffix}`; a data file ends in {', '.join(READERS)} and is read by "
            "its ending. Rename or convert it"
        )
    try:
        columns = reader(file, data)
    except OSError as error:
        raise DataError(f"{setting}={path} cannot be read: {error.strerror or error}. Check its permissions") from None
    table = Table(columns=columns, where=str(path))
    if not len(table):
        raise DataError(f"{setting}={path} has no rows; a split needs at least one")
    return table


def reader_of(file: Path) -> Callable[[Path, DataConfig], dict[str, list[Any]]] | None:
    """The reader for a file's ending, None where there is none."""
    return READERS.get(file.suffix.lower())


def decoded(file: Path) -> str:
    """A file's text, as `decoded_bytes`."""
    return decoded_bytes(file.read_bytes(), str(file))


def decoded_bytes(raw: bytes, where: str) -> str:
    """Text in UTF-8 with or without byte order mark, or in UTF-16 with one.

    Raises:
        DataError: any other encoding, with the line and what to type; UTF-16 and UTF-32 are told by their NUL bytes.
    """
    marked = raw[:2] in (UTF16_LE, UTF16_BE) and raw[:4] != UTF16_LE + b"\0\0"  # not the mark of UTF-32
    encoding = "utf-16" if marked else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        reason, found = f"byte 0x{raw[error.start]:02x} in line {line}", _wide_encoding(raw) or "WINDOWS-1252"
        name = "UTF-16, as its first bytes say" if marked else "UTF-8"
        if marked:
            reason, found = (
                f"{error.reason} in line {line}; it may have been cut, or joined with another file",
                "UTF-16",
            )
        raise _other_encoding(where, name, reason, found) from None
    wide = None if marked else _wide_encoding(raw)
    if wide is not None:
        raise _other_encoding(where, "UTF-8", "every other byte is NUL", wide)
    return text


def _wide_encoding(raw: bytes) -> str | None:
    """The encoding of two or four bytes a character that text without a mark is in, None where it is in none."""
    if raw[:4] in (UTF16_LE + b"\0\0", b"\0\0" + UTF16_BE):
        return "UTF-32"
    start = raw[:PEEKED_BYTES]
    odd, even = start[1::2].count(0), start[::2].count(0)
    if len(start) < 4 or max(odd, even) * 4 < len(start):
        return None
    if min(odd, even) * 4 >= len(start):
        return "UTF-32LE" if start[0] else "UTF-32BE"
    return "UTF-16LE" if odd > even else "UTF-16BE"


def _other_encoding(where: str, expected: str, reason: str, found: str) -> DataError:
    return DataError(
        f"{where} is not {expected}: {reason}. Save it as UTF-8, for example with "
        f"`iconv -f {found} -t UTF-8 {Path(where).name}`"
    )


def read_delimited(file: Path, data: DataConfig) -> dict[str, list[Any]]:
    """A csv or tsv file with a header line; blank lines are skipped.

    In .tsv quotes are plain characters and in .csv they quote, unless data.quoting says otherwise.
    """
    is_tsv = file.suffix.lower() in (".tsv", ".tab")
    delimiter = data.delimiter or ("\t" if is_tsv else ",")
    if len(delimiter) != 1:
        raise DataError(f"data.delimiter={delimiter!r}: a delimiter is one character, for example ';' or '|'")
    plain = data.quoting == "none" or (data.quoting == "auto" and is_tsv)
    text = decoded(file)
    csv.field_size_limit(MAX_FIELD_CHARS)
    rows: Any = PlainRows(text, delimiter) if plain else _quoted_rows(text, delimiter)
    try:
        header: list[str] = next((row for row in rows if any(cell.strip() for cell in row)), [])
        names = [name.strip() for name in header]
        check_header(names, file)
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            if not row or (len(row) == 1 and not row[0].strip()):
                continue  # a blank line
            if len(row) != len(names):
                raise DataError(
                    f"{file}, line {rows.line_num}: {len(row)} fields where the header has {len(names)} "
                    f"({shortened(', '.join(names), 400)}). Mend the line, or set data.delimiter (now {delimiter!r}) "
                    f"or data.quoting (now {'none' if plain else 'minimal'})"
                )
            for name, cell in zip(names, row, strict=True):
                columns[name].append(cell)
    except csv.Error as error:
        raise DataError(
            f"{file}, line {rows.line_num}: broken quoting ({error}). Mend the line, or set data.quoting=none where "
            "quotes are plain characters"
        ) from None
    return columns


class PlainRows:
    """Rows where quotes are plain characters: only a newline ends one. `line_num`: of the last row, from 1."""

    def __init__(self, text: str, delimiter: str):
        ends = "\n" if "\n" in text else "\r"  # old Macs', where there is no other
        self._lines = iter(text.replace("\r\n", "\n").split(ends))
        self._delimiter = delimiter
        self.line_num = 0

    def __iter__(self) -> PlainRows:
        return self

    def __next__(self) -> list[str]:
        line = next(self._lines)
        self.line_num += 1
        return line.split(self._delimiter)


def _quoted_rows(text: str, delimiter: str) -> Any:
    """The csv module's reader, which refuses some delimiters."""
    try:
        if delimiter == '"':
            raise ValueError("it is the quote")
        return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"data.delimiter={delimiter!r} cannot separate fields ({error}); take another, for example ';' or '|'"
        ) from None


def check_header(names: list[str], file: Path) -> None:
    """Column names must be there and differ."""
    if not names:
        raise DataError(f"{file} is empty; a csv or tsv file starts with a header line that names its columns")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{file}: the header names `{shortened(twice[0])}` more than once; columns must have different names"
        )


def read_jsonl(file: Path, data: DataConfig) -> dict[str, list[Any]]:
    """One JSON object a line; a key that a row lacks is an empty cell."""
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(decoded(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{file}, line {number}: not JSON ({_json_reason(error)}). A .jsonl file has one object a line"
            ) from None
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: a {type(row).__name__} where a .jsonl file has one object a line")
        rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return {name: [row.get(name) for row in rows] for name in names}


def read_json(file: Path, data: DataConfig) -> dict[str, list[Any]]:
    """One JSON document: a list of objects, or SQuAD's own form, of which each question becomes a row with the columns
    id, title, context, question and answers."""
    text = decoded(file)
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{file}{line}: not JSON ({_json_reason(error)}). One object a line is a .jsonl file") from None
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
        if document and all(isinstance(article, dict) and "paragraphs" in article for article in document):
            document = squad_rows(document, file)
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise DataError(
            f"{file}: a .json file is a list of objects, an object with such a list as `data`, or a SQuAD file; this "
            f"is a {type(document).__name__}"
        )
    names = list(dict.fromkeys(name for row in document for name in row))
    return {name: [row.get(name) for row in document] for name in names}


def _json_reason(error: ValueError | RecursionError) -> str:
    """What is wrong, without Python's own advice: nested too deep, or a number of thousands of digits."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number of too many digits; write it as text"


def squad_rows(articles: list[dict[str, Any]], file: Path) -> list[dict[str, Any]]:
    """The questions of SQuAD's articles, in their order."""
    try:
        return [
            {
                "id": asked.get("id", ""),
                "title": article.get("title", ""),
                "context": paragraph["context"],
                "question": asked["question"],
                "answers": asked.get("answers", []),
            }
            for article in articles
            for paragraph in article["paragraphs"]
            for asked in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not SQuAD's form after all: {type(error).__name__}: {error}") from None


def read_parquet(file: Path, data: DataConfig) -> dict[str, list[Any]]:
    """All columns of a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read as parquet: {error}") from None
    return {str(name): column for name, column in table.to_pydict().items()}


READERS: dict[str, Callable[[Path, DataConfig], dict[str, list[Any]]]] = {
    ".csv": read_delimited,
    ".tsv": read_delimited,
    ".tab": read_delimited,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".parquet": read_parquet,
}
