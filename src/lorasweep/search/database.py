"""The database of all studies: a sqlite file of one host, or PostgreSQL for many; how Optuna's storage opens on it.

sqlite runs with a write-ahead log: readers and the writer do not wait for each other, and a kill at any moment leaves
the file whole. A transaction that returned survives the process; only the machine's power can take the newest ones
along. Neighbours: `storage` (what is read and written), `study`; `lorasweep.database` (PostgreSQL, errors in words).
"""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lorasweep import database
from lorasweep.config.home import Folders
from lorasweep.database import StudiesAway, place_of
from lorasweep.errors import StorageError
from lorasweep.locked import locked

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

__all__ = ["StudiesAway", "check", "exists", "open_storage", "place_of", "readable_errors", "wait_until_back"]

BUSY_TIMEOUT_SECONDS = 60
RETRY_SECONDS = 1.0  # between looks whether a database that was away is back


def open_storage(folders: Folders, create: bool = False) -> RDBStorage:
    """Optuna's storage on the studies' database; `create` makes what is missing of it.

    Also silences Optuna: what it logs by the way (trials that end, samplers that fall back) we say in our own words.
    """
    import optuna

    from lorasweep.search.tables import QuickStorage

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if folders.studies is not None:
        return _open_postgres(folders, folders.studies, create)
    if create and not exists(folders):
        _make_file(folders)

    def connect() -> sqlite3.Connection:
        # autocommit is the driver's business and stays as SQLAlchemy expects it; connections move between threads
        connection = sqlite3.connect(folders.study_db, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return QuickStorage(f"sqlite:///{folders.study_db}", engine_kwargs={"creator": connect}, skip_table_creation=True)


def _make_file(folders: Folders) -> None:
    """The sqlite file with all its tables, at once: Optuna adds what it misses also where it only reads, and a reader
    that came while the tables are made would make them too."""
    from optuna.storages import RDBStorage

    folders.own.mkdir(parents=True, exist_ok=True)
    with locked(folders.own / "schema.lock"):
        if not exists(folders):
            part = folders.study_db.with_suffix(".part")  # of a process that was killed, or none
            part.unlink(missing_ok=True)
            RDBStorage(f"sqlite:///{part}").engine.dispose()
            part.replace(folders.study_db)


def _open_postgres(folders: Folders, studies: str, create: bool) -> RDBStorage:
    from lorasweep.search.tables import QuickStorage

    engine = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 4, "connect_args": database.CONNECT}
    if create and not exists(folders):
        with database.one_at_a_time(folders, "schema"):  # first starts would make the same tables into each other
            return QuickStorage(database.url_of(studies), engine_kwargs=engine)
    return QuickStorage(database.url_of(studies), engine_kwargs=engine, skip_table_creation=True)


def exists(folders: Folders) -> bool:
    """Whether any study was ever stored there."""
    if folders.studies is None:
        return folders.study_db.is_file()
    from sqlalchemy import inspect

    return bool(inspect(database.engine_of(folders.studies)).has_table("alembic_version"))  # the last that Optuna makes


def check(folders: Folders) -> None:
    """Before anything is stored, see that the database of `tracking.studies` can be read and written; nothing where
    there is none.

    Raises:
        StorageError: what is wrong, and how to mend it.
    """
    if folders.studies is None:
        return
    from sqlalchemy import text

    with readable_errors(folders):
        there = exists(folders)
        if there:
            open_storage(folders)  # says where it is another version's
        with database.engine_of(folders.studies).connect() as connection:
            if there:
                connection.execute(text("select 1 from trials for update limit 1"))
            else:
                connection.execute(text("create table lorasweep_may_create (one int)"))
            connection.rollback()


def wait_until_back(folders: Folders, patience_seconds: float, stop: Callable[[], bool]) -> bool:
    """Wait until the studies' database answers; False where it did not in time, or `stop` says so."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline and not stop():
        try:
            with readable_errors(folders):
                if exists(folders):
                    return True
        except StudiesAway:
            pass
        time.sleep(RETRY_SECONDS)
    return False


@contextmanager
def readable_errors(folders: Folders) -> Iterator[None]:
    """Errors of the database, and Optuna's around them, as StorageError: where, what happened, what to do."""
    from optuna.exceptions import StorageInternalError

    try:
        with database.readable_errors(folders):
            yield
    except StorageInternalError as error:
        raise database.worded(folders, error) from error
    except RuntimeError as error:  # Optuna's: the schema is of another version
        if "version" not in str(error):
            raise
        raise StorageError(
            f"{place_of(folders)} was made by another version of Optuna: {error}; save a copy, then run "
            f"`optuna storage upgrade --storage {database.url_of(folders.studies) if folders.studies else 'URL'}`"
        ) from error
