"""Which server keeps a sweep's runs and models, where one does. Neighbours: `study`; commands about models ask."""

from __future__ import annotations

from lorasweep.config.home import Folders
from lorasweep.search.study import SweepStudy


def kept_where(folders: Folders, name: str) -> Folders:
    """`folders` with the server of the sweep `name`, whose model has its name too; as they are where a server is named
    already, or no such sweep is known here."""
    if folders.server is not None or name not in SweepStudy.names(folders):
        return folders
    return SweepStudy.load(folders, name).folders
