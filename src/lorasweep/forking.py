"""`--fork NEWNAME`: going on with something changed, as a new sweep beside the old one.

The new sweep has a study and an experiment of its own and the whole budget before it: trials of the old one are not
copied, because what was changed may be what their values depend on. Where nothing was changed but what varies and who
proposes, the old trials are points of the same landscape: the sampler starts from them (`sweep.warm_start`). The old
sweep stays as it is. Neighbours: `sweeping` (the command), `search.identity` (what differs), `search.warmstart`.
"""

from __future__ import annotations

from typing import Any

from lorasweep.config.home import Home, check_name
from lorasweep.config.schema import Config
from lorasweep.errors import UsageError
from lorasweep.search.identity import differences
from lorasweep.search.study import SweepStudy
from lorasweep.search.warmstart import LEARNING

SEARCH_ALONE = ("space", "enqueue", "sampler", "pruner", "warm_start")  # parts of an identity that change no value


def overrides_of(new: str, config: Config, overrides: list[str], identity: dict[str, Any], home: Home) -> list[str]:
    """The overrides of the fork. `config` and `identity`: of the sweep to go on from, with its changes.

    Raises:
        ConfigError: a name that cannot be one.
        UsageError: there is nothing to fork, or a sweep of the new name.
    """
    check_name(new)
    folders = home.folders(config.tracking)
    old = SweepStudy.load(folders, config.sweep.name)
    if new in SweepStudy.names(folders):
        raise UsageError(
            f"there is a sweep {new!r} already; continue it with `lorasweep resume {new}`, or fork under another name"
        )
    forked = [*overrides, f"sweep.name={new}", f"sweep.forked_from={old.name}"]
    if config.sampler.kind in LEARNING and _values_compare(old.identity, identity):
        forked.append(f"sweep.warm_start=[{','.join([*config.sweep.warm_start, old.name])}]")
    return forked


def _values_compare(was: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether the old trials' values say something of the new sweep's points. A key that is swept in either has a
    value of its own in each trial."""
    swept = {*was.get("space", {}), *now.get("space", {})}
    for key, _, _ in differences(was, now):
        if key.partition(".")[0] not in SEARCH_ALONE and not any(key == k or key.startswith(f"{k}.") for k in swept):
            return False
    return True
