"""What a worker in another process is told: which study, what it may use of its machine. JSON types, and no secrets.

Everything else it reads in the study. Credentials come from its own environment and files. Neighbours: `body` (carries
them out), `local` and `ray` (write them).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lorasweep.config.home import Folders


@dataclass(frozen=True)
class Orders:
    """`slots` None: as many as fit where it runs. `threads`: CPU threads, None: all cores that it may use; `cores`:
    those that it may use, empty: all. `device` says in words what it has, for people. `closes`: the last worker to end
    writes summary and report, because no command waits for it. `tracking` empty: a folder of the worker's node.
    `home`: the command's folder of conf/ and sweeps/, if this machine has it; `shipped`: they were sent along."""

    sweep: str
    index: int
    tracking: str
    server: str | None = None
    studies: str | None = None
    files: str | None = None
    slots: int | None = None
    threads: int | None = None
    cores: list[int] = field(default_factory=list)
    device: str = ""
    closes: bool = False
    home: str = ""
    shipped: bool = False

    @property
    def folders(self) -> Folders:
        """Where the sweep's files lie, seen from here."""
        return Folders(Path(self.tracking), self.server, self.studies, self.files)

    def to_text(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Orders:
        """The inverse of `to_text`."""
        return cls(**json.loads(text))
