"""What numbers from a few hundred evaluation rows can and cannot say. Pure numpy and scipy: knows no sweep, no file.

`scores` (a metric of many resamples), `intervals` (how sure one number is), `paired` (is one model better than
another), `many` (which of many are as good as the first). Users: `worker` (a trial's interval), `ranking` (ties),
`registry` (the gate of a promotion).
"""

from __future__ import annotations

from lorasweep.stats.intervals import LEVEL, interval, mean_interval, wilson
from lorasweep.stats.many import holm, tied_with_first, welch
from lorasweep.stats.paired import Decision, better, mcnemar
from lorasweep.stats.scores import Results, is_known, kind_of, value_of

__all__ = [
    "LEVEL",
    "Decision",
    "Results",
    "better",
    "holm",
    "interval",
    "is_known",
    "kind_of",
    "mcnemar",
    "mean_interval",
    "tied_with_first",
    "value_of",
    "welch",
    "wilson",
]
