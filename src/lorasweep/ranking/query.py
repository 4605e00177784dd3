"""Which rows of a leaderboard to show, and in which order: `--where` and `--sort`, on rows as `--json` prints them.

A key is a column (`state`, `value`, `train_seconds`, …), a swept key (`adapter.r`), a metric (`eval/f1`), or the last
part of one of these where only one ends so (`r`, `f1`). Nothing is evaluated: a condition is a key, a relation and a
literal. Pure. Neighbours: `ranking` (the rows), `cli` (the words).
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorasweep.errors import UsageError, nearest

Row = dict[str, Any]
RELATIONS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
    "~": lambda text, part: str(part).lower() in str(text).lower(),
}
ORDERED = (">=", "<=", ">", "<")
_CONDITION = re.compile(r"\s*(?P<key>[\w./-]+)\s*(?P<relation>>=|<=|!=|==|=|>|<|~)\s*(?P<value>.*?)\s*", re.DOTALL)
# parts between commas; a comma inside quotes or brackets belongs to a value
_PART = re.compile(r"""(?:"[^"]*"|'[^']*'|\[[^\]]*\]|[^,"'\[])+""")
EXAMPLE = "for example adapter.r>=8,state=complete"
COLUMNS = (  # every row has them; `low` and `high` are the ends of `interval`
    "rank", "trial", "state", "value", "low", "high", "tied", "p_tied", "pareto", "mean", "overstated", "samples",
    "train_seconds", "trainable_params", "total_params", "eval_rows", "peak_memory_bytes", "cost", "run_id", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Condition:
    """`key relation value`; value None stands for null."""

    key: str
    relation: str
    value: Any

    def holds(self, row: Row) -> bool:
        """Whether a row keeps it. What a row does not have is equal to null alone.

        Raises:
            UsageError: an order of things that have none.
        """
        found = value_of(row, self.key)
        if found is None or self.value is None:
            same = found is None and self.value is None
            return same if self.relation in ("=", "==") else not same if self.relation == "!=" else False
        if self.relation == "~":
            return RELATIONS["~"](found, self.value)
        numbers = _is_number(found) and _is_number(self.value)
        if self.relation in ORDERED and not numbers:
            raise UsageError(
                f"--where {self.key}{self.relation}{self.value}: {found!r} and {self.value!r} have no order; compare "
                "texts with = and !=, or look for a part with ~"
            )
        if numbers:
            near = math.isclose(found, self.value, rel_tol=1e-9) if self.relation in ("=", "==", "!=") else False
            return near != (self.relation == "!=") if near else RELATIONS[self.relation](found, self.value)
        same_kind = isinstance(found, bool) == isinstance(self.value, bool)
        return RELATIONS[self.relation](
            found if same_kind else str(found), self.value if same_kind else str(self.value)
        )


def parse_where(text: str) -> list[Condition]:
    """`adapter.r>=8, state=complete`: all of them must hold.

    Raises:
        UsageError: a part that is no condition.
    """
    found = []
    parts = _PART.findall(text)
    if sum(map(len, parts)) + text.count(",") < len(text) or not parts:
        raise UsageError(f"--where {text!r} cannot be read; write conditions with commas between them, {EXAMPLE}")
    for part in parts:
        match = _CONDITION.fullmatch(part)
        if match is None or not match["value"]:
            raise UsageError(
                f"--where holds {part.strip()!r}, which is no condition; write KEY RELATION VALUE with one of "
                f"{' '.join(RELATIONS)}, {EXAMPLE}"
            )
        found.append(Condition(match["key"], match["relation"], _literal(match["value"])))
    return found


def select(rows: list[Row], where: list[str], sort: str | None) -> list[Row]:
    """The rows that keep all conditions, sorted by KEY, KEY:asc or KEY:desc (None: as they are); rows without the key
    come last.

    Raises:
        UsageError: an unknown key, or a condition that cannot be read.
    """
    known = keys_of(rows)
    conditions = [condition for text in where for condition in parse_where(text)]
    conditions = [Condition(_resolve(one.key, known, "--where"), one.relation, one.value) for one in conditions]
    kept = [row for row in rows if all(condition.holds(row) for condition in conditions)]
    if sort is None:
        return kept
    name, _, way = sort.partition(":")
    if way not in ("", "asc", "desc"):
        raise UsageError(f"--sort {sort}: write KEY, KEY:asc or KEY:desc")
    key = _resolve(name, known, "--sort")
    there = [row for row in kept if value_of(row, key) is not None]
    missing = [row for row in kept if value_of(row, key) is None]
    return sorted(there, key=lambda row: _order(value_of(row, key)), reverse=way == "desc") + missing


def keys_of(rows: list[Row]) -> list[str]:
    """Every key that conditions and orders may name."""
    params = dict.fromkeys(key for row in rows for key in row["params"])
    metrics = dict.fromkeys(key for row in rows for key in row["metrics"])
    return [*COLUMNS, *params, *metrics]


def value_of(row: Row, key: str) -> Any:
    """What a row has under a key; None for nothing."""
    if key in ("low", "high"):
        interval = row.get("interval")
        return None if interval is None else interval[key == "high"]
    if key in ("mean", "overstated"):
        return (row.get("finalist") or {}).get(key)
    if key in COLUMNS:
        return row.get(key)
    return row["params"].get(key, row["metrics"].get(key))


def _resolve(key: str, known: list[str], option: str) -> str:
    if key in known:
        return key
    ends = [name for name in known if re.split(r"[./]", name)[-1] == key]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise UsageError(f"{option} names {key!r}, which {' and '.join(ends)} end with; write one of them whole")
    raise UsageError(f"{option} names {key!r}, which no row has; {nearest(key, known)}")


def _literal(text: str) -> Any:
    if text[0] == text[-1] and text[0] in "\"'" and len(text) > 1:
        return text[1:-1]
    if text.lower() in ("null", "none"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text) if any(sign in text for sign in ".eEnN") else int(text)
    except ValueError:
        return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _order(value: Any) -> tuple[int, Any]:
    """Numbers before texts, so that a key that has both can be sorted."""
    return (0, value) if isinstance(value, int | float) else (1, str(value))
