"""Learning rates equal transformers' schedules, step for step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from lorasweep.config.schema import OptimizerConfig, TrainConfig
from lorasweep.training.schedule import learning_rate, total_steps, warmup_steps


@given(
    st.sampled_from(["linear", "cosine", "constant"]),
    st.integers(1, 40),
    st.integers(0, 12),
    st.floats(1e-6, 1e-1),
)
def test_rates_equal_transformers(schedule: str, steps: int, warmup: int, lr: float) -> None:
    settings = OptimizerConfig(lr=lr, schedule=schedule, warmup_steps=warmup)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    theirs = {"constant": "constant_with_warmup"}.get(schedule, schedule)
    scheduler = get_scheduler(theirs, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    for step in range(steps):
        assert learning_rate(settings, step, steps) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12, abs=1e-30)
        optimizer.step()
        scheduler.step()


def test_warmup_ratio_rounds_up_and_steps_win() -> None:
    assert warmup_steps(OptimizerConfig(warmup_ratio=0.1), 55) == 6
    assert warmup_steps(OptimizerConfig(warmup_ratio=0.1, warmup_steps=3), 55) == 3


def test_steps_by_epochs_round_up() -> None:
    assert total_steps(TrainConfig(epochs=1.0, batch_size=16), 100) == 7
    assert total_steps(TrainConfig(epochs=0.01, batch_size=16), 100) == 1
    assert total_steps(TrainConfig(max_steps=5, epochs=9.0), 100) == 5
