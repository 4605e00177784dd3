"""Where a sweep's wall time goes: `lorasweep sweep` in this process with a stopwatch around each of its parts.

    python benchmarks/stages.py SWEEP [overrides]     prints one JSON line: seconds by stage, and "loaded_mib", what the
                                                      process held before the first forward (its base among it)

A stage's seconds are wall time in the main thread, those of stages inside it taken out; "other" is what is left between
start and end. Part of `packed.py`.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

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


def main() -> None:
    RUNNING.append("import")
    from lorasweep import reporting, sweeping
    from lorasweep.checkpoint import Checkpoints
    from lorasweep.ranking import board as leaderboard
    from lorasweep.search import study
    from lorasweep.tracking.tracker import Tracker
    from lorasweep.training import pack
    from lorasweep.workbench import Workbench
    from lorasweep.worker.loop import Worker

    _switch()
    RUNNING.pop()
    for name in ("data", "base", "encoded", "pack"):
        timed(Workbench, name, "load")
    note_memory(pack.Lanes, "map")
    timed(pack.Lanes, "map", "forward + backward", unless="evaluate")
    timed(pack, "gradient_norms", "optimizer")
    timed(pack, "optimizer_step", "optimizer")
    timed(pack, "evaluate", "evaluate")
    timed(Worker, "run", "rest of the worker")
    timed(study.SweepStudy, "open", "open and close")
    for name in ("open_sweep", "close_sweep", "close"):
        timed(Tracker, name, "open and close")
    for name in ("start_trial", "log", "flush", "finish_trial"):
        timed(Tracker, name, "tracking")
    asked = ("ask", "budget_spent", "interrupted", "report", "requests", "rungs", "warm_from")
    for name in (*asked, "complete", "fail", "prune", "set_run", "add_seconds"):
        timed(study.SweepStudy, name, "study")
    timed(Checkpoints, "save", "checkpoints")
    timed(reporting, "attach", "report")
    timed(leaderboard.Leaderboard, "of", "leaderboard")
    sweeping.start(sys.argv[1], sys.argv[2:], quiet=True)
    _switch()
    found = {stage: round(seconds, 3) for stage, seconds in SECONDS.items()}
    print(json.dumps({"seconds": found, "loaded_mib": round(LOADED_MIB[0])}))


if __name__ == "__main__":
    main()
