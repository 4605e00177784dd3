"""Where a tracking folder's runs are kept: its own MLflow database, or a server; the errors of both made readable.

A bare `mlflow ui` started in the tracking folder must show all, so the database is FOLDER/mlflow.db and artifacts lie
in FOLDER/mlruns/<experiment id>/<run id>/artifacts. MLflow resolves its default artifact folder against the working
directory; the store that creates experiments is therefore made here with the folder's absolute path.
Neighbours: `tracking.server`; `tracking` and `registry`, the users. MLflow takes a second to import: only functions do.
"""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.errors import StorageError
from lorasweep.locked import locked
from lorasweep.tracking import server as tracking_server
from lorasweep.tracking.server import in_short

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from lorasweep.config.home import Folders

CHATTY = ("alembic", "mlflow.store.model_registry.sqlalchemy_store", "mlflow.store.tracking")


def database_uri(folders: Folders) -> str:
    """The tracking URI of a tracking folder, independent of the working directory: its server's, where it has one."""
    return folders.server or f"sqlite:///{folders.mlflow_db.resolve()}"


def place_of(folders: Folders) -> str:
    """The same for people."""
    return f"the server {folders.server}" if folders.server else str(folders.mlflow_db)


@contextmanager
def readable_errors(doing: str) -> Iterator[None]:
    """Turn MLflow's and SQLAlchemy's errors into a StorageError that says what was being done.

    Raises:
        StorageError: in place of any MlflowException, SQLAlchemyError or OSError.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = in_short(str(error).split("\n[SQL", 1)[0].strip())
        hint = ""
        if "out-of-date database schema" in text:
            hint = " Save a copy of mlflow.db, then run `mlflow db upgrade sqlite:///mlflow.db` in its folder."
        elif "database is locked" in text:
            hint = " Another process holds mlflow.db; try again when it is done."
        raise StorageError(f"MLflow could not {doing}: {text}{hint}") from error


@functools.cache
def _quiet_mlflow() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    import mlflow  # its import configures the loggers that are quietened below

    assert mlflow.__version__
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # logs each database error at length; we raise it, or wait for the database and say so once
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def open_client(folders: Folders) -> MlflowClient:
    """A client of the folder's server, or of its database, whose tables are created where they are missing.

    Raises:
        StorageError: a database that cannot be opened, or one of another MLflow version.
    """
    _quiet_mlflow()
    from mlflow import MlflowClient

    if folders.server is not None:
        tracking_server.tame_client()
        return MlflowClient(tracking_uri=folders.server, registry_uri=folders.server)
    with readable_errors(f"open {folders.mlflow_db}"):
        _store(folders)
        uri = database_uri(folders)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def check_server(folders: Folders) -> None:
    """See that the tracking folder's server is one, and lets us in; nothing where there is no server.

    Raises:
        StorageError: what is wrong, and how to mend it.
    """
    if folders.server is None:
        return
    try:
        with readable_errors("list experiments"):
            open_client(folders).search_experiments(max_results=1)
    except StorageError as error:
        raise StorageError(
            f"no MLflow server can be used at {folders.server}: {_cause(str(error))}. Nothing is lost: start the "
            "server, or mend `tracking.uri`, then run the same command again"
        ) from error


def _cause(text: str) -> str:
    text = text.removeprefix("MLflow could not list experiments: ")
    if "error code 401" in text or "error code 403" in text:
        return f"it asks for a login ({text[-80:].strip()}); set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if "error code 404" in text or "valid JSON" in text:
        return "what answers there is no MLflow server"
    return text


def is_writable(folders: Folders) -> bool:
    """Whether the database takes a write at this moment, or the server answers. Quick, where MLflow's own tries last
    20 s and more."""
    if folders.server is not None:
        return tracking_server.answers(folders.server)
    try:
        with closing(sqlite3.connect(folders.mlflow_db, timeout=0.1, isolation_level=None)) as connection:
            connection.execute("begin immediate")
            connection.execute("rollback")
    except sqlite3.Error:
        return False
    return True


def _store(folders: Folders) -> Any:
    """MLflow's own store over the database. Its first opening migrates the schema, one process at a time."""
    folders.own.mkdir(parents=True, exist_ok=True)
    return _make_store(database_uri(folders), str(folders.mlruns.resolve()), folders.own / "schema.lock")


@functools.lru_cache(maxsize=8)
def _make_store(uri: str, artifacts: str, lock: Path) -> Any:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with locked(lock):
        store = SqlAlchemyStore(uri, artifacts)
        # Kept in the file, so that every later connection has it: the page reads while workers write, and a commit
        # waits for the disk once instead of three times. A file system that cannot do it keeps SQLite's default.
        with store.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        return store


def open_experiment(folders: Folders, client: MlflowClient, name: str) -> str:
    """The id of the experiment `name`, created where there is none, with artifacts under the tracking folder.

    Raises:
        StorageError: the experiment was deleted in MLflow, or keeps its artifacts where this process cannot write.
    """
    with readable_errors(f"open experiment {name}"):
        found = client.get_experiment_by_name(name)
        if found is None and folders.server is not None:
            return tracking_server.open_experiment(client, name)
        if found is None:
            return str(_store(folders).create_experiment(name))
    if found.lifecycle_stage == "deleted":
        raise StorageError(
            f"the MLflow experiment {name} (id {found.experiment_id}) was deleted and still holds the name. Bring it "
            f"back with `mlflow experiments restore -x {found.experiment_id}`, or give this sweep another sweep.name"
        )
    if folders.server is None and local_folder(found.artifact_location) is None:
        raise StorageError(
            f"the MLflow experiment {name} keeps its artifacts at {found.artifact_location}, which only a tracking "
            "server can write. Give this sweep another sweep.name"
        )
    return str(found.experiment_id)


def local_folder(uri: str) -> Path | None:
    """The folder of a local artifact URI or path, None for any other kind."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    if uri.startswith("file:"):
        return Path(local_file_uri_to_path(uri))
    return None if "://" in uri or uri.startswith("mlflow-artifacts:") else Path(uri)
