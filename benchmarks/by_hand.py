"""The trials of a list as a careful user writes them by hand: plain PEFT + torch in one warm process.

    python benchmarks/by_hand.py --model DIR --train T.tsv --eval E.tsv --trials trials.json --eval-steps 50

No Trainer and no tracking: tokenise once, pad each batch to its longest row, fused AdamW, clipping, linear decay, sort
evaluation rows by length. Prints one JSON line, as peers/trainer_sweep.py does. Part of `packed.py`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def read(path: str) -> tuple[list[str], list[int]]:
    """Texts and labels of a TSV with the columns sentence and label."""
    rows = [line.split("\t") for line in Path(path).read_text().splitlines()[1:] if line]
    return [row[0] for row in rows], [int(row[1]) for row in rows]


class Rows:
    """Tokenised rows of a file."""

    def __init__(self, path: str, tokenizer: object, max_length: int):
        texts, labels = read(path)
        encoded = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]  # type: ignore[operator]
        self.ids = [torch.tensor(ids) for ids in encoded]
        self.labels = torch.tensor(labels)

    def batch(self, chosen: torch.Tensor, pad: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs padded to the longest of the chosen rows, and their labels."""
        texts = [self.ids[int(row)] for row in chosen]
        mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
        ids = pad_sequence(texts, batch_first=True, padding_value=pad)
        return {"input_ids": ids, "attention_mask": mask}, self.labels[chosen]


def evaluate(model: torch.nn.Module, rows: Rows, pad: int) -> float:
    """Accuracy over all rows, in batches of 64 of like length."""
    model.eval()
    order = torch.tensor(sorted(range(len(rows.ids)), key=lambda row: len(rows.ids[row])))
    hits = 0
    with torch.no_grad():
        for chosen in order.split(64):
            inputs, labels = rows.batch(chosen, pad)
            hits += int((model(**inputs).logits.argmax(-1) == labels).sum())
    model.train()
    return hits / len(rows.ids)


def train(trial: dict, arguments: argparse.Namespace, train_rows: Rows, eval_rows: Rows, pad: int) -> float:
    """One trial from a fresh model to its saved adapter; its last accuracy."""
    torch.manual_seed(trial["seed"])
    model = AutoModelForSequenceClassification.from_pretrained(
        arguments.model, num_labels=len(train_rows.labels.unique()), dtype=torch.float32
    )
    model.config.pad_token_id = pad
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=trial["r"], lora_alpha=trial["alpha"], target_modules=["query", "value"]
    )
    model = get_peft_model(model, config).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=trial["lr"], weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / trial["max_steps"])
    order = torch.cat([torch.randperm(len(train_rows.ids)) for _ in range(
        -(-trial["max_steps"] * trial["batch_size"] // len(train_rows.ids))
    )])  # fmt: skip
    accuracy = 0.0
    for step in range(trial["max_steps"]):
        chosen = order[step * trial["batch_size"] : (step + 1) * trial["batch_size"]]
        inputs, labels = train_rows.batch(chosen, pad)
        cross_entropy(model(**inputs).logits, labels).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % arguments.eval_steps == 0 or step + 1 == trial["max_steps"]:
            accuracy = evaluate(model, eval_rows, pad)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--train", "--eval", "--trials"):
        parser.add_argument(name, required=True)
    parser.add_argument("--eval-steps", type=int, default=50)
    parser.add_argument("--max-length", type=int, default=64)
    arguments = parser.parse_args()
    trials = json.loads(Path(arguments.trials).read_text())
    started = time.perf_counter()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    splits = [Rows(path, tokenizer, arguments.max_length) for path in (arguments.train, arguments.eval)]
    results = [{"eval_accuracy": train(trial, arguments, *splits, pad)} for trial in trials]
    print(json.dumps({"wall_seconds": round(time.perf_counter() - started, 2), "trials": results}))


if __name__ == "__main__":
    main()
