"""The sqlite database of all studies: how it is opened, and its errors in words. Neighbour: `study`, its only user.

Write-ahead log: readers and the writer do not wait for each other, and a kill at any moment leaves the database
whole. A transaction that returned survives the process; only the machine's power can take the newest ones along.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lorasweep.config.home import Folders
from lorasweep.errors import StorageError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

BUSY_TIMEOUT_SECONDS = 60


def open_storage(folders: Folders, create: bool = False) -> RDBStorage:
    """Optuna's storage on `folders.study_db`; `create` makes folder and file where they are missing.

    Also silences Optuna: what it logs by the way (trials that end, samplers that fall back) we say in our own words.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    fresh = not folders.study_db.is_file()
    if create:
        folders.own.mkdir(parents=True, exist_ok=True)

    def connect() -> sqlite3.Connection:
        # autocommit is the driver's business and stays as SQLAlchemy expects it; connections move between threads
        connection = sqlite3.connect(folders.study_db, timeout=BUSY_TIMEOUT_SECONDS, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    return optuna.storages.RDBStorage(
        f"sqlite:///{folders.study_db}",
        engine_kwargs={"creator": connect},
        skip_table_creation=not (fresh and create),
    )


def study_names(storage: RDBStorage, attribute: str) -> list[str]:
    """Names of the studies that carry a user attribute, newest first."""
    studies = sorted(storage.get_all_studies(), key=lambda study: study._study_id, reverse=True)
    return [study.study_name for study in studies if attribute in study.user_attrs]


@contextmanager
def readable_errors(folders: Folders) -> Iterator[None]:
    """Database errors as StorageError: which file, what happened, what to do."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:  # sqlite's own words, below SQLAlchemy's and Optuna's
            cause = cause.__cause__
        raise StorageError(
            f"the study database {folders.study_db} cannot be used: {str(cause).splitlines()[0]}. What it holds is "
            "untouched; `lorasweep doctor` looks closer"
        ) from error
    except RuntimeError as error:  # Optuna's: the schema is of another version
        if "version" not in str(error):
            raise
        raise StorageError(
            f"the study database {folders.study_db} was made by another version of Optuna: {error}"
        ) from error
