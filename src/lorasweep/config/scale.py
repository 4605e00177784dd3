"""`scale=smoke`: the same sweep made small, so that all of it runs anywhere in a minute, without network.

A base from the hub, or a large folder, becomes a small random one of the same family (`smoke:FAMILY`, built by
`models.smoke`); data that are not at hand become generated rows of the same shape; steps, rows and trials are cut. What
varies, and task, adapter, quantization and precision, stay: they are what is tried. Pure but for a look at which files
there are. Neighbours: `compose`, which calls it on every config it makes.
"""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorasweep.config.home import exists, expanded, given_path
from lorasweep.config.schema import TRANSFORMER, Config, DataConfig, ModelConfig
from lorasweep.errors import ConfigError

SUFFIX = "-smoke"  # of the sweep's name: a smoke test never mixes with the real thing
PREFIX = "smoke:"
FAMILIES = ("bert", "distilbert", "roberta", "gpt2", "llama", "mistral", "qwen2", "gemma", "gemma2")
MOST_CLASSES = 4  # that generated reviews have
SMALL_TOKENS, LONGEST_ROW = 3, 1000  # small tokenizers make more tokens of a text; small bases have room for so many
RUNG_SAMPLES = 8  # a pruner's first rung, so that it too has something to do
HINT = "scale=smoke runs all of it without network, on a small random model and generated data"


def apply_scale(config: Config) -> Config:
    """The config at its scale, changed in place.

    Raises:
        ConfigError: scale=smoke, and the model's family is not known or its data have too many classes to generate.
    """
    if config.scale.kind == "smoke":
        _shrink_model(config.model)
        _shrink_data(config)
        _shrink_training(config)
        _shrink_sweep(config)
    return config


def _shrink_model(model: ModelConfig) -> None:
    if model.kind != TRANSFORMER or model.path.startswith(("builtin:", PREFIX)):
        return
    family, has_head = model.family, model.has_head
    settings = expanded(Path(model.path)) / "config.json"
    if not family and exists(settings, Path.is_file):
        stored = _settings_of(settings)
        family = stored.get("model_type", "")
        has_head = any("ForSequenceClassification" in name for name in stored.get("architectures") or [])
    family = family or _family_in(model.path)
    if family not in FAMILIES:
        said = f"`model.family={family}` is none that it can build" if family else f"model.path={model.path} tells none"
        raise ConfigError(
            f"scale=smoke needs the model's family to build a small one, and {said}; set `model.family` to one of "
            f"{', '.join(FAMILIES)}"
        )
    model.name = model.name or Path(model.path).name
    model.path, model.revision, model.trust_remote_code = f"{PREFIX}{family}{'+head' if has_head else ''}", None, False


def _family_in(path: str) -> str:
    """The family that a checkpoint's name says, as most do: distilbert-base-uncased, Llama-3.2-1B, gemma-2-2b-it; empty
    where it says none."""
    words = re.findall(r"[a-z]+|\d+[a-z]*", path.lower())
    pairs = [first + second for first, second in pairwise(words)]  # gpt 2, gemma 2, qwen 2
    return next((name for name in sorted(FAMILIES, key=len, reverse=True) if name in (*pairs, *words)), "")


def _settings_of(file: Path) -> dict[str, Any]:
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Copy the model again, or set `model.family`") from None
    if not isinstance(stored, dict):
        raise ConfigError(f"{file} holds no model's settings; copy the model again, or set `model.family`")
    return stored


def _shrink_data(config: Config) -> None:
    data, scale = config.data, config.scale
    data.max_train_rows = min(data.max_train_rows or scale.train_rows, scale.train_rows)
    data.max_eval_rows = min(data.max_eval_rows or scale.eval_rows, scale.eval_rows)
    data.max_length = max(data.max_length, min(LONGEST_ROW, SMALL_TOKENS * data.max_length))
    at_hand = data.kind == "file" and data.train is not None and exists(given_path(data.train), Path.is_file)
    if at_hand:
        return
    if data.kind in ("hub", "file"):
        _generate(data)
    data.demo_rows = min(data.demo_rows, 2 * scale.train_rows)


def _generate(data: DataConfig) -> None:
    """Rows of the demo in place of ones that are not here; class names stay."""
    if data.answers_column:
        data.kind, data.label_names = "demo_qa", []
    else:
        classes = len(data.label_names) or 2
        if classes > MOST_CLASSES:
            raise ConfigError(
                f"scale=smoke generates reviews in 2 to {MOST_CLASSES} classes and `data.label_names` has {classes}; "
                "give rows of yours with data=file data.train=PATH"
            )
        data.kind, data.classes = "demo_reviews", classes
    data.train = data.validation = data.test = data.hub_id = None
    data.pair_column = data.answers_column = data.instruction_column = data.output_column = None


def _shrink_training(config: Config) -> None:
    train, scale, pruner = config.train, config.scale, config.pruner
    step_rows = train.batch_size * train.accumulation
    steps = train.max_steps or max(1, math.ceil(train.epochs * scale.train_rows / step_rows))
    two_passes = max(2, 2 * scale.train_rows // step_rows)  # a large step is as dear as many small ones
    train.max_steps = min(steps, scale.max_steps, two_passes)
    if train.eval_every_steps:
        train.eval_every_steps = min(train.eval_every_steps, max(1, train.max_steps // 2))
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, train.max_steps // 2)
    config.task.max_new_tokens = min(config.task.max_new_tokens, scale.max_new_tokens)
    if pruner.kind != "none":
        pruner.min_samples = min(pruner.min_samples, RUNG_SAMPLES)
        pruner.interval_samples, pruner.warmup_samples = min(pruner.interval_samples, RUNG_SAMPLES), 0


def _shrink_sweep(config: Config) -> None:
    sweep = config.sweep
    sweep.trials = min(sweep.trials, max(config.scale.trials, len(sweep.enqueue)))
    if sweep.name and not sweep.name.endswith(SUFFIX):
        sweep.name += SUFFIX
