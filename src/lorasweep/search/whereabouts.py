"""Under which name a sweep is stored, and which server keeps its runs and models, where one does.

Neighbours: `study`; commands about stored sweeps and models ask.
"""

from __future__ import annotations

from lorasweep.config.compose import tracking_place
from lorasweep.config.home import Folders, Home
from lorasweep.config.scale import SUFFIX
from lorasweep.search.study import SweepStudy


def kept_where(folders: Folders, name: str) -> Folders:
    """`folders` with the server of the sweep `name`, whose model has its name too; as they are where a server is named
    already, or no such sweep is known here."""
    if folders.server is not None or name not in SweepStudy.names(folders):
        return folders
    return SweepStudy.load(folders, name).folders


def stored_name(name: str, overrides: list[str]) -> str:
    """A started sweep's name as it is stored: that of its smoke test with scale=smoke, and where there is no other.

    Raises:
        ConfigError: overrides that are none.
        StorageError: the studies cannot be read.
    """
    small = name if name.endswith(SUFFIX) else f"{name}{SUFFIX}"
    if "scale=smoke" in overrides:
        return small
    names = SweepStudy.names(tracking_place(overrides, Home.find()))
    return small if name not in names and small in names else name
