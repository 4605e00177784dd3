"""Reads one split of a Hugging Face data set, by hub id or local folder, into a Table.

The only importer of `datasets`. Neighbours: `table` (what comes out), `sources` (who asks).
"""

from __future__ import annotations

import os
from pathlib import Path

from lorasweep.config.schema import DataConfig
from lorasweep.data.table import Table
from lorasweep.errors import DataError

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def read_split(split: str, setting: str, data: DataConfig) -> Table:
    """One named split of data.hub_id; class names come along where the data set declares them.

    `setting` (data.train, …) names the place to mend in errors. Raises DataError: no id, unreachable and not cached (one
    message, after one attempt where the machine is offline), no such configuration, revision or split.
    """
    if not data.hub_id:
        raise DataError("data.kind=hub needs data.hub_id, for example data.hub_id=stanfordnlp/imdb or a local folder")
    import datasets

    where = f"{data.hub_id} ({split})"
    quiet = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity_error()
    try:
        loaded = datasets.load_dataset(
            data.hub_id,
            data.hub_config,
            split=split,
            revision=None if Path(data.hub_id).is_dir() else data.hub_revision,
        )
    except Exception as error:  # datasets raises many types, its own and its transport's; all become one sentence
        raise DataError(explain(error, split, setting, data)) from error
    finally:
        datasets.utils.logging.set_verbosity(quiet)
    feature = loaded.features.get(data.label_column)
    columns = {name: list(loaded[name]) for name in loaded.column_names}
    if not isinstance(feature, datasets.ClassLabel):
        return Table(columns=columns, where=where)
    names = list(feature.names)
    if not data.label_names or set(data.label_names) == set(names):
        # by name, since a name can look like another class's id; data.label_names of the user's own go by id
        columns[data.label_column] = [
            names[label] if label is not None and label >= 0 else label for label in columns[data.label_column]
        ]
    return Table(columns=columns, where=where, label_names=names)


def explain(error: Exception, split: str, setting: str, data: DataConfig) -> str:
    """What went wrong, in one sentence with its repair."""
    text = " ".join(str(error).split())
    if "Unknown split" in text or "unknown split" in text:
        return f"{setting}={split}: {data.hub_id} has no such split. {text}"
    if "BuilderConfig" in text or "Config name is missing" in text:
        return f"data.hub_config={data.hub_config}: {data.hub_id} has no such configuration. {text[:400]}"
    offline = [name for name in OFFLINE_VARIABLES if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    state = f"{offline[0]} is set, so only the cache was looked at" if offline else "the hub did not answer or has no such set"
    return (
        f"data set `{data.hub_id}` is neither a local folder, nor in the cache, nor reachable ({state}): "
        f"{type(error).__name__}: {text[:300]}. Check the id and the connection, or use your own file "
        "(data=file data.train=PATH) or the offline demo (data=demo_reviews)"
    )
