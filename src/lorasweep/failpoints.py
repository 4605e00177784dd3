"""Places where a test kills this process, to prove that a kill there loses nothing. A comparison each when unset.

`LORASWEEP_FAILPOINT=NAME:N` in the environment sends SIGKILL at the N-th time that this process reaches NAME, as a
machine's out-of-memory killer would: no handler runs, no buffer is flushed. `NAME:N:SECONDS` halts the whole process
there for so long, all threads of it, and lets it go on. The places are those in `NAMES`.
Neighbours: whatever writes (`checkpoint`, `tracking`, `worker`); tests/test_torture.py goes through all of them.
"""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass

from lorasweep.errors import UsageError

VARIABLE = "LORASWEEP_FAILPOINT"
NAMES = {
    "asked": "a point is in the study, its run does not exist yet",
    "run-created": "MLflow has the run, nothing of ours names it",
    "run-noted": "the spool names the run, the study does not",
    "metrics-spooled": "an evaluation is in the spool, MLflow has not heard of it",
    "judged": "the study has the verdict of a rung, the trial has not left",
    "artifacts-placed": "a trial's adapter is in its run, the run has not ended",
    "end-spooled": "the trial's end is in the spool, MLflow still has its run as running",
    "run-ended": "the run has ended in MLflow, the study still has the trial as running",
    "told": "study and MLflow have a trial's end, the checkpoint still has the trial in its slot",
    "trials-told": "every trial has ended, the sweep's own run has not",
    "sweep-ended": "the sweep's own run has ended in MLflow, its report is not there",
    "checkpoint-half": "half of a checkpoint is written",
    "checkpoint-unnamed": "a checkpoint is whole, but still under its temporary name",
    "checkpoint-whole": "a checkpoint has its name, the one before the previous is still there",
}


@dataclass
class _Armed:
    name: str
    times_left: int
    seconds: int | None  # to halt for; None: die


_armed: _Armed | None = None


def reach(name: str) -> None:
    """Die or halt here if the environment says so."""
    if _armed is not None and name == _armed.name:
        _armed.times_left -= 1
        if _armed.times_left == 0 and _armed.seconds is None:
            os.kill(os.getpid(), signal.SIGKILL)
        elif _armed.times_left == 0:
            ctypes.PyDLL(None).sleep(_armed.seconds)  # called so, it keeps the interpreter's lock


def arm(text: str | None) -> None:
    """Choose where this process dies or halts: `NAME`, `NAME:N` or `NAME:N:SECONDS`; None or empty: nowhere.

    Raises:
        UsageError: there is no such place.
    """
    global _armed  # noqa: PLW0603
    _armed = None
    if text:
        name, times, seconds = (*text.split(":"), "", "")[:3]
        if name not in NAMES or not (times or "1").isdigit() or not (seconds or "1").isdigit():
            raise UsageError(f"{VARIABLE}={text}: write NAME, NAME:N or NAME:N:SECONDS with one of {', '.join(NAMES)}")
        _armed = _Armed(name, int(times or 1), int(seconds) if seconds else None)


arm(os.environ.get(VARIABLE))
