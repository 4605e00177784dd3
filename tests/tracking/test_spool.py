"""The spool keeps every report, once, through kills and half-written lines."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasweep.errors import StorageError
from lorasweep.tracking.spool import Point, Spool, path_of, read_points, same_value, trials_in, unsent


def test_what_was_reported_is_there_after_reopening(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 7)
    spool.set_run("abc")
    spool.append({"train/loss": 0.5, "train/lr": 1e-3}, 1, 1000)
    spool.append({"train/loss": 0.25}, 2, 1010)
    spool.close()
    again = Spool(tmp_path, 7)
    assert again.run_id == "abc" and again.existed
    assert [(p.metrics, p.step, p.time_ms) for p in again.waiting()] == [
        ({"train/loss": 0.5, "train/lr": 1e-3}, 1, 1000),
        ({"train/loss": 0.25}, 2, 1010),
    ]
    assert again.newest("train/loss") == 0.25 and again.newest("train/lr") == 1e-3 and again.newest("none") is None
    assert again.last_step == 2
    assert trials_in(tmp_path) == [7]


def test_confirmed_points_are_not_sent_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    spool.set_run("r")
    for step in range(5):
        spool.append({"m": float(step)}, step, step)
    spool.confirm(spool.waiting()[2])
    assert [p.step for p in spool.waiting()] == [3, 4]
    spool.close()
    assert [p.step for p in Spool(tmp_path, 0).waiting()] == [3, 4]
    assert unsent(path_of(tmp_path, 0)) == ("r", Spool(tmp_path, 0).waiting())


def test_the_first_report_of_a_metric_and_step_wins(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    spool.append({"a": 1.0}, 1, 10)
    spool.append({"a": 2.0, "b": 3.0}, 1, 20)
    spool.close()
    again = Spool(tmp_path, 0)
    again.append({"a": 9.0, "b": 9.0}, 1, 30)
    points = list(read_points(again.path))
    assert [(p.metrics, p.time_ms) for p in points] == [({"a": 1.0}, 10), ({"b": 3.0}, 20)]


def test_an_unfinished_last_line_is_cut_and_written_over(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    spool.append({"a": 1.0}, 1, 10)
    spool.close()
    with spool.path.open("ab") as file:
        file.write(b'{"s":2,"t":11,"m":{"a":0.')
    assert [p.step for p in read_points(spool.path)] == [1]
    again = Spool(tmp_path, 0)
    again.append({"a": 0.5}, 2, 12)
    assert [(p.step, p.metrics) for p in read_points(spool.path)] == [(1, {"a": 1.0}), (2, {"a": 0.5})]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_kill_at_any_byte_keeps_all_whole_reports(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    values = data.draw(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=12))
    spool = Spool(folder, 3)
    spool.set_run("r")
    ends = []
    for step, value in enumerate(values):
        spool.append({"train/loss": value}, step, step)
        ends.append(spool.path.stat().st_size)
    spool.close()
    cut = data.draw(st.integers(0, ends[-1]))
    os.truncate(spool.path, cut)
    kept = sum(end <= cut for end in ends)
    again = Spool(folder, 3)
    for step, value in enumerate(values):  # the trial is trained again from its start
        again.append({"train/loss": value}, step, 1000 + step)
    points = list(read_points(again.path))
    assert [p.step for p in points] == list(range(len(values)))
    assert all(same_value(p.metrics["train/loss"], v) for p, v in zip(points, values, strict=True))
    assert [p.time_ms < 1000 for p in points] == [step < kept for step in range(len(values))]


def test_another_run_gets_everything_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    spool.set_run("old")
    spool.append({"a": 1.0}, 1, 10)
    spool.confirm(spool.waiting()[-1])
    assert spool.waiting() == []
    spool.set_run("new")
    assert [p.step for p in spool.waiting()] == [1]


def test_a_damaged_offset_means_sending_again(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    spool.append({"a": 1.0}, 1, 10)
    spool.confirm(spool.waiting()[-1])
    spool.close()
    spool.offset_path.write_text("")
    assert len(Spool(tmp_path, 0).waiting()) == 1


def test_a_file_changed_from_outside_is_named(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    spool.append({"a": 1.0}, 1, 10)
    spool.close()
    spool.path.write_text("hello\n" + spool.path.read_text())
    with pytest.raises(StorageError, match=r"trial-00000\.jsonl, line 1: not a line of a metric spool"):
        Spool(tmp_path, 0)


def test_non_finite_values_come_back_as_they_were(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    spool.append({"a": math.nan, "b": math.inf, "c": -math.inf}, 1, 10)
    [point] = list(read_points(spool.path))
    assert math.isnan(point.metrics["a"]) and point.metrics["b"] == math.inf and point.metrics["c"] == -math.inf


def test_sigkill_loses_no_report(tmp_path: Path) -> None:
    """The writer says on its output what it has reported; whatever it said is there after SIGKILL."""
    code = (
        "import sys; from pathlib import Path; from lorasweep.tracking.spool import Spool\n"
        "s = Spool(Path(sys.argv[1]), 0)\n"
        "for i in range(10**9):\n"
        "    s.append({'m': float(i)}, i, i); print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [int(next(process.stdout)) for _ in range(200)]
    process.kill()
    said += [int(line) for line in process.stdout.read().split()]
    process.wait()
    steps = [p.step for p in Spool(tmp_path, 0).waiting()]
    assert steps[: len(said)] == said


def test_what_others_did_meanwhile_comes_first(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0)
    spool.set_run("r")
    spool.append({"a": 1.0, "b": 1.0}, 1, 10)
    spool.confirm(spool.waiting()[-1])
    spool.append({"a": 2.0}, 2, 20)
    spool.append({"a": 3.0, "b": 3.0}, 3, 30)
    spool.set_end("FINISHED", {})
    stored = [Point({"a": 1.0, "b": 1.0}, 1, 10, 0), Point({"a": 2.5}, 2, 21, 0)]
    spool.take_up(stored, [Point({"a": 2.75, "b": 2.75}, 2, 22, 0), Point({"a": 3.5}, 3, 31, 0)])
    wanted = [({"b": 2.75}, 2, 22), ({"a": 3.5}, 3, 31), ({"b": 3.0}, 3, 30)]
    for one in (spool, Spool(tmp_path, 0)):
        assert [(point.metrics, point.step, point.time_ms) for point in one.waiting()] == wanted
        assert one.run_id == "r" and one.ending is None and one.newest("a") == 3.5 and one.last_step == 3
    assert [(point.metrics, point.step) for point in read_points(spool.path)][:2] == [
        ({"a": 1.0, "b": 1.0}, 1),
        ({"a": 2.5}, 2),
    ]
    spool.append({"a": 9.0, "b": 9.0}, 3, 99)  # known by now
    spool.append({"a": 4.0}, 4, 40)
    assert [point.metrics for point in spool.waiting()][3:] == [{"a": 4.0}]
    spool.confirm(spool.waiting()[-1])
    spool.close()
    assert Spool(tmp_path, 0).waiting() == []


@pytest.mark.parametrize("at", ["os.fsync", "lorasweep.tracking.spool.sync_folder"])
def test_a_kill_while_it_takes_up_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    spool = Spool(tmp_path, 0)
    spool.set_run("r")
    for step in range(4):
        spool.append({"a": float(step)}, step, step)
    spool.confirm(spool.waiting()[1])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(at, die)
        spool.take_up([Point({"a": 0.0}, 0, 0, 0)], [Point({"a": 5.0}, 5, 5, 0)])
    again = Spool(tmp_path, 0)
    assert {2, 3} <= {point.step for point in again.waiting()} and again.run_id == "r"
    again.take_up([Point({"a": 0.0}, 0, 0, 0), Point({"a": 1.0}, 1, 1, 0)], [Point({"a": 5.0}, 5, 5, 0)])
    assert sorted(point.step for point in again.waiting()) == [2, 3, 5]
