"""Registered models as they are served: loaded through MLflow's own addresses, asked, scored.

Neighbours: `adapter_model` (the code that runs in them), `registry` (decides by these scores), `promotion` (commands).
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from lorasweep.errors import StorageError, UsageError, nearest
from lorasweep.registry_package import quiet
from lorasweep.tracking_store import database_uri, open_client, readable_errors

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

    from lorasweep.config.home import Folders
    from lorasweep.data.sources import Split

PREFIX = "probability_"
Score = Callable[["np.ndarray", "np.ndarray"], dict[str, float]]


def predict(
    folders: Folders,
    model_uri: str,
    texts: list[str],
    pairs: list[str] | None = None,
    model_config: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """{"label", "score", "probabilities": {label: p}} for each text, by a registered model.

    `model_config` overrides settings of the model, such as base_model (see `adapter_model`).

    Raises:
        UsageError: there is no such model, version or alias, or `pairs` are missing or too much.
        StorageError: the model cannot be loaded.
    """
    import pandas as pd

    with mlflow_here(folders):
        model = _load(folders, model_uri, model_config)
        paired = "pair" in model.metadata.get_input_schema().input_names()
        if paired != (pairs is not None):
            wanted = "pairs: give the second text of each with --pair" if paired else "single texts: leave out --pair"
            raise UsageError(f"{model_uri} was trained on {wanted}")
        table = pd.DataFrame({"text": texts, **({"pair": pairs} if pairs is not None else {})})
        with readable_errors(f"predict with {model_uri}"):
            answers = model.predict(table)
    labels = [column for column in answers.columns if column.startswith(PREFIX)]
    return [
        {
            "label": row["label"],
            "score": float(row["score"]),
            "probabilities": {column.removeprefix(PREFIX): float(row[column]) for column in labels},
        }
        for row in answers.to_dict("records")
    ]


def probabilities_of(model_uri: str, rows: Split, label_names: list[str]) -> np.ndarray:
    """Probabilities (rows, classes) float32 of a registered model for a split, loaded as any server would load it.

    Raises:
        StorageError: the model cannot be loaded, or knows other labels.
    """
    import numpy as np
    import pandas as pd

    model = _load(None, model_uri, None)
    table = pd.DataFrame({"text": rows.texts, **({"pair": rows.pairs} if rows.pairs is not None else {})})
    answers = model.predict(table)
    columns = [f"{PREFIX}{label}" for label in label_names]
    if [column for column in answers.columns if column.startswith(PREFIX)] != columns:
        raise StorageError(
            f"{model_uri} predicts {', '.join(answers.columns[2:])}, not the labels {', '.join(label_names)}"
        )
    return answers[columns].to_numpy(dtype=np.float32)


def score_test(score: Score, probabilities: np.ndarray, labels: list[int]) -> dict[str, float]:
    """Metrics by their names `test/…`; the mean log loss is added where `score` has none."""
    import numpy as np

    truth = np.asarray(labels, dtype=np.int64)
    metrics = {test_name(key): float(value) for key, value in score(probabilities, truth).items()}
    chosen = np.clip(probabilities[np.arange(len(truth)), truth].astype(np.float64), 1e-12, None)
    metrics.setdefault("test/loss", float(-np.log(chosen).mean()))
    return metrics


def test_name(metric: str) -> str:
    """`eval/accuracy` as `test/accuracy`."""
    return f"test/{metric.rpartition('/')[2]}"


@contextlib.contextmanager
def mlflow_here(folders: Folders) -> Iterator[None]:
    """Let MLflow's `models:/` addresses mean this folder's registry, and put back what was set before."""
    import mlflow

    open_client(folders)
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    tracking, registry = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    mlflow.set_tracking_uri(database_uri(folders))
    mlflow.set_registry_uri(database_uri(folders))
    try:
        yield
    finally:
        mlflow.set_tracking_uri(tracking)
        mlflow.set_registry_uri(registry)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _load(folders: Folders | None, model_uri: str, model_config: dict[str, Any] | None) -> Any:
    """An MLflow pyfunc model; `folders` lets the error name the models that there are."""
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return mlflow.pyfunc.load_model(model_uri, model_config=model_config)
    except MlflowException as error:
        if folders is not None and model_uri.startswith("models:/"):
            name = model_uri.removeprefix("models:/").partition("@")[0].partition("/")[0]
            raise UsageError(
                f"cannot load {model_uri}: {error.message}. {known_models(open_client(folders), name)}"
            ) from error
        raise StorageError(f"cannot load {model_uri}: {error.message}") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"cannot load {model_uri}: {error}") from error


def known_models(client: MlflowClient, name: str) -> str:
    """A hint that ends an error message: the aliases of a model, or the models there are."""
    models = {model.name: model for model in client.search_registered_models()}
    if name in models:
        aliases = ", ".join(f"@{alias} (version {version})" for alias, version in sorted(models[name].aliases.items()))
        return f"Aliases of {name}: {aliases or 'none'}"
    return f"Registered models: {nearest(name, models)}"
