"""The saved views: what each filters, sorts and shows, and that they fit where MLflow keeps them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lorasweep.tracking.views import LONGEST_TAG, PREFIX, TAG, VIEWS, Shown, address, param_name, saved_views

SHOWN = Shown([("eval/loss", "minimize")], ["optimizer.lr", "adapter.r"], created_ms=1_000)


def state_of(value: str) -> dict[str, Any]:
    return json.loads(json.loads(value)["state"])


def test_four_views_in_the_menus_order() -> None:
    views = saved_views(SHOWN)
    assert list(views) == [f"{PREFIX}{key}" for key in VIEWS]
    envelopes = [json.loads(value) for value in views.values()]
    assert [envelope["name"] for envelope in envelopes] == ["Leaderboard", "Curves", "Finalists", "Failures"]
    times = [envelope["createdAt"] for envelope in envelopes]
    assert times == sorted(times, reverse=True) and len(set(times)) == 4  # the menu lists the newest first


def test_the_leaderboard_sorts_in_the_objectives_direction_and_puts_swept_values_beside_it() -> None:
    state = state_of(saved_views(SHOWN)[TAG])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`eval/loss`", True)
    assert state["selectedColumns"][:3] == ["metrics.`eval/loss`", "params.`optimizer.lr`", "params.`adapter.r`"]
    assert state["selectedColumns"].count("metrics.`eval/loss`") == 1
    assert state["columnOrder"] == state["selectedColumns"] and state["runsHiddenMode"] == "SHOW_ALL"
    up = Shown([("eval/f1", "maximize")], [])
    assert state_of(saved_views(up)[TAG])["orderByAsc"] is False


def test_what_is_logged_decides_columns_and_charts() -> None:
    texts = Shown([("eval/exact_match", "maximize"), ("trainable_params", "minimize")], ["adapter.r"],
                  ["eval/exact_match", "eval/exact_match_before", "eval/rouge", "train/loss"])  # fmt: skip
    views = saved_views(texts)
    columns = state_of(views[TAG])["selectedColumns"]
    assert columns == [
        "metrics.`eval/exact_match`",
        "params.`adapter.r`",
        "metrics.`eval/rouge`",
        "tags.`lorasweep.state`",
    ]
    charts = state_of(views[f"{PREFIX}curves"])["compareRunCharts"]
    assert [chart["metricKey"] for chart in charts if chart["type"] == "LINE"] == ["eval/exact_match", "train/loss"]


def test_the_charts_that_matter_each_with_a_place_of_its_own() -> None:
    state = state_of(saved_views(SHOWN)[f"{PREFIX}curves"])
    charts, sections = state["compareRunCharts"], {section["uuid"] for section in state["compareRunSections"]}
    lines = [chart["metricKey"] for chart in charts if chart["type"] == "LINE"]
    assert lines == ["eval/loss", "train/loss", "eval/accuracy", "eval/roc_auc"]
    (parallel,) = [chart for chart in charts if chart["type"] == "PARALLEL"]
    assert (parallel["selectedParams"], parallel["selectedMetrics"]) == (["optimizer.lr", "adapter.r"], ["eval/loss"])
    assert [chart["xaxis"]["key"] for chart in charts if chart["type"] == "SCATTER"] == ["optimizer.lr", "adapter.r"]
    assert {chart["metricSectionId"] for chart in charts} == sections
    assert len({chart["uuid"] for chart in charts}) == len(charts)


def test_finalists_and_failures_filter() -> None:
    views = saved_views(SHOWN)
    assert state_of(views[f"{PREFIX}finalists"])["searchFilter"] == "tags.`lorasweep.finalist` LIKE '%'"
    failures = state_of(views[f"{PREFIX}failures"])
    assert failures["searchFilter"].endswith("attributes.status = 'FAILED'")
    assert failures["selectedColumns"][0] == "tags.`lorasweep.reason`"


@pytest.mark.parametrize("keys", [400, 0])
@pytest.mark.slow
def test_views_of_a_huge_space_fit(keys: int) -> None:
    shown = Shown([("eval/loss", "minimize")], [f"group{i}.{'x' * 100}" for i in range(keys)])
    for value in saved_views(shown).values():
        assert len(value) <= LONGEST_TAG
        assert "metrics.`eval/loss`" in value or "reason" in value


def test_names_and_addresses() -> None:
    assert param_name("optimizer.lr") == "optimizer.lr" and param_name("+model@x=y") == "_model_x_y"
    start = "http://127.0.0.1:5000/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey="
    assert address(5000, "7") == f"{start}leaderboard"
    assert address(5000, "7", "curves") == f"{start}curves&compareRunsMode=CHART"
