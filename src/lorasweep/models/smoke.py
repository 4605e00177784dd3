"""Small random bases for scale=smoke, one for each family, built on first use and kept in the user's cache.

Ordinary checkpoints (config.json, safetensors, tokenizer), so that everything that loads, quantizes, trains and exports
a real base does the same with them. Their tokenizers are those of the tiny bases that ship with us. Neighbours:
`builtin` (finds them by name), `config.scale` (names them).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lorasweep.errors import ModelError, nearest

VERSION = "1"  # grows with every change of what is built
HIDDEN, LAYERS, HEADS, FEED_FORWARD, POSITIONS = 64, 2, 4, 128, 1024
INIT_RANGE = 0.1  # far enough from zero that evaluations differ
HEAD = "+head"
TOKENIZERS = {"bert": "tiny_encoder", "distilbert": "tiny_encoder", "roberta": "tiny_encoder", "gpt2": "tiny_gpt2"}


def resolve(name: str) -> str:
    """The folder of a family's small base, built where it is not there yet; `FAMILY+head` comes with a classifier's
    head for two classes.

    Raises:
        ModelError: no family of this name.
    """
    family = name.removesuffix(HEAD)
    if family not in _shapes(0, 0):
        raise ModelError(f"model.path=smoke:{name}: no such family; {nearest(family, _shapes(0, 0))}")
    folder = cache_folder() / f"{name}-{VERSION}"
    if not (folder / "config.json").is_file():
        _build(family, name.endswith(HEAD), folder)
    return str(folder)


def cache_folder() -> Path:
    """Where small bases are kept: $XDG_CACHE_HOME or ~/.cache, else the system's temporary folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorasweep" / "smoke"
    with contextlib.suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)
    if os.access(home, os.W_OK):
        return home
    return Path(tempfile.gettempdir()) / f"lorasweep-smoke-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def _build(family: str, with_head: bool, folder: Path) -> None:
    """Write a checkpoint beside `folder` and move it there: a reader sees all of it or nothing."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from transformers.utils import logging

    from lorasweep.models import builtin

    tokenizer = AutoTokenizer.from_pretrained(builtin.resolve(f"builtin:{TOKENIZERS.get(family, 'tiny_decoder')}"))
    tokenizer.model_max_length = POSITIONS
    config = AutoConfig.for_model(family, **_shapes(len(tokenizer), tokenizer.pad_token_id)[family])
    if tokenizer.eos_token_id is not None:
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    encoder = family in ("bert", "distilbert", "roberta")
    loader: Any = AutoModelForSequenceClassification if with_head else AutoModel if encoder else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = loader.from_config(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(str(part))
        tokenizer.save_pretrained(str(part))
        with contextlib.suppress(OSError):  # another process was first
            part.rename(folder)
    finally:
        logging.set_verbosity(level)
        shutil.rmtree(part, ignore_errors=True)


def _shapes(vocabulary: int, pad: int) -> dict[str, dict[str, Any]]:
    """family -> what makes its configuration small."""
    common = {"vocab_size": vocabulary, "pad_token_id": pad, "initializer_range": INIT_RANGE}
    encoder = {
        **common,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": FEED_FORWARD,
        "max_position_embeddings": POSITIONS,
    }
    decoder = {**encoder, "num_key_value_heads": HEADS // 2, "tie_word_embeddings": True}
    gemma = {**decoder, "head_dim": HIDDEN // HEADS}
    return {
        "bert": encoder,
        "roberta": {**encoder, "max_position_embeddings": POSITIONS + pad + 1},
        "distilbert": {
            **common,
            "dim": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            "hidden_dim": FEED_FORWARD,
            "max_position_embeddings": POSITIONS,
        },
        "gpt2": {**common, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS},
        "llama": decoder,
        "mistral": decoder,
        "qwen2": decoder,
        "gemma": gemma,
        "gemma2": {**gemma, "query_pre_attn_scalar": HIDDEN // HEADS, "sliding_window": 128},
    }
