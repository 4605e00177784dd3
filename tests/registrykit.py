"""Small bases, adapters with known answers, and trials in a tracking folder that no engine trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from lorasweep.checksums import folder_checksum
from lorasweep.config.schema import Config
from lorasweep.data.sources import Split
from lorasweep.records import TrialRecord, TrialState
from lorasweep.registry import probe as registry_probe
from lorasweep.registry import promote as registry
from lorasweep.registry.promote import Candidate, PromotionResult
from lorasweep.tracking.entities import dataset_input
from lorasweep.tracking.recorded import Recorded
from lorasweep.tracking.store import open_client
from lorasweep.tracking.tracker import Tracker
from trackkit import Counts, Folders, new_folders, search_data, sweep_config

WORDS = [f"word{i}" for i in range(60)]
LABELS = ["negative", "positive", "mixed"]


def save_tokenizer(folder: Path, pad: bool = True) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]"} if pad else {}
    PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]", **names
    ).save_pretrained(folder)


def save_bert(folder: Path, hidden: int = 32) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=2, **sizes)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_gpt2(folder: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=2, eos_token_id=3)
    GPT2ForSequenceClassification(config).transformer.save_pretrained(folder)  # no head in the base
    save_tokenizer(folder, pad=False)
    return folder


def save_adapter(base: Path, folder: Path, seed: int, targets: str = "all-linear") -> Path:
    """An adapter whose weights, head included, are drawn large enough to change every answer."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    torch.manual_seed(seed)
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="SEQ_CLS"))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.5 if "lora" in name else 1.0)
    adapted.save_pretrained(folder)
    return folder


def plain_labels(base: Path, adapter: Path, rows: Split) -> list[str]:
    """The labels by plain PEFT, one row at a time, without padding."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    answers = []
    for number, text in enumerate(rows.texts):
        encoded = tokenizer(text, rows.pairs[number] if rows.pairs else None, truncation=True, max_length=16)
        batch = {name: torch.tensor([encoded[name]]) for name in encoded if name != "attention_mask"}
        with torch.inference_mode():
            answers.append(LABELS[int(model(**batch).logits.argmax())])
    return answers


def texts(count: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, size=draw.integers(1, 30))) for _ in range(count)]


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    return {"eval/accuracy": float((probabilities.argmax(-1) == labels).mean())}


class Workshop:
    """A tracking folder with complete trials, made without the engine."""

    def __init__(self, root: Path, base: Path, sweep: str = "quick"):
        self.root, self.base = root, base
        self.folders = new_folders(root / "project")
        self.tracker = Tracker(self.folders, sweep)
        self.tracker.open_sweep(self.config(), "", [])

    def config(self) -> Config:
        config = sweep_config()
        config.model.path = str(self.base)
        config.data.max_length = 16
        return config

    def trial(self, number: int, adapter: Path) -> TrialRecord:
        tags = {"lorasweep.fingerprint.data": "d" * 64}
        run_id = self.tracker.start_trial(number, self.config(), "", {}, tags, search_data(), Counts())
        self.tracker.log(number, {"train/samples": 160.0, "eval/accuracy": 0.5}, 10)
        record = TrialRecord(number, TrialState.COMPLETE, 0.5, {"eval/accuracy": 0.5}, run_id=run_id)
        self.tracker.finish_trial(number, record, {"adapter": adapter})
        return record

    def candidate(self, record: TrialRecord, test: Split, **changes: Any) -> Candidate:
        recorded = Recorded.read(self.folders, record.run_id)
        given = Candidate(record, recorded, self.config(), str(self.base), LABELS, test, accuracy)
        return replace(given, **changes)


def promote(folders: Folders, candidate: Candidate, name: str, force: str | None = None) -> PromotionResult:
    """A promotion whose fresh process is this one: the same code, without seconds of imports."""
    return registry.promote(folders, candidate, name, force=force, ask=registry_probe.ask)


def adapters_that_disagree(folder: Path) -> tuple[Path, list[Path], list[list[str]], Split]:
    """A base, two adapters, their labels on 40 texts, and those texts with the second adapter's labels as truth."""
    base = save_bert(folder / "base")
    adapters = [save_adapter(base, folder / f"adapter{seed}", seed) for seed in (1, 2)]
    blank = Split(texts(40), None, [0] * 40)
    answers = [plain_labels(base, adapter, blank) for adapter in adapters]
    assert sum(a != b for a, b in zip(*answers, strict=True)) > 5, "the adapters must disagree"
    return base, adapters, answers, Split(blank.texts, None, [LABELS.index(label) for label in answers[1]])


class ServerShop:
    """Complete trials on an MLflow server, which keeps their artifacts too."""

    def __init__(self, root: Path, base: Path, server: str, sweep: str):
        self.base, self.sweep = base, sweep
        root.mkdir(parents=True, exist_ok=True)
        self.folders = Folders(root, server)
        self.client = open_client(self.folders)
        self.experiment = self.client.create_experiment(sweep)

    def config(self) -> Config:
        config = sweep_config(self.sweep)
        config.model.path = str(self.base)
        config.data.max_length = 16
        return config

    def trial(self, number: int, adapter: Path) -> TrialRecord:
        tags = {
            "lorasweep.kind": "trial",
            "lorasweep.sweep": self.sweep,
            "lorasweep.trial": str(number),
            "lorasweep.state": "complete",
            "lorasweep.sha256.adapter": folder_checksum(adapter),
        }
        run_id = self.client.create_run(self.experiment, tags=tags).info.run_id
        self.client.log_inputs(run_id, datasets=[dataset_input(self.config().data, search_data())])
        self.client.log_metric(run_id, "train/samples", 160.0, step=10)
        self.client.log_artifacts(run_id, str(adapter), "adapter")
        self.client.set_terminated(run_id)
        return TrialRecord(number, TrialState.COMPLETE, 0.5, {"eval/accuracy": 0.5}, run_id=run_id)

    def candidate(self, record: TrialRecord, test: Split, **changes: Any) -> Candidate:
        recorded = Recorded.read(self.folders, record.run_id)
        given = Candidate(record, recorded, self.config(), str(self.base), LABELS, test, accuracy)
        return replace(given, **changes)
