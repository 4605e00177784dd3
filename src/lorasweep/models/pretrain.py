"""Pretrains the tiny bases from nothing: `python -m lorasweep.models.pretrain OUT_DIR [NAME…]`.

tiny_encoder is a BERT (masked words), tiny_decoder a Llama and tiny_gpt2 a GPT-2 (next token). Everything is seeded and
runs on one thread: the same versions on the same kind of CPU give the same bytes, after a few minutes a base.
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

from lorasweep.errors import nearest
from lorasweep.models.builtin import NAMES
from lorasweep.models.corpus import Passage, passages, telling_words

SEED = 20_24
ROWS = 40_000
HIDDEN, HEADS, LAYERS, FEED_FORWARD, POSITIONS = 128, 4, 3, 384, 256
IGNORED = -100
INIT_RANGE = 0.08  # about 1 / sqrt(HIDDEN); with the 0.02 of large models the encoder stood still for 600 steps
EASY_ROWS, EASY_STEPS = 0.33, 0.2  # shares: plain reviews teach what words mean before their order matters
CHUNK_ROWS = 32


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one base is pretrained."""

    steps: int
    batch_rows: int
    lr: float
    warmup_steps: int = 50
    weight_decay: float = 0.01


RECIPES = {
    "tiny_encoder": Recipe(steps=900, batch_rows=96, lr=1e-3),
    "tiny_decoder": Recipe(steps=700, batch_rows=96, lr=1.5e-3),
    "tiny_gpt2": Recipe(steps=700, batch_rows=96, lr=1.5e-3),
}


def wordpiece_tokenizer(texts: list[str]) -> Any:
    """A lower-casing WordPiece tokenizer whose words are those of `texts`; other words fall into characters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]

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
                initializer_range=INIT_RANGE,
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
                initializer_range=INIT_RANGE,
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
            summary_first_dropout=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=INIT_RANGE,
        )
    )


def padded(rows: list[list[int]], fill: int) -> torch.Tensor:
    """Rows as (rows, longest) int64, filled up with `fill` on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


class EncoderBatches:
    """Batches for BERT: a passage as a pair of segments, with masked words."""

    def __init__(self, texts: list[Passage], tokenizer: Any):
        self.tokenizer = tokenizer
        self.first = tokenizer([text.first for text in texts], add_special_tokens=False)["input_ids"]
        self.follows = tokenizer([text.follows for text in texts], add_special_tokens=False)["input_ids"]
        self.telling = telling_ids(tokenizer)
        self.lengths = [len(first) + len(follows) for first, follows in zip(self.first, self.follows, strict=True)]

    def loss(self, model: Any, chosen: list[int], rng: random.Random) -> torch.Tensor:
        """`weighted` loss of the masked words: a tenth of the first segment, the telling words of the second."""
        special = self.tokenizer
        inputs, targets, kinds = [], [], []
        telling: list[bool] = []  # for each masked place, whether it holds a telling word
        for row in chosen:
            first, second = self.first[row], self.follows[row]
            ids = [special.cls_token_id, *first, special.sep_token_id, *second, special.sep_token_id]
            target = [IGNORED] * len(ids)
            for place in range(1, len(ids)):
                inside = place <= len(first)
                if rng.random() < 0.1 if inside else ids[place] in self.telling:
                    target[place], ids[place] = ids[place], special.mask_token_id
                    telling.append(not inside)
            inputs.append(ids)
            targets.append(target)
            kinds.append([0] * (len(first) + 2) + [1] * (len(second) + 1))
        tokens, wanted = padded(inputs, special.pad_token_id), padded(targets, IGNORED)
        masked = wanted != IGNORED
        seen = (tokens != special.pad_token_id).long()
        hidden = model.bert(input_ids=tokens, attention_mask=seen, token_type_ids=padded(kinds, 0))
        logits = model.cls.predictions(hidden.last_hidden_state[masked])
        return weighted(logits, wanted[masked], torch.tensor(telling))


class DecoderBatches:
    """Batches for causal models: a passage as running text, ended by </s>."""

    def __init__(self, texts: list[Passage], tokenizer: Any):
        self.tokenizer = tokenizer
        first = tokenizer([text.first for text in texts])["input_ids"]
        follows = tokenizer([text.follows for text in texts], add_special_tokens=False)["input_ids"]
        self.rows = [[*one, *two, tokenizer.eos_token_id] for one, two in zip(first, follows, strict=True)]
        self.starts = [len(one) for one in first]  # where what follows begins
        self.telling = torch.tensor(sorted(telling_ids(tokenizer)))
        self.lengths = [len(row) for row in self.rows]

    def loss(self, model: Any, chosen: list[int], rng: random.Random) -> torch.Tensor:
        """`weighted` loss of every next token; padding on the right is neither seen nor scored."""
        tokens = padded([self.rows[row] for row in chosen], self.tokenizer.pad_token_id)
        places = torch.arange(tokens.shape[1])
        follows = places >= torch.tensor([[self.starts[row]] for row in chosen])
        telling = (torch.isin(tokens, self.telling) & follows)[:, 1:]
        scored = tokens[:, 1:] != self.tokenizer.pad_token_id
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[:, :-1]
        return weighted(logits[scored], tokens[:, 1:][scored], telling[scored])


def telling_ids(tokenizer: Any) -> set[int]:
    """Tokens of the words in what follows that its frame does not tell."""
    return {token for row in tokenizer(telling_words(), add_special_tokens=False)["input_ids"] for token in row}


def weighted(logits: torch.Tensor, wanted: torch.Tensor, telling: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the telling words plus 0.3 of that of the others: meaning before grammar.

    logits (places, vocabulary), wanted and telling (places,); every chunk has telling words and others.
    """
    losses = functional.cross_entropy(logits, wanted, reduction="none")
    return losses[telling].mean() + 0.3 * losses[~telling].mean()


def batches(lengths: list[int], recipe: Recipe, rng: random.Random) -> Iterator[list[list[int]]]:
    """Row numbers of each batch, for ever, in chunks of rows of like length (little padding).

    Batches themselves are drawn at random: batches of like length throughout are batches of like content, and with
    those the encoder learned nothing in as many steps.
    """
    size = min(recipe.batch_rows, len(lengths))
    while True:
        order = list(range(len(lengths)))
        rng.shuffle(order)
        for start in range(0, len(order) - size + 1, size):
            rows = sorted(order[start : start + size], key=lambda row: lengths[row])
            yield [rows[cut : cut + CHUNK_ROWS] for cut in range(0, len(rows), CHUNK_ROWS)]


def pretrain(name: str, out: Path, say: Callable[[str], None] = print, rows: int = ROWS, steps: int = 0) -> None:
    """Pretrain one base and write it to out/name. `rows` and `steps` (0: the recipe's) are smaller in tests."""
    recipe = RECIPES[name]
    steps = steps or recipe.steps
    started = time.perf_counter()
    torch.manual_seed(SEED)
    rng = random.Random(f"{name} {SEED}")
    texts, plain = passages(rows, SEED), passages(int(EASY_ROWS * rows), SEED + 1, plain_share=0.8)
    running = [f"{text.first} {text.follows}" for text in texts]
    tokenizer = wordpiece_tokenizer(running) if name == "tiny_encoder" else byte_tokenizer(running, name)
    make = EncoderBatches if name == "tiny_encoder" else DecoderBatches
    stages = [(data, batches(data.lengths, recipe, rng)) for data in (make(plain, tokenizer), make(texts, tokenizer))]
    model = new_model(name, tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay, betas=(0.9, 0.98), fused=True
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = recipe.lr * pace(step, steps, recipe.warmup_steps)
        data, order = stages[step >= EASY_STEPS * steps]
        chunks = next(order)
        total = 0.0
        for chunk in chunks:
            loss = data.loss(model, chunk, rng) / len(chunks)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps - 1:
            say(f"{name} step {step} loss {total:.3f} {time.perf_counter() - started:.0f} s")
    save(model, tokenizer, out / name)


def pace(step: int, steps: int, warmup_steps: int) -> float:
    """Learning rate as a share of its peak: linear warm-up, then cosine down to a twentieth."""
    return min(1.0, (step + 1) / warmup_steps) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write all weights as fp16 safetensors beside config and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Command line: OUT_DIR and, where not all three are wanted, their names."""
    parser = argparse.ArgumentParser(prog="python -m lorasweep.models.pretrain", description=__doc__)
    parser.add_argument("out", type=Path, help="folder that gets one folder a base")
    parser.add_argument("names", nargs="*", default=list(NAMES), help="bases; default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums are split by threads, so another number would give other bits
    for name in arguments.names:
        if name not in NAMES:
            parser.error(f"no base named {name}; {nearest(name, NAMES)}")
        pretrain(name, arguments.out)


if __name__ == "__main__":
    main()
