"""Training steps alone, interleaved in one process: lorasweep with several slots, plain PEFT + torch, the Trainer.

    python benchmarks/steps.py [--model DIR_OR_ID] [--train FILE.tsv] [--steps 100] [--batch-size 8] [--slots 1 4 16]

Each way trains the same LoRA (no dropout) on the same rows in the same order; loading and evaluation are not timed. The
hand-written loop pads each batch to its longest row, as a careful user would. Prints medians and ratios, and writes
them as JSON into --out. Without --model and --train it uses the tiny demo base and the demo reviews.
"""

from __future__ import annotations

import argparse
import copy
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
        task_type=TaskType.SEQ_CLS,
        r=config.adapter.r,
        lora_alpha=config.adapter.alpha,
        target_modules=config.adapter.targets,
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


def by_lorasweep(workbench: Workbench, config: Config, slots: int) -> Callable[[], float]:
    """Seconds a trial in a pack of `slots`. The evaluation that closes every trial is taken out of the time."""
    trials = [copy.deepcopy(config) for _ in range(slots)]
    for seed, trial in enumerate(trials):
        trial.train.seed = config.train.seed + seed
    pack = workbench.pack(config)

    def run() -> float:
        for number, trial in enumerate(trials):
            pack.admit(number, trial)
        started, steps = time.perf_counter(), 0
        while steps < config.train.max_steps - 1:  # the last step brings the closing evaluation with it
            pack.advance()
            steps += 1
        elapsed = time.perf_counter() - started
        while not any(isinstance(event, Finished) for event in pack.advance()):
            pass
        for number in range(slots):
            pack.evict(number)
        return elapsed * config.train.max_steps / (config.train.max_steps - 1) / slots

    return run


def on_one_thread(run: Callable[[], float]) -> Callable[[], float]:
    """The same with one thread: on a small base faster than torch's default of one a core."""

    def alone() -> float:
        torch.set_num_threads(1)
        return run()

    return alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="tiny", help="of the table and of its files")
    parser.add_argument("--model", default="builtin:tiny_encoder")
    parser.add_argument("--train", help="a .tsv with the columns sentence and label; default: the demo reviews")
    parser.add_argument("--targets", default="all-linear", help="all-linear, or module endings with commas")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/lorasweep-bench"))
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    arguments = parser.parse_args()
    targets = arguments.targets if "," not in arguments.targets else f"[{arguments.targets}]"
    overrides = [
        "model=hf", f"model.path={arguments.model}", f"train.max_steps={arguments.steps}", "data.max_length=64",
        f"train.batch_size={arguments.batch_size}", "train.base_dropout=0", "data.max_eval_rows=64",
        f"adapter.targets={targets}",
    ]  # fmt: skip
    if arguments.train:
        overrides += ["data=file", f"data.train={arguments.train}", "data.text_column=sentence"]
    config = compose.compose(overrides, home=Home.find())
    prepare(config.launcher)
    first, folders = config.sweep.objective, Folders(arguments.folder)
    workbench = Workbench(folders, first, 1)
    cores = torch.get_num_threads()
    hand, trainer = by_hand(workbench, config), by_trainer(workbench, config, arguments.folder)
    ways = {
        "PEFT + torch by hand": hand,
        **({"PEFT + torch by hand, one thread": on_one_thread(hand)} if cores > 1 else {}),
        "transformers.Trainer": trainer,
        **{
            f"lorasweep, {slots} slots": by_lorasweep(Workbench(folders, first, slots), config, slots)
            for slots in arguments.slots
        },
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_number in range(arguments.rounds + 1):  # the first round warms up and is not counted
        for name, run in ways.items():
            torch.set_num_threads(cores)
            elapsed = run()
            if round_number:
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min((name for name in medians if name.startswith("PEFT")), key=lambda name: medians[name])
    samples = arguments.steps * arguments.batch_size
    tokens = float(workbench.encoded(config)[0].lengths.float().mean()) * arguments.batch_size
    title = f"{arguments.name}: batch {arguments.batch_size}, about {tokens:.0f} tokens a slot, {cores} threads"
    lines = [f"### {title}", "", f"| | samples/s (least to most) | of {fastest} |", "|---|---|---|"]
    for name, median in medians.items():
        spread = f"{samples / max(seconds[name]):.0f} to {samples / min(seconds[name]):.0f}"
        lines.append(f"| {name} | {samples / median:.0f} ({spread}) | {medians[fastest] / median:.2f}x |")
    print("\n".join(lines))
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"steps-{arguments.name}.md").write_text("\n".join([*lines, ""]))
    document = {"title": title, "samples": samples, "seconds_a_trial": seconds, "median_seconds": medians}
    (arguments.out / f"steps-{arguments.name}.json").write_text(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
