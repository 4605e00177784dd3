"""When a continued sweep is still the same one."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest

from lorasweep.config.schema import Config
from lorasweep.errors import UsageError
from lorasweep.prechecks import identify
from lorasweep.search.identity import BASES, SINGLE, SWEPT_DATA, check_same, differences
from lorasweep.search.space import parse_space

WAS: dict[str, Any] = {
    "space": {"optimizer.lr": {"low": 0.1, "high": 1.0}},
    "enqueue": [],
    "train": asdict(Config().train),
}


def test_the_same_is_the_same() -> None:
    check_same("s", WAS, {**WAS, "train": dict(reversed(WAS["train"].items()))})


@pytest.mark.parametrize(
    ("now", "line"),
    [
        ({"space": {"optimizer.lr": {"low": 0.1, "high": 2.0}}}, "space.optimizer.lr.high: 1.0 -> 2.0"),
        ({"space": {**WAS["space"], "adapter.r": {"low": 1}}}, "space.adapter.r.low: not set -> 1"),
        ({"space": {}}, "space.optimizer.lr.high: 1.0 -> not set"),
        ({"enqueue": [{"adapter.r": 1}]}, "enqueue: [] -> [{'adapter.r': 1}]"),
        ({"train": {**WAS["train"], "seed": 1}}, "train.seed: 0 -> 1"),
    ],
)
def test_every_difference_is_shown(now: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_same("rank", WAS, {**WAS, **now})
    message = str(caught.value)
    assert f"  {line}" in message.splitlines()
    assert "lorasweep resume rank" in message and "--fork NEWNAME" in message


def test_many_and_long_differences_are_cut() -> None:
    was = {"enqueue": ["x" * 500], **{f"k{n}": 0 for n in range(20)}}
    with pytest.raises(UsageError, match="and 9 more") as caught:
        check_same("s", was, {**{f"k{n}": 1 for n in range(20)}, "enqueue": []})
    assert max(map(len, str(caught.value).splitlines())) < 250


def test_a_setting_that_a_newer_version_added_is_no_difference_at_its_default() -> None:
    older = {**WAS, "train": {key: value for key, value in WAS["train"].items() if key != "base_dropout"}}
    check_same("s", older, WAS)
    changed = {**WAS, "train": {**WAS["train"], "base_dropout": 0.1}}
    assert [key for key, _, _ in differences(older, changed)] == ["train.base_dropout"]
    assert differences(WAS, older)  # but one that is gone is


def test_a_base_counts_where_it_was_looked_at_both_times() -> None:
    was, now = ({**WAS, BASES: {"./mine.v2": fingerprint}} for fingerprint in ("abc", "def"))
    with pytest.raises(UsageError, match=r"base_fingerprints\.\./mine\.v2: 'abc' -> 'def'"):
        check_same("s", was, now)
    check_same("s", WAS, now)
    check_same("s", was, WAS)


def test_rows_that_are_swept_count_like_the_sweeps_own() -> None:
    """A file of the second choice was changed while the sweep was away."""
    config, space = Config(), parse_space({"data.demo_seed": "choice(0, 1, 2)"})
    trials = [replace(config, data=replace(config.data, demo_seed=seed)) for seed in (0, 1, 2)]
    rows = {0: "a", 1: "b", 2: "c"}
    bench: Any = SimpleNamespace(data=lambda trial: SimpleNamespace(fingerprint=rows[trial.data.demo_seed]))
    was = identify(config, space, bench, trials)
    assert (was["data_fingerprint"], was[SWEPT_DATA]) == ("a", ["b", "c"])
    rows[2] = "changed"
    assert [key for key, _, _ in differences(was, identify(config, space, bench, trials))] == [SWEPT_DATA]
    assert not differences(was, identify(config, space, bench)) and SWEPT_DATA not in identify(config, space, bench)


def test_single_trials_of_another_objective_go_into_a_collection_of_their_own() -> None:
    was, now = ({"kind": SINGLE, "objective": {"metric": metric}} for metric in ("eval/accuracy", "eval/f1"))
    with pytest.raises(UsageError) as caught:
        check_same("train", was, now)
    assert "'eval/accuracy' -> 'eval/f1'" in str(caught.value) and "sweep.name=NAME" in str(caught.value)
    assert "--fork" not in str(caught.value)
