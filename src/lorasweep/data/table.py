"""Named columns of raw cells, as a file or the hub gave them, and the checks that turn them into rows.

`files` and `hub` build a Table; `sources` asks it for texts, pairs and labels. Pure Python, no heavy imports.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

from lorasweep.config.schema import DataConfig
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
    """Checked cells before labels become ids: texts without blanks, labels as text, `numbers` counted from 1."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    numbers: list[int]
    where: str


def raw_rows(table: Table, data: DataConfig) -> RawRows:
    """Pick and check the columns that `data` names.

    A row whose text, pair or label is empty is an error that names the first such row, unless `data.drop_empty` says
    to leave such rows out (they are counted in the log).
    """
    if not len(table):
        raise DataError(f"{table.where} has no rows; a split needs at least one")
    texts = table.column(data.text_column, "data.text_column")
    pairs = table.column(data.pair_column, "data.pair_column") if data.pair_column else None
    labels = table.column(data.label_column, "data.label_column")
    picked: list[tuple[str, str, str, int]] = []
    empty: list[tuple[int, str]] = []
    for number, cells in enumerate(zip(texts, pairs if pairs is not None else texts, labels, strict=True), start=1):
        text, pair, label = as_text(cells[0]), as_text(cells[1]), label_text(cells[2])
        column = next(
            (
                name
                for name, cell in (
                    (data.text_column, text),
                    (data.pair_column or "", pair),
                    (data.label_column, label),
                )
                if not cell.strip()
            ),
            None,
        )
        if column is None:
            picked.append((text, pair, label, number))
        else:
            empty.append((number, column))
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
    return RawRows(
        texts=[row[0] for row in picked],
        pairs=[row[1] for row in picked] if pairs is not None else None,
        labels=[row[2] for row in picked],
        numbers=[row[3] for row in picked],
        where=table.where,
    )


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
