"""Learning rates and step counts of one trial, as transformers' schedules define them."""

from __future__ import annotations

import math

from lorasweep.config.schema import TRANSFORMER, Config, OptimizerConfig, TrainConfig


def total_steps(train: TrainConfig, rows: int) -> int:
    """Optimizer steps of a trial over `rows` training rows: max_steps, else epochs rounded up to whole steps."""
    if train.max_steps > 0:
        return train.max_steps
    return max(1, math.ceil(train.epochs * rows / samples_per_step(train)))


def trial_steps(config: Config, rows: int) -> int:
    """Optimizer steps of a trial; 0 where nothing is trained (adapter=none)."""
    return 0 if config.adapter.kind == "none" else total_steps(config.train, rows)


def samples_per_step(train: TrainConfig) -> int:
    """Training rows that one optimizer step sees."""
    return train.batch_size * train.accumulation


def warmup_steps(optimizer: OptimizerConfig, steps: int) -> int:
    """Steps of linear warm-up: warmup_steps, else the ratio rounded up, as transformers does."""
    return optimizer.warmup_steps or math.ceil(steps * optimizer.warmup_ratio)


def learning_rate(optimizer: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`."""
    warmup = warmup_steps(optimizer, steps)
    if step < warmup:
        return optimizer.lr * step / max(1, warmup)
    if optimizer.schedule == "constant":
        return optimizer.lr
    if optimizer.schedule == "linear":
        return optimizer.lr * max(0.0, (steps - step) / max(1, steps - warmup))
    progress = (step - warmup) / max(1, steps - warmup)
    return optimizer.lr * max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def trial_samples(config: Config, rows: int) -> int:
    """Training rows that a trial sees over `rows` of them, unless it stops early; repeated ones count again. A baseline
    of words sees each once."""
    if config.model.kind != TRANSFORMER:
        return rows
    return trial_steps(config, rows) * samples_per_step(config.train)
