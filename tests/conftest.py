"""Before any library is imported: one thread for each test process (pytest runs two on two cores, and OpenMP threads
that wait for a core slow a step many times over), and no network. Small random bases are built once a session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from clusterkit import Postgres, postgres

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """family -> path of a small random checkpoint."""
    from enginelab import build_base  # imports torch, which most tests do without

    built: dict[str, str] = {}

    def path_of(family: str) -> str:
        if family not in built:
            built[family] = build_base(family, tmp_path_factory.mktemp(family))
        return built[family]

    return path_of


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A running PostgreSQL; tests make databases of their own in it."""
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A base, two adapters, their labels on 40 texts, and those texts with the second adapter's labels as truth."""
    from registrykit import adapters_that_disagree

    return adapters_that_disagree(tmp_path_factory.mktemp("bert"))
