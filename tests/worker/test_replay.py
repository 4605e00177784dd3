"""What a checkpoint and the study say together of the trials that go on: which, in which order, as what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorasweep.checkpoint import Checkpoint
from lorasweep.config.compose import compose
from lorasweep.config.home import Folders, Home
from lorasweep.records import TrialRecord, TrialState
from lorasweep.search.leases import Leases
from lorasweep.search.space import parse_space
from lorasweep.search.study import SweepStudy
from lorasweep.worker.replay import Candidate, SavedTrial, recover, snapshot

pytestmark = pytest.mark.slow  # trains


class Bench:
    """A workbench that holds no pack."""

    packs: tuple[Any, ...] = ()

    def __init__(self, slots: int):
        self.slots = slots

    def rebuild(self, configs: list[Any]) -> list[Any]:
        assert configs == []
        return []


@pytest.fixture
def study(tmp_path: Path) -> SweepStudy:
    """Six trials of post 0: 0 and 4 have ended, the others run."""
    config = compose(["sweep.name=replayed", "sampler=random"], home=Home(Path("/nowhere"), Home.find().shipped))
    config.sweep.space = {"optimizer.lr": "interval(1e-4, 1e-2)"}
    space = parse_space(config.sweep.space, config)
    study = SweepStudy.open(Folders(tmp_path), config, space, {}, [], sweep_file="replayed")
    for number in range(6):
        asked = study.ask()
        assert asked is not None
        Leases(study._stored, "0", 10).claim(number)
        if number in (0, 4):
            whole = TrialRecord(number, TrialState.COMPLETE, 0.5, params=asked.params, samples=9, trainable_params=7)
            study.complete(number, 0.5, whole)
    return study


def checkpoint_of(slots: int = 3, last_asked: int = 2) -> Checkpoint:
    """Trial 1 was training and 2 waited for a slot; all later ones were asked for after it."""
    trials = [SavedTrial({}, {"step": 5}).to_json(1)]
    return Checkpoint(
        {"slots": slots, "last_asked": last_asked, "packs": [], "trials": trials, "waiting": [2]}, {}, ["a note"]
    )


def test_trials_go_on_in_the_order_in_which_they_were_asked_for(study: SweepStudy) -> None:
    found = recover(study, Leases(study._stored, "0", 10), Bench(3), checkpoint_of(), None)  # type: ignore[arg-type]
    assert [candidate.asked.number for candidate in found.queue] == [1, 2, 3, 4, 5]
    assert [candidate.saved is not None for candidate in found.queue] == [True, False, False, False, False]
    assert found.queue[0].saved is not None and found.queue[0].saved.fields == {"step": 5}
    ghosts = {candidate.asked.number: candidate.ended for candidate in found.queue if candidate.ended is not None}
    assert {number: ended.state for number, ended in ghosts.items()} == {4: TrialState.COMPLETE}
    assert (found.last_asked, found.notes) == (2, ["a note"])


def test_with_other_slots_what_has_ended_is_not_repeated(study: SweepStudy) -> None:
    found = recover(study, Leases(study._stored, "0", 10), Bench(4), checkpoint_of(), None)  # type: ignore[arg-type]
    assert [candidate.asked.number for candidate in found.queue] == [1, 2, 3, 5]
    assert not [candidate for candidate in found.queue if candidate.ended is not None]


def test_trials_of_other_posts_are_left_to_them(study: SweepStudy) -> None:
    Leases(study._stored, "1", 10).claim(3)
    found = recover(study, Leases(study._stored, "0", 10), Bench(3), checkpoint_of(), None)  # type: ignore[arg-type]
    assert [candidate.asked.number for candidate in found.queue] == [1, 2, 4, 5]
    assert Leases(study._stored, "0", 10).posts()[3] == "1"


def test_without_a_checkpoint_all_that_run_start_afresh(study: SweepStudy) -> None:
    leases = Leases(study._stored, "0", 10)
    found = recover(study, leases, Bench(3), None, None)  # type: ignore[arg-type]
    assert [(one.asked.number, one.saved) for one in found.queue] == [(number, None) for number in (1, 2, 3, 5)]
    damaged = recover(study, leases, Bench(3), Checkpoint({}, {}, ["damaged"]), None)  # type: ignore[arg-type]
    assert damaged.notes == ["damaged", "trials 1, 2, 3, 5 train again from their first step"]
    assert (damaged.last_asked, len(damaged.queue)) == (-1, 4)


def test_a_snapshot_holds_what_waits_up_to_the_last_that_was_asked_for(study: SweepStudy) -> None:
    asked = {one.number: one for one in study.interrupted()}
    saved = SavedTrial({"values": 1}, {"step": 2}, unsent=[["x", 1]])  # type: ignore[dict-item]
    queue = [Candidate(asked[1]), Candidate(asked[5], saved), Candidate(asked[2]), Candidate(asked[3])]
    state, tensors = snapshot(Bench(3), queue, last_asked=2)  # type: ignore[arg-type]
    assert state["waiting"] == [1, 2]  # 3 is found again in the study
    assert state["trials"] == [{"number": 5, "fields": {"step": 2}, "unsent": [["x", 1]]}]
    assert tensors == {"5.values": 1}
