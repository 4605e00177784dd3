"""Descriptions in markdown that people read in MLflow: on a sweep's experiment, on its own run, on a registered model.

Pure: builds text from rows of the leaderboard. Names and values come from users; nothing of theirs becomes markup.
Neighbours: `tracking.views` (where links lead), `publishing` (calls), `tracking.publish` (stores).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from lorasweep.tracking.views import VIEWS, fragment

LONGEST_NOTE = 4_900  # characters; MLflow keeps 5,000 of a registered model's description
MODE = "?workflowType=machine_learning"  # else the page turns to its GenAI mode
MOST_ROWS = 10
MOST_PARAMS = 6
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~>-])")


@dataclass(frozen=True)
class Subject:
    """The sweep that a note is about. `rows` are those of the leaderboard; `counts`: state -> number of trials;
    `report_run`: its own MLflow run."""

    sweep: str
    objectives: list[tuple[str, str]]
    rows: list[dict[str, Any]]
    counts: dict[str, int]
    experiment_id: str
    report_run: str = ""
    base: str = ""
    data: str = ""


def escape(text: Any) -> str:
    """A text that markdown shows as it stands, on one line."""
    line = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(r"\\\1", line)


def sweep_note(subject: Subject) -> str:
    """What the sweep looked for, its best trials and where to look on."""
    goals = "; ".join(f"{escape(metric)}, {direction}d" for metric, direction in subject.objectives)
    told = ", ".join(f"{count:,} {state}" for state, count in subject.counts.items() if count) or "no trials yet"
    views = " · ".join(f"[{name}](#{fragment(subject.experiment_id, key)})" for key, name in VIEWS.items())
    lines = [f"**Sweep {escape(subject.sweep)}**: {goals}. {told}.", "", views]
    if subject.report_run:
        there = f"#/experiments/{subject.experiment_id}/runs/{subject.report_run}/artifacts/report/report.html{MODE}"
        lines[-1] += f" · [Report]({there})"
    if subject.base or subject.data:
        lines += ["", f"Base {escape(subject.base) or 'unknown'}, data {escape(subject.data) or 'unknown'}."]
    return _with_table("\n".join(lines), subject)


def model_note(subject: Subject, model: str) -> str:
    """Where a registered model comes from and how it is used."""
    uri = f"models:/{model}@champion"
    lines = [
        f"Fine-tuned by lorasweep in sweep [{escape(subject.sweep)}](#{fragment(subject.experiment_id)}).",
        "",
        f"`lorasweep predict {uri} \"a text\"` or `mlflow.pyfunc.load_model('{uri}')`. The alias `champion` marks the "
        "version that won on the test rows; each version's tags say against whom, and by how much.",
        "",
        "The sweep's best trials on its validation rows:",
    ]
    return _with_table("\n".join(lines), subject)


def _with_table(head: str, subject: Subject) -> str:
    """The text, with as many of the best trials as fit."""
    for count in range(MOST_ROWS, -1, -1):
        note = head + _table(subject, count)
        if len(note) <= LONGEST_NOTE:
            return note
    return head[:LONGEST_NOTE]


def _table(subject: Subject, count: int) -> str:
    rows = [row for row in subject.rows if row["rank"] is not None][:count]
    if not rows:
        return ""
    keys = list(dict.fromkeys(key for row in rows for key in row["params"]))[:MOST_PARAMS]
    heads = ["rank", "trial", escape(subject.objectives[0][0]), *(escape(key.rpartition(".")[2]) for key in keys)]
    lines = ["", "", f"| {' | '.join(heads)} |", "|" + " ---: |" * len(heads)]
    for row in rows:
        trial = str(row["trial"])
        if row["run_id"]:
            trial = f"[{trial}](#/experiments/{subject.experiment_id}/runs/{row['run_id']}{MODE})"
        cells = [str(row["rank"]), trial, value_of(row), *(_short(row["params"].get(key)) for key in keys)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def value_of(row: dict[str, Any]) -> str:
    """A row's value, with its interval and what its repeats gave, where it has them."""
    interval = row.get("interval")
    near = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
    tied = " tied" if row.get("tied") and row["rank"] != 1 else ""
    mean = (row.get("finalist") or {}).get("mean")
    seeds = f", {mean:.4f} over {len(row['finalist']['values'])} fresh seeds" if mean is not None else ""
    return f"{row['value']:.4f}{near}{seeds}{tied}"


def _short(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value)[:60])
