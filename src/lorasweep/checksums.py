"""One sha256 for a folder of files: what a trial leaves is known by it, and a file that was changed later is noticed.

Neighbours: `tracking` (notes it when a trial ends), `registry.package` and `promotion` (check it). Pure.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

TAG = "lorasweep.sha256."  # then the artifact's name: what a run's tag holds
BLOCK_BYTES = 2**20


def folder_checksum(place: Path) -> str:
    """sha256 (hex) over the names and contents of all files below a folder, hidden ones aside, or of one file.

    `registry.adapter_model.folder_checksum` is the same for models, which must do without us; a test compares.
    """
    files = [place] if place.is_file() else sorted(path for path in place.rglob("[!.]*") if path.is_file())
    whole = hashlib.sha256()
    for path in files:
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                content.update(block)
        whole.update(f"{path.relative_to(place).as_posix()}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()
