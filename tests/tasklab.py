"""Small causal language models and the rows to prompt them with; plain PEFT + transformers to compare tasks with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from enginelab import VOCABULARY, config, config_of
from lorasweep.config.schema import Config, ObjectiveConfig
from lorasweep.data.encode import Encoded
from lorasweep.data.sources import Split
from lorasweep.models.base import load_base, load_tokenizer
from lorasweep.models.builtin import resolve
from lorasweep.tasks import Task, make_task
from lorasweep.training.pack import Pack

WORDS = ["w7", "w8 w9", "w10 w11 w12"]  # responses of 1, 2 and 3 tokens
CAUSAL = ["gpt2", "llama", "mistral", "gemma", "gemma2"]
PADDED = ["opt", "gpt_neox"]  # decoders that do not run on a token stream


def causal_config(family: str) -> Any:
    """A configuration of a few ten thousand parameters."""
    import transformers as t

    common = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "hidden_size": 32}
    more = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 80}
    if family == "opt":
        return t.OPTConfig(**common, **more, ffn_dim=48, word_embed_proj_dim=32, dropout=0.0, init_std=0.2)
    if family == "gpt_neox":
        return t.GPTNeoXConfig(
            **common, **more, intermediate_size=48, initializer_range=0.2, use_parallel_residual=True
        )
    found = config_of(family)
    found.eos_token_id, found.bos_token_id = 1, 2
    if family == "gpt2":
        found.n_positions = 80
    else:
        found.max_position_embeddings = 80
    return found


def build_causal(family: str, folder: Path) -> str:
    """Write a small random causal language model and a tokenizer whose words are w4, w5, …; id 1 ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(causal_config(family))
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(str(folder))
    special = {0: "<pad>", 1: "<end>", 3: "<unk>"}
    raw = Tokenizer(
        models.WordLevel({special.get(index, f"w{index}"): index for index in range(VOCABULARY)}, unk_token="<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")
    made.save_pretrained(str(folder))
    return str(folder)


def texts(count: int, seed: int = 0, longest: int = 12, classes: int = 3) -> Split:
    """Rows of 2 to `longest` words."""
    generator = torch.Generator().manual_seed(seed)
    made, labels = [], []
    for _ in range(count):
        length = int(torch.randint(2, longest + 1, (1,), generator=generator))
        ids = torch.randint(13, VOCABULARY, (length,), generator=generator)
        made.append(" ".join(f"w{number}" for number in ids.tolist()))
        labels.append(int(ids[0] + ids[-1]) % classes)
    return Split(made, None, labels)


def trial(path: str, **changes: Any) -> Config:
    """A trial of task=instruct over words."""
    common = {
        "task__kind": "instruct",
        "task__template": "w4 {instruction} w5 {input} w6 ",
        "task__instruction": "w20 w21",
        "data__max_length": 40,
    }
    return config(path, **{**common, **changes})


def task_of(one: Config, names: list[str] = WORDS) -> Task:
    return make_task(one, names)


def pack_of(trials: list[Config], train: Split, validation: Split | None = None, **objective: str) -> Pack:
    """A pack over the first trial's base and task, with every trial admitted; the validation rows become its exam."""
    one = trials[0]
    task, tokenizer = task_of(one), load_tokenizer(one.model)
    base = load_base(one, task.head, task.label_names)
    exam = task.exam(validation or texts(9, seed=9), tokenizer, one.data, None)
    encoded = task.encode(train, tokenizer, one.data, None)
    goal = ObjectiveConfig(**{"metric": "eval/loss", "direction": "minimize", **objective})
    pack = Pack(base, task, encoded, exam, goal, len(trials))
    for number, each in enumerate(trials):
        pack.admit(number, each)
    return pack


def peft_causal(one: Config, adapter: Path, **load: Any) -> Any:
    """The trial's base and adapter, opened by transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings = {"dtype": torch.float32, "attn_implementation": "eager", **load}
    base = AutoModelForCausalLM.from_pretrained(resolve(one.model.path), **settings)
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=True)


def padded(encoded: Encoded, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
    """A right-padded batch with labels, -100 at padding."""
    longest = int(encoded.lengths[chosen].max())
    ids, labels = torch.zeros(len(chosen), longest, dtype=torch.int64), torch.full((len(chosen), longest), -100)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(chosen.tolist()):
        start, end = int(encoded.offsets[row]), int(encoded.offsets[row + 1])
        ids[at, : end - start], mask[at, : end - start] = encoded.ids[start:end], 1
        labels[at, : end - start] = encoded.labels[start:end]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def causal_loss(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy over all labelled tokens of a batch, in plain torch."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
