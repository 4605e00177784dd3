"""A small file system for tests that fill one, unmounted however the test's process ends."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The guard unmounts when its standard input ends, which it does too where the test's process is killed.
GUARD = 'mount -t tmpfs -o "size=$2" tmpfs "$1" || exit 1; echo mounted; read -r _; umount -l "$1"'


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Make a folder and mount a file system of this size on it; False where that is not allowed."""
    folder.mkdir()
    guard = subprocess.Popen(
        ["sh", "-c", GUARD, "guard", str(folder), size], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert guard.stdin is not None and guard.stdout is not None
    try:
        yield guard.stdout.readline() == "mounted\n"
    finally:
        guard.stdin.close()
        guard.wait(timeout=60)
        guard.stdout.close()
