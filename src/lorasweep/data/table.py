"""Named columns of raw cells, as a file or the hub gave them, and the checks that turn them into rows.

`files` and `hub` build a Table; `sources` asks it for texts, pairs, labels and answers. Pure Python, no heavy imports.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from lorasweep.config.schema import DataConfig
from lorasweep.data.answers import Answer, answers_of
from lorasweep.errors import DataError, nearest

log = logging.getLogger(__name__)

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
        raise DataError(
            f"{self.where} has no column `{name}` ({setting}={name}); its columns are: "
            f"{', '.join(self.columns) or 'none'}. Set {setting} to one of them ({nearest(name, self.columns)})"
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
        it: _Column(name, [as_text(cell) for cell in table.column(name, setting)])
        for it, (setting, name) in named.items()
        if name
    }
    if not data.output_column and not data.answers_column:
        column = table.column(data.label_column, "data.label_column")
        found["labels"] = _Column(data.label_column, [label_text(cell) for cell in column])
    return found


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
    if isinstance(cell, dict) and "text" in cell:
        return ANSWERABLE_NAMES[len(cell["text"]) > 0]
    if isinstance(cell, list):  # SQuAD's own files keep a list of {"text", "answer_start"} objects
        return ANSWERABLE_NAMES[len(cell) > 0]
    return as_text(cell).strip()
