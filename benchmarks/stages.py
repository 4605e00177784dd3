"""Where a sweep's wall time goes: `lorasweep sweep` in this process with a stopwatch around each of its parts.

    python benchmarks/stages.py SWEEP [overrides]     prints one JSON line: seconds by stage, and "loaded_mib", what the
                                                      process held before the first forward (its base among it)

A stage's seconds are wall time in the main thread, those of stages inside it taken out; "other" is what is left between
start and end. Part of `packed.py`.
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

LANES = "training.pack:Lanes"
STUDY = "search.study:SweepStudy"
TRACKER = "tracking.tracker:Tracker"
STAGED: tuple[tuple[str, tuple[str, ...], str], ...] = (  # owner, its functions, their stage
    ("workbench:Workbench", ("data", "base", "encoded", "pack"), "load"),
    (LANES, ("map",), "forward + backward"),
    ("training.pack", ("gradient_norms", "optimizer_step"), "optimizer"),
    ("training.examine", ("evaluate",), "evaluate"),
    ("worker.loop:Worker", ("run",), "rest of the worker"),
    (STUDY, ("open",), "open and close"),
    (TRACKER, ("open_sweep", "close_sweep", "close"), "open and close"),
    (TRACKER, ("start_trial", "log", "flush", "finish_trial"), "tracking"),
    (STUDY, ("ask", "budget_spent", "interrupted", "report", "requests", "rungs", "warm_from"), "study"),
    (STUDY, ("complete", "fail", "prune", "set_run", "add_seconds"), "study"),
    ("checkpoint:Checkpoints", ("save",), "checkpoints"),
    ("reporting", ("attach",), "report"),
    ("ranking.board:Leaderboard", ("of",), "leaderboard"),
)
SECONDS: dict[str, float] = defaultdict(float)
RUNNING: list[str] = []
MARK = [time.perf_counter()]
LOADED_MIB: list[float] = []


def _switch() -> None:
    now = time.perf_counter()
    SECONDS[RUNNING[-1] if RUNNING else "other"] += now - MARK[0]
    MARK[0] = now


def timed(owner: Any, name: str, stage: str, unless: str = "") -> None:
    """Count a function's or method's wall time towards a stage, `unless` another one is running."""
    inner: Callable[..., Any] = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        if unless and unless in RUNNING:
            return inner(*args, **kwargs)
        _switch()
        RUNNING.append(stage)
        try:
            return inner(*args, **kwargs)
        finally:
            _switch()
            RUNNING.pop()

    setattr(owner, name, outer)


def note_memory(owner: Any, name: str) -> None:
    """Write down the peak resident MiB before the first call."""
    inner: Callable[..., Any] = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        if not LOADED_MIB:
            LOADED_MIB.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return inner(*args, **kwargs)

    setattr(owner, name, outer)


def owner_of(path: str) -> Any:
    """A module, or a class of one behind a colon."""
    module, _, name = path.partition(":")
    found = importlib.import_module(f"lorasweep.{module}")
    return getattr(found, name) if name else found


def main() -> None:
    RUNNING.append("import")
    from lorasweep import sweeping

    owners = {path: owner_of(path) for path, _, _ in STAGED}
    _switch()
    RUNNING.pop()
    note_memory(owners[LANES], "map")
    for path, names, stage in STAGED:
        for name in names:
            timed(owners[path], name, stage, unless="evaluate" if path == LANES else "")
    sweeping.start(sys.argv[1], sys.argv[2:], quiet=True)
    _switch()
    found = {stage: round(seconds, 3) for stage, seconds in SECONDS.items()}
    print(json.dumps({"seconds": found, "loaded_mib": round(LOADED_MIB[0])}))


if __name__ == "__main__":
    main()
