"""optimizer=adamw8bit: full fine-tuning with 8-bit moments, saved and restored bit for bit."""

import sys
from collections.abc import Callable

import pytest
import torch

from enginelab import base_of, config, pack_of, rows, run
from lorasweep.errors import ModelError
from lorasweep.training.pack import Pack

pytest.importorskip("bitsandbytes")


def trained(path: str, kind: str, turns: int) -> Pack:
    """A trial of wide layers (bitsandbytes keeps tensors below 4,096 values in 32 bits), some steps in."""
    trial = config(path, adapter__kind="full", optimizer__kind=kind, optimizer__lr=1e-3, train__max_steps=6)
    pack = pack_of(base_of(trial), 1, rows(40))
    pack.admit(0, trial)
    run(pack, turns)
    return pack


def weights(pack: Pack) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in pack.engine.save(0).values()])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    from enginelab import build_base

    return build_base("bert", tmp_path_factory.mktemp("wide"), hidden=64)


def test_moments_are_in_8_bits_and_training_is_nearly_the_same(wide: str) -> None:
    start, plain, small = (trained(wide, kind, turns) for kind, turns in (("adamw", 0), ("adamw", 5), ("adamw8bit", 5)))
    states = [state for state in small.engine.optimizer(0).state.values() if "state1" in state]
    assert any(state["state1"].dtype == torch.uint8 for state in states)
    moved, apart = (weights(plain) - weights(start)).norm(), (weights(plain) - weights(small)).norm()
    assert 0 < apart < 0.2 * moved


def test_a_restored_trial_goes_on_bit_for_bit(wide: str) -> None:
    whole, cut = trained(wide, "adamw8bit", 5), trained(wide, "adamw8bit", 3)
    tensors, fields = cut.state(0)
    trial = cut.roster.slot(0).config
    again = pack_of(base_of(trial), 1, rows(40))
    again.load_state(0, trial, {name: tensor.clone() for name, tensor in tensors.items()}, fields)
    run(again, 2)
    assert torch.equal(weights(again), weights(whole))


def test_without_bitsandbytes_the_error_names_both_repairs(
    base_path: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = config(base_path("bert"), adapter__kind="full", optimizer__kind="adamw8bit")
    pack = pack_of(base_of(trial), 1, rows(8))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ModelError, match=r"pip install bitsandbytes.*optimizer=adamw"):
        pack.admit(0, trial)


def test_adapters_keep_their_moments_in_32_bits(base_path: Callable[[str], str]) -> None:
    trial = config(base_path("bert"), optimizer__kind="adamw8bit", train__max_steps=2)
    pack = pack_of(base_of(trial), 1, rows(8))
    pack.admit(0, trial)
    run(pack, 1)
    assert all(state["exp_avg"].dtype == torch.float32 for state in pack.engine.optimizer(0).state.values())
