"""Workers on the nodes of a Ray cluster: actors, which Ray places by what they ask for and starts again elsewhere when
they die. The only module that imports ray.

Actors share nothing but the study and what `tracking` names, so that Ray may lose any of them. Credentials are never
sent: Ray shows what it sends to everybody who sees the cluster. A node's workers take them from its own environment.
Neighbours: `cluster` (what is found and said before), `actor` (the worker), `oversight` (watches).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions

from lorasweep.errors import LorasweepError
from lorasweep.launchers.actor import Actor
from lorasweep.launchers.cluster import NAMESPACE, Node, asks_of, check_address, describe, fits
from lorasweep.launchers.headway import Headway
from lorasweep.launchers.news import News, Trouble
from lorasweep.launchers.oversight import Look

if TYPE_CHECKING:
    from lorasweep.config.home import Folders
    from lorasweep.config.schema import LauncherConfig
    from lorasweep.launchers.orders import Orders

AUTH_WORDS = ("InvalidAuthToken", "Unauthenticated", "AuthenticationError")  # of Ray, in its text alone
JOIN_SECONDS = 45.0
STORE_BYTES = 80 << 20  # Ray's least: nothing of ours goes through its object store
QUIETLY: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
ASK_SECONDS = 0.5  # between two questions to a worker
REFUSALS_BORNE = 3  # in a row, until an actor counts as gone
LEAVE_SECONDS = 60.0  # that one which does not answer may take to save and leave


class RayWorker(Actor):
    """A worker as a Ray actor."""

    def node(self) -> str:
        """See `Actor`."""
        return str(ray.get_runtime_context().get_node_id())

    def leave(self) -> None:
        """See `Actor`."""
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)


@dataclass
class _Hand:
    """One actor as the command knows it. `asked_at`, `silent_since`: time.monotonic()."""

    index: int
    handle: Any
    question: Any = None
    asked_at: float = 0.0
    silent_since: float = 0.0
    pid: int | None = None
    node: str = ""
    state: str = "waiting"  # waiting (for a node), starting, working, away, over
    headway: Headway = field(default_factory=Headway)
    told_to_stop: bool = False
    refusals: int = 0


class Actors:
    """The workers of one sweep as actors; see `oversight.Crew`."""

    def __init__(self, launcher: LauncherConfig, sweep: str, handles: dict[int, Any], detached: bool = False):
        self.launcher, self.sweep, self.detached = launcher, sweep, detached
        now = time.monotonic()
        self.hands = [_Hand(index, handle, silent_since=now) for index, handle in sorted(handles.items())]
        self.found = False  # not started by this command
        self.stopping_since: float | None = None
        self._noted: set[str] = set()
        self._ran = False

    @classmethod
    def start(cls, launcher: LauncherConfig, orders: Orders, count: int) -> Actors:
        """Ask for so many actors; `orders` are those of the first. With `orders.closes` they outlive this command."""
        kind = ray.remote(RayWorker)
        handles = {}
        for index in range(count):
            options: dict[str, Any] = {
                "name": name_of(orders.sweep, orders.folders, index) if orders.closes else None, "namespace": NAMESPACE,
                "max_restarts": -1, "max_concurrency": 8,
                "num_cpus": launcher.cpus, "num_gpus": launcher.gpus, "resources": launcher.resources or None,
                "lifetime": "detached" if orders.closes else None,
            }  # fmt: skip
            handles[index] = kind.options(**options).remote(replace(orders, index=index).to_text())
        return cls(launcher, orders.sweep, handles, orders.closes)

    @classmethod
    def find(cls, launcher: LauncherConfig, sweep: str, folders: Folders) -> Actors | None:
        """Those that an earlier command left; None where there are none."""
        handles = {}
        for named in ray.util.list_named_actors(all_namespaces=True):
            index = named["name"].rpartition(":")[2]
            ours = index.isdigit() and named["name"] == name_of(sweep, folders, int(index))
            if named["namespace"] == NAMESPACE and ours:
                with contextlib.suppress(ValueError):  # it ended just now
                    handles[int(index)] = ray.get_actor(named["name"], namespace=NAMESPACE)
        if not handles:
            return None
        crew = cls(launcher, sweep, handles, detached=True)
        crew.found = True
        return crew

    @property
    def at_work(self) -> int:
        """How many train."""
        return sum(hand.state == "working" for hand in self.hands)

    def look(self) -> Look:
        """See `Crew`."""
        found, now = Look(), time.monotonic()
        open_hands = [hand for hand in self.hands if hand.state != "over"]
        for hand in open_hands:
            if hand.question is None and now - hand.asked_at >= ASK_SECONDS:
                hand.question, hand.asked_at = hand.handle.status.remote(), now
        asked = {hand.question: hand for hand in open_hands if hand.question is not None}
        if asked:
            answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=0.1)
            for question in answered:
                self._hear(asked[question], found)
        self._look_for_the_silent(found)
        found.at_work = self.at_work
        found.over = all(hand.state == "over" for hand in self.hands)
        return found

    def _hear(self, hand: _Hand, found: Look) -> None:
        question, hand.question = hand.question, None
        try:
            status = ray.get(question)
        except (exceptions.ActorUnavailableError, exceptions.NodeDiedError) as error:
            if hand.state != "away":
                hand.state, hand.silent_since = "away", time.monotonic()
                why = "; Ray starts it again where there is room" if self.stopping_since is None else ""
                found.notes.append(f"worker {hand.index} does not answer{why} ({first_line(error)})")
            return
        except exceptions.RayError as error:
            self._note_the_end(hand, error, found)
            return
        self._take(hand, status, found)

    def _note_the_end(self, hand: _Hand, error: Exception, found: Look) -> None:
        hand.refusals += 1
        if hand.refusals < REFUSALS_BORNE:  # a question may be lost with the process that Ray starts again
            return
        hand.state = "over"
        ends_alone = self.found or (self.detached and hand.pid is not None)  # then the study says what it has left
        if hand.told_to_stop or ends_alone:
            return
        did = "lost" if hand.pid is not None else "could not start"
        words = f"Ray {did} worker {hand.index}: {last_line(error)}"
        found.troubles.append(Trouble("LorasweepError", words, 1))

    def _take(self, hand: _Hand, status: dict[str, Any], found: Look) -> None:
        news = News.from_json(status["news"])
        found.news.append(news)
        if hand.pid is not None and status["pid"] != hand.pid:
            self._note_new_life(hand, status, found)
        hand.headway.hear(news)
        hand.refusals = 0
        hand.pid, hand.node = status["pid"], status["node"]
        hand.state, hand.silent_since, self._ran = status["state"], time.monotonic(), True
        if self.stopping_since is not None and not hand.told_to_stop:
            hand.handle.stop.remote()
            hand.told_to_stop = True
        if hand.state in ("done", "failed"):
            hand.state = "over"
            trouble = status["trouble"] and Trouble(**status["trouble"])
            if trouble and (self.stopping_since is None or not trouble.is_interruption):
                found.troubles.append(trouble)

    def _note_new_life(self, hand: _Hand, status: dict[str, Any], found: Look) -> None:
        """Ray has made the actor anew. Its own fault where its node lives."""
        hand.told_to_stop = False
        died_here = any(node.id == hand.node for node in nodes())
        hand.headway.died() if died_here else hand.headway.moved()
        where = "its node left the cluster" if not died_here else "its process died"
        found.notes.append(f"worker {hand.index}: {where}; it goes on in process {status['pid']} on {status['host']}")
        if hand.headway.is_lost:
            words = (
                f"worker {hand.index} died {hand.headway.deaths} times in a row on {status['host']} without getting on "
                "with a trial, so the sweep stops; is there memory enough? Ray's logs of it lie in "
                "/tmp/ray/session_latest/logs there"
            )
            found.troubles.append(Trouble("LorasweepError", words, 1))

    def _look_for_the_silent(self, found: Look) -> None:
        now = time.monotonic()
        silent = [hand for hand in self.hands if hand.state in ("waiting", "away")]
        if self.stopping_since is not None:
            for hand in self.hands:
                long = now - max(hand.silent_since, self.stopping_since) > LEAVE_SECONDS
                if hand.state != "over" and (hand.state == "waiting" or long):
                    self._end(hand)
            return
        late = [hand for hand in silent if now - hand.silent_since > self.launcher.placement_seconds]
        if not late:
            return
        running = len([hand for hand in self.hands if hand.state in ("starting", "working")])
        facts = f"each asks for {asks_of(self.launcher)}; the cluster has {describe(nodes())}"
        which = ", ".join(str(hand.index) for hand in late)
        if not self._ran:
            words = (
                f"no node of the Ray cluster took a worker within launcher.placement_seconds="
                f"{self.launcher.placement_seconds:g}: {facts}. Ask for less with launcher.cpus, launcher.gpus or "
                "launcher.resources, or add nodes"
            )
            found.troubles.append(Trouble("LorasweepError", words, 1))
        elif f"{which} {running}" not in self._noted:
            self._noted.add(f"{which} {running}")
            found.notes.append(f"worker {which} waits for a node, {running} train: {facts}")

    def stop(self) -> None:
        """See `Crew`."""
        self.stopping_since = time.monotonic()
        for hand in self.hands:
            if hand.pid is not None and hand.state not in ("over", "away"):
                hand.handle.stop.remote()
                hand.told_to_stop = True

    def kill(self) -> None:
        """See `Crew`."""
        for hand in self.hands:
            self._end(hand)

    def _end(self, hand: _Hand) -> None:
        hand.state = "over"
        with contextlib.suppress(exceptions.RayError, ValueError):
            ray.kill(hand.handle, no_restart=True)


def connect(address: str, sent: dict[str, Any] | None) -> bool:
    """Join the cluster at this address, or with auto the one that there is, else start one on this machine; whether it
    was started. `sent`: what Ray brings to the nodes of a cluster that is joined, a runtime_env.

    Raises:
        UsageError: an address that is none.
        LorasweepError: nothing answers there, it is no Ray cluster, or it lets nobody in with our token.
    """
    if ray.is_initialized():
        return False
    given = os.environ.get("RAY_ADDRESS", "") if address == "auto" else address
    given = "" if given == "auto" else given
    if given:
        check_address(given)
    try:
        with quiet():
            _join(given or "auto", sent)
        return False
    except LorasweepError:
        raise
    except ConnectionError as error:
        if given:
            raise LorasweepError(f"the Ray cluster at {given} {refusal(error)}") from error
    except Exception as error:
        raise LorasweepError(f"the Ray cluster {given or 'of this machine'} {refusal(error)}") from error
    _start_here()
    return True


def _start_here() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with quiet():
            ray.init(address="local", include_dashboard=False, object_store_memory=STORE_BYTES, **QUIETLY)
    except Exception as error:
        raise LorasweepError(
            f"Ray could not be started on this machine: {last_line(error)}; `launcher=local` needs no Ray"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray's own would leave without a save


def _join(address: str, sent: dict[str, Any] | None) -> None:
    """ray.init in a thread, because it waits for ever where something answers that is no Ray."""
    ended: dict[str, BaseException | None] = {}
    over, stay = threading.Event(), threading.Event()

    def run() -> None:
        try:
            ray.init(address=address, runtime_env=sent, **QUIETLY)
            ended["error"] = None
        except BaseException as error:
            ended["error"] = error
        over.set()
        stay.wait()  # what Ray starts dies with the thread that started it

    threading.Thread(target=run, name="lorasweep ray", daemon=True).start()
    if not over.wait(JOIN_SECONDS):
        raise LorasweepError(
            f"the Ray cluster at {address} did not answer within {JOIN_SECONDS:g} s; is it Ray's port (6379 unless it "
            "was started with another), of the same version, and are its other ports open to this machine?"
        )
    if (error := ended["error"]) is not None:
        raise error


def refusal(error: BaseException) -> str:
    """Why a cluster did not take us in, with the repair."""
    cause: BaseException | None = error
    while cause is not None:
        if any(word in f"{type(cause).__name__}: {cause}" for word in AUTH_WORDS):
            return (
                "refuses our token: set RAY_AUTH_MODE=token here, and in RAY_AUTH_TOKEN or ~/.ray/auth_token the token "
                "that it was started with"
            )
        cause = cause.__cause__ or cause.__context__
    return f"cannot be joined: {first_line(error)}"


def close() -> None:
    """Leave the cluster; one that was started here ends."""
    with quiet():
        ray.shutdown()


def wait_for_room(launcher: LauncherConfig) -> None:
    """Return once some node could take a worker.

    Raises:
        LorasweepError: none could, and none came within `placement_seconds`.
    """
    deadline = time.monotonic() + launcher.placement_seconds
    while not any(fits(launcher, node) for node in nodes()):
        if time.monotonic() > deadline:
            raise LorasweepError(
                f"no node of the Ray cluster can take a worker: each asks for {asks_of(launcher)}; the cluster has "
                f"{describe(nodes())}. Ask for less with launcher.cpus, launcher.gpus or launcher.resources, or add "
                f"nodes; waited launcher.placement_seconds={launcher.placement_seconds:g}"
            )
        time.sleep(1.0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what Ray's libraries write to standard error away from the person; errors reach us as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def name_of(sweep: str, folders: Folders, index: int) -> str:
    """The name of an actor that outlives its command: the same sweep of another study database has others."""
    study = folders.studies or str(folders.tracking)
    return f"{sweep}:{hashlib.sha256(study.encode()).hexdigest()[:12]}:{index}"


def nodes() -> list[Node]:
    """The living nodes of the cluster that this process is connected to."""
    return [
        Node(str(node["NodeID"]), str(node["NodeManagerHostname"]), dict(node.get("Resources", {})))
        for node in ray.nodes()
        if node["Alive"]
    ]


def first_line(error: BaseException) -> str:
    """What Ray says, in a line."""
    return str(error).strip().splitlines()[0]


def last_line(error: BaseException) -> str:
    """What Ray says last, which is the cause."""
    return str(error).strip().splitlines()[-1].strip()
