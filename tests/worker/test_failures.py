"""Failures of one cause in a row stop a sweep; others do not."""

from __future__ import annotations

from lorasweep.records import TrialRecord, TrialState
from lorasweep.worker.failures import Streak


def failed(number: int, cause: str = "out_of_memory") -> TrialRecord:
    return TrialRecord(number, TrialState.FAILED, reason=f"{cause}: trial {number} is too large: by much")


def test_so_many_of_one_cause_in_a_row_are_an_error_that_tells_it() -> None:
    streak = Streak("mini", 3)
    for number in range(3):
        assert streak.error is None
        streak.note(failed(number))
    message = str(streak.error)
    assert "sweep mini stopped: its last 3 trials all failed of one cause" in message
    assert "out_of_memory: trial 2 is too large: by much" in message
    assert "`lorasweep resume mini`" in message and "sweep.max_failures=0" in message


def test_a_trial_that_does_not_fail_or_another_cause_breaks_the_row() -> None:
    streak = Streak("mini", 3)
    for record in (failed(0), failed(1), TrialRecord(2, TrialState.PRUNED), failed(3), failed(4), failed(5, "config")):
        streak.note(record)
        assert streak.error is None
    for number in (6, 7):
        streak.note(failed(number, "config"))
    assert streak.error is not None and "config: trial 7" in str(streak.error)


def test_none_stops_where_all_are_borne() -> None:
    streak = Streak("mini", 0)
    for number in range(50):
        streak.note(failed(number))
    assert streak.error is None
