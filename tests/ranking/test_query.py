"""--where and --sort: what holds, what is refused and in which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasweep.arguments import parse
from lorasweep.errors import UsageError
from lorasweep.ranking.query import keys_of, parse_where, select


def row(trial: int, **fields: Any) -> dict[str, Any]:
    metrics = {"eval/accuracy": 0.5 + trial / 100, "eval/loss": 1.0}
    params = {"optimizer.lr": 10.0**-trial, "adapter.r": 2 * trial, "data": "sst2", "train.on": trial % 2 == 0}
    plain = {"rank": trial + 1, "trial": trial, "state": "complete", "value": 0.9 - trial / 10, "reason": None}
    return {**plain, "metrics": metrics, "params": params, "interval": [0.1 * trial, 0.9], "tied": trial < 2, **fields}


ROWS = [row(0), row(1), row(2), row(3, state="pruned", rank=None, reason="rung 256 samples: lost", value=None)]
ROWS[3]["params"].pop("data")


def kept(*where: str) -> list[int]:
    return [one["trial"] for one in select(ROWS, list(where), None)]


@pytest.mark.parametrize(
    ("where", "trials"),
    [
        ("adapter.r>=4", [2, 3]),
        ("adapter.r >= 4, state=complete", [2]),
        ("r<4", [0, 1]),
        ("state!=complete", [3]),
        ("state==pruned", [3]),
        ("eval/accuracy>0.515", [2, 3]),
        ("accuracy<=0.51", [0, 1]),
        ("lr=0.1", [1]),
        ("optimizer.lr=1e-2", [2]),
        ("tied=true", [0, 1]),
        ("train.on=false", [1, 3]),
        ("rank=null", [3]),
        ("rank!=null", [0, 1, 2]),
        ("data=null", [3]),
        ("data!=sst2", [3]),
        ("reason~RUNG", [3]),
        ("reason='rung 256 samples: lost'", [3]),
        ('reason="a, b"', []),
        ("low>0.15", [2, 3]),
        ("value<0.85", [1, 2]),
        ("rank<3", [0, 1]),
    ],
)
def test_conditions(where: str, trials: list[int]) -> None:
    assert kept(where) == trials


def test_several_are_anded() -> None:
    assert kept("adapter.r>=2", "adapter.r<=4") == kept("adapter.r>=2,adapter.r<=4") == [1, 2]


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("adaptr.r>=4", "did you mean `adapter.r`"),
        ("nonsense", "is no condition"),
        ("r>=", "is no condition"),
        ("", "cannot be read"),
        ("state>=complete", "have no order"),
        ("__import__('os')", "is no condition"),
        ("value>'x", "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_named(where: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        kept(where)


def test_an_ambiguous_ending_asks_for_the_whole_key() -> None:
    rows = [{**ROWS[0], "params": {"a.lr": 1, "b.lr": 2}}]
    with pytest.raises(UsageError, match=r"a\.lr and b\.lr"):
        select(rows, ["lr=1"], None)
    assert select(rows, ["a.lr=1"], None) == rows


def test_order_with_what_is_missing_last() -> None:
    def order(sort: str) -> list[int]:
        return [one["trial"] for one in select(ROWS, [], sort)]

    assert order("value") == [2, 1, 0, 3] and order("value:desc") == [0, 1, 2, 3]
    assert order("data") == [0, 1, 2, 3] and order("lr") == [3, 2, 1, 0]
    assert order("r:desc") == [3, 2, 1, 0]
    with pytest.raises(UsageError, match="asc"):
        order("value:up")
    with pytest.raises(UsageError, match="--sort names 'valeu'"):
        order("valeu")


@given(st.text(max_size=30))
def test_no_text_does_anything_but_select_or_refuse(text: str) -> None:
    try:
        assert all(one in ROWS for one in select(ROWS, [text], None))
    except UsageError:
        return


def test_a_board_without_rows_has_its_columns() -> None:
    assert "state" in keys_of([]) and select([], ["state=complete"], "value") == []
    assert len(parse_where("a=1,b=2")) == 2


def test_a_condition_on_the_command_line_is_no_override() -> None:
    words = ["leaderboard", "quick", "--where", "state=complete", "tracking.dir=/x", "--sort", "value:desc", "--csv"]
    arguments, overrides = parse(words)
    assert overrides == ["tracking.dir=/x"] and arguments.where == ["state=complete"]
    assert arguments.sort == "value:desc" and arguments.csv and arguments.name == "quick"
