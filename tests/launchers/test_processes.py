"""Processes as a crew: what one says and how it ends, told apart; started again, but not for ever."""

from __future__ import annotations

import json
import logging
import os
import sys
import time

import pytest

from lorasweep.errors import ConfigError, DataError
from lorasweep.launchers import local
from lorasweep.launchers.local import Processes
from lorasweep.launchers.news import News, Standing, Teller, Trouble
from lorasweep.launchers.orders import Orders
from lorasweep.launchers.oversight import Look
from lorasweep.launchers.places import Place
from lorasweep.records import TrialRecord, TrialState

HERE = [Place(None, (), 1)]
TELL = """import json, os, sys
orders = json.loads(sys.stdin.readline())
def say(**what): print(json.dumps(what), flush=True)
"""


def crew_of(monkeypatch: pytest.MonkeyPatch, script: str, places: list[Place] = HERE) -> Processes:
    """A crew whose workers are this script."""
    monkeypatch.setattr(local, "PROGRAM", (sys.executable, "-c", TELL + script))
    return Processes(Orders("mini", 0, "/nowhere"), places)


def looks_of(crew: Processes) -> list[Look]:
    looks = [crew.look()]
    deadline = time.monotonic() + 60
    while not looks[-1].over:
        assert time.monotonic() < deadline
        time.sleep(0.02)
        looks.append(crew.look())
    return looks


def test_orders_arrive_with_the_share_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "say(notes=[json.dumps([orders, os.environ.get('CUDA_VISIBLE_DEVICES')])], trials={}, ended=0)"
    crew = crew_of(monkeypatch, script, [Place("GPU-a", (), 4), Place("GPU-b", (), 4)])
    said = [json.loads(note) for look in looks_of(crew) for news in look.news for note in news.notes]
    assert sorted((orders["index"], gpu) for orders, gpu in said) == [(0, "GPU-a"), (1, "GPU-b")]
    assert said[0][0]["threads"] == 4 and said[0][0]["sweep"] == "mini"


def test_a_worker_that_dies_again_and_again_ends_the_sweep_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looks_of(crew_of(monkeypatch, "print('no libcuda', file=sys.stderr)\nsys.exit(3)"))
    notes = [note for look in looks for note in look.notes]
    assert notes == ["worker 0 (all cores) ended with code 3: no libcuda; it is started again"] * 4
    (trouble,) = [trouble for look in looks for trouble in look.troubles]
    assert "ended with code 3 5 times in a row" in trouble.message and "  no libcuda" in trouble.message
    assert trouble.exit_code == 1


def test_one_that_ends_trials_in_between_is_started_again_as_often_as_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    script = (
        f"lives = '{tmp_path}/lives'\nopen(lives, 'a').write('x')\nsay(notes=[], trials={{}}, ended=1)\n"
        "sys.exit(0) if len(open(lives).read()) == 5 else os.kill(os.getpid(), 9)"
    )
    looks = looks_of(crew_of(monkeypatch, script))
    assert sum(len(look.notes) for look in looks) == 4
    assert "was killed by SIGKILL (out of memory?)" in next(look.notes[0] for look in looks if look.notes)
    assert not any(look.troubles for look in looks)


@pytest.mark.parametrize(("steps", "lives", "lost"), [("life * 5", 9, False), ("7", 5, True)])
def test_one_that_gets_further_with_a_trial_each_time_is_started_again_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, steps: str, lives: int, lost: bool
) -> None:
    """A trial goes on from its checkpoint; where each life ends at the same step, none will get past it."""
    script = (
        f"lives = '{tmp_path}/lives'\nopen(lives, 'a').write('x')\nlife = len(open(lives).read())\n"
        f"say(notes=[], trials={{'4': {{'max_steps': 90, 'step': {steps}}}}}, ended=0)\n"
        "sys.exit(0) if life == 9 else os.kill(os.getpid(), 9)"
    )
    looks = looks_of(crew_of(monkeypatch, script))
    assert sum(len(look.notes) for look in looks) == lives - 1
    assert [
        trouble.message.count("without getting on with a trial") for look in looks for trouble in look.troubles
    ] == ([1] if lost else [])


def test_an_error_of_its_own_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trouble = Trouble.of(DataError("the rows are others"))
    looks = looks_of(crew_of(monkeypatch, f"say(trouble={vars(trouble)})\nsys.exit(2)"))
    assert [trouble for look in looks for trouble in look.troubles] == [trouble]
    error = trouble.error()
    assert isinstance(error, DataError) and isinstance(error, ConfigError)
    assert (str(error), error.exit_code) == ("the rows are others", 2)


def test_stop_lets_them_leave_and_kill_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = crew_of(monkeypatch, "import time\nsay(notes=['here'], trials={}, ended=0)\ntime.sleep(600)")
    while not any(news.notes for news in crew.look().news):
        time.sleep(0.02)
    pid = crew.hands[0].process.pid
    crew.stop()
    assert not looks_of(crew)[-1].troubles  # a signal that we sent is no death
    crew = crew_of(monkeypatch, "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(600)")
    crew.kill()
    for dead in (pid, crew.hands[0].process.pid):
        with pytest.raises(ProcessLookupError):
            os.kill(dead, 0)


def test_news_are_where_trials_are_and_notes_are_told_once() -> None:
    teller = Teller()
    teller.trial_started(3, {}, 17)
    teller.stepped(3, 2, 0.5)
    teller.evaluated(3, 2, 0.75)
    teller.trial_started(4, {}, 9)
    teller.trial_ended(TrialRecord(4, TrialState.COMPLETE))
    with teller.overhearing():
        logging.getLogger("lorasweep.tracking.tracker").warning("MLflow is %s", "busy")
    logging.getLogger("lorasweep.tracking.tracker").warning("and told nobody's worker")
    news = News.from_json(json.loads(json.dumps(teller.take().to_json())))
    assert news == News(["MLflow is busy"], {3: Standing(17, 2, 0.5, 0.75)}, 1)
    assert teller.take().notes == []
