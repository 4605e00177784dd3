"""Asks registered models for their answers in a process of its own, as any server or notebook would.

`registry.serve` runs this file by its path, so it stands alone: MLflow and what the models name are all it imports,
and an import of lorasweep is refused while it runs, so that a model that needs us is found before it is promoted.

    python probe.py REQUEST.json ANSWER.json

REQUEST: {"models": {model: {"uri": uri, "tables": [table, …]}}, "tables": {table: {"text": […], "pair": […]}}};
ANSWER: {model: {table: {"columns": […], "values": [[…], …]}}} with the answer's columns, or {model: {"error": text}}.
"""

from __future__ import annotations

import gc
import json
import sys
import warnings
from pathlib import Path
from typing import Any


class NoLorasweep:
    """Import hook: a model's code that imports lorasweep is not portable."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Refuse lorasweep, know nothing else."""
        if name.partition(".")[0] == "lorasweep":
            raise ImportError("the model's code imports lorasweep, which is not there where models are served")


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to a request; a model that fails is told by its error, the others still answer."""
    answers: dict[str, Any] = {}
    for name, asked in request["models"].items():
        try:
            answers[name] = _answers(asked["uri"], {table: request["tables"][table] for table in asked["tables"]})
        except Exception as error:  # whatever it is, it is this model's answer; the parent decides
            answers[name] = {"error": f"{type(error).__name__}: {error}"}
        gc.collect()
    return answers


def _answers(uri: str, tables: dict[str, dict[str, list[str]]]) -> dict[str, Any]:
    import mlflow
    import pandas as pd

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = mlflow.pyfunc.load_model(uri)
        found = {name: model.predict(pd.DataFrame(table)) for name, table in tables.items()}
    return {
        name: {"columns": [str(column) for column in answer.columns], "values": answer.to_numpy().tolist()}
        for name, answer in found.items()
    }


if __name__ == "__main__":
    gc.set_threshold(20_000, 10, 10)  # as lorasweep's own processes have it: imports are most of what this takes
    sys.meta_path.insert(0, NoLorasweep())
    answer = ask(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")
