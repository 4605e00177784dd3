"""Rules a config must keep before anything heavy loads: bounds from the schema, and rules across fields.

Neighbours: `schema` (bounds live on its fields), `compose` (calls this on everything it makes).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from lorasweep.config import address
from lorasweep.config.home import check_name
from lorasweep.config.schema import TRANSFORMER, Config
from lorasweep.errors import ConfigError, nearest

BOUNDS = {
    "above": (lambda value, limit: value > limit, "> {}"),
    "at_least": (lambda value, limit: value >= limit, ">= {}"),
    "below": (lambda value, limit: value < limit, "< {}"),
    "at_most": (lambda value, limit: value <= limit, "<= {}"),
}


def check_config(config: Config, where: str = "") -> None:
    """Check every bound, choice and cross-field rule.

    `where` names the point and the place to mend it ("in trial 17; check `space` in sweeps/rank.yaml").

    Raises:
        ConfigError: the first rule that is broken, with the value and the repair.
    """
    for problem in (*_field_problems(config, ""), *_cross_problems(config)):
        raise ConfigError(f"{problem} {where}".rstrip())


def _field_problems(node: Any, prefix: str) -> Iterator[str]:
    for field in fields(node):
        key, value = f"{prefix}{field.name}", getattr(node, field.name)
        if is_dataclass(value):
            yield from _field_problems(value, f"{key}.")
            continue
        if value is None:
            continue
        if isinstance(value, float) and not math.isfinite(value):
            yield f"`{key}` must be a finite number, got {value}"
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            hint = nearest(str(value), choices)
            close = f"; {hint}" if hint.startswith("did you mean") else ""
            yield f"`{key}` must be one of {', '.join(choices)}, got {value!r}{close}"
        for name, (holds, text) in BOUNDS.items():
            limit = field.metadata.get(name)
            if limit is not None and not holds(value, limit):
                yield f"`{key}` must be {text.format(limit)}, got {value}"


def _cross_problems(config: Config) -> Iterator[str]:
    yield from _data_problems(config)
    yield from _adapter_problems(config)
    yield from _pruner_problems(config)
    yield from _objective_problems(config)
    train, optimizer = config.train, config.optimizer
    if not config.model.path and config.model.kind == TRANSFORMER:
        yield "`model.path` is missing: a hub id or a folder, for example model=hf model.path=/models/my-encoder"
    if train.max_steps and optimizer.warmup_steps >= train.max_steps:
        yield (
            f"`optimizer.warmup_steps` ({optimizer.warmup_steps}) must be < `train.max_steps` ({train.max_steps}), or "
            "the learning rate never reaches its peak"
        )
    if train.early_stopping_evals and not train.eval_every_steps:
        yield (
            f"`train.early_stopping_evals`={train.early_stopping_evals} needs evaluations: set "
            "`train.eval_every_steps` > 0"
        )
    if config.adapter.kind == "full" and config.quantization.kind != "none":
        yield (
            f"`adapter=full` trains every parameter, which `quantization={config.quantization.kind}` freezes; "
            "use adapter=lora or quantization=none"
        )
    if config.adapter.kind == "head" and config.adapter.bias != "none":
        yield f"`adapter=head` trains the head alone, and `adapter.bias`={config.adapter.bias} asks for more; use none"
    yield from _address_problems(config)
    if config.sweep.name:
        try:
            check_name(config.sweep.name, "sweep name")
        except ConfigError as error:
            yield str(error)
    yield from _task_problems(config)
    classes = len(config.data.label_names) or (config.data.classes if config.data.kind == "demo_reviews" else 2)
    if config.task.average == "binary" and classes != 2:
        yield f"`task.average`=binary needs two classes, the data have {classes}; use macro or weighted"
    device = config.launcher.device
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        yield f"`launcher.device` must be auto, cpu, cuda or cuda:N, got {device!r}"
    slots = config.launcher.slots
    if slots != "auto" and (not isinstance(slots, int) or isinstance(slots, bool) or slots < 1):
        yield f"`launcher.slots` must be auto or an integer > 0, got {slots!r}"
    resources = config.launcher.resources
    amounts = list((resources or {}).values()) if isinstance(resources, dict | None) else [None]
    if not all(isinstance(amount, int | float) and amount > 0 for amount in amounts):
        yield f"`launcher.resources` must be amounts > 0 by name, such as {{a100: 1}}, got {resources!r}"


def _address_problems(config: Config) -> Iterator[str]:
    tracking = config.tracking
    for value, problem in (
        (tracking.uri, address.problem),
        (tracking.studies, address.studies_problem),
        (tracking.files, address.files_problem),
    ):
        if value is not None and (wrong := problem(value)) is not None:
            yield wrong


def _data_problems(config: Config) -> Iterator[str]:
    data = config.data
    if data.kind == "file" and not data.train:
        yield "`data=file` needs `data.train=PATH` (csv, tsv, json, jsonl or parquet)"
    if data.kind == "hub" and not data.hub_id:
        yield "`data.kind=hub` needs `data.hub_id`, for example stanfordnlp/imdb"
    if data.delimiter is not None and len(data.delimiter) != 1:
        yield f"`data.delimiter` must be one character, got {data.delimiter!r}"
    if len(set(data.label_names)) != len(data.label_names):
        yield f"`data.label_names` names a class twice: {data.label_names}"
    if data.test is not None and data.test in (data.train, data.validation):
        yield f"`data.test` must be another file than train and validation, got {data.test} twice: search never sees it"


def _task_problems(config: Config) -> Iterator[str]:
    task, data = config.task, config.data
    if task.verbalizer is not None and not isinstance(task.verbalizer, dict):
        yield f"`task.verbalizer` must be like {{negative: bad, positive: good}}, got {task.verbalizer!r}"
    allowed = {"instruct": ("score", "generate", "none"), "qa": ("generate", "extract")}.get(task.kind)
    if allowed and task.predict not in allowed:
        yield f"`task.predict` must be one of {', '.join(allowed)} for task={task.kind}, got {task.predict!r}"
    if task.kind == "qa" and data.kind != "demo_qa" and not data.answers_column:
        yield "`task=qa` needs `data.answers_column`, for example data=squad_v2 or data.answers_column=answers"
    if task.kind == "qa" and data.kind != "demo_qa" and not data.pair_column:
        yield "`task=qa` needs `data.pair_column`, the column of the context, beside `data.text_column`, the question's"
    if task.kind == "classify" and data.output_column:
        yield (
            f"`data.output_column`={data.output_column} holds free responses, which no head can classify; use "
            "task=instruct, or data.output_column=null with data.label_column"
        )
    if task.kind == "instruct" and data.output_column and task.predict == "score":
        yield (
            f"`task.predict`=score compares the responses of classes and `data.output_column`={data.output_column} "
            "holds free ones; use task.predict=generate or none"
        )


def _pruner_problems(config: Config) -> Iterator[str]:
    pruner = config.pruner
    if pruner.kind == "threshold" and pruner.lower is None and pruner.upper is None:
        yield "`pruner=threshold` needs `pruner.lower` or `pruner.upper`: values beyond which a trial is stopped"
    if pruner.lower is not None and pruner.upper is not None and pruner.lower > pruner.upper:
        yield f"`pruner.lower` ({pruner.lower:g}) must be <= `pruner.upper` ({pruner.upper:g}); swap them"
    if pruner.kind == "hyperband" and pruner.max_samples <= pruner.min_samples:
        yield (
            f"`pruner.max_samples` ({pruner.max_samples}) must be > `pruner.min_samples` ({pruner.min_samples}): "
            "there is no rung between the two"
        )
    if pruner.kind == "wilcoxon" and pruner.startup_rows > pruner.rows:
        yield (
            f"`pruner.startup_rows` ({pruner.startup_rows}) must be <= `pruner.rows` ({pruner.rows}), or no trial is "
            "ever judged"
        )


def _objective_problems(config: Config) -> Iterator[str]:
    sweep = config.sweep
    names = [objective.metric for objective in sweep.objectives]
    if not all(name.strip() for name in [sweep.objective.metric, *names]):
        yield "`sweep.objective.metric` is empty: name a logged metric, for example eval/accuracy"
    if len(set(names)) < len(names):
        yield f"`sweep.objectives` names a metric twice ({', '.join(names)}); drop one"
    for objective in sweep.objectives:
        if objective.direction not in ("maximize", "minimize"):
            yield f"`sweep.objectives`: {objective.metric} must be maximized or minimized, got {objective.direction!r}"
    if len(names) > 1 and config.pruner.kind != "none":
        yield (
            f"`pruner={config.pruner.kind}` compares one objective and `sweep.objectives` has {len(names)}: what loses "
            "in one may win in another; use pruner=none"
        )
    if len(names) > 1 and config.sampler.kind == "cmaes":
        yield f"`sampler=cmaes` knows one objective and `sweep.objectives` has {len(names)}; use tpe, gp, random or qmc"


def _adapter_problems(config: Config) -> Iterator[str]:
    adapter = config.adapter
    targets, layers = adapter.targets, adapter.layers
    named = isinstance(targets, list) and targets and all(isinstance(name, str) and name for name in targets)
    if targets != "all-linear" and not named:
        yield f"`adapter.targets` must be all-linear or a list of module names such as [q_proj,v_proj], got {targets!r}"
    if not all(isinstance(name, str) and name for name in adapter.modules_to_save):
        yield f"`adapter.modules_to_save` must be a list of names such as [o_proj], got {adapter.modules_to_save!r}"
    plain = isinstance(layers, int) and not isinstance(layers, bool) and layers > 0
    listed = isinstance(layers, list) and layers and all(type(index) is int and index >= 0 for index in layers)
    if layers is not None and not plain and not listed:
        yield f"`adapter.layers` must be null, an integer > 0 (the top N layers) or a list of indexes, got {layers!r}"
