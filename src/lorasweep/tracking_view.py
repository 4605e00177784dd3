"""What a user of MLflow's own page sees first: a saved view of the sweep that is its leaderboard.

As it opens by itself, MLflow's list of runs shows no metric and no param until columns are picked by hand. A view
saved as an experiment tag shows them, sorted by the objective; its format is MLflow's own and unversioned, and a test
in a browser pins it. Pure: builds values, calls nothing. Neighbours: `tracking` (stores them), `ui` (opens them).
"""

from __future__ import annotations

import json
import re

KEY = "leaderboard"
TAG = f"mlflow.sharedViewState.{KEY}"
# Few, because the page puts metrics before params whatever the order, and a screen shows about nine columns.
METRICS = ("eval/accuracy", "eval/f1", "eval/loss", "eval/roc_auc")
LONGEST_TAG = 20_000  # characters that MLflow keeps of an experiment's tag
_NOT_IN_PARAM_NAMES = re.compile(r"[^/\w.\- :]")


def param_name(key: str) -> str:
    """The name under which an override key is logged; MLflow allows word characters, space and `/.-:` in it."""
    return _NOT_IN_PARAM_NAMES.sub("_", key).strip("/. ") or "_"


def saved_view(metric: str, direction: str, space_keys: list[str], created_ms: int) -> str:
    """The value of the experiment tag `TAG`: trials as rows, the objective first, then other metrics, the
    swept params and the state, sorted by the objective in its direction. Columns that would not fit are left out."""
    metrics = [f"metrics.`{name}`" for name in METRICS if name != metric]
    params = [f"params.`{param_name(key)}`" for key in space_keys]
    while True:
        columns = [f"metrics.`{metric}`", *metrics, *params, "tags.`lorasweep.state`"]
        state = {
            "searchFilter": "tags.`lorasweep.kind` = 'trial'",
            "orderByKey": f"metrics.`{metric}`",
            "orderByAsc": direction == "minimize",
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": columns,
            "runsExpanded": {},
            "runsPinned": [],
            "runsHidden": [],
            "runsHiddenMode": "SHOWALL",
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
        value = json.dumps({"name": "Leaderboard", "createdAt": created_ms, "state": json.dumps(state)})
        if len(value) <= LONGEST_TAG or not params:
            return value
        params.pop()


def address(port: int, experiment_id: str) -> str:
    """The page of an experiment's saved leaderboard on the MLflow server at this port of 127.0.0.1."""
    return (
        f"http://127.0.0.1:{port}/#/experiments/{experiment_id}/runs"
        f"?workflowType=machine_learning&viewStateShareKey={KEY}"
    )
