"""Which trials can be registered, and which have nothing to export."""

from __future__ import annotations

import pytest

from lorasweep.config.compose import compose
from lorasweep.registry.candidate import unserved, untrained

CASES = {
    (): ({}, {}),
    ("adapter=full",): ({}, {}),
    ("task=qa", "data=demo_qa"): ({"task.kind": "qa"}, {}),
    ("task=instruct", "model=tiny_decoder"): ({"task.kind": "instruct"}, {}),
    ("model=majority",): ({"model.kind": "majority"}, {"model.kind": "majority"}),
    ("adapter=none",): ({"adapter.kind": "none"}, {"adapter.kind": "none"}),
    ("adapter=none", "task=instruct"): ({"task.kind": "instruct", "adapter.kind": "none"}, {"adapter.kind": "none"}),
}


@pytest.mark.parametrize(("words", "expected"), CASES.items())
def test_what_keeps_a_trial_from_being_registered_or_exported(
    words: tuple[str, ...], expected: tuple[dict[str, str], dict[str, str]]
) -> None:
    config = compose(words)
    assert (unserved(config), untrained(config)) == expected
