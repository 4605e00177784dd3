"""A pack that is shaped and filled from a checkpoint goes on bit for bit, whatever its history was."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from enginelab import base_of, clone, config, mixed_trials, pack_of, rows, run, values
from lorasweep.training.pack import Pack
from lorasweep.training.snapshot import reshape, shape_of


def with_history(pack: Pack, path: str) -> list[int]:
    """Four trials in progress, after two that were wider and adapted other modules have left."""
    trials = mixed_trials(path, 4, train__max_steps=30)
    wide = clone(trials[0], adapter__r=32, adapter__targets=["dense"])
    biased = clone(trials[1], adapter__bias="all", adapter__r=2)
    for number, trial in ((90, wide), (91, biased)):
        pack.admit(number, trial)
    run(pack, 2)
    pack.evict(90)
    pack.admit(0, trials[0])
    pack.evict(91)
    for number in (1, 2, 3):
        pack.admit(number, trials[number])
    pack.limits.tokens, pack.limits.split_rows = 64, True  # as after out of memory
    run(pack, 5)
    return [0, 1, 2, 3]


def restored(pack: Pack, path: str, shaped: bool) -> Pack:
    again = pack_of(base_of(config(path)), 4, rows(40))
    trials = mixed_trials(path, 4, train__max_steps=30)
    if shaped:
        reshape(again, json.loads(json.dumps(shape_of(pack))))
    for number in pack.active:
        tensors, fields = pack.state(number)
        again.load_state(number, trials[number], tensors, json.loads(json.dumps(fields)))
    return again


@pytest.mark.slow
def test_a_pack_restored_with_its_shape_goes_on_bit_for_bit(base_path: Callable[[str], str]) -> None:
    path = base_path("bert")
    pack = pack_of(base_of(config(path)), 4, rows(40))
    numbers = with_history(pack, path)
    again = restored(pack, path, shaped=True)
    assert shape_of(again) == shape_of(pack)
    assert shape_of(restored(pack, path, shaped=False)) != shape_of(pack)  # the trials alone do not tell it
    assert run(pack, 8) == run(again, 8)
    for number in numbers:
        assert torch.equal(values(pack, number), values(again, number))


def test_an_idle_pack_keeps_its_shape_for_the_next_trial(base_path: Callable[[str], str]) -> None:
    path = base_path("bert")
    pack = pack_of(base_of(config(path)), 4, rows(40))
    for number in with_history(pack, path):
        pack.evict(number)
    again = restored(pack, path, shaped=True)
    trial = mixed_trials(path, 1)[0]
    pack.admit(7, trial)
    again.admit(7, trial)
    assert run(pack, 4) == run(again, 4)
    assert torch.equal(values(pack, 7), values(again, 7))
