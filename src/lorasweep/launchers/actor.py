"""A worker as an object that answers while it trains: what Ray makes an actor of (`ray`).

The training runs in a thread; `status` and `stop` answer from others. Whenever the object is made anew, because its
process or node died, it begins again from the study and goes on where its trials were left. Neighbour: `body`.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorasweep import environment
from lorasweep.errors import LorasweepError
from lorasweep.launchers.news import Teller, Trouble
from lorasweep.launchers.orders import Orders

TELL_SECONDS = 15.0  # that one which nobody waits for stays to say how it ended
ANSWER_SECONDS = 1.0  # that the answer which says so may take to leave this process, which ends without a flush
ERRORS_BORNE = 3  # that nobody expected, in a row, with no trial ended in between
SCRATCH = "LORASWEEP_SCRATCH"  # a node's folder for spool and cache


class Actor:
    """See the module."""

    def __init__(self, text: str):
        """`text`: the orders."""
        environment.settle()
        orders = Orders.from_text(text)
        settle_home(orders)
        self.orders = replace(orders, tracking=orders.tracking or str(scratch_of(orders)))
        self.state = "starting"
        self.trouble: Trouble | None = None
        self._teller, self._stop, self._told = Teller(), threading.Event(), threading.Event()
        threading.Thread(target=self._run, name="lorasweep worker", daemon=True).start()

    def status(self) -> dict[str, Any]:
        """JSON types: `state` (starting, working, done or failed), who this is, news, and the trouble that ended it."""
        news = self._teller.take()
        state = self.state
        if state in ("done", "failed"):
            self._told.set()
        return {
            "state": "working" if state == "starting" and (news.trials or news.ended) else state,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "node": self.node(),
            "news": news.to_json(),
            "trouble": None if self.trouble is None else vars(self.trouble),
        }

    def stop(self) -> None:
        """Save and leave."""
        self._stop.set()

    def node(self) -> str:
        """What the cluster calls this node."""
        return socket.gethostname()

    def leave(self) -> None:
        """End this process for good: nobody waits for its status."""

    def _run(self) -> None:
        errors, ended = 0, 0
        while True:
            try:
                from lorasweep.launchers.body import work

                with self._teller.overhearing():
                    work(self.orders, self._teller, self._stop)
                break
            except LorasweepError as error:
                self.trouble = Trouble.of(error)
                break
            except Exception as error:
                done = self._teller.count()
                errors, ended = (1 if done > ended else errors + 1), done
                last = traceback.format_exc().strip().splitlines()
                if errors >= ERRORS_BORNE:
                    shown = "\n".join(f"  {line}" for line in last[-12:])
                    self.trouble = Trouble(
                        "LorasweepError", f"worker {self.orders.index} failed {errors} times in a row:\n{shown}", 1
                    )
                    break
                self._teller.note(f"worker {self.orders.index} failed ({type(error).__name__}: {error}); it goes on")
        self.state = "done" if self.trouble is None else "failed"
        if self.orders.closes:
            if self._told.wait(TELL_SECONDS):
                time.sleep(ANSWER_SECONDS)
            self.leave()


def settle_home(orders: Orders) -> None:
    """Find conf/ and sweeps/ where they are: sent along in the folder that this process starts in, else as this node
    has them, else where the command has them. Relative paths of data count from the command's home where it is here."""
    if orders.shipped:
        os.environ["LORASWEEP_HOME"] = str(Path.cwd())
    elif "LORASWEEP_HOME" not in os.environ and Path(orders.home).is_dir():
        os.environ["LORASWEEP_HOME"] = orders.home
    if Path(orders.home).is_dir():
        os.chdir(orders.home)


def scratch_of(orders: Orders) -> Path:
    """This node's folder for a sweep whose study lies in a database."""
    root = Path(os.environ.get(SCRATCH) or Path(tempfile.gettempdir()) / f"lorasweep-{os.getuid()}")
    folder = root / hashlib.sha256(f"{orders.studies} {orders.server}".encode()).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
