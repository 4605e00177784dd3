"""When MLflow, once it failed, is asked again: quickly, and so seldom that training does not feel it.

Neighbours: `tracker` (the only user), `store` (asks).
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from lorasweep.tracking.store import is_writable

if TYPE_CHECKING:
    from pathlib import Path

    from lorasweep.config.home import Folders
    from lorasweep.errors import StorageError

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0  # between questions whether MLflow, once it failed, is back
RETRY_AT_LATEST_SECONDS = 60.0  # where it answers, and fails again and again
SHARE_FOR_ASKING = 0.05  # of the time at most, where the answer takes long


class Patience:
    """What one tracker knows of MLflow's health. `spool`: the folder in which reports wait meanwhile."""

    def __init__(self, folders: Folders, spool: Path):
        self.folders, self.spool = folders, spool
        self._failed_at: float | None = None  # time.monotonic() of MLflow's last failure, None since a success
        self._failures = 0  # of MLflow in a row
        self._ask_after_seconds = RETRY_SECONDS

    def is_up(self) -> bool:
        """Whether a write may be tried: one that failed is asked quickly first, and so seldom that training does not
        feel it, however long the answer takes."""
        if self._failed_at is not None and time.monotonic() - self._failed_at >= self._ask_after_seconds:
            asked_at = time.monotonic()
            up = is_writable(self.folders)
            self._failed_at = None if up else time.monotonic()
            self._ask_after_seconds = max(RETRY_SECONDS, (time.monotonic() - asked_at) / SHARE_FOR_ASKING)
        return self._failed_at is None

    def failed(self, error: StorageError, began: float) -> None:
        """A write that began at this time.monotonic() failed; said once."""
        if not self._failures:
            log.warning("%s. Training goes on; what it reports waits in %s and is sent later", error, self.spool)
        now = time.monotonic()
        self._ask_after_seconds = min(RETRY_SECONDS * 2**self._failures, RETRY_AT_LATEST_SECONDS)
        if self._failures:  # again: not before the time that it cost is a small share
            self._ask_after_seconds = max(self._ask_after_seconds, (now - began) / SHARE_FOR_ASKING)
        self._failed_at, self._failures = now, self._failures + 1

    def succeeded(self) -> None:
        """A write was taken."""
        self._failed_at, self._failures = None, 0
