"""When trial after trial fails of one cause: the sweep stops instead of spending its budget on it.

Neighbours: `worker` tells it of every end; `records`, `errors`.
"""

from __future__ import annotations

from lorasweep.errors import TooManyFailures
from lorasweep.records import TrialRecord, TrialState


class Streak:
    """Trials of a sweep that failed since the last one that did not, in the order of their ends; at most `most`."""

    def __init__(self, sweep: str, most: int):
        """`most`: `sweep.max_failures`; 0: any number is borne."""
        self.sweep, self.most = sweep, most
        self._reasons: list[str] = []

    def note(self, record: TrialRecord) -> None:
        """A trial has ended."""
        failed = record.state is TrialState.FAILED
        self._reasons = [*self._reasons, record.reason or ""][-max(1, self.most) :] if failed else []

    @property
    def error(self) -> TooManyFailures | None:
        """Why the sweep stops, where it should. A cause is what stands before the colon of a reason."""
        causes = {reason.partition(":")[0] for reason in self._reasons}
        if not self.most or len(self._reasons) < self.most or len(causes) > 1:
            return None
        return TooManyFailures(
            f"sweep {self.sweep} stopped: its last {self.most} trials all failed of one cause; the last one says: "
            f"{self._reasons[-1]}. Mend that and continue with `lorasweep resume {self.sweep}`, or let it go on "
            "whatever fails with sweep.max_failures=0"
        )
