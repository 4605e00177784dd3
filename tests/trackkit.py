"""Stand-ins that the tracking tests share: data and counts in the shape of the real ones, without the engine."""

from __future__ import annotations

import functools
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lorasweep.config.home import Folders
from lorasweep.config.schema import Config
from lorasweep.data.sources import SearchData, Split

__all__ = ["Counts", "Folders", "new_folders", "search_data", "sweep_config"]


@dataclass(frozen=True)
class Counts:
    adapter: int = 1000
    head: int = 130
    trainable: int = 1130
    total: int = 50_000


@functools.cache
def _template() -> sqlite3.Connection:
    """An empty MLflow database in memory; its migrations take seconds, once a test process."""
    from lorasweep.tracking.tracker import open_client

    template = sqlite3.connect(":memory:")
    with tempfile.TemporaryDirectory() as folder:
        folders = Folders(Path(folder))
        open_client(folders)
        with sqlite3.connect(folders.mlflow_db) as made:
            made.backup(template)
    return template


def new_folders(root: Path) -> Folders:
    """A tracking folder with an empty MLflow database."""
    root.mkdir(parents=True, exist_ok=True)
    folders = Folders(root)
    with sqlite3.connect(folders.mlflow_db) as target:
        _template().backup(target)
    return folders


def search_data(rows: int = 4) -> SearchData:
    split = Split(texts=[f"text {i}" for i in range(rows)], pairs=None, labels=[i % 2 for i in range(rows)])
    return SearchData(split, split, ["negative", "positive"], "f" * 64, "demo_reviews (generated, seed 0)")


def sweep_config(name: str = "quick") -> Config:
    config = Config()
    config.sweep.name = name
    config.model.path = "builtin:tiny_encoder"
    config.optimizer.lr = 0.0021
    return config
