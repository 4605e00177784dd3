"""One trial, three ways, interleaved in one process: lorasweep with one slot, plain PEFT + torch, the Trainer.

    python benchmarks/solo.py [--model DIR_OR_ID] [--train FILE.tsv] [--steps 100] [--batch-size 8] [--rounds 5]

Each way trains the same LoRA (all linear layers, no dropout) on the same rows in the same order; loading is not timed.
The hand-written loop pads each batch to its longest row, as a careful user would. Prints medians and ratios, and one
JSON line. Without --model and --train it uses the tiny demo base and the demo reviews.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the lorasweep command sets it

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from lorasweep.config import compose
from lorasweep.config.home import Folders, Home
from lorasweep.config.schema import Config
from lorasweep.launchers.local import prepare
from lorasweep.models.builtin import resolve
from lorasweep.training.pack import Finished
from lorasweep.training.slot import DataOrder
from lorasweep.workbench import Workbench


def batches(workbench: Workbench, config: Config) -> list[dict[str, torch.Tensor]]:
    """The micro-batches of the trial, padded to the longest row of each."""
    train, _ = workbench.encoded(config)
    pad = workbench.base(config).tokenizer.pad_token_id
    order = DataOrder(len(train.labels), config.train.seed)
    made = []
    for _ in range(config.train.max_steps):
        rows = order.draw(config.train.batch_size)
        texts = [train.row(int(row)) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
        made.append({"input_ids": ids, "attention_mask": mask, "labels": train.labels[rows]})
    return made


def peft_model(config: Config, labels: int) -> torch.nn.Module:
    """The model a user builds by hand."""
    model = AutoModelForSequenceClassification.from_pretrained(
        resolve(config.model.path), num_labels=labels, dtype=torch.float32
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adapter = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=config.adapter.r, lora_alpha=config.adapter.alpha, target_modules="all-linear"
    )
    return get_peft_model(model, adapter)


def starting_point(model: torch.nn.Module) -> Callable[[], None]:
    """A function that puts the trained weights back to what they are now: every round trains the same trial."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    first = [weight.detach().clone() for weight in trained]

    def reset() -> None:
        with torch.no_grad():
            for weight, value in zip(trained, first, strict=True):
                weight.copy_(value)

    return reset


def by_hand(workbench: Workbench, config: Config) -> Callable[[], float]:
    """Plain PEFT and torch: forward, backward, clip, AdamW, linear decay."""
    rows = batches(workbench, config)
    model = peft_model(config, len(workbench.data(config).label_names)).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    reset = starting_point(model)

    def run() -> float:
        reset()
        optimizer = torch.optim.AdamW(weights, lr=config.optimizer.lr, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / config.train.max_steps)
        started = time.perf_counter()
        for batch in rows:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            cross_entropy(model(**inputs).logits, batch["labels"]).backward()
            torch.nn.utils.clip_grad_norm_(weights, config.optimizer.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - started

    return run


def by_trainer(workbench: Workbench, config: Config, folder: Path) -> Callable[[], float]:
    """transformers.Trainer over the same batches."""
    rows = batches(workbench, config)
    model = peft_model(config, len(workbench.data(config).label_names))
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=config.train.max_steps, learning_rate=config.optimizer.lr,
        per_device_train_batch_size=1, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
        logging_strategy="no", dataloader_drop_last=False,
    )  # fmt: skip

    reset = starting_point(model)

    def run() -> float:
        reset()
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=lambda found: found[0])
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started

    return run


def by_lorasweep(workbench: Workbench, config: Config) -> Callable[[], float]:
    """A pack of one. The evaluation that closes every trial is taken out of the time."""
    pack = workbench.pack(config)

    def run() -> float:
        pack.admit(0, config)
        started, steps = time.perf_counter(), 0
        while steps < config.train.max_steps - 1:  # the last step brings the closing evaluation with it
            pack.advance()
            steps += 1
        elapsed = time.perf_counter() - started
        while not any(isinstance(event, Finished) for event in pack.advance()):
            pass
        pack.evict(0)
        return elapsed * config.train.max_steps / (config.train.max_steps - 1)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin:tiny_encoder")
    parser.add_argument("--train", help="a .tsv with the columns sentence and label; default: the demo reviews")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/lorasweep-bench"))
    arguments = parser.parse_args()
    overrides = [
        "model=hf", f"model.path={arguments.model}", f"train.max_steps={arguments.steps}", "data.max_length=64",
        f"train.batch_size={arguments.batch_size}", "train.base_dropout=0", "data.max_eval_rows=64",
    ]  # fmt: skip
    if arguments.train:
        overrides += ["data=file", f"data.train={arguments.train}", "data.text_column=sentence"]
    config = compose.compose(overrides, home=Home.find())
    prepare(config.launcher)
    workbench = Workbench(Folders(arguments.folder), config.sweep.objective, 1)
    ways = {
        "lorasweep, one slot": by_lorasweep(workbench, config),
        "PEFT + torch by hand": by_hand(workbench, config),
        "transformers.Trainer": by_trainer(workbench, config, arguments.folder),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(arguments.rounds + 1):  # the first round warms up and is not counted
        for name, run in ways.items():
            elapsed = run()
            if round_number:
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours, samples = medians["lorasweep, one slot"], arguments.steps * arguments.batch_size
    print(
        f"{arguments.model}, batch {arguments.batch_size}, {arguments.steps} steps, {torch.get_num_threads()} threads"
    )
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f}"
        print(f"{name:<22} {median:6.2f} s ({spread})  {samples / median:7.1f} samples/s  {median / ours:5.2f}x ours")
    print(json.dumps({"model": arguments.model, "steps": arguments.steps, "median_seconds": medians}))


if __name__ == "__main__":
    main()
