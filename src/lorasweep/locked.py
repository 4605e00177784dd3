"""A lock file, held by one process of this host at a time; the kernel lets go of it however that process ends.

Users: `posts.locks` (who works on a sweep), `search.database` and `tracking.store` (whose first opening makes tables).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[IO[str] | None]:
    """Hold a lock file, which is made where there is none, and may be written to; None where another process does and
    `wait` is not set. Where the system has no such locks nobody is kept out."""
    with path.open("a+") as handle:
        if os.name == "posix":
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield None
                return
        yield handle
