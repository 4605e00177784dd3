"""How a sweep ends: its summary, its own run and its report, once, by its last process or by the next start.

A kill may come between the last trial's end and the sweep's: the next start finds nothing left to train, and closes.
The study notes how many trials had ended when it was closed, so that nothing is done twice. Several processes may end
at the same moment, or one may begin while another ends: opening and closing hold the sweep's lock, and the note goes
before the sweep's own run is opened again. So where the study says closed, that run has ended.
Neighbours: `sweeping` and `launchers` (call), `tracking`, `reporting`, `publishing`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from lorasweep import failpoints, posts, publishing, reporting
from lorasweep.checkpoint import forget_checkpoints
from lorasweep.config import compose
from lorasweep.errors import LorasweepError
from lorasweep.posts import Post
from lorasweep.ranking import board as leaderboard
from lorasweep.search.study import SweepStudy
from lorasweep.tracking.tracker import Tracker


def begin(study: SweepStudy, tracker: Tracker) -> None:
    """Open the sweep's own run, for a process that is going to train; whoever ends last closes it."""
    with posts.asking(study.folders, study.name):
        _open(study, tracker)


def close(study: SweepStudy, tracker: Tracker, post: Post) -> None:
    """Store summary and report where no process has done so since the sweep was opened. `tracker` is open."""
    with post.asking():
        if not study.closed:
            _close(study, tracker)


def close_what_is_open(study: SweepStudy, post: Post) -> None:
    """What a kill at the very end has left undone of a sweep whose trials have all ended; nothing where it is closed.

    Raises:
        StorageError: MLflow cannot be written; nothing is lost.
    """
    from lorasweep.tracking import readers as tracking_readers

    tracking_readers.settle(study.folders, study.name)
    tracker = Tracker(study.folders, study.name)
    try:
        with post.asking():  # from the look on: another process that closes now must not find its run opened again
            if study.closed:
                return
            _open(study, tracker)
            _close(study, tracker)
    except Exception:
        with suppress(LorasweepError, OSError):  # what happened first is what is told
            tracker.close()
        raise
    tracker.close()


def _open(study: SweepStudy, tracker: Tracker) -> None:
    study.note_open()  # first: after a kill in between the next start closes it
    tracker.open_sweep(study.config, compose.to_yaml(study.config), list(study.config.sweep.space))


def _close(study: SweepStudy, tracker: Tracker) -> None:
    failpoints.reach("trials-told")
    tracker.close_sweep(summary(study))
    failpoints.reach("sweep-ended")
    reporting.attach(study, study.folders)
    publishing.publish(study, study.folders)
    study.note_closed()
    if study.folders.files is not None:
        forget_checkpoints(study.folders, study.name)


def summary(study: SweepStudy) -> dict[str, Any]:
    """What the sweep's own run says of it."""
    return {
        "counts": study.counts(),
        "best": leaderboard.Leaderboard.of(study).best,
        "seconds": study.seconds(),
        "samples": study.samples_seen(),
        "stopped": study.stop_reason(),
        "seeded_from": study.seeded_from,
    }
