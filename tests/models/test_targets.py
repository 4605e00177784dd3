"""What `adapter.*` may name in a base, and what it says where there is no such module."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from enginelab import base_of, config
from lorasweep.errors import ModelError
from lorasweep.models.targets import resolve_targets, resolve_whole


def test_a_module_trained_whole_is_not_adapted_too(base_path: Callable[[str], str]) -> None:
    trial = config(base_path("bert"), adapter__modules_to_save=["query"])
    base = base_of(trial)
    whole, targets = resolve_whole(base, trial.adapter), resolve_targets(base, trial.adapter)
    assert whole and all(name.endswith(".query") for name in whole)
    assert {*whole, *targets} == set(base.linear_modules) and not set(whole) & set(targets)


@pytest.mark.parametrize(
    ("family", "ending", "said"),
    [
        (
            "bert",
            "querry",
            "ends so; only nn.Linear can be trained whole; did you mean `query`?",
        ),
        ("bert", "LayerNorm", "has no linear module outside of the head that ends so"),
        (
            "gpt2",
            "c_attn",
            "c_attn is a Conv1D; only nn.Linear can be trained whole; adapt it instead, with adapter.targets",
        ),
    ],
)
def test_what_cannot_be_trained_whole(family: str, ending: str, said: str, base_path: Callable[[str], str]) -> None:
    trial = config(base_path(family), adapter__modules_to_save=[ending])
    with pytest.raises(ModelError) as raised:
        resolve_whole(base_of(trial), trial.adapter)
    assert f"adapter.modules_to_save names `{ending}` and" in str(raised.value) and said in str(raised.value)
