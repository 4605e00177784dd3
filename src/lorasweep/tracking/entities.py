"""Settings, data and metrics as MLflow's own entities, within MLflow's limits and without secrets.

MLflow cuts long params without a word, refuses batches that are too large, and stores an infinite metric as 1.8e308;
what this module builds needs none of that. Pure but for imports of MLflow's entity classes. Neighbour: `tracking`.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.config.schema import TRIAL_GROUPS, Config, DataConfig
from lorasweep.provenance import redact
from lorasweep.tracking.spool import Point

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Param, RunTag

METRICS_PER_BATCH = 1000  # MLflow's limits; it cuts a param at 6,000 characters and a tag at 8,000
PARAMS_PER_BATCH = 100
LONGEST_PARAM = 5900
LONGEST_TAG = 7900
LONGEST_DIGEST = 36


def flatten(config: Config) -> dict[str, str]:
    """Every setting that builds a trial, by dotted key, as text: `{"optimizer.lr": "0.001", …}`."""
    return {
        f"{group}.{key}": text_of(value)
        for group in TRIAL_GROUPS
        for key, value in asdict(getattr(config, group)).items()
    }


def text_of(value: Any) -> str:
    """A setting as text: words as they are, everything else as JSON (`null`, `true`, `0.001`, `["a"]`)."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def shorten(text: str, limit: int) -> str:
    """The text, or its start with its length and sha256 where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    note = f"… [shortened from {len(text)} characters, sha256 {digest}; the whole value is in config.yaml]"
    return text[: limit - len(note)] + note


def dataset_input(config: DataConfig, data: Any) -> DatasetInput:
    """A trial's data as an MLflow dataset input. MLflow keeps 36 characters of a digest: the start of the fingerprint,
    which the tag lorasweep.fingerprint.data holds whole."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source: dict[str, Any]
    if config.kind == "hub":
        name, kind = config.hub_id or "hub", "hf"
        source = {"path": config.hub_id, "config_name": config.hub_config, "revision": config.hub_revision}
    elif config.kind == "file":
        name, kind, source = Path(str(config.train)).stem, "local", {"uri": str(config.train)}
    else:
        name, kind = config.kind, "code"
        source = {"tags": {"mlflow.source.name": f"lorasweep {config.kind}", "seed": str(config.demo_seed)}}
    profile = {
        "train_rows": len(data.train),
        "validation_rows": len(data.validation),
        "labels": list(data.label_names),
        "fingerprint": data.fingerprint,
        "validation_fingerprint": data.validation.fingerprint(),
    }
    entity = Dataset(
        name=redact(name)[:500],
        digest=data.fingerprint[:LONGEST_DIGEST],
        source_type=kind,
        source=redact(json.dumps({**source, "description": str(data.source)})),
        schema=None,
        profile=json.dumps(profile),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", "train and validation")])


def metric_entities(points: list[Point]) -> list[Metric]:
    """One entity per value, with the time of its first report; an infinite value becomes NaN."""
    from mlflow.entities import Metric

    return [
        Metric(key, math.nan if math.isinf(value) else value, point.time_ms, point.step)
        for point in points
        for key, value in point.metrics.items()
    ]


def batches_of(points: list[Point]) -> list[list[Point]]:
    """Points in order, in batches of at most METRICS_PER_BATCH metrics."""
    batches: list[list[Point]] = []
    room = 0
    for point in points:
        if len(point.metrics) > room:
            batches.append([])
            room = METRICS_PER_BATCH
        batches[-1].append(point)
        room -= len(point.metrics)
    return batches


def clean_tags(tags: dict[str, str]) -> dict[str, str]:
    """Tags without secrets, short enough for MLflow; empty ones are left out."""
    return {key: shorten(redact(value), LONGEST_TAG) for key, value in tags.items() if value}


def tag_entities(tags: dict[str, str]) -> list[RunTag]:
    """Tags for a batch, cleaned."""
    from mlflow.entities import RunTag

    return [RunTag(key, value) for key, value in clean_tags(tags).items()]


def param_entities(settings: dict[str, str]) -> list[Param]:
    """Params without secrets, short enough for MLflow."""
    from mlflow.entities import Param

    return [Param(key, shorten(redact(value), LONGEST_PARAM)) for key, value in settings.items()]
