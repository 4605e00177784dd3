"""Tables of the report: the leaderboard, and models side by side. Everything from outside is escaped here.

Neighbours: `material` (read), `page` (places them).
"""

from __future__ import annotations

import html
import math
from dataclasses import asdict
from typing import Any

import yaml

from lorasweep.errors import LorasweepError
from lorasweep.ranking.table import explained
from lorasweep.records import TrialRecord
from lorasweep.reporting.material import Material
from lorasweep.tracking.recorded import Recorded

SURE = ("95% interval", "against the first")
FACTS = {"peak_memory_bytes": "peak memory, bytes", "cost": "cost"}
MOST_ROWS = 300
MOST_MODELS = 10
METRICS = ("eval/accuracy", "eval/f1", "eval/roc_auc", "eval/loss")
BEFORE = "_before"  # metrics of the untrained base and head carry this ending


def table(heads: list[str], rows: list[list[Any]], kinds: list[str] | None = None) -> str:
    """An HTML table; `kinds`: a CSS class for each row. Numbers stand right, texts left."""
    lines = []
    for place, row in enumerate(rows):
        kind = f' class="{html.escape(kinds[place], quote=True)}"' if kinds else ""
        lines.append(f"<tr{kind}>{''.join(_cell(value) for value in row)}</tr>")
    shown = "".join(f"<th>{html.escape(head)}</th>" for head in heads)
    return f'<div class="scroll"><table><thead><tr>{shown}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _cell(value: Any) -> str:
    kind = "" if isinstance(value, int | float) and not isinstance(value, bool) else ' class="text"'
    return f"<td{kind}>{html.escape(text(value))}</td>"


def text(value: Any) -> str:
    """A cell's text."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def leaderboard(material: Material) -> str:
    """The ranked trials, the first MOST_ROWS of them."""
    board = material.board
    rows = board.rows[:MOST_ROWS]
    logged = {key for row in rows for key in row["metrics"]} - {board.metric}
    metrics = [*(key for key in METRICS if key in logged), *sorted(logged - set(METRICS))]  # those people ask for first
    seeds = ["mean over fresh seeds"] if any(row.get("finalist") for row in rows) else []
    facts = {key: title for key, title in FACTS.items() if any(row.get(key) is not None for row in rows)}
    head = ["rank", "trial", "state", board.metric, *SURE, *seeds, *material.keys, *metrics]
    head += ["trainable", "total", "samples", "seconds", *facts.values(), "why"]
    cells = [
        [
            row["rank"],
            row["trial"],
            row["state"] + (" ◆" if row.get("pareto") else ""),
            row["value"],
            _interval(row.get("interval")),
            _tie(row),
            *((row.get("finalist") or {}).get("mean") for _ in seeds),
            *(row["params"].get(key) for key in material.keys),
            *(row["metrics"].get(key) for key in metrics),
            row["trainable_params"],
            row["total_params"],
            row["samples"],
            round(float(row["train_seconds"]), 1),
            *(row.get(key) for key in facts),
            row["reason"],
        ]
        for row in rows
    ]
    kinds = ["best" if row["rank"] == 1 else row["state"] for row in rows]
    left = len(board.rows) - len(rows)
    said = "".join(f"<p>{html.escape(line)}</p>" for line in explained(board))
    note = f"<p>And {left:,} more: <code>lorasweep leaderboard {html.escape(board.sweep)}</code></p>" if left else ""
    return table(head, cells, kinds) + note + said


def _interval(ends: Any) -> str:
    return f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else ""


def _tie(row: dict[str, Any]) -> str:
    """Whether a row may be as good as the first one."""
    if row["rank"] in (None, 1) or row.get("tied") is None:
        return ""
    return "tied" if row["tied"] else "worse"


def models(material: Material) -> str:
    """The best trial of each model, quantization and kind of adapter, then the next best: parameters, settings, and
    metrics before and after fine-tuning. Empty where no trial is complete."""
    kinds: dict[str, int] = {}  # what makes a model another one -> its best trial
    for trial in material.ranked:
        params = material.records[trial].params
        kinds.setdefault(repr([params.get(key) for key in material.keys if _makes_a_model(key)]), trial)
    firsts = list(kinds.values())[:MOST_MODELS]
    others = [trial for trial in material.ranked[: 2 * MOST_MODELS] if trial not in firsts]
    chosen = [*firsts, *others][:MOST_MODELS]
    shown = [(trial, config_of(material, trial)) for trial in sorted(chosen, key=material.ranked.index)]
    if not shown:
        return ""
    metrics = [key for key in METRICS if any(key in material.records[trial].metrics for trial, _ in shown)]
    before = before_of(material, [trial for trial, _ in shown], metrics)
    heads = ["model", "trial", "quantization", "adapter", "trainable", "total", "trainable %"]
    for metric in metrics:
        heads += [f"{metric} before", "after"]
    rows = [_model_row(material.records[trial], config, before.get(trial, {}), metrics) for trial, config in shown]
    return table(heads, rows)


def _makes_a_model(key: str) -> bool:
    return key.partition(".")[0] in ("model", "quantization") or key in ("adapter", "adapter.kind")


def _model_row(record: TrialRecord, config: dict[str, Any], before: dict[str, float], metrics: list[str]) -> list[Any]:
    model = config.get("model", {})
    row: list[Any] = [
        model.get("name") or str(model.get("path", "")).rpartition("/")[2],
        record.trial,
        config.get("quantization", {}).get("kind", ""),
        adapter_words(config.get("adapter", {})),
        record.trainable_params,
        record.total_params,
        100 * record.trainable_params / record.total_params if record.total_params else None,
    ]
    for metric in metrics:
        row += [before.get(metric), record.metrics.get(metric)]
    return row


def adapter_words(adapter: dict[str, Any]) -> str:
    """An adapter's settings on one line: `lora r=8 alpha=16 dropout=0.1 on query, value`."""
    kind = str(adapter.get("kind", ""))
    if kind != "lora":
        return kind
    targets = adapter.get("targets")
    parts = [kind, f"r={adapter.get('r')}", f"alpha={adapter.get('alpha'):g}"]
    parts += [f"dropout={adapter['dropout']:g}"] if adapter.get("dropout") else []
    parts += ["rslora"] if adapter.get("rslora") else []
    parts.append(f"on {', '.join(map(str, targets)) if isinstance(targets, list) else targets}")
    parts += [f"layers {adapter['layers']}"] if adapter.get("layers") is not None else []
    return " ".join(parts)


def config_of(material: Material, trial: int) -> dict[str, Any]:
    """A trial's whole config as its run keeps it; where that cannot be read, the sweep's own with the trial's point,
    which is the same but for groups that are swept as a whole."""
    try:
        read = yaml.safe_load(_kept_config(material, material.records[trial].run_id))
    except yaml.YAMLError:  # somebody edited the artifact
        read = None
    if isinstance(read, dict):
        return read
    config = asdict(material.study.config)
    for key, value in material.records[trial].params.items():
        group, _, name = key.partition(".")
        if isinstance(config.get(group), dict) and name in config[group]:
            config[group][name] = value
    return config


def _kept_config(material: Material, run: str) -> str:
    """The text of a run's config.yaml, "" where it has none that can be read now."""
    if material.folders.server is not None:
        try:
            with Recorded.read(material.folders, run).artifact("config.yaml") as kept:
                return kept.read_text(encoding="utf-8")
        except LorasweepError:
            return ""
    found = material.folders.mlruns.glob(f"*/{run}/artifacts/config.yaml") if run.isalnum() else iter(())
    path = next(found, None)
    return "" if path is None else path.read_text(encoding="utf-8")


def before_of(material: Material, trials: list[int], metrics: list[str]) -> dict[int, dict[str, float]]:
    """Trial -> metric -> its value for the base with an untrained head, as the trial logged it at step 0."""
    return {
        trial: {
            key.removesuffix(BEFORE): value
            for point in points
            if point.step == 0
            for key, value in point.metrics.items()
            if key.endswith(BEFORE) and math.isfinite(value)
        }
        for trial, points in material.points(trials, {f"{metric}{BEFORE}" for metric in metrics})
    }
