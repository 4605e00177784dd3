"""Before any library is imported: the settings of lorasweep's own commands, one thread for each test process (several
run on two cores, and OpenMP threads that wait for a core slow a step many times over), and no network. What many tests
need is made once a session: random bases, servers, and a process that has imported everything.
"""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from clusterkit import ObjectStore, Postgres, postgres
from lorasweep import environment

if TYPE_CHECKING:
    from torturekit import Nursery

os.environ["OMP_NUM_THREADS"] = "1"
environment.settle()  # what every command sets for itself: threads that wait do not spin
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # ten processes of each server that nothing here asks for


def pytest_configure(config: pytest.Config) -> None:
    """The PNG files of reports that tests make by the way are one dot each: real ones take half of a short sweep."""
    from torturekit import draw_nothing

    if importlib.util.find_spec("rich"):  # `make gpu` runs with torch, transformers, peft and pytest alone
        draw_nothing()


# what starts servers, processes or whole sweeps
SLOW_FIXTURES = {"nursery", "postgres_server", "object_store", "shop", "finished", "either", "server", "whole"}
SLOW_STORES = {"postgres", "s3"}  # of tests that run over every place for studies or files
LONGEST = (  # files that take half a minute and more, the longest first
    "test_promotion", "test_main_job", "test_torture", "test_registry_server", "test_browser", "test_tracker",
    "test_torture_server", "test_finalists", "test_study", "test_crews", "test_registry", "test_exporting",
    "test_equivalence", "test_wheel", "test_projects", "test_api", "test_histories", "test_many_hosts",
)  # fmt: skip
FAST_FAMILY = "bert"  # of tests that run over every family of models


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests are slow that use what is slow to start, or another family than the first. Long files come first, so that
    no test process is left alone with one at the end: the longest of all, then whatever has slow tests."""
    for item in items:
        drawn = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        fixtures = SLOW_FIXTURES & set(getattr(item, "fixturenames", ()))
        stores = SLOW_STORES & {str(value) for value in drawn.values()}
        if fixtures or stores or drawn.get("family", FAST_FAMILY) != FAST_FAMILY:
            item.add_marker(pytest.mark.slow)
    long = {item.path for item in items if item.get_closest_marker("slow")}
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.stem, len(place)), item.path not in long))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What a file has imported need not be looked through again at each collection: there are millions of objects."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture
def real_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report's PNG files as users get them."""
    from lorasweep.reporting import png
    from torturekit import REAL_PICTURES

    monkeypatch.setattr(png, "write", REAL_PICTURES[0])


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
def nursery() -> Nursery:
    """Starts `lorasweep` commands in processes of their own that need not import anything (tests/torturekit.py)."""
    from torturekit import the_nursery

    return the_nursery()


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


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 store with the bucket `lorasweep`."""
    store = ObjectStore(tmp_path_factory.mktemp("s3"))
    store.make_bucket("lorasweep")
    yield store
    store.close()


@pytest.fixture
def s3(object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectStore]:
    """The same, with its keys in the environment and none of this machine's."""
    import s3fs

    for name, value in object_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    s3fs.S3FileSystem.clear_instance_cache()  # which holds the sessions of other tests
    yield object_store
    s3fs.S3FileSystem.clear_instance_cache()
