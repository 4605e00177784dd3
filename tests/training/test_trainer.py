"""A trial alone gives the loss curve of transformers.Trainer with the same data order and no dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from enginelab import base_of, config, export_now, pack_of, pad, peft_model, rows, run
from lorasweep.training.slot import DataOrder


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_loss_curve_is_the_trainers(family: str, base_path: Callable[[str], str], tmp_path: Path) -> None:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    train = rows(30)
    trial = config(
        base_path(family),
        optimizer__lr=5e-3,
        optimizer__weight_decay=0.05,
        optimizer__warmup_ratio=0.1,
        train__batch_size=8,
        train__max_steps=15,
    )
    pack = pack_of(base_of(trial), 1, train)
    pack.admit(0, trial)
    model = peft_model(trial, export_now(pack, 0, tmp_path / "start"))
    ours = [event.loss for event in run(pack)[0]]

    class Ordered(torch.utils.data.Sampler[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(DataOrder(len(train), trial.train.seed).draw(15 * 8).tolist())

        def __len__(self) -> int:
            return 15 * 8

    class Ours(Trainer):
        def _get_train_sampler(self, *_: Any) -> Ordered:
            return Ordered()

    class Losses(TrainerCallback):
        def __init__(self) -> None:
            self.losses: list[float] = []

        def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    def collate(chosen: list[dict[str, int]]) -> dict[str, torch.Tensor]:
        indexes = torch.tensor([row["row"] for row in chosen])
        return pad(train, indexes, model.config.pad_token_id) | {"labels": train.labels[indexes]}

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    seen = Losses()
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=8,
        max_steps=15,
        learning_rate=5e-3,
        weight_decay=0.05,
        warmup_steps=2,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
    )
    trainer = Ours(
        model=model,
        args=arguments,
        train_dataset=[{"row": row} for row in range(len(train))],
        data_collator=collate,
        callbacks=[seen],
    )
    trainer.train()
    assert len(seen.losses) == 15
    assert ours == pytest.approx(seen.losses, rel=1e-4)
