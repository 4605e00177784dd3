"""Small bases of every family, rows that can be learned, and plain PEFT + torch to compare the engine with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from lorasweep.config.schema import Config, ObjectiveConfig, TaskConfig
from lorasweep.data.encode import Encoded
from lorasweep.models.base import LoadedBase, load_base
from lorasweep.models.builtin import resolve
from lorasweep.models.prefix_cache import PrefixBudget
from lorasweep.tasks import Classify, Exam
from lorasweep.training.pack import Failed, Finished, Pack, Stepped

VOCABULARY = 120
NAMES = ["no", "yes", "maybe"]


def config_of(family: str, hidden: int = 32) -> Any:
    """A configuration of a few ten thousand parameters."""
    import transformers as t

    common = {"vocab_size": VOCABULARY, "pad_token_id": 0, "initializer_range": 0.2}
    encoder = {
        **common,
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48 if hidden == 32 else 2 * hidden,
        "max_position_embeddings": 40,
    }
    decoder = {**encoder, "num_key_value_heads": 2}
    made = {
        "bert": lambda: t.BertConfig(**encoder),
        "distilbert": lambda: t.DistilBertConfig(
            **common, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=40
        ),
        "roberta": lambda: t.RobertaConfig(**{**encoder, "pad_token_id": 1, "max_position_embeddings": 44}),
        "gpt2": lambda: t.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=40),
        "llama": lambda: t.LlamaConfig(**decoder),
        "mistral": lambda: t.MistralConfig(**decoder, sliding_window=5),
        "qwen2": lambda: t.Qwen2Config(**decoder),
        "gemma": lambda: t.GemmaConfig(**decoder, head_dim=8),
        "gemma2": lambda: t.Gemma2Config(**decoder, head_dim=8, sliding_window=5, query_pre_attn_scalar=8),
        "albert": lambda: t.AlbertConfig(**encoder, embedding_size=16),
        "electra": lambda: t.ElectraConfig(**encoder, embedding_size=16),
        "xlnet": lambda: t.XLNetConfig(**common, d_model=32, n_layer=2, n_head=4, d_inner=48),
        "deberta-v2": lambda: t.DebertaV2Config(
            **encoder, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, share_att_key=True
        ),
    }
    return made[family]()


def save_tokenizer(folder: Path, pad_id: int, side: str) -> None:
    """A word-level tokenizer whose words are w0, w1, …"""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token=f"w{pad_id}"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=f"w{pad_id}", padding_side=side).save_pretrained(
        str(folder)
    )


def build_base(
    family: str, folder: Path, *, classifier: bool = False, hidden: int = 32, classes: int = len(NAMES)
) -> str:
    """Write a small random checkpoint without a head (`classifier`: with one, for NAMES) and return its path."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    config = config_of(family, hidden)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        if classifier:
            config.num_labels = classes
            model = AutoModelForSequenceClassification.from_config(config)
        else:
            model = AutoModel.from_config(config)
        for name, parameter in model.named_parameters():  # zero biases and unit norms would hide mistakes
            if parameter.dim() == 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            elif "position" in name:
                parameter.data.mul_(0.3)
    model.save_pretrained(str(folder))
    save_tokenizer(folder, config.pad_token_id, "left" if family == "xlnet" else "right")
    return str(folder)


def rows(count: int, seed: int = 0, longest: int = 20, classes: int = 3) -> Encoded:
    """Rows of 2 to `longest` tokens whose label is decided by their first and last token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (count,), generator=generator)
    offsets = torch.zeros(count + 1, dtype=torch.int64)
    offsets[1:] = torch.cumsum(lengths, 0)
    ids = torch.randint(5, VOCABULARY, (int(offsets[-1]),), generator=generator)
    labels = (ids[offsets[:-1]] + ids[offsets[1:] - 1]) % classes
    return Encoded(ids, offsets, labels, None, 0)


def config(path: str, **changes: Any) -> Config:
    """A trial; changes by dotted key with __ for the dot."""
    made = Config()
    made.model.path, made.launcher.device = path, "cpu"
    made.train.base_dropout = 0.0
    for key, value in changes.items():
        group, _, name = key.partition("__")
        assert hasattr(getattr(made, group), name), key
        setattr(getattr(made, group), name, value)
    return made


def base_of(trial: Config, names: list[str] = NAMES) -> LoadedBase:
    return load_base(trial, "classification", names)


def pack_of(
    base: LoadedBase,
    slots: int,
    train: Encoded,
    validation: Encoded | None = None,
    prefixes: PrefixBudget | None = None,
    rung_exam: Exam | None = None,
    **objective: str,
) -> Pack:
    task = Classify(TaskConfig(), NAMES)
    validation = rows(12, seed=9) if validation is None else validation
    return Pack(base, task, train, validation, ObjectiveConfig(**objective), slots, prefixes, rung_exam)


def run(pack: Pack, until: int | None = None) -> dict[int, list[Stepped]]:
    """Advance until every trial is over (or `until` turns); the steps of each trial."""
    steps: dict[int, list[Stepped]] = {}
    turns = 0
    while (pack.roster.training or pack.roster.parked) and turns != until:
        for event in pack.advance():
            assert not isinstance(event, Failed), event
            if isinstance(event, Stepped):
                steps.setdefault(event.number, []).append(event)
        turns += 1
    return steps


def values(pack: Pack, number: int) -> torch.Tensor:
    """What a trial has trained so far, one vector in the trial's own layout."""
    return pack.engine.save(pack.roster.slot(number).index)["values"]


def export_now(pack: Pack, number: int, folder: Path) -> Path:
    """The trial's present values as a PEFT adapter."""
    index = pack.roster.slot(number).index
    pack.engine.export(index, pack.engine.save(index), folder)
    return folder


def pad(encoded: Encoded, chosen: torch.Tensor, pad_id: int, left: bool = False) -> dict[str, torch.Tensor]:
    lengths = encoded.lengths[chosen]
    ids = torch.full((len(chosen), int(lengths.max())), pad_id)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(chosen.tolist()):
        place = slice(int(lengths.max() - lengths[at]), None) if left else slice(0, int(lengths[at]))
        ids[at, place], mask[at, place] = encoded.row(row), 1
    return {"input_ids": ids, "attention_mask": mask}


def peft_model(trial: Config, adapter: Path, **load: Any) -> Any:
    """The trial's base and adapter, opened by transformers and PEFT alone. Attention is written out (eager): up to
    transformers 5.17 Gemma-2's default leaves its soft-capping out."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForSequenceClassification.from_pretrained(
            resolve(trial.model.path),
            num_labels=len(NAMES),
            **{"dtype": torch.float32, "attn_implementation": "eager", **load},
        )
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=True)


def train_by_hand(model: Any, trial: Config, encoded: Encoded, order: Any, steps: int) -> list[float]:
    """Plain torch: padded batches, AdamW with decay off for biases, clip_grad_norm_, transformers' schedule."""
    from transformers import get_scheduler

    settings, train = trial.optimizer, trial.train
    model.eval()  # no dropout; requires_grad is as PEFT set it
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if not name.endswith("bias")], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in trained if name.endswith("bias")], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    names = {"constant": "constant_with_warmup"}
    scheduler = get_scheduler(
        names.get(settings.schedule, settings.schedule), optimizer, settings.warmup_steps, trial.train.max_steps
    )
    losses = []
    pad_id, left = model.config.pad_token_id, model.config.model_type == "xlnet"
    for _ in range(steps):
        total = 0.0
        for _ in range(train.accumulation):
            chosen = order.draw(train.batch_size)
            loss = (
                cross_entropy(model(**pad(encoded, chosen, pad_id, left)).logits, encoded.labels[chosen])
                / train.accumulation
            )
            loss.backward()
            total += loss.item()
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([p for _, p in trained], settings.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def peft_vector(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """The adapter as PEFT itself saves it."""
    from safetensors.torch import load_file

    model.save_pretrained(str(folder))
    return load_file(str(folder / "adapter_model.safetensors"))


def mixed_trials(path: str, count: int, **common: Any) -> list[Config]:
    """Trials that differ in everything that slots may differ in, dropout aside."""
    ranks, batches, accumulations = [2, 8, 4, 1, 3, 16, 5, 6], [4, 3, 8, 5, 2, 4, 6, 1], [1, 2, 1, 3, 1, 1, 2, 4]
    schedules = ["linear", "cosine", "constant"]
    return [
        config(
            path,
            **{
                "adapter__r": ranks[k % 8],
                "adapter__alpha": float(8 + 4 * k),
                "adapter__rslora": k % 3 == 2,
                "optimizer__lr": 3e-3 * (1 + k % 4),
                "optimizer__weight_decay": [0.0, 0.1][k % 2],
                "optimizer__beta2": [0.999, 0.95][k % 2],
                "optimizer__schedule": schedules[k % 3],
                "optimizer__warmup_steps": k % 4,
                "optimizer__max_grad_norm": [1.0, 0.0, 0.3][k % 3],
                "train__batch_size": batches[k % 8],
                "train__accumulation": accumulations[k % 8],
                "train__max_steps": 8 + k,
                "train__seed": 11 + k,
                **common,
            },
        )
        for k in range(count)
    ]


def finished(pack: Pack) -> list[Finished]:
    """Run to the end and return the Finished events."""
    out = []
    while pack.roster.training or pack.roster.parked:
        out += [event for event in pack.advance() if isinstance(event, Finished)]
    return out


def clone(trial: Config, **changes: Any) -> Config:
    """A copy with changes by dotted key."""
    made = copy.deepcopy(trial)
    for key, value in changes.items():
        group, _, name = key.partition("__")
        setattr(getattr(made, group), name, value)
    return made


def assert_same_adapter(ours: Path, theirs: dict[str, torch.Tensor], tolerance: float = 1e-4) -> None:
    """Every tensor of an exported adapter within `tolerance` of the other's, relative to its norm."""
    mine = load_file(str(ours / "adapter_model.safetensors"))
    extra = {name for name in theirs if ".original_module." in name or ".modules_to_save." in name}  # PEFT's bias=all
    assert mine.keys() == theirs.keys() - extra
    for name in mine:
        if name.endswith((".key.base_layer.bias", ".key.bias")):
            continue  # softmax does not feel a key's bias: its gradient is rounding, which Adam makes as large as any
        tensor = theirs[name]
        difference = float((mine[name] - tensor).norm() / tensor.norm().clamp(min=1e-3))
        assert difference < tolerance, f"{name}: {difference}"
