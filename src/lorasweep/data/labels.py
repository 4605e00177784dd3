"""Labels as they stand in a file or on the hub, mapped to class ids 0 … n-1.

Neighbours: `table` (label cells as text), `sources` (who asks). Pure.
"""

from __future__ import annotations

import re

from lorasweep.data.table import RawRows
from lorasweep.errors import DataError, nearest, shortened

INTEGER = re.compile(r"[+-]?\d+")
MAX_FOUND_CLASSES = 1000


class LabelMap:
    """Names of the classes in the order of their ids, and the id of each label as it is written.

    A label is known by its name; where no name is a number, also by its id, so that `label_names: [negative,
    positive]` fits a file that writes 0 and 1.
    """

    def __init__(self, names: list[str]):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"data.label_names has `{twice[0]}` twice; each class needs a name of its own")
        self.names = list(names)
        self.by_text = {name: number for number, name in enumerate(names)}
        if not any(INTEGER.fullmatch(name) for name in names):
            self.by_text |= {str(number): number for number in range(len(names))}

    def ids(self, raw: RawRows) -> list[int]:
        """The class id of each row; DataError naming the value and row of a label that is not known. Free responses
        have no classes: each row's id is 0."""
        if raw.outputs is not None:
            return [0] * len(raw.labels)
        for label, number in zip(raw.labels, raw.numbers, strict=True):
            if label not in self.by_text:
                unlabelled = " (-1 marks rows whose label is withheld)" if label == "-1" else ""
                raise DataError(
                    f"{raw.where}: row {number} has the label `{label}`{unlabelled}, which is not among the classes "
                    f"{shortened(', '.join(self.names), 400)} ({nearest(label, self.names)}). Mend the row, or "
                    "set data.label_names"
                )
        return [self.by_text[label] for label in raw.labels]

    def check_seen(self, raw: RawRows, trained_on: set[int], train_where: str) -> None:
        """DataError where a row's class has no training row at all: no model could ever predict it."""
        for label, number in zip(raw.labels, raw.numbers, strict=True):
            if self.by_text.get(label) not in trained_on:
                seen = shortened(", ".join(self.names[number] for number in sorted(trained_on)), 400)
                raise DataError(
                    f"{raw.where}: row {number} has the label `{label}`, which no training row of {train_where} has "
                    f"(there: {seen}). Mend the row, or add training rows of that class"
                )


def label_map(raw: RawRows, given: list[str]) -> LabelMap:
    """The classes of the training rows: those `given`, else those found, sorted (numbers by value). None where
    responses are free."""
    if raw.outputs is not None:
        return LabelMap([])
    if given:
        return LabelMap([str(name) for name in given])
    found = set(raw.labels)
    if len(found) > MAX_FOUND_CLASSES:
        raise DataError(
            f"{raw.where}: {len(found)} different labels in {len(raw.labels)} rows; that is no label column. "
            "Check data.label_column"
        )
    if all(INTEGER.fullmatch(label) for label in found):
        return LabelMap(sorted(found, key=lambda label: (int(label), label)))  # 1 and 01 are two names
    return LabelMap(sorted(found))
