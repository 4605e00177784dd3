"""How a sweep ends: its summary, its own run and its report, once, by its last process or by the next start.

A kill may come between the last trial's end and the sweep's: the next start finds nothing left to train, and closes.
The study notes how many trials had ended when it was closed, so that nothing is done twice, also not by two processes
that end at the same moment. Neighbours: `sweeping` (calls), `tracking`, `reporting`, `publishing`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from lorasweep import failpoints, publishing, reporting
from lorasweep.checkpoint import forget_checkpoints
from lorasweep.config import compose
from lorasweep.errors import LorasweepError
from lorasweep.posts import Post
from lorasweep.ranking import board as leaderboard
from lorasweep.search.study import SweepStudy
from lorasweep.tracking.tracker import Tracker


def close(study: SweepStudy, tracker: Tracker, post: Post) -> None:
    """Store summary and report where no process has done so since the last trial ended. `tracker` is open."""
    with post.asking():
        if study.closed:
            return
        failpoints.reach("trials-told")
        tracker.close_sweep(summary(study))
        failpoints.reach("sweep-ended")
        reporting.attach(study, study.folders)
        publishing.publish(study, study.folders)
        study.note_closed()
        if study.folders.files is not None:
            forget_checkpoints(study.folders, study.name)


def close_what_is_open(study: SweepStudy, post: Post) -> None:
    """What a kill at the very end has left undone of a sweep whose trials have all ended; nothing where it is closed.

    Raises:
        StorageError: MLflow cannot be written; nothing is lost.
    """
    from lorasweep.tracking import readers as tracking_readers

    tracking_readers.settle(study.folders, study.name)
    if study.closed:
        return
    tracker = Tracker(study.folders, study.name)
    try:
        tracker.open_sweep(study.config, compose.to_yaml(study.config), list(study.config.sweep.space))
        close(study, tracker, post)
    except Exception:
        with suppress(LorasweepError, OSError):  # what happened first is what is told
            tracker.close()
        raise
    tracker.close()


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
