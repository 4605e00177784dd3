"""A worker's whole work wherever it runs: load the study, see that this place trains the same sweep, train, finish.

The command has checked everything and made the study before; here only what may differ from place to place is looked at
again. Neighbours: `orders` (what is to be done), `process` and `actor` (where), `worker.loop`, `finalists`, `closing`.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lorasweep import closing, finalists, posts, prechecks
from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.errors import ConfigError, DataError, LorasweepError, ModelError
from lorasweep.launchers.orders import Orders
from lorasweep.launchers.patience import patiently
from lorasweep.progress import Progress
from lorasweep.search.identity import BASES, differences
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy
from lorasweep.tracking.tracker import Tracker
from lorasweep.workbench import Workbench
from lorasweep.worker import here
from lorasweep.worker.loop import Worker

if TYPE_CHECKING:
    from lorasweep.config.schema import Config
    from lorasweep.posts import Post

SHOWN = 5  # differences in a message


def work(orders: Orders, progress: Progress, stop: threading.Event) -> None:
    """Train trials of the sweep until none is left, its finalists too; save and leave once `stop` is set. Where
    PostgreSQL or MLflow goes away, wait for it.

    Raises:
        Interrupted: `stop` was set, or `lorasweep pause`.
        ConfigError, DataError: this place has other data, config or no such device; nothing was asked for.
        LorasweepError: what `worker.loop.Worker.run` raises.
    """
    patiently(lambda: _work(orders, progress, stop), orders.folders, progress, stop)


def _work(orders: Orders, progress: Progress, stop: threading.Event) -> None:
    home = Home.find()
    study = SweepStudy.load(orders.folders, orders.sweep)
    config = study.config
    config.launcher.threads = orders.threads or config.launcher.threads
    here.prepare(config.launcher)
    workbench = Workbench(study.folders, config.sweep.objective, orders.slots or 1)
    check_same(study, home, workbench)

    def composer(params: dict[str, Any]) -> Config:
        return compose.compose_trial(study.overrides, study.sweep_file, params, home)

    if orders.slots is None:
        space = study.space
        assert space is not None
        points = prechecks.probe_points(space, config)
        first = composer({**points[0], **(config.sweep.enqueue or [{}])[0]})
        prechecks.check_trainable(first, workbench)
        prechecks.settle_slots(workbench, first, [first, *(composer(point) for point in points)])
        progress.note(f"worker {orders.index} on {socket.gethostname()} has room for {workbench.slots} slots")
    about = {"device": orders.device or _device(config), "worker": orders.index}
    with posts.enter(study.folders, study.name, join=True, about=about) as post:
        tracker = Tracker(study.folders, study.name)
        try:
            tracker.connect()
            worker = Worker(study, tracker, workbench, composer, progress, post)
            worker.stop = stop
            here.launch(worker, config.launcher)
            if not study.counts()["running"]:
                finalists.run(study, tracker, workbench, composer, progress, post, stop)
        except Exception:  # not where a signal came twice: what waits in the spool is kept there
            with suppress(LorasweepError, OSError):  # what happened first is what is told
                tracker.close()
            raise
        tracker.close()
        if orders.closes:
            _close(study, post)


def _close(study: SweepStudy, post: Post) -> None:
    """Of a sweep that no command waits for: where this worker is the last, or as good as."""
    if not study.interrupted() and not finalists.left(study):
        closing.close_what_is_open(study, post)


def check_same(study: SweepStudy, home: Home, workbench: Workbench) -> None:
    """See that sweep file, conf/ and data as they are here make the sweep that the study holds.

    Raises:
        DataError: the rows are others.
        ModelError: the base is another.
        ConfigError: the config is another.
    """
    now = compose.compose(study.overrides, sweep=study.sweep_file, home=home)
    identity = prechecks.identify(now, parse_space(now.sweep.space, now), workbench)
    changed = differences(study.identity, identity)
    where = f"on {socket.gethostname()}"
    bases = [key.removeprefix(f"{BASES}.") for key, _, _ in changed if key.startswith(BASES)]
    if bases:
        raise ModelError(
            f"the base {bases[0]} {where} is not that of sweep {study.name!r}: its files are others; copy the same "
            "ones there, or put them on a folder that every node reaches"
        )
    config = [difference for difference in changed if difference[0] != "data_fingerprint"]
    if config:
        shown = "; ".join(f"{key}: {before!r}, {where} {after!r}" for key, before, after in config[:SHOWN])
        raise ConfigError(
            f"sweeps/{study.sweep_file}.yaml or conf/ in {home.root} {where} are not those of sweep {study.name!r}: "
            f"{shown}; bring them up to date there, or send them along with launcher.ship=true"
        )
    if changed:
        raise DataError(
            f"the rows {where} are not those of sweep {study.name!r}: their fingerprint is {changed[0][2]}, that of "
            f"the sweep {changed[0][1]}; copy the same files there, or put them on a folder that every node reaches"
        )


def _device(config: Config) -> str:
    from lorasweep.models.base import resolve_device

    device = resolve_device(config.launcher.device)
    if device.type != "cuda":
        return f"{here.available_cores()} cores"
    import torch

    return f"{device} ({torch.cuda.get_device_name(device)})"
