"""Waiting for servers that are away: a sweep over many hosts should not end because PostgreSQL or MLflow is restarted.

Whatever was being done is done again from its beginning, which its own records make harmless. Neighbours: `body` (a
worker's work), `launch` (what follows when all workers have ended).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lorasweep.config.home import Folders
from lorasweep.errors import DiskFull, StorageError
from lorasweep.progress import Progress
from lorasweep.search.database import StudiesAway, wait_until_back
from lorasweep.tracking.server import answers
from lorasweep.worker.loop import PATIENCE_SECONDS

LOOK_SECONDS = 1.0  # between two looks whether MLflow is back
REFUSALS_BORNE = 3  # of an MLflow server that answers, in a row: it may just have come back


def patiently(do: Callable[[], None], folders: Folders, progress: Progress, stop: threading.Event) -> None:
    """Call `do` until it ends without an error of a server that is away; `stop` ends the waiting.

    Raises:
        StorageError: a server was away for longer than PATIENCE_SECONDS, or refuses what is asked of it.
        Whatever else `do` raises.
    """
    refused = 0
    while True:
        try:
            return do()
        except DiskFull:
            raise
        except StudiesAway as error:
            progress.note(f"waiting for the studies' database: {error}")
            if not wait_until_back(folders, PATIENCE_SECONDS, stop.is_set):
                raise
        except StorageError as error:
            if folders.server is None or stop.is_set() or refused == REFUSALS_BORNE:
                raise
            refused = refused + 1 if answers(folders.server) else 0
            progress.note(f"waiting for the MLflow server: {error}")
            if not _mlflow_is_back(folders.server, stop):
                raise


def _mlflow_is_back(server: str, stop: threading.Event) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and not stop.wait(LOOK_SECONDS):
        if answers(server):
            return True
    return False
