"""The answers of a question, as SQuAD's files, the hub or a plain column write them, and where they stand in a context.

Neighbours: `table` (cells in), `tasks` (which ask for spans). Pure.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from lorasweep.errors import DataError


@dataclass(frozen=True)
class Answer:
    """One accepted answer. start: its first character in the context as the data say, None where they do not."""

    text: str
    start: int | None = None


def answers_of(cell: Any, where: str) -> list[Answer]:
    """The answers in a cell; none where it is empty. A cell is {"text": [...], "answer_start": [...]}, a list of
    {"text", "answer_start"} or of texts, either of them as JSON text, or one answer as plain text.

    Raises:
        DataError: it is none of these; `where` names the row.
    """
    if isinstance(cell, str) and cell.strip()[:1] in ("{", "["):
        try:
            cell = json.loads(cell)
        except json.JSONDecodeError:
            return [Answer(cell)]  # an answer may begin with a bracket
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return []
    if isinstance(cell, str | int | float):
        return [Answer(str(cell))] if str(cell).strip() else []
    if isinstance(cell, dict) and isinstance(cell.get("text"), str):
        cell = [cell]
    if isinstance(cell, dict) and isinstance(cell.get("text"), list):
        starts = cell.get("answer_start")
        if not isinstance(starts, list):
            starts = [None] * len(cell["text"])
        if len(starts) != len(cell["text"]):
            raise DataError(
                f"{where} has {len(cell['text'])} answers and {len(starts)} of `answer_start`; mend the row"
            )
        cell = [{"text": text, "answer_start": start} for text, start in zip(cell["text"], starts, strict=True)]
    if isinstance(cell, list):
        found = [_one(item) for item in cell]
        if None not in found:
            return [answer for answer in found if answer is not None and answer.text.strip()]
    raise DataError(
        f"{where} has answers of a form that is not known ({str(cell)[:80]}); write "
        "{text: [...], answer_start: [...]}, a list of texts, or one text"
    )


def _one(item: Any) -> Answer | None:
    if isinstance(item, str):
        return Answer(item)
    if isinstance(item, dict) and isinstance(item.get("text"), str):
        start = item.get("answer_start")
        return Answer(item["text"], start if isinstance(start, int) and not isinstance(start, bool) else None)
    return None


def locate(answer: Answer, context: str) -> int | None:
    """The first character of an answer in its context: where the data say, else the nearest place that holds it, None
    where none does."""
    said = -1 if answer.start is None else answer.start
    if said >= 0 and context.startswith(answer.text, said):
        return said
    places, at = [], context.find(answer.text)
    while at >= 0:
        places.append(at)
        at = context.find(answer.text, at + 1)
    return min(places, key=lambda place: abs(place - max(said, 0)), default=None)
