"""The command `predict`: texts from the command line, standard input or a table; labels with probabilities out.

Rows are answered in blocks, so that output of a long table starts at once and what a closed pipe no longer wants is
not computed. Neighbours: `registry.serve` (the model), `data.files` (tables in any format we read), `cli`.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.config.schema import DataConfig
from lorasweep.errors import UsageError, nearest
from lorasweep.registry.serve import Served
from lorasweep.search.whereabouts import kept_where

BLOCK_ROWS = 512
STANDARD_INPUT = "-"
SCHEMES = ("models:", "runs:", "file:", "s3:", "gs:", "dbfs:", "mlflow-artifacts:", "http:", "https:")


@dataclass(frozen=True)
class Asked:
    """What is asked about: texts, second texts of pairs (None: single texts), and the table that they came from, column
    -> cells (None: no table)."""

    texts: list[str]
    pairs: list[str] | None = None
    table: dict[str, list[Any]] | None = None

    def __len__(self) -> int:
        return len(self.texts)


def read_asked(
    texts: list[str],
    pairs: list[str] | None,
    table: str | None,
    column: str = "text",
    pair_column: str | None = None,
) -> Asked:
    """What the command line names: `texts` (`-` alone: the lines of standard input), or the rows of `table` (`-`: csv
    on standard input).

    Raises:
        UsageError: none or both of them, no such column, not as many pairs as texts.
        DataError: a table that cannot be read.
    """
    if table is not None:
        if texts or pairs:
            raise UsageError("give either texts or --csv FILE, not both")
        return _from_table(table, column, pair_column)
    if not texts:
        raise UsageError(
            'give texts to answer: lorasweep predict MODEL "a text", or `-` for lines of standard input, or --csv FILE'
        )
    if texts == [STANDARD_INPUT]:
        texts = _standard_input().splitlines()
    if pairs is not None and len(pairs) != len(texts):
        raise UsageError(f"{len(texts)} texts and {len(pairs)} second texts: give --pair once for each text")
    return Asked(texts, pairs)


def load(model_uri: str, overrides: list[str], base: str | None = None) -> Served:
    """The model of an address such as models:/NAME@champion; `base`: where its base lies now.

    Raises:
        UsageError: that is no address, or there is no such model, version or alias.
    """
    home = Home.find()
    name = model_uri.removeprefix("models:/").partition("@")[0].partition("/")[0]
    folders = kept_where(compose.tracking_place(overrides, home), name)
    if not model_uri.startswith(SCHEMES) and not Path(model_uri).is_dir():
        raise UsageError(
            f"{model_uri!r} is no address of a model; write models:/NAME@champion, or models:/NAME/VERSION"
            + (f". Did you mean models:/{model_uri}@champion?" if "/" not in model_uri else "")
        )
    return Served.load(folders, model_uri, None if base is None else {"base_model": base})


def answer(model: Served, asked: Asked) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(number of the first row, answers) of one block of rows after the other, as `Served.answers`."""
    for start in range(0, len(asked), BLOCK_ROWS):
        stop = start + BLOCK_ROWS
        pairs = None if asked.pairs is None else asked.pairs[start:stop]
        yield start, model.answers(asked.texts[start:stop], pairs)


def write_lines(model: Served, asked: Asked, out: TextIO) -> None:
    """One line a text: label, its probability, the text; tabs between."""
    for start, answers in answer(model, asked):
        for text, found in zip(asked.texts[start:], answers, strict=False):
            print(found["label"], f"{found['score']:.4f}", " ".join(text.split()), sep="\t", file=out)


def write_csv(model: Served, asked: Asked, out: TextIO) -> None:
    """A csv: the columns that came in, then label, score and one probability a class (with `predicted_` before a name
    that came in)."""
    given = asked.table or {"text": asked.texts, **({"pair": asked.pairs} if asked.pairs is not None else {})}
    writer = csv.writer(out, lineterminator="\n")
    header = False
    for start, answers in answer(model, asked):
        if not header:
            added = ["label", "score", *(f"probability_{label}" for label in answers[0]["probabilities"])]
            writer.writerow([*given, *(f"predicted_{name}" if name in given else name for name in added)])
            header = True
        for row, found in enumerate(answers, start):
            cells = [column[row] for column in given.values()]
            writer.writerow([*cells, found["label"], found["score"], *found["probabilities"].values()])


def _from_table(table: str, column: str, pair_column: str | None) -> Asked:
    from lorasweep.data.files import read_table

    if table == STANDARD_INPUT:
        with tempfile.TemporaryDirectory(prefix="lorasweep-") as folder:
            file = Path(folder) / "stdin.csv"
            file.write_text(_standard_input(), encoding="utf-8")
            columns = read_table(str(file), "--csv", DataConfig(kind="file")).columns
    else:
        columns = read_table(table, "--csv", DataConfig(kind="file")).columns
    for name, option in ((column, "--column"), (pair_column, "--pair-column")):
        if name is not None and name not in columns:
            raise UsageError(f"{option} {name}: the table has no such column; {nearest(name, columns)}")
    pairs = None if pair_column is None else [_text(cell) for cell in columns[pair_column]]
    return Asked([_text(cell) for cell in columns[column]], pairs, columns)


def _text(cell: Any) -> str:
    return "" if cell is None else str(cell)


def _standard_input() -> str:
    from lorasweep.data.files import decoded_bytes

    return decoded_bytes(sys.stdin.buffer.read(), "standard input")
