"""Puts tests/enginelab.py on the path; bases are built once a session."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from enginelab import build_base


@pytest.fixture(scope="session")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """family -> path of a small random checkpoint."""
    built: dict[str, str] = {}

    def path_of(family: str) -> str:
        if family not in built:
            built[family] = build_base(family, tmp_path_factory.mktemp(family))
        return built[family]

    return path_of
