"""Some of many, evenly spread: the one rule by which rows and trials are left out.

The same length gives the same places, so that trials which are judged by some of the rows are judged by the same ones.
Users: `workbench` (validation rows at a rung), `reporting` (trials that are drawn).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spread, in their order, the first among them."""
    count = min(len(items), most)
    return [items[place * len(items) // count] for place in range(count)]
