"""What is measured, without network: plain functions for training, and the same as `evaluate.Metric` modules.

`classification`, `squad` and `text` hold the definitions as functions over arrays and strings: sweeps call these, so
that a start does not pay for importing `evaluate`. `modules` wraps them for users of `evaluate`; `load` finds one by
its name. Neighbours: `tasks` (who calls).
"""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def load(name: str) -> Any:
    """The local `evaluate.Metric` of this name; as `evaluate.load`, but nothing is fetched.

    Raises:
        UsageError: there is none of this name; names the nearest.
    """
    from lorasweep.metrics.modules import METRICS

    if name not in METRICS:
        from lorasweep.errors import UsageError, nearest

        raise UsageError(f"there is no local metric {name!r}; {nearest(name, METRICS)}")
    return METRICS[name]()
