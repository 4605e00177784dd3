"""What a worker tells the command that watches it: notes in words, and where its trials are at this moment.

How trials start and end stands in the study, which everybody reads; news may be lost. Neighbours: `worker` (tells, by
`progress.Progress`), `oversight` (shows).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from lorasweep.errors import LorasweepError
from lorasweep.records import TrialRecord

NOTES_KEPT = 50  # that nobody has asked for yet


@dataclass
class Standing:
    """A trial in its slot. `max_steps` counts optimizer steps; `value` is its newest evaluation's."""

    max_steps: int
    step: int = 0
    loss: float | None = None
    value: float | None = None


@dataclass
class News:
    """`notes` since the last news; `trials` in training, by number; `ended`: trials that this process has brought to
    their end."""

    notes: list[str] = field(default_factory=list)
    trials: dict[int, Standing] = field(default_factory=dict)
    ended: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> News:
        """The inverse of `to_json`, also after a trip through JSON text, which makes words of numbers."""
        trials = {int(number): Standing(**standing) for number, standing in document["trials"].items()}
        return cls(list(document["notes"]), trials, int(document["ended"]))


class Teller(logging.Handler):
    """Gathers news from the worker's thread, and warnings of our own as notes; any thread may `take` them."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._news, self._changing = News(), threading.Lock()

    @contextmanager
    def overhearing(self) -> Iterator[None]:
        """Tell warnings too, which nobody sees where they would go."""
        logger = logging.getLogger("lorasweep")
        before = logger.propagate
        logger.addHandler(self)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.propagate = before

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        self.note(record.getMessage())

    def take(self) -> News:
        """The news now; its notes are told once."""
        with self._changing:
            taken = News.from_json(self._news.to_json())
            self._news.notes.clear()
            return taken

    def count(self) -> int:
        """How many trials have ended here."""
        with self._changing:
            return self._news.ended

    def note(self, text: str) -> None:
        """See `Progress`."""
        with self._changing:
            self._news.notes = [*self._news.notes, text][-NOTES_KEPT:]

    def trial_started(self, number: int, params: dict[str, Any], max_steps: int) -> None:
        """See `Progress`."""
        with self._changing:
            self._news.trials[number] = Standing(max_steps)

    def stepped(self, number: int, step: int, loss: float) -> None:
        """See `Progress`."""
        with self._changing:
            if (standing := self._news.trials.get(number)) is not None:
                standing.step, standing.loss = step, float(loss)

    def evaluated(self, number: int, step: int, value: float | None) -> None:
        """See `Progress`."""
        with self._changing:
            if (standing := self._news.trials.get(number)) is not None:
                standing.step, standing.value = step, None if value is None else float(value)

    def trial_ended(self, record: TrialRecord) -> None:
        """See `Progress`."""
        with self._changing:
            self._news.trials.pop(record.trial, None)
            self._news.ended += 1


@dataclass(frozen=True)
class Trouble:
    """An error of a worker on its way to the command: the name of its class, its words, the command's exit code."""

    kind: str
    message: str
    exit_code: int

    @classmethod
    def of(cls, error: LorasweepError) -> Trouble:
        """That of an error raised here."""
        return cls(type(error).__name__, str(error), error.exit_code)

    @property
    def is_interruption(self) -> bool:
        """Whether the worker saved and left because it was asked to."""
        return self.exit_code == 130

    def error(self) -> LorasweepError:
        """The error again, to be raised where the command can tell of it."""
        from lorasweep import errors

        known = getattr(errors, self.kind, LorasweepError)
        error = known(self.message) if known is not errors.TrialFailed else LorasweepError(self.message)
        error.exit_code = self.exit_code
        return error
