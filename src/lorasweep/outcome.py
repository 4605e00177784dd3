"""What a command that trained has to say: its numbers, its best trial, and what to do next.

Neighbours: `sweeping` (trains, and makes one), `ranking` (the table that is printed), `finalists` (what the best can do
next), `cli` and `api` (who show it).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lorasweep import finalists
from lorasweep.config import compose
from lorasweep.ranking import board as leaderboard
from lorasweep.search.study import SweepStudy


@dataclass
class Outcome:
    """What a command that trained has to say."""

    board: leaderboard.Leaderboard
    counts: dict[str, int]
    best: dict[str, Any] | None
    wall_seconds: float
    train_samples: int
    slots: int
    nothing_to_do: bool = False
    detached: bool = False  # workers train on without this command
    stopped: str | None = None  # which budget ended the search; None for single trials
    grows: bool = False  # a larger sweep.trials would continue it
    reason: str | None = None  # why there is no best one
    where: str = ""  # the overrides by which other commands find it
    uses: list[str] = field(default_factory=list)  # commands that take the best trial further

    def to_json(self) -> dict[str, Any]:
        """The document of `lorasweep sweep --json`."""
        return {
            "sweep": self.board.sweep,
            "counts": self.counts,
            "best": self.best,
            "wall_seconds": round(self.wall_seconds, 3),
            "train_samples": self.train_samples,
            "slots": self.slots,
            "stopped": self.stopped,
            "reason": self.reason,
            **({"detached": True} if self.detached else {}),
        }


def outcome_of(
    study: SweepStudy, slots: int, wall_seconds: float, nothing_to_do: bool = False, detached: bool = False
) -> Outcome:
    """What the study has to say now."""
    board = leaderboard.Leaderboard.of(study)
    return Outcome(
        board=board,
        counts=study.counts(),
        best=board.best,
        wall_seconds=wall_seconds,
        train_samples=sum(row["samples"] for row in board.rows),
        slots=slots,
        nothing_to_do=nothing_to_do,
        detached=detached,
        reason=None if detached else board.why_none(),
        stopped=study.stop_reason() if study.space is not None else None,
        grows=study.grows,
        where="".join(f" {word}" for word in study.overrides if compose.is_tracking(word)),
        uses=finalists.uses(study, board.best),
    )


def show(outcome: Outcome) -> None:
    """Print the leaderboard and what to do next."""
    from lorasweep.live import format_seconds

    name = outcome.board.sweep
    if outcome.detached:
        print(f"Sweep {name} trains on without this command.")
        print(f"Look:  lorasweep workers {name}   |   lorasweep leaderboard {name}")
        print(f"       lorasweep resume {name} watches it to its end, lorasweep pause {name} lets its workers leave")
        return
    leaderboard.show(outcome.board)
    counts = ", ".join(f"{count} {state}" for state, count in outcome.counts.items() if count)
    if outcome.nothing_to_do:
        more = "; a larger sweep.trials=N continues it" if outcome.grows else ""
        print(f"\nSweep {name} is finished: {counts}. All is done{more}.")
    else:
        samples = f"{outcome.train_samples:,} training samples"
        slots = f"{outcome.slots} slot{'s' * (outcome.slots != 1)}"
        print(f"\n{counts} in {format_seconds(outcome.wall_seconds)}, {samples}, {slots}.")
    if outcome.stopped:
        print(f"The search ended because {outcome.stopped}.")
    if outcome.best is None:
        print("No trial is complete; the reasons stand in the table.")
    else:
        print("Next:  " + "   |   ".join(f"{line}{outcome.where}" for line in [f"lorasweep ui {name}", *outcome.uses]))
