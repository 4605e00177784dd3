"""What a sweep says while it runs. `worker` tells it, `live` shows it; neither knows the other.

A neighbour of `records`: pure, no libraries.
"""

from __future__ import annotations

from typing import Any, Protocol

from lorasweep.records import TrialRecord


class Progress(Protocol):
    """Told of each step of a sweep, in the worker's thread; must return fast and never raise."""

    def note(self, text: str) -> None:
        """Something worth a line: a base that loads, a sweep that continues."""

    def trial_started(self, number: int, params: dict[str, Any], max_steps: int) -> None:
        """A trial took a slot. `max_steps` counts optimizer steps."""

    def stepped(self, number: int, step: int, loss: float) -> None:
        """An optimizer step was made."""

    def evaluated(self, number: int, step: int, value: float | None) -> None:
        """An evaluation ended with this value of the objective."""

    def trial_ended(self, record: TrialRecord) -> None:
        """A trial left its slot: complete, pruned or failed."""


class Silent:
    """Shows nothing; for `--json` and tests."""

    def note(self, text: str) -> None: ...
    def trial_started(self, number: int, params: dict[str, Any], max_steps: int) -> None: ...
    def stepped(self, number: int, step: int, loss: float) -> None: ...
    def evaluated(self, number: int, step: int, value: float | None) -> None: ...
    def trial_ended(self, record: TrialRecord) -> None: ...
