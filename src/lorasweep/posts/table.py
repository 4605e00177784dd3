"""Posts over hosts: a row each in the database of the studies, alive while its heartbeat is young.

A row carries the token of whoever holds the post. A worker that was silent for longer than the grace period may find
another token there: its post is lost, and nothing that it says of its trials counts any more. Ages are measured by the
database's clock alone. Neighbour: `locks`, for one host.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from lorasweep.checkpoint import Checkpoints, checkpoints_of
from lorasweep.config.home import Folders
from lorasweep.database import StudiesAway, engine_of, one_at_a_time, readable_errors
from lorasweep.errors import StorageError
from lorasweep.posts.locks import refusal

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from lorasweep.posts import Worker

FIRST_GRACE_SECONDS = 60.0  # until a post's first heartbeat says its own
CREATE = """
create table if not exists lorasweep_posts (
  sweep text, name text, token text not null, host text not null, pid integer not null, about text not null,
  since timestamptz not null, beat timestamptz not null, grace double precision not null, left_it boolean not null,
  primary key (sweep, name)
)"""
ALIVE = "not left_it and beat > now() - make_interval(secs => grace)"


class TablePost:
    """See `posts.Post`. `part` names what of the sweep is worked on where that is not the search."""

    def __init__(self, folders: Folders, sweep: str, name: str, token: str, part: str = ""):
        self.folders, self.sweep, self.name, self.token, self.part = folders, sweep, name, token, part

    def at(self, name: str) -> TablePost:
        """See `posts.Post`."""
        return TablePost(self.folders, self.sweep, name, self.token, self.part)

    def on(self, part: str) -> TablePost:
        """See `posts.Post`."""
        return TablePost(self.folders, self.sweep, self.name, self.token, part)

    @property
    def checkpoints(self) -> Checkpoints:
        """See `posts.Post`."""
        return checkpoints_of(self.folders, self.sweep, self.part, self.name)

    def checkpoints_of_trial(self, number: int) -> Checkpoints:
        """See `posts.Post`."""
        return checkpoints_of(self.folders, self.sweep, f"trial-{number:05d}")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """See `posts.Post`.

        Raises:
            StorageError: another worker has taken this post.
        """
        with asking(self.folders, self.sweep):
            if not self.held():
                raise self.lost()
            yield

    def dead(self) -> dict[str, TablePost]:
        """See `posts.Post`."""
        return {row.name: self.at(row.name) for row in self._rows(f"not ({ALIVE})")}

    def others(self) -> list[str]:
        """See `posts.Post`."""
        return [_words(row) for row in self._rows(ALIVE)]

    @property
    def alone(self) -> bool:
        """See `posts.Post`; also where another worker holds this one now."""
        words = "select 1 from lorasweep_posts where sweep = :sweep and token <> :token"
        with readable_errors(self.folders), self._connect() as connection:
            return connection.execute(_text(words), {"sweep": self.sweep, "token": self.token}).first() is None

    def held(self) -> bool:
        """See `posts.Post`."""
        words = "select 1 from lorasweep_posts where token = :token"
        with readable_errors(self.folders), self._connect() as connection:
            return connection.execute(_text(words), {"token": self.token}).first() is not None

    def beat(self, grace_seconds: float) -> bool:
        """See `posts.Post`."""
        words = "update lorasweep_posts set beat = now(), grace = :grace, left_it = false where token = :token"
        with readable_errors(self.folders), self._connect() as connection:
            found = connection.execute(_text(words), {"grace": grace_seconds, "token": self.token})
            return bool(found.rowcount)

    def lost(self) -> StorageError:
        """The error of a post that another worker holds."""
        return StorageError(
            f"this process gave no sign of life for so long that another worker took its post on sweep {self.sweep}; "
            f"its trials go on there. `lorasweep workers {self.sweep}` shows where"
        )

    def leave(self) -> None:
        """Say that nobody holds the post any more."""
        with readable_errors(self.folders), self._connect() as connection:
            connection.execute(
                _text("update lorasweep_posts set left_it = true where token = :token"), {"token": self.token}
            )

    def _rows(self, condition: str) -> list[Row[Any]]:
        words = f"select * from lorasweep_posts where sweep = :sweep and name <> :name and {condition} order by since"
        with readable_errors(self.folders), self._connect() as connection:
            return list(connection.execute(_text(words), {"sweep": self.sweep, "name": self.name}))

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        assert self.folders.studies is not None
        with engine_of(self.folders.studies).begin() as connection:
            yield connection


def prepare(folders: Folders) -> None:
    """Make the table where there is none."""
    with one_at_a_time(folders, "schema") as connection:
        connection.execute(_text(CREATE))


@contextmanager
def enter(folders: Folders, sweep: str, join: bool, about: Mapping[str, Any] | None = None) -> Iterator[TablePost]:
    """See `posts.enter`: the first post that a dead worker left, else a new one. `about`: JSON types for people."""
    token = secrets.token_hex(8)
    with readable_errors(folders):
        prepare(folders)
        with one_at_a_time(folders, f"enter {sweep}") as connection:
            words = f"select *, ({ALIVE}) as alive from lorasweep_posts where sweep = :sweep order by name::int"
            rows = list(connection.execute(_text(words), {"sweep": sweep}))
            left = _text("update lorasweep_posts set left_it = true where token = :token")
            for row in rows:  # on this host one need not wait for a heartbeat that does not come
                if row.alive and row.host == socket.gethostname() and not psutil.pid_exists(row.pid):
                    connection.execute(left, {"token": row.token})
            rows = list(connection.execute(_text(words), {"sweep": sweep}))
            busy = [_words(row) for row in rows if row.alive]
            if busy and not join:
                raise refusal(sweep, busy)
            name = next((row.name for row in rows if not row.alive), str(len(rows)))
            values = {"sweep": sweep, "name": name, "token": token, "host": socket.gethostname(), "pid": os.getpid(),
                      "about": json.dumps(dict(about or {})), "grace": FIRST_GRACE_SECONDS}  # fmt: skip
            connection.execute(
                _text(
                    "insert into lorasweep_posts values"
                    " (:sweep, :name, :token, :host, :pid, :about, now(), now(), :grace, false)"
                    " on conflict (sweep, name) do update set token = excluded.token, host = excluded.host,"
                    " pid = excluded.pid, about = excluded.about, since = now(), beat = now(), grace = excluded.grace,"
                    " left_it = false"
                ),
                values,
            )
    post = TablePost(folders, sweep, name, token)
    try:
        yield post
    finally:
        with suppress(StudiesAway):  # its heartbeat stops, which says the same a little later
            post.leave()


@contextmanager
def asking(folders: Folders, sweep: str) -> Iterator[None]:
    """See `posts.asking`. Errors of what is done meanwhile stay what they are."""
    held = ExitStack()
    with readable_errors(folders):
        held.enter_context(one_at_a_time(folders, f"ask {sweep}"))
    try:
        yield
    finally:
        with readable_errors(folders):
            held.close()


def holders(folders: Folders, sweep: str) -> list[str]:
    """See `posts.holders`."""
    return [_words(row) for row in rows_of(folders, sweep) if row.alive]


def roll(folders: Folders, sweep: str) -> list[Worker]:
    """See `posts.roll`."""
    from lorasweep.posts import Worker

    return [
        Worker(
            post=row.name,
            alive=row.alive,
            host=row.host,
            pid=row.pid,
            since=row.since.timestamp(),
            silent_seconds=float(row.silent_seconds),
            about=json.loads(row.about),
        )
        for row in rows_of(folders, sweep)
    ]


def rows_of(folders: Folders, sweep: str) -> list[Row[Any]]:
    """Every post that was ever held on a sweep, in the order of their names: columns of the table, `alive`, and
    `silent_seconds` since the last heartbeat."""
    from sqlalchemy import inspect

    words = (
        f"select *, ({ALIVE}) as alive, extract(epoch from now() - beat) as silent_seconds"
        " from lorasweep_posts where sweep = :sweep order by name::int"
    )
    assert folders.studies is not None
    with readable_errors(folders):
        engine = engine_of(folders.studies)
        if not inspect(engine).has_table("lorasweep_posts"):
            return []
        with engine.connect() as connection:
            return list(connection.execute(_text(words), {"sweep": sweep}))


def _words(row: Row[Any]) -> str:
    return f"{row.pid} on {row.host}"


def _text(words: str) -> Any:
    from sqlalchemy import text

    return text(words)
