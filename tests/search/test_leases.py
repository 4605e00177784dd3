"""Which worker trains which trial: claims, signs of life, and that one who is silent for too long loses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import text
from test_study import folders  # noqa: F401  (a fixture)

from lorasweep.config.compose import compose
from lorasweep.config.home import Folders, Home
from lorasweep.errors import StorageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.leases import BEATS_IN_GRACE, Leases
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy

HOME = Home(Path("/nowhere"), Home.find().shipped)


@pytest.fixture
def study(folders: Folders) -> SweepStudy:  # noqa: F811
    config = compose(["sweep.name=leased", "sampler=random", "launcher.heartbeat_seconds=10"], home=HOME)
    config.sweep.space = {"optimizer.lr": "interval(1e-4, 1e-2)"}
    space = parse_space(config.sweep.space, config)
    return SweepStudy.open(folders, config, space, {}, [], sweep_file="leased")


def asked(study: SweepStudy, count: int) -> None:
    for _ in range(count):
        assert study.ask() is not None


def silence(study: SweepStudy, number: int, seconds: float) -> None:
    """Let the last sign of life of a trial be so long ago."""
    of_postgres, of_sqlite = "now() - make_interval(secs => :ago)", "datetime('now', '-' || :ago || ' seconds')"
    ago = of_postgres if study.folders.shared else of_sqlite
    words = f"update trial_heartbeats set heartbeat = {ago} where trial_id = :id"
    with study._stored._engine.begin() as connection:
        connection.execute(text(words), {"ago": seconds, "id": study._stored.id_of(number)})


def test_a_claimed_trial_is_its_posts_until_another_claims_it(study: SweepStudy) -> None:
    asked(study, 2)
    one, other = Leases(study._stored, "0", 10), Leases(study._stored, "1", 10)
    assert one.posts() == {0: None, 1: None}
    assert one.orphans([]) == [0, 1]  # their worker died before it could say who it is
    one.claim(0)
    other.claim(1)
    assert one.posts() == {0: "0", 1: "1"}
    assert one.holds(0) and not one.holds(1) and other.holds(1)
    assert one.orphans([]) == other.orphans([]) == []
    assert one.orphans(["1"]) == [1]  # nobody holds that post
    other.claim(0)
    assert not one.holds(0) and other.holds(0)


def test_silence_longer_than_the_grace_period_makes_orphans(study: SweepStudy) -> None:
    asked(study, 2)
    one, other = Leases(study._stored, "0", 10), Leases(study._stored, "1", 10)
    one.claim(0)
    one.claim(1)
    assert one.grace_seconds == 10 * BEATS_IN_GRACE == 40
    silence(study, 0, 30)
    assert other.orphans([]) == []
    silence(study, 0, 45)
    assert other.orphans([]) == [0]
    assert one.orphans([]) == []  # its own, which it has in hand
    one.beat([0])
    assert other.orphans([]) == []


def test_ended_trials_are_nobodys(study: SweepStudy) -> None:
    asked(study, 1)
    one, other = Leases(study._stored, "0", 10), Leases(study._stored, "1", 10)
    one.claim(0)
    study.fail(0, TrialRecord(0, TrialState.FAILED))
    silence(study, 0, 100)
    assert other.orphans(["0"]) == [] and not one.holds(0)
    with pytest.raises(StorageError, match="has ended already"):
        other.claim(0)


def test_one_who_was_stopped_finds_out_before_it_says_anything(
    study: SweepStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked(study, 2)
    one, other = Leases(study._stored, "0", 10), Leases(study._stored, "1", 10)
    for number in (0, 1):
        one.claim(number)
    other.claim(1)  # as after a long silence
    assert one.lost([0, 1]) == []  # so soon after its last beat it need not ask
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 21)
    assert one.lost([0, 1]) == [1]
    assert one.lost([0, 1]) == [1]  # and it is not forgotten by the next beat
    silence(study, 1, 45)
    one.renew([0, 1])
    assert Leases(study._stored, "2", 10).orphans([]) == [1]  # nobody beats for a trial that is another's


def test_a_thread_beats_while_a_step_takes_long(study: SweepStudy) -> None:
    asked(study, 1)
    one = Leases(study._stored, "0", heartbeat_seconds=0.05)
    one.claim(0)
    silence(study, 0, 1000)
    other = Leases(study._stored, "1", 10)
    assert other.orphans([]) == [0]
    with one.beating(lambda: [0]):
        deadline = time.monotonic() + 20
        while other.orphans([]) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert other.orphans([]) == []


def test_asking_warns_of_nothing(study: SweepStudy, recwarn: pytest.WarningsRecorder) -> None:
    Leases(study._stored, "0", 10).orphans([])
    asked(study, 1)
    assert not [warning for warning in recwarn if "eartbeat" in str(warning.message)]


def test_a_lost_trial_may_come_back(study: SweepStudy) -> None:
    asked(study, 1)
    one, other = Leases(study._stored, "0", 10), Leases(study._stored, "1", 10)
    one.claim(0)
    other.claim(0)
    one.renew([0])
    assert one.lost([0]) == [0] and one.elsewhere() == [0]
    one.claim(0)  # the other one died too
    assert one.lost([0]) == [] and one.elsewhere() == [] and other.elsewhere() == [0]
