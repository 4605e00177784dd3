"""Registered models as they are served: loaded through MLflow's own addresses and asked, here or in a fresh process.

Neighbours: `adapter_model` (the code that runs in them), `registry.probe` (the fresh process), `registry` (decides by
these answers), `promotion` and `prediction` (commands).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.errors import StorageError, UsageError, nearest
from lorasweep.provenance import redact
from lorasweep.registry.package import quiet
from lorasweep.tracking import server as tracking_server
from lorasweep.tracking.store import database_uri, open_client, readable_errors

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

    from lorasweep.config.home import Folders
    from lorasweep.data.sources import Split

PREFIX = "probability_"
PROBE = Path(__file__).with_name("probe.py")
Score = Callable[["np.ndarray", "np.ndarray"], dict[str, float]]
Ask = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Served:
    """A loaded model."""

    uri: str
    model: Any

    @classmethod
    def load(cls, folders: Folders, uri: str, model_config: dict[str, Any] | None = None) -> Served:
        """Load a registered model; `model_config` overrides settings of it, such as base_model (see `adapter_model`).

        Raises:
            UsageError: there is no such model, version or alias.
            StorageError: it cannot be loaded.
        """
        with mlflow_here(folders):
            return cls(uri, _load(folders, uri, model_config))

    @cached_property
    def paired(self) -> bool:
        """Whether it takes two texts a row."""
        return "pair" in self.model.metadata.get_input_schema().input_names()

    def answers(self, texts: list[str], pairs: list[str] | None = None) -> list[dict[str, Any]]:
        """{"label", "score", "probabilities": {label: p}} for each text.

        Raises:
            UsageError: `pairs` are missing or too much.
        """
        import pandas as pd

        if self.paired != (pairs is not None):
            wanted = (
                "pairs: give the second text of each with --pair (or --pair-column)"
                if self.paired
                else "single texts: leave out --pair (and --pair-column)"
            )
            raise UsageError(f"{self.uri} was trained on {wanted}")
        table = pd.DataFrame({"text": texts, **({"pair": pairs} if pairs is not None else {})}, dtype=str)
        with readable_errors(f"predict with {self.uri}"):
            found = self.model.predict(table)
        labels = [column for column in found.columns if column.startswith(PREFIX)]
        return [
            {
                "label": row["label"],
                "score": float(row["score"]),
                "probabilities": {column.removeprefix(PREFIX): float(row[column]) for column in labels},
            }
            for row in found.to_dict("records")
        ]


def predict(
    folders: Folders,
    model_uri: str,
    texts: list[str],
    pairs: list[str] | None = None,
    model_config: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """`Served.answers` of a model that is loaded for these texts alone."""
    return Served.load(folders, model_uri, model_config).answers(texts, pairs)


# -- the same model, asked anew ---------------------------------------------------------------------------------------


def table_of(rows: Split) -> dict[str, list[str]]:
    """A split as a model's input."""
    return {"text": rows.texts, **({"pair": rows.pairs} if rows.pairs is not None else {})}


def probabilities_of(answer: dict[str, Any], label_names: list[str], who: str) -> np.ndarray:
    """Probabilities (rows, classes) float32 of one table's answer: {"columns": […], "values": [[…], …]}.

    Raises:
        StorageError: the model knows other labels.
    """
    import numpy as np

    columns = [f"{PREFIX}{label}" for label in label_names]
    there = [column for column in answer["columns"] if column.startswith(PREFIX)]
    if sorted(there) != sorted(columns):
        theirs = ", ".join(column.removeprefix(PREFIX) for column in there)
        raise StorageError(f"{who} predicts {theirs}, not the labels {', '.join(label_names)}")
    places = [answer["columns"].index(column) for column in columns]
    return np.array([[row[place] for place in places] for row in answer["values"]], dtype=np.float32)


def answer_here(folder: Path, rows: Split) -> dict[str, Any]:
    """The answer of a model's folder that is not registered yet, loaded in this process, which keeps nothing of it.

    Raises:
        StorageError: it cannot be loaded.
    """
    import pandas as pd
    import torch

    found = _load(None, str(folder), None).predict(pd.DataFrame(table_of(rows)))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # a fresh process loads the same model next
    return {"columns": [str(column) for column in found.columns], "values": found.to_numpy().tolist()}


def ask_fresh_process(request: dict[str, Any]) -> dict[str, Any]:
    """`registry_probe.ask` in a process of its own, which gets MLflow's addresses from its environment.

    Raises:
        StorageError: the process died.
    """
    import mlflow

    with tempfile.TemporaryDirectory(prefix="lorasweep-") as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        words = [sys.executable, "-P", str(PROBE), str(asked), str(answer)]
        environment = {
            **os.environ,
            "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
            "MLFLOW_REGISTRY_URI": mlflow.get_registry_uri(),
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        done = subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode or not answer.is_file():
            last = redact("\n".join(done.stderr.strip().splitlines()[-5:]))
            raise StorageError(f"the process that loads the model anew left with {done.returncode}: {last}")
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


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
        with tracking_server.patient() if folders.server else contextlib.nullcontext():
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
    with readable_errors("list the registered models"):
        models = {model.name: model for model in client.search_registered_models()}
    if name in models:
        aliases = ", ".join(f"@{alias} (version {version})" for alias, version in sorted(models[name].aliases.items()))
        return f"Aliases of {name}: {aliases or 'none'}"
    return f"Registered models: {nearest(name, models)}"
