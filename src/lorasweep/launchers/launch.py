"""Where a sweep's workers go by its settings: who runs them is chosen and checked before anything is stored, and their
work brought to its end. Neighbours: `local`, `ray` (crews), `oversight`; `sweeping` calls.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep import closing, finalists, posts
from lorasweep.config.home import Folders, Home
from lorasweep.errors import LorasweepError, UsageError
from lorasweep.launchers import cluster, local, oversight
from lorasweep.launchers.orders import Orders
from lorasweep.launchers.patience import patiently
from lorasweep.progress import Progress

if TYPE_CHECKING:
    from lorasweep.config.schema import Config, LauncherConfig
    from lorasweep.launchers.oversight import Crew
    from lorasweep.launchers.places import Place
    from lorasweep.launchers.ray import Actors
    from lorasweep.search.study import SweepStudy
    from lorasweep.tracking.tracker import Tracker


class OnThisMachine:
    """Workers as processes here."""

    def __init__(self, launcher: LauncherConfig):
        """Raises ConfigError where there is no place for all of them."""
        self.launcher = launcher
        self.places: list[Place] = local.places_of(launcher)

    def start(self, orders: Orders, most: int, progress: Progress) -> Crew:
        """Start them, no more than `most`."""
        places = self.places[:most]
        assert orders.slots is not None
        progress.note(local.describe(places, self.launcher, orders.slots))
        return local.Processes(orders, places)


class OnRay:
    """Workers as actors of a Ray cluster, which this process has joined."""

    def __init__(self, launcher: LauncherConfig, folders: Folders, home: Home, detach: bool):
        """Raises UsageError, LorasweepError: no Ray, no cluster, no node that could take a worker, a study out of reach
        of the nodes."""
        if importlib.util.find_spec("ray") is None:
            raise UsageError("`launcher=ray` needs Ray on this machine and on every node: pip install 'lorasweep[ray]'")
        if launcher.device.startswith("cuda:"):
            raise UsageError(f"`launcher.device`={launcher.device} with launcher=ray: Ray chooses the GPU; use auto")
        if launcher.device == "cuda" and not launcher.gpus:
            raise UsageError("`launcher.device`=cuda with launcher=ray needs launcher.gpus > 0, or workers see no GPU")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what it means for us reaches us as an exception
        cluster.guard_a_cluster_of_our_own(launcher.address)
        from lorasweep.launchers import ray as on_ray

        self.launcher, self.folders, self.home, self.detach, self._ray = launcher, folders, home, detach, on_ray
        with shipment(home) if launcher.ship else no_shipment() as sent:
            self.own = on_ray.connect(launcher.address, sent)
        try:
            if self.own and detach:
                raise UsageError(
                    "--detach needs a Ray cluster that outlives this command; none runs here. Start one with "
                    "`ray start --head`, or name one with launcher.address=host:port"
                )
            cluster.check_storage(folders, on_ray.nodes(), socket.gethostname())
            on_ray.wait_for_room(launcher)
        except LorasweepError:
            on_ray.close()
            raise

    def there(self, sweep: str) -> Actors | None:
        """The crew of an earlier command, if it left one."""
        return self._ray.Actors.find(self.launcher, sweep, self.folders)

    def start(self, orders: Orders, most: int, progress: Progress) -> Actors:
        """Start them, no more than `most`."""
        from dataclasses import replace

        count = min(self.launcher.workers, most)
        progress.note(
            f"{count} Ray worker{'s' * (count > 1)}, each with {cluster.asks_of(self.launcher)}; the cluster has "
            f"{cluster.describe(self._ray.nodes())}"
        )
        if self.folders.shared and self.folders.files is None:
            progress.note("checkpoints lie on the nodes (tracking.files=null): a lost node's trials begin again")
        ships = self.launcher.ship and not self.own
        threads = self.launcher.threads or max(1, int(self.launcher.cpus))
        words = ", ".join(f"{amount:g} {name}" for name, amount in cluster.wants(self.launcher).items())
        orders = replace(
            orders,
            tracking="" if self.folders.shared else orders.tracking,
            threads=threads, closes=self.detach, home=str(self.home.root), shipped=ships, device=words,
        )  # fmt: skip
        return self._ray.Actors.start(self.launcher, orders, count)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.close()


@contextmanager
def place_of(config: Config, folders: Folders, home: Home, detach: bool) -> Iterator[OnThisMachine | OnRay | None]:
    """Where the workers of this sweep go; None: one worker, in this process.

    Raises:
        UsageError: `detach` without Ray; and as the places.
    """
    launcher = config.launcher
    if launcher.kind != "ray":
        if detach:
            raise UsageError("--detach is for launcher=ray: workers of this machine end with the command")
        yield OnThisMachine(launcher) if launcher.workers > 1 else None
        return
    place = OnRay(launcher, folders, home, detach)
    try:
        yield place
    finally:
        place.close()


def there(place: OnThisMachine | OnRay | None, sweep: str) -> Crew | None:
    """The crew that an earlier command has left; none outlives its command on one machine."""
    return place.there(sweep) if isinstance(place, OnRay) else None


@contextmanager
def shipment(home: Home) -> Iterator[dict[str, Any]]:
    """What Ray sends to the nodes: our code, and conf/ and sweeps/ with the user's files over ours. No data, no runs,
    no environment variables."""
    with tempfile.TemporaryDirectory(prefix="lorasweep-ship-") as folder:
        for root in (home.shipped, home.root):
            for name in ("conf", "sweeps"):
                if (root / name).is_dir():
                    shutil.copytree(root / name, Path(folder) / name, dirs_exist_ok=True)
        package = Path(__file__).resolve().parent.parent
        yield {"working_dir": folder, "py_modules": [str(package)]}


@contextmanager
def no_shipment() -> Iterator[None]:
    """Nothing is sent: the nodes have it."""
    yield None


def launch(
    study: SweepStudy,
    folders: Folders,
    place: OnThisMachine | OnRay,
    slots: int | None,
    progress: Progress,
    door: ExitStack,
    detach: bool = False,
) -> None:
    """Train with several workers and watch them to the end; with `detach` until one trains. `door` holds the post of
    this process, which they need. `slots` None: as many as fit where each worker runs.

    Raises:
        Interrupted: they were asked to leave; all is saved.
        LorasweepError: why a worker could not go on.
    """
    from lorasweep.tracking.tracker import Tracker

    tracker = Tracker(folders, study.name)
    try:
        closing.begin(study, tracker)
        orders = Orders(study.name, 0, str(folders.tracking), folders.server, folders.studies, folders.files, slots)
        most = max(1, _trials_to_train(study))
        door.close()
        crew = place.start(orders, most, progress)
        oversight.oversee(crew, study, progress, until_at_work=detach)
        if not detach:
            patiently(lambda: _close(study, tracker, progress), folders, progress, threading.Event())
    except Exception:  # not where Ctrl-C came twice: that stops at once, and what waits in the spool is kept there
        with suppress(LorasweepError, OSError):  # what happened first is what is told
            tracker.close()
        raise
    tracker.close()


def watch(study: SweepStudy, crew: Crew, progress: Progress) -> None:
    """Watch the crew of an earlier command to its end, and close the sweep where it could not; raises as `launch`.

    A crew may be lost with its nodes and leave trials to train: then the sweep stays open (`is_over`)."""
    oversight.oversee(crew, study, progress)

    def close() -> None:
        with posts.enter(study.folders, study.name, join=True) as post:
            if is_over(study):
                closing.close_what_is_open(study, post)

    patiently(close, study.folders, progress, threading.Event())


def is_over(study: SweepStudy) -> bool:
    """Whether no trial and no finalist is left to train."""
    return not study.interrupted() and study.budget_spent() and not finalists.left(study)


def _close(study: SweepStudy, tracker: Tracker, progress: Progress) -> None:
    with posts.enter(study.folders, study.name, join=True) as post:
        if study.counts()["running"]:
            progress.note("other processes train on; the last one writes the summary and the report")
        else:
            tracker.take_up_ends()
            closing.close(study, tracker, post)


def _trials_to_train(study: SweepStudy) -> int:
    """How many trials a sweep has before it at most, those of its finalists too: more workers than that would wait."""
    finals = study.config.sweep.finalists
    return study.remaining() + study.counts()["running"] + finals.top * finals.seeds
