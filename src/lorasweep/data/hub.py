"""Reads one split of a Hugging Face data set, by hub id or local folder, into a Table.

The only importer of `datasets`. Neighbours: `table` (what comes out), `sources` (who asks).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lorasweep.config.home import exists, given_path
from lorasweep.config.scale import HINT
from lorasweep.config.schema import DataConfig
from lorasweep.data.table import Table
from lorasweep.errors import DataError

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
HUB_TIMEOUT_SECONDS = 5.0


def read_split(split: str, setting: str, data: DataConfig) -> Table:
    """One named split of data.hub_id; class names come along where the data set declares them.

    `setting` (data.train, …) names the place to mend in errors. Raises DataError: no id, neither reachable nor cached
    (one message, within seconds), no such configuration, revision or split.
    """
    if not data.hub_id:
        raise DataError("data.kind=hub needs data.hub_id, for example data.hub_id=stanfordnlp/imdb or a local folder")
    import datasets

    where = f"{data.hub_id} ({split})"
    folder = given_path(data.hub_id)
    local = exists(folder, Path.is_dir)
    problem = None if local else look(data)
    quiet = datasets.utils.logging.get_verbosity()
    datasets.utils.logging.set_verbosity_error()
    try:
        with cache_alone() if problem else contextlib.nullcontext():
            loaded = datasets.load_dataset(
                str(folder) if local else data.hub_id,
                data.hub_config,
                split=split,
                revision=None if local else data.hub_revision,
            )
    except Exception as error:  # datasets raises many types, its own and its transport's; all become one sentence
        raise DataError(explain(error, problem, split, setting, data)) from error
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


def look(data: DataConfig) -> str | None:
    """Ask the hub once whether it has the data set: None where it has, else why only the cache can help.

    `datasets` alone would try six times over half a minute. DataError where the hub answers that there is none.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    offline = [name for name in OFFLINE_VARIABLES if os.environ.get(name, "").lower() in ("1", "true", "yes", "on")]
    if offline:
        return f"{offline[0]} is set"
    try:
        HfApi().dataset_info(data.hub_id or "", revision=data.hub_revision, timeout=HUB_TIMEOUT_SECONDS)
    except HFValidationError:
        raise DataError(
            f"data.hub_id={data.hub_id}: there is no such folder, and it cannot be a hub id (OWNER/NAME)"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status < 500 and status != 429:
            asked = f" at revision {data.hub_revision}" if data.hub_revision else ""
            raise DataError(
                f"data.hub_id={data.hub_id}{asked}: the hub has no such data set for you (HTTP {status}). Check the "
                "spelling; a private or gated one needs `hf auth login`"
            ) from error
        return f"the hub answered HTTP {status}"
    except Exception as error:  # the transport's own types, which moved between httpx and httpx2
        return f"the hub cannot be reached ({type(error).__name__})"
    return None


@contextlib.contextmanager
def cache_alone() -> Iterator[None]:
    """Make `datasets` read its cache without asking the hub; both libraries read these switches at each call."""
    import datasets
    import huggingface_hub

    before = (datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE)
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


def explain(error: Exception, problem: str | None, split: str, setting: str, data: DataConfig) -> str:
    """What went wrong, in one sentence with its repair."""
    text = " ".join(str(error).split())
    if "unknown split" in text.lower():
        return f"{setting}={split}: {data.hub_id} has no such split. {text}"
    if "BuilderConfig" in text or "Config name is missing" in text:
        return f"data.hub_config={data.hub_config}: {data.hub_id} has no such configuration. {text[:400]}"
    if problem:
        return (
            f"data set `{data.hub_id}` is neither a local folder nor in the cache, and {problem}. Connect once, or use "
            f"your own file (data=file data.train=PATH) or the offline demo (data=demo_reviews); {HINT}"
        )
    return f"data set `{data.hub_id}` cannot be loaded: {type(error).__name__}: {text[:400]}"
