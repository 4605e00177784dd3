"""A sweep's end when several processes come to it at once: its own run has ended once all have left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lorasweep import closing, posts, reporting
from lorasweep.config.home import Folders
from lorasweep.posts import Post
from lorasweep.search.study import SweepStudy
from lorasweep.tracking.store import open_client
from lorasweep.tracking.tracker import Tracker
from made_sweep import build
from trackkit import new_folders

pytestmark = pytest.mark.slow  # MLflow

TRIALS = 3


@pytest.fixture
def folders(tmp_path: Any) -> Folders:
    """Those of a sweep whose trials have all ended."""
    folders = new_folders(tmp_path)
    build(folders, TRIALS, curves=False)
    return folders


def own_run(folders: Folders) -> tuple[str, str]:
    """Status in MLflow, and our word for it, of the one run that is the sweep's own."""
    client = open_client(folders)
    experiment = client.get_experiment_by_name("made")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.`lorasweep.kind` = 'sweep'")
    return run.info.status, run.data.tags["lorasweep.state"]


def close(folders: Folders) -> None:
    """As the last worker of a sweep does, or the next start."""
    study = SweepStudy.load(folders, "made")
    with posts.enter(folders, "made", join=True) as post:
        closing.close_what_is_open(study, post)


class Late:
    """A post that says when somebody comes to its lock."""

    def __init__(self, post: Post, came: threading.Event):
        self.post, self.came = post, came

    @contextmanager
    def asking(self) -> Iterator[None]:
        self.came.set()
        with self.post.asking():
            yield


def test_one_that_comes_while_another_closes_leaves_its_end_alone(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first has ended the sweep's own run and writes the report; the second, which has found the sweep open, must
    not open that run again: nobody would end it."""
    ended, came, reports = threading.Event(), threading.Event(), list[str]()
    attach = reporting.attach

    def slowly(*given: Any) -> Any:
        reports.append(threading.current_thread().name)
        ended.set()
        assert came.wait(60)
        return attach(*given)

    monkeypatch.setattr(reporting, "attach", slowly)
    first = threading.Thread(target=close, args=(folders,), name="first")
    first.start()
    assert ended.wait(60)
    study = SweepStudy.load(folders, "made")
    assert not study.closed
    with posts.enter(folders, "made", join=True) as post:
        closing.close_what_is_open(study, Late(post, came))  # type: ignore[arg-type]
    first.join(60)
    assert reports == ["first"]
    assert own_run(folders) == ("FINISHED", "complete") and study.closed


def test_one_that_opens_a_sweep_when_another_has_closed_it_closes_it_again(folders: Folders) -> None:
    """It looked before the other closed, and now finds nothing to train."""
    study = SweepStudy.load(folders, "made")
    tracker = Tracker(folders, "made")
    close(folders)
    assert study.closed and own_run(folders) == ("FINISHED", "complete")
    closing.begin(study, tracker)
    assert own_run(folders) == ("RUNNING", "running") and not study.closed
    with posts.enter(folders, "made", join=True) as post:
        closing.close(study, tracker, post)
    tracker.close()
    assert own_run(folders) == ("FINISHED", "complete") and study.closed


def test_one_that_died_when_it_had_opened_a_closed_sweep_leaves_it_to_the_next(folders: Folders) -> None:
    close(folders)
    closing.begin(SweepStudy.load(folders, "made"), Tracker(folders, "made"))  # and nothing more of it
    assert own_run(folders) == ("RUNNING", "running")
    close(folders)
    assert own_run(folders) == ("FINISHED", "complete")


def test_two_that_begin_at_once_make_one_run(folders: Folders) -> None:
    at_once = threading.Barrier(2)

    def begin() -> None:
        study, tracker = SweepStudy.load(folders, "made"), Tracker(folders, "made")
        with posts.enter(folders, "made", join=True):
            at_once.wait(60)
            closing.begin(study, tracker)

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert own_run(folders) == ("RUNNING", "running")


def test_what_is_closed_is_not_closed_again(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    close(folders)
    monkeypatch.setattr(reporting, "attach", lambda *given: pytest.fail("the report is written again"))
    close(folders)
    assert own_run(folders) == ("FINISHED", "complete")
