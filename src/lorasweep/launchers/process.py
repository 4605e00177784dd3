"""`python -m lorasweep.launchers.process`: a worker in a process of its own, started by `local`.

The first line of its standard input are its orders; the input then stays open, and its end says that the command is
gone, however that came about: the worker saves and leaves. Standard output carries one JSON document a line: news about
once a second, and at last an error. All else that anything prints goes to standard error. Nothing heavy is imported
before the cores are set: libraries count them as they load.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from lorasweep import environment
from lorasweep.launchers.news import Teller, Trouble
from lorasweep.launchers.orders import Orders

TELL_SECONDS = 0.5
CRASHED = 70


def main() -> int:
    """Carry out the orders on standard input; returns the exit code."""
    environment.settle()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the command's, which tells us
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    orders = Orders.from_text(sys.stdin.readline())
    if orders.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, orders.cores)
    from lorasweep.errors import LorasweepError
    from lorasweep.launchers.body import work
    from lorasweep.worker.here import stop_on_signals

    stop, teller = threading.Event(), Teller()
    threading.Thread(target=_leave_with_the_command, name="lorasweep command", daemon=True).start()
    try:
        with stop_on_signals(stop), teller.overhearing(), _telling(teller, channel):
            work(orders, teller, stop)
    except LorasweepError as error:
        _say(channel, {"trouble": vars(Trouble.of(error))})
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return CRASHED
    return 0


def _leave_with_the_command() -> None:
    """Save and leave once standard input ends."""
    with suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _telling(teller: Teller, channel: IO[str]) -> Iterator[None]:
    """News from a thread of its own, the last ones at the end."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(TELL_SECONDS):
            _say(channel, teller.take().to_json())

    thread = threading.Thread(target=run, name="lorasweep news", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=10)
        _say(channel, teller.take().to_json())


def _say(channel: IO[str], document: dict[str, Any]) -> None:
    with suppress(OSError):  # the command is gone; the worker is told by its standard input
        channel.write(json.dumps(document) + "\n")
        channel.flush()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of libraries that still run must not hold the worker back
