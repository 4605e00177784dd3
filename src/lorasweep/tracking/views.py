"""What a user of MLflow's own page sees first: saved views of the sweep, in the page's Views menu.

As it opens by itself, MLflow's list of runs shows no metric and no param until columns are picked by hand, and its
charts are one for each metric in the order of the alphabet. A view saved as an experiment tag shows what matters:

- Leaderboard: trials sorted by the objective, with the other metrics, the swept values and the state as columns;
- Curves: objectives, losses, accuracy and AUC of the trials as charts, parallel coordinates, a scatter a swept key;
- Finalists: the trials that were repeated over seeds, with their repeats;
- Failures: trials that failed, and why.

The format is MLflow's own and unversioned (`ExperimentPageUIState.tsx`, `runs-charts.types.ts`); a test in a browser
pins it. Pure: builds values, calls nothing. Neighbours: `tracking.publish` (stores them), `ui` (opens them).
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import Any

PREFIX = "mlflow.sharedViewState."
KEY = "leaderboard"
TAG = f"{PREFIX}{KEY}"
VIEWS = {KEY: "Leaderboard", "curves": "Curves", "finalists": "Finalists", "failures": "Failures"}
# Few, because a screen shows about nine columns.
METRICS = ("eval/accuracy", "eval/f1", "eval/loss", "eval/roc_auc")
CURVES = {
    "train/loss": "Training loss",
    "eval/loss": "Evaluation loss",
    "eval/accuracy": "Accuracy",
    "eval/roc_auc": "Area under the ROC curve",
}
LONGEST_TAG = 20_000  # characters that MLflow keeps of an experiment's tag
MOST_SCATTERS = 8
USUAL_KEYS = ("optimizer.lr", "adapter.r", "train.batch_size", "train.max_steps")  # where nothing is swept
_NOT_IN_PARAM_NAMES = re.compile(r"[^/\w.\- :]")
TRIALS = "tags.`lorasweep.kind` = 'trial'"


@dataclass(frozen=True)
class Shown:
    """What views show of a sweep. `objectives`: (metric, direction), the first ranks; `keys`: swept override keys;
    `metrics`: names that are logged, empty where that is not known yet; `created_ms`: when the sweep was made."""

    objectives: list[tuple[str, str]]
    keys: list[str]
    metrics: list[str] = field(default_factory=list)
    created_ms: int = 0

    @property
    def logged(self) -> list[str]:
        """Objectives that are metrics in MLflow: not `cost` and other facts of a trial."""
        return [metric for metric, _ in self.objectives if "/" in metric]

    @property
    def others(self) -> list[str]:
        """Further metrics worth a column."""
        usual = [name for name in METRICS if not self.metrics or name in self.metrics]
        more = [name for name in sorted(self.metrics) if name.startswith("eval/") and not name.endswith("_before")]
        names = usual if usual else more[: len(METRICS)]
        return [name for name in names if name not in self.logged]


def param_name(key: str) -> str:
    """The name under which an override key is logged; MLflow allows word characters, space and `/.-:` in it."""
    return _NOT_IN_PARAM_NAMES.sub("_", key).strip("/. ") or "_"


def saved_views(shown: Shown) -> dict[str, str]:
    """Experiment tag -> its value, one for each view. The menu lists the newest first, so their times descend."""
    makers = {KEY: _leaderboard, "curves": _curves, "finalists": _finalists, "failures": _failures}
    return {
        f"{PREFIX}{key}": _fitting(VIEWS[key], make, shown, shown.created_ms - place)
        for place, (key, make) in enumerate(makers.items())
    }


def _fitting(name: str, make: Any, shown: Shown, created_ms: int) -> str:
    """The tag's value; the last swept keys are left out where it would not fit."""
    for count in range(len(shown.keys), -1, -1):
        fewer = Shown(shown.objectives, shown.keys[:count], shown.metrics, shown.created_ms)
        state = json.dumps(make(fewer), separators=(",", ":"))
        value = json.dumps({"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": state})
        if len(value) <= LONGEST_TAG:
            return value
    raise AssertionError("a view without swept keys fits")


# -- the views --------------------------------------------------------------------------------------------------------


def _state(search: str, order: str, ascending: bool, columns: list[str]) -> dict[str, Any]:
    return {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": ascending,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: _width(column) for column in columns},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOW_ALL",
        "runsVisibilityMap": {},
        "viewMaximized": True,
        "runListHidden": False,
        "isAccordionReordered": False,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
    }


def _leaderboard(shown: Shown) -> dict[str, Any]:
    metric, direction = shown.objectives[0]
    columns = [_metric(name) for name in (shown.logged or [metric])] + [_param(key) for key in shown.keys]
    columns += [_metric(name) for name in shown.others] + [_tag("lorasweep.state")]
    return _state(TRIALS, _metric(metric), direction == "minimize", columns)


def _finalists(shown: Shown) -> dict[str, Any]:
    found = _leaderboard(shown)
    first = [_tag("lorasweep.finalist"), _metric(shown.objectives[0][0]), _tag("lorasweep.seed")]
    columns = first + [column for column in found["selectedColumns"] if column not in first]
    return found | {
        "searchFilter": "tags.`lorasweep.finalist` LIKE '%'",
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: _width(column) for column in columns},
    }


def _failures(shown: Shown) -> dict[str, Any]:
    columns = [_tag("lorasweep.reason"), *(_param(key) for key in shown.keys), _tag("lorasweep.state")]
    state = _state(f"{TRIALS} and attributes.status = 'FAILED'", "attributes.start_time", False, columns)
    return state | {"columnWidths": {**state["columnWidths"], columns[0]: 640}}


def _curves(shown: Shown) -> dict[str, Any]:
    names = list(dict.fromkeys([*shown.logged, *CURVES]))
    names = [name for name in names if not shown.metrics or name in shown.metrics or name in shown.logged]
    goal = (shown.logged or [shown.objectives[0][0]])[0]
    curves, across, swept = _id("curves"), _id("parallel coordinates"), _id("swept values")
    charts = [_line(name, CURVES.get(name, name), curves) for name in names]
    if shown.keys:
        charts.append(_parallel([param_name(key) for key in shown.keys], shown.logged or [goal], across))
        charts += [_scatter(param_name(key), goal, swept) for key in shown.keys[:MOST_SCATTERS]]
    sections = [
        _section(curves, "Curves", 2, 360),
        _section(across, "From the swept values to the result", 1, 420),
        _section(swept, "What the swept values did", 3, 320),
    ]
    return _leaderboard(shown) | {
        "compareRunCharts": charts,
        "compareRunSections": sections,
        "isAccordionReordered": True,
        "viewMaximized": False,
    }


def _id(name: str) -> str:
    """An id that the page needs; the same for the same chart, so that a view that did not change is not written."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"lorasweep/{name}"))


def _section(section: str, name: str, columns: int, height: int) -> dict[str, Any]:
    """A foldable part of the page of charts, so many abreast; `height` in dots."""
    return {
        "uuid": section,
        "name": name,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
        "columns": columns,
        "cardHeight": height,
    }


def _chart(kind: str, name: str, section: str, title: str) -> dict[str, Any]:
    return {
        "type": kind,
        "uuid": _id(f"{kind}/{name}"),
        "metricSectionId": section,
        "displayName": title,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
    }


def _line(metric: str, title: str, section: str) -> dict[str, Any]:
    return _chart("LINE", metric, section, title) | {
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _parallel(params: list[str], metrics: list[str], section: str) -> dict[str, Any]:
    return _chart("PARALLEL", "parallel", section, "Parallel coordinates") | {
        "selectedParams": params,
        "selectedMetrics": metrics,
        "showAllRuns": True,
    }


def _scatter(param: str, metric: str, section: str) -> dict[str, Any]:
    return _chart("SCATTER", param, section, f"{metric} over {param}") | {
        "xaxis": {"key": param, "type": "PARAM"},
        "yaxis": {"key": metric, "type": "METRIC"},
    }


def _width(column: str) -> int:
    """Dots that a column's head needs: MLflow's own width cuts names such as train.batch_size."""
    return max(96, min(260, 36 + 8 * (len(column.partition(".")[2]) - 2)))


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _param(key: str) -> str:
    return f"params.`{param_name(key)}`"


def _tag(name: str) -> str:
    return f"tags.`{name}`"


def fragment(experiment_id: str, view: str = KEY) -> str:
    """The part after `#` of the address of a view; curves open as charts, which a view cannot say by itself."""
    mode = "&compareRunsMode=CHART" if view == "curves" else ""
    return f"/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={view}{mode}"


def address(server: int | str, experiment_id: str, view: str = KEY) -> str:
    """The page of an experiment's saved view on an MLflow server: its address, or its port of 127.0.0.1."""
    base = f"http://127.0.0.1:{server}" if isinstance(server, int) else server
    return f"{base}/#{fragment(experiment_id, view)}"
