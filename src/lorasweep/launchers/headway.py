"""Whether a worker that dies again and again gets anywhere: one that does is started again, however often.

A node short of memory or a shaky one kills workers in the middle of long trials, which go on from their checkpoints;
one that can never train dies each time at the same place. Neighbours: `local` and `ray` (crews), `news` (how far trials
are).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lorasweep.launchers.news import News

DEATHS_BORNE = 5  # of one worker in a row, in lives that ended no trial and took none further than the lives before


@dataclass
class Headway:
    """Of one worker, over all its lives. `deaths`: those in a row that count."""

    deaths: int = 0
    _furthest: dict[int, int] = field(default_factory=dict)  # a trial's number -> the step that it was seen at
    _is_ahead: bool = False  # in this life

    def hear(self, news: News) -> None:
        """What the worker says of itself in this life."""
        for number, standing in news.trials.items():
            if standing.step > self._furthest.get(number, 0):
                self._furthest[number], self._is_ahead = standing.step, True
        self._is_ahead = self._is_ahead or news.ended > 0

    def died(self) -> None:
        """This life is over, and another begins."""
        self.deaths = 1 if self._is_ahead else self.deaths + 1
        self._is_ahead = False

    def moved(self) -> None:
        """The same, because its node is gone: that says nothing of the worker."""
        self.deaths, self._is_ahead = 0, False

    @property
    def is_lost(self) -> bool:
        """Whether it died too often."""
        return self.deaths >= DEATHS_BORNE
