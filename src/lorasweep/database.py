"""PostgreSQL for the studies of many hosts: how it is reached, and what its errors mean; the sqlite file's errors too.

A server may be away for a while: `StudiesAway` tells that from what waiting does not mend. Passwords are libpq's
business (PGPASSWORD, ~/.pgpass) and pass through nothing of ours. Neighbours: `search.database` (Optuna's storage),
`posts.table` (who works where).
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorasweep.config.home import Folders
from lorasweep.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

# seconds to connect, and after which a silent connection counts as broken; a statement that takes minutes is stuck
CONNECT: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "options": "-c statement_timeout=120s -c idle_in_transaction_session_timeout=300s",
}
LOGIN = "check the user in `tracking.studies`, and its password in PGPASSWORD or ~/.pgpass"
REPAIRS = (
    ("password authentication failed", LOGIN),
    ("no password supplied", LOGIN),
    ("no pg_hba.conf entry", "the server does not let this host or user in; see its pg_hba.conf"),
    ("permission denied", "grant the user all on this database and its schema, or make it their owner"),
    ("failed to resolve host", "check the host in `tracking.studies`"),
    ("Name or service not known", "check the host in `tracking.studies`"),
    ("read-only", "this is a standby; name the primary in `tracking.studies`"),
    ("too many", "raise the server's max_connections: each worker holds up to four connections"),
)
AWAY = ("OperationalError", "ConnectionTimeout", "InterfaceError")  # of psycopg
AWAY_STATES = ("08", "57")  # SQLSTATE classes: connection, operator intervention (shut down, starting up)


class StudiesAway(StorageError):
    """PostgreSQL does not answer, or broke off: what was asked may or may not have happened. It may come back."""


def url_of(studies: str) -> str:
    """The address as SQLAlchemy wants it."""
    return f"postgresql+psycopg://{studies.partition('://')[2]}"


@functools.cache
def engine_of(studies: str) -> Engine:
    """This process's engine on the database, beside Optuna's own."""
    from sqlalchemy import create_engine

    return create_engine(url_of(studies), pool_pre_ping=True, pool_size=2, max_overflow=4, connect_args=CONNECT)


@contextmanager
def one_at_a_time(folders: Folders, what: str) -> Iterator[Connection]:
    """Hold `what` against every other process on every host; a process that dies or is cut off lets go. Yields the
    transaction that holds it."""
    from sqlalchemy import text

    assert folders.studies is not None
    with engine_of(folders.studies).begin() as connection:
        connection.execute(text("select pg_advisory_xact_lock(hashtextextended(:what, 0))"), {"what": what})
        yield connection


def place_of(folders: Folders) -> str:
    """Where the studies are, for people."""
    return f"the database {folders.studies}" if folders.studies else f"the study database {folders.study_db}"


@contextmanager
def readable_errors(folders: Folders) -> Iterator[None]:
    """Database errors as StorageError: which database, what happened, what to do."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        if isinstance(error, ImportError) and not (error.name or "").startswith("psycopg"):
            raise
        raise worded(folders, error) from error


def worded(folders: Folders, error: BaseException) -> StorageError:
    """An error of the database in words, with the repair."""
    while error.__cause__ is not None:  # the database's own words, below SQLAlchemy's and Optuna's
        error = error.__cause__
    if isinstance(error, ImportError):
        return StorageError(
            f"{place_of(folders)} needs PostgreSQL's driver, which is not installed: pip install 'lorasweep[postgres]'"
        )
    said, where = " ".join(str(error).split())[:300], place_of(folders)
    if folders.studies is None:
        return StorageError(
            f"{where} cannot be used: {str(error).splitlines()[0]}. What it holds is untouched; `lorasweep doctor` "
            "looks closer"
        )
    state = str(getattr(error, "sqlstate", None) or "")
    for words, repair in REPAIRS:
        if words in said:
            return StorageError(f"{where} cannot be used: {said}. Nothing is lost: {repair}")
    if "does not exist" in said and state in ("", "3D000", "28000"):
        return StorageError(
            f"{where} cannot be used: {said}. Make it (createdb, createuser), or mend `tracking.studies`"
        )
    if type(error).__name__ in AWAY or state[:2] in AWAY_STATES:
        return StudiesAway(
            f"{where} does not answer: {said}. Nothing is lost: start the server, then run the same command again"
        )
    return StorageError(f"{where} cannot be used: {said}. What it holds is untouched")
