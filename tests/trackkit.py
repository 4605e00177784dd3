"""Stand-ins that the tracking tests share: data and counts in the shape of the real ones, without the engine."""

from __future__ import annotations

from dataclasses import dataclass

from lorasweep.config.home import Folders
from lorasweep.config.schema import Config
from lorasweep.data.sources import SearchData, Split

__all__ = ["Counts", "Folders", "search_data", "sweep_config"]


@dataclass(frozen=True)
class Counts:
    adapter: int = 1000
    head: int = 130
    trainable: int = 1130
    total: int = 50_000


def search_data(rows: int = 4) -> SearchData:
    split = Split(texts=[f"text {i}" for i in range(rows)], pairs=None, labels=[i % 2 for i in range(rows)])
    return SearchData(split, split, ["negative", "positive"], "f" * 64, "demo_reviews (generated, seed 0)")


def sweep_config(name: str = "quick") -> Config:
    config = Config()
    config.sweep.name = name
    config.model.path = "builtin:tiny_encoder"
    config.optimizer.lr = 0.0021
    return config
