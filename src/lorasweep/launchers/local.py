"""Several workers on this machine: a process each, on a share of its own, watched and started again when they die.

A process gets its orders on its standard input, which the kernel closes when this one ends, however it does: workers
then save and leave. Neighbours: `places` (who gets what), `process` (the other side), `oversight` (watches).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any

from lorasweep.config.home import VARIABLE, named_home
from lorasweep.launchers.headway import Headway
from lorasweep.launchers.news import News, Trouble
from lorasweep.launchers.oversight import Look
from lorasweep.launchers.places import Place, share_out
from lorasweep.worker.here import cores_here

if TYPE_CHECKING:
    from lorasweep.config.schema import LauncherConfig
    from lorasweep.launchers.orders import Orders

PROGRAM = (sys.executable, "-m", "lorasweep.launchers.process")
LAST_LINES = 12


def places_of(launcher: LauncherConfig) -> list[Place]:
    """Where the workers of this launcher go on this machine.

    Raises:
        ConfigError: there is no place for all of them.
    """
    return share_out(launcher.workers, launcher.device, gpus_here(), cores_here(), launcher.threads)


def gpus_here() -> list[str]:
    """Names of the GPUs that this process sees, as CUDA_VISIBLE_DEVICES takes them."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] if len(named) >= count else [str(index) for index in range(count)]


def describe(places: list[Place], launcher: LauncherConfig, slots: int) -> str:
    """One line on who trains where."""
    where = "; ".join(place.words for place in places)
    shared = ", which share this machine's memory" if launcher.slots == "auto" and places[0].gpu is None else ""
    plural = "s" * (len(places) > 1)
    return f"{len(places)} worker{plural} ({where}) with {slots} slot{'s' * (slots > 1)} each{shared}"


class Processes:
    """The workers of one sweep as processes; see `oversight.Crew`."""

    def __init__(self, orders: Orders, places: list[Place]):
        """`orders`: those of the first; the others differ in index and place."""
        self.hands = [
            _Hand(replace(orders, index=index, threads=place.threads, cores=[*place.cores], device=place.words), place)
            for index, place in enumerate(places)
        ]
        self.stopping = False
        for hand in self.hands:
            hand.start()

    def look(self) -> Look:
        """See `Crew`."""
        found = Look()
        for hand in self.hands:
            news, trouble = hand.take()
            found.news.append(news)
            hand.headway.hear(news)
            if hand.is_over or hand.process.poll() is None:
                continue
            hand.finish()
            news, trouble = hand.take()  # what came in between
            found.news.append(news)
            hand.headway.hear(news)
            trouble = trouble or hand.trouble
            if hand.process.returncode == 0 or self.stopping or trouble is not None:
                hand.is_over = True
            else:
                self._start_again(hand, found)
            if trouble is not None and (not self.stopping or not trouble.is_interruption):
                found.troubles.append(trouble)
        found.over = all(hand.is_over for hand in self.hands)
        return found

    def _start_again(self, hand: _Hand, found: Look) -> None:
        hand.headway.died()
        how = ended_how(hand.process.returncode)
        if hand.headway.is_lost:
            hand.is_over = True
            said = "\n".join(f"  {line}" for line in hand.lines) or "  (nothing)"
            found.troubles.append(
                Trouble(
                    "LorasweepError",
                    f"worker {hand.orders.index} ({hand.orders.device}) {how} {hand.headway.deaths} times in a row "
                    "without getting on with a trial, so the sweep stops; its trials are saved as of their last "
                    f"checkpoint and `lorasweep resume {hand.orders.sweep}` goes on. It said last:\n{said}",
                    1,
                )
            )
            return
        last = f": {hand.lines[-1]}" if hand.lines else ""
        found.notes.append(f"worker {hand.orders.index} ({hand.orders.device}) {how}{last}; it is started again")
        hand.start()

    def stop(self) -> None:
        """See `Crew`."""
        self.stopping = True
        for hand in self.hands:
            hand.signal(signal.SIGTERM)

    def kill(self) -> None:
        """See `Crew`."""
        for hand in self.hands:
            hand.signal(signal.SIGKILL)
            hand.finish()


def ended_how(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended with code {returncode}"
    name = signal.Signals(-returncode).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


class _Hand:
    """One worker's process, and what it has said."""

    def __init__(self, orders: Orders, place: Place):
        self.orders, self.place, self.home = orders, place, named_home()
        self.is_over, self.headway = False, Headway()
        self.lines: deque[str] = deque(maxlen=LAST_LINES)  # of its standard error
        self._changing = threading.Lock()

    def start(self) -> None:
        """Start the process; the one before has ended."""
        self.trouble: Trouble | None = None
        self._notes: list[str] = []
        self._news = News()
        environment = dict(os.environ) | ({} if self.home is None else {VARIABLE: self.home})
        if self.place.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self.place.gpu
        self.process = subprocess.Popen(
            PROGRAM,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
            start_new_session=True,  # a terminal's Ctrl-C is for the command, which tells its workers
        )  # fmt: skip
        self._readers = [
            threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True),
            threading.Thread(target=self._overhear, args=(self.process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once, which the next look finds
            self.process.stdin.write(self.orders.to_text().encode() + b"\n")
            self.process.stdin.flush()

    def take(self) -> tuple[News, Trouble | None]:
        """The newest news, its notes told once; the error that ended it."""
        with self._changing:
            notes, self._notes = self._notes, []
            return News(notes, dict(self._news.trials), self._news.ended), self.trouble

    def signal(self, number: int) -> None:
        """Send a signal to the worker if it lives, SIGKILL to all that it has started too."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGKILL:
                    os.killpg(self.process.pid, number)
                else:
                    os.kill(self.process.pid, number)

    def finish(self) -> None:
        """Wait for the process, which has ended or was killed, and for its last words."""
        self.process.wait()
        for reader in self._readers:
            reader.join(timeout=5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _listen(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed
            for line in pipe:
                self._hear(json.loads(line))

    def _hear(self, document: dict[str, Any]) -> None:
        with self._changing:
            if "trouble" in document:
                self.trouble = Trouble(**document["trouble"])
                return
            self._news = News.from_json(document)
            self._notes += self._news.notes

    def _overhear(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in pipe:
                text = line.decode(errors="replace").rstrip()
                if text:
                    self.lines.append(text)
