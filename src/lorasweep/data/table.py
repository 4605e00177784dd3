"""Named columns of raw cells, as a file or the hub gave them, and the checks that turn them into rows.

`files` and `hub` build a Table; `sources` asks it for texts, pairs, labels and answers. Pure Python, no heavy imports.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from typing import Any

from lorasweep.config.schema import DataConfig
from lorasweep.data.answers import Answer, answers_of
from lorasweep.errors import DataError, nearest, shortened

log = logging.getLogger(__name__)

MAX_LABEL_CHARS = 250  # names of classes become keys of databases and columns of tables
HALF_CHARACTER = re.compile("[\ud800-\udfff]")
ANSWERABLE_NAMES = ["unanswerable", "answerable"]


@dataclass(frozen=True)
class Table:
    """Columns of equal length. `where` names the source in messages; `label_names` are its own, if it has any."""

    columns: dict[str, list[Any]]
    where: str
    label_names: list[str] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def column(self, name: str, setting: str) -> list[Any]:
        """The cells of one column; a DataError names the columns there are and the setting to mend."""
        if name in self.columns:
            return self.columns[name]
        there = ", ".join(shortened(column) for column in list(self.columns)[:20]) or "none"
        raise DataError(
            f"{self.where} has no column `{name}` ({setting}={name}); its columns are: "
            f"{there}{', …' if len(self.columns) > 20 else ''}. Set {setting} to one of them "
            f"({nearest(name, self.columns)})"
        )


@dataclass(frozen=True)
class RawRows:
    """Checked cells before labels become ids: texts without blanks, labels as text, `numbers` counted from 1. Answers,
    instructions and outputs are None where the data have none."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    numbers: list[int]
    where: str
    answers: list[list[Answer]] | None = None
    instructions: list[str] | None = None
    outputs: list[str] | None = None


def raw_rows(table: Table, data: DataConfig) -> RawRows:
    """Pick and check the columns that `data` names.

    A row whose text, pair or label is empty is an error that names the first such row, unless `data.drop_empty` says
    to leave such rows out (they are counted in the log).
    """
    if not len(table):
        raise DataError(f"{table.where} has no rows; a split needs at least one")
    cells = _cells(table, data)
    free = {"texts"} if "instructions" in cells else set()  # an instruction may need no input
    picked: list[int] = []
    empty: list[tuple[int, str]] = []
    for row in range(len(table)):
        lacking = next((it for it, column in cells.items() if it not in free and not column.cells[row].strip()), None)
        if lacking is None:
            picked.append(row)
        else:
            empty.append((row + 1, cells[lacking].name))
    if empty and not data.drop_empty:
        number, column = empty[0]
        raise DataError(
            f"{table.where}: row {number} (counted from 1 without the header) has an empty `{column}`, as have "
            f"{len(empty) - 1} more rows with something empty. Mend them, or leave them out with data.drop_empty=true"
        )
    if empty:
        log.warning("%s: left out %d of %d rows with an empty cell", table.where, len(empty), len(table))
    if not picked:
        raise DataError(
            f"{table.where}: all {len(table)} rows have an empty cell; a split needs at least one whole row"
        )

    def chosen(it: str) -> list[str] | None:
        return [cells[it].cells[row] for row in picked] if it in cells else None

    answers = None
    if data.answers_column:
        given = table.column(data.answers_column, "data.answers_column")
        answers = [answers_of(given[row], f"{table.where}: row {row + 1}") for row in picked]
        labels = [ANSWERABLE_NAMES[bool(found)] for found in answers]
    else:
        labels = chosen("labels") or [""] * len(picked)
    return RawRows(
        texts=chosen("texts") or [],
        pairs=chosen("pairs"),
        labels=labels,
        numbers=[row + 1 for row in picked],
        where=table.where,
        answers=answers,
        instructions=chosen("instructions"),
        outputs=chosen("outputs"),
    )


@dataclass(frozen=True)
class _Column:
    name: str
    cells: list[str]


def _cells(table: Table, data: DataConfig) -> dict[str, _Column]:
    """The columns that `data` names, as text, by what they are for."""
    named = {
        "texts": ("data.text_column", data.text_column),
        "pairs": ("data.pair_column", data.pair_column),
        "instructions": ("data.instruction_column", data.instruction_column),
        "outputs": ("data.output_column", data.output_column),
    }
    found = {
        it: _Column(name, _checked([as_text(cell) for cell in table.column(name, setting)], name, table.where))
        for it, (setting, name) in named.items()
        if name
    }
    if not data.output_column and not data.answers_column:
        column = table.column(data.label_column, "data.label_column")
        labels = _checked([label_text(cell) for cell in column], data.label_column, table.where)
        for row, label in enumerate(labels, start=1):
            if len(label) > MAX_LABEL_CHARS or any(ord(character) < ord(" ") for character in label):
                raise DataError(
                    f"{table.where}: row {row} (counted from 1 without the header) has the label {label[:40]!r}"
                    f"{'…' if len(label) > 40 else ''} of {len(label):,} characters in `{data.label_column}`; a label "
                    f"is one line of at most {MAX_LABEL_CHARS}. Mend the row, or check data.label_column"
                )
        found["labels"] = _Column(data.label_column, labels)
    return found


def _checked(cells: list[str], column: str, where: str) -> list[str]:
    """The cells, if each is Unicode: JSON can write half a character (`"\\ud83d"`), which no tokenizer takes."""
    for row, cell in enumerate(cells, start=1):
        if not cell.isascii() and HALF_CHARACTER.search(cell):
            raise DataError(
                f"{where}: row {row} (counted from 1 without the header) has half a character in `{column}` (a lone "
                "surrogate such as \\ud83d: its text was cut inside an emoji). Mend the row, or leave it out"
            )
    return cells


def as_text(cell: Any) -> str:
    """A cell as text; a missing one (None, NaN) is empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return cell if isinstance(cell, str) else str(cell)


def label_text(cell: Any) -> str:
    """A label cell as the text it is known by: 1, 1.0, True and " 1 " agree across formats as far as they can.

    SQuAD v2 has no label: its `answers` cell ({"text": [...], "answer_start": [...]}) is read as `answerable` where it
    holds an answer and as `unanswerable` where it is empty, so data.label_column=answers makes a label of it.
    """
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, dict) and isinstance(cell.get("text"), str | list):
        return ANSWERABLE_NAMES[len(cell["text"]) > 0]
    if isinstance(cell, list):  # SQuAD's own files keep a list of {"text", "answer_start"} objects
        return ANSWERABLE_NAMES[len(cell) > 0]
    return as_text(cell).strip()
