"""Pretrains the tiny bases from nothing: `python -m lorasweep.models.pretrain OUT_DIR [NAME…]`.

tiny_encoder is a BERT (masked words, and whether the second segment follows the first), tiny_decoder a Llama and
tiny_gpt2 a GPT-2 (next token). Everything is seeded: the same versions on the same kind of CPU give the same bytes.
Weights are written as fp16 safetensors. Neighbours: `corpus` (the text), `builtin` (finds what ships).
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from lorasweep.models.builtin import NAMES
from lorasweep.models.corpus import Passage, passages

SEED = 20_24
ROWS = 40_000
HIDDEN, HEADS, LAYERS, FEED_FORWARD, POSITIONS = 128, 4, 3, 384, 256
IGNORED = -100


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one base is pretrained."""

    steps: int
    batch_rows: int
    lr: float
    warmup_steps: int = 50
    weight_decay: float = 0.01


RECIPES = {
    "tiny_encoder": Recipe(steps=600, batch_rows=96, lr=2e-3),
    "tiny_decoder": Recipe(steps=400, batch_rows=64, lr=3e-3),
    "tiny_gpt2": Recipe(steps=400, batch_rows=64, lr=3e-3),
}


def wordpiece_tokenizer(texts: list[str]) -> Any:
    """A lower-casing WordPiece tokenizer whose words are those of `texts`; other words fall into characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    printable = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text.lower()))
    frequent = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    endings = ["##s", "##es", "##ed", "##ing", "##ly", "##er", "##est", "##able", "##ful", "##less", "##ness", "##y"]
    vocabulary = dict.fromkeys([*special, *printable, *[f"##{char}" for char in printable], *endings, *frequent])
    ids = {token: number for number, token in enumerate(vocabulary)}
    core = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = splitter
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return BertTokenizerFast(tokenizer_object=core, model_max_length=POSITIONS)


def byte_tokenizer(texts: list[str], name: str) -> Any:
    """A lower-casing byte-level BPE tokenizer with words of `texts` as tokens; any text has tokens, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=2200,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if name == "tiny_decoder":  # as Llama: every text opens with <s>
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=POSITIONS,
    )


def new_model(name: str, tokenizer: Any) -> Any:
    """An untrained model of the named family, all dropout off."""
    from transformers import (
        BertConfig,
        BertForPreTraining,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    if name == "tiny_encoder":
        return BertForPreTraining(
            BertConfig(
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                intermediate_size=FEED_FORWARD,
                max_position_embeddings=POSITIONS,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    if name == "tiny_decoder":
        return LlamaForCausalLM(
            LlamaConfig(
                **ids,
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS // 2,
                intermediate_size=FEED_FORWARD,
                max_position_embeddings=POSITIONS,
                tie_word_embeddings=True,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            **ids,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=FEED_FORWARD,
            n_positions=POSITIONS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Rows as (rows, longest) int64, filled up with `fill` on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


class EncoderBatches:
    """Batches for BERT: segment pairs with masked tokens, half of the second segments drawn from other passages."""

    def __init__(self, texts: list[Passage], tokenizer: Any):
        self.tokenizer = tokenizer
        self.first = tokenizer([text.first for text in texts], add_special_tokens=False)["input_ids"]
        self.follows = tokenizer([text.follows for text in texts], add_special_tokens=False)["input_ids"]

    def loss(self, model: Any, chosen: list[int], rng: random.Random) -> torch.Tensor:
        """Masked-word loss plus loss of whether the second segment follows."""
        cls, sep, mask, pad = (
            self.tokenizer.cls_token_id,
            self.tokenizer.sep_token_id,
            self.tokenizer.mask_token_id,
            self.tokenizer.pad_token_id,
        )
        inputs, targets, kinds, follows = [], [], [], []
        verdicts: list[bool] = []  # for each masked place, whether it lies in a true second segment
        for row in chosen:
            true = rng.random() < 0.75
            first, second = self.first[row], self.follows[row if true else rng.choice(chosen)]
            ids = [cls, *first, sep, *second, sep]
            target = [IGNORED] * len(ids)
            for place in range(1, len(ids) - 1):
                # what follows is masked more often: it is where the meaning of the whole shows
                in_first = place <= len(first)
                if ids[place] != sep and rng.random() < (0.12 if in_first else 0.6 * true):
                    target[place], ids[place] = ids[place], mask
                    verdicts.append(not in_first)
            inputs.append(ids)
            targets.append(target)
            kinds.append([0] * (len(first) + 2) + [1] * (len(second) + 1))
            follows.append(int(not true))  # BERT's convention: 0 means that it follows
        ids = padded(inputs, pad)
        out = model(input_ids=ids, attention_mask=(ids != pad).long(), token_type_ids=padded(kinds, 0))
        wanted = padded(targets, IGNORED)
        masked = wanted != IGNORED
        words = functional.cross_entropy(out.prediction_logits[masked], wanted[masked], reduction="none")
        inside = torch.tensor(verdicts)
        follow = functional.cross_entropy(out.seq_relationship_logits, torch.tensor(follows))
        return words[inside].mean() + 0.5 * words[~inside].mean() + 0.3 * follow


class DecoderBatches:
    """Batches for causal models: passages as running text, ended by </s>."""

    def __init__(self, texts: list[Passage], tokenizer: Any):
        self.tokenizer = tokenizer
        self.rows = [
            [*row, tokenizer.eos_token_id]
            for row in tokenizer([f"{text.first} {text.follows}" for text in texts])["input_ids"]
        ]

    def loss(self, model: Any, chosen: list[int], rng: random.Random) -> torch.Tensor:
        """Next-token loss; padding on the right is neither seen nor scored."""
        ids = padded([self.rows[row] for row in chosen], self.tokenizer.pad_token_id)
        targets = ids.masked_fill(ids == self.tokenizer.pad_token_id, IGNORED)
        logits = model(input_ids=ids).logits
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)


def batches(lengths: list[int], recipe: Recipe, rng: random.Random) -> Iterator[list[int]]:
    """Row numbers of each batch: rows of like length together (little padding), batches in random order, for ever."""
    while True:
        order = sorted(range(len(lengths)), key=lambda row: (lengths[row], rng.random()))
        cut = [order[start : start + recipe.batch_rows] for start in range(0, len(order), recipe.batch_rows)]
        rng.shuffle(cut)
        yield from cut


def pretrain(name: str, out: Path, say: Callable[[str], None] = print, rows: int = ROWS, steps: int = 0) -> None:
    """Pretrain one base and write it to out/name. `rows` and `steps` (0: the recipe's) are smaller in tests."""
    recipe = RECIPES[name]
    steps = steps or recipe.steps
    started = time.perf_counter()
    torch.manual_seed(SEED)
    rng = random.Random(f"{name} {SEED}")
    texts = passages(rows, SEED)
    running = [f"{text.first} {text.follows}" for text in texts]
    tokenizer = wordpiece_tokenizer(running) if name == "tiny_encoder" else byte_tokenizer(running, name)
    model = new_model(name, tokenizer)
    data = (EncoderBatches if name == "tiny_encoder" else DecoderBatches)(texts, tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=True
    )
    model.train()
    order = batches([len(text) for text in running], recipe, rng)
    for step in range(steps):
        warm = min(1.0, (step + 1) / recipe.warmup_steps)
        optimizer.param_groups[0]["lr"] = recipe.lr * warm * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        loss = data.loss(model, next(order), rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            say(f"{name} step {step} loss {loss.item():.3f} {time.perf_counter() - started:.0f} s")
    save(name, model, tokenizer, out / name)


def save(name: str, model: Any, tokenizer: Any, folder: Path) -> None:
    """Write the backbone and language-model head as fp16 safetensors beside config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Command line: OUT_DIR and, where not all three are wanted, their names."""
    parser = argparse.ArgumentParser(prog="python -m lorasweep.models.pretrain", description=__doc__)
    parser.add_argument("out", type=Path, help="folder that gets one folder a base")
    parser.add_argument("names", nargs="*", choices=[*NAMES, []], default=list(NAMES), help="bases; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(2)  # sums are split by threads: another number gives other last bits
    for name in arguments.names:
        pretrain(name, arguments.out)


if __name__ == "__main__":
    main()
