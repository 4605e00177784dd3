"""Every bound and choice of the schema is enforced, and every rule across fields says what to mend."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from lorasweep.config.checks import check_config
from lorasweep.config.schema import Config
from lorasweep.errors import ConfigError


def good() -> Config:
    """A config that keeps every rule."""
    config = Config()
    config.model.path = "builtin:tiny_encoder"
    return config


def put(config: Config, key: str, value: Any) -> None:
    """Set a dotted key."""
    *path, name = key.split(".")
    node: Any = config
    for part in path:
        node = getattr(node, part)
    setattr(node, name, value)


def limited(node: Any = None, prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every dotted key with its limits."""
    node = node or Config()
    for field in fields(node):
        value = getattr(node, field.name)
        if is_dataclass(value):
            yield from limited(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", dict(field.metadata)


OUTSIDE = {
    "above": lambda limit: limit,
    "at_least": lambda limit: limit - 1,
    "below": lambda limit: limit,
    "at_most": lambda limit: limit + 1,
}
BROKEN = [
    (key, name, OUTSIDE[name](limit)) for key, meta in limited() for name, limit in meta.items() if name in OUTSIDE
]
CHOSEN = [(key, meta["choices"]) for key, meta in limited() if "choices" in meta]


def test_the_defaults_with_a_base_are_good() -> None:
    check_config(good())


@pytest.mark.parametrize(("key", "limit", "value"), BROKEN)
def test_each_bound_of_the_schema_is_enforced(key: str, limit: str, value: float) -> None:
    config = good()
    put(config, key, value)
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert f"`{key}` must be" in str(caught.value)
    assert f"got {value}" in str(caught.value)


@pytest.mark.parametrize(("key", "choices"), CHOSEN)
def test_each_choice_of_the_schema_is_enforced(key: str, choices: tuple[str, ...]) -> None:
    config = good()
    put(config, key, choices[0] + "x")
    with pytest.raises(ConfigError) as caught:
        check_config(config)
    assert f"`{key}` must be one of {', '.join(choices)}" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_must_be_finite(value: float) -> None:
    config = good()
    config.optimizer.lr = value
    with pytest.raises(ConfigError, match=r"`optimizer.lr` must be a finite number"):
        check_config(config)


def test_where_ends_the_message() -> None:
    config = good()
    config.adapter.r = 0
    with pytest.raises(
        ConfigError, match=r"`adapter.r` must be > 0, got 0 at adapter.r=0; check `space` in sweeps/a.yaml$"
    ):
        check_config(config, "at adapter.r=0; check `space` in sweeps/a.yaml")


CROSS = [
    ({"model.path": ""}, "`model.path` is missing.*model=hf model.path="),
    ({"data.kind": "file"}, r"`data=file` needs `data.train=PATH`"),
    ({"data.kind": "hub"}, r"needs `data.hub_id`"),
    ({"data.delimiter": ";;"}, "`data.delimiter` must be one character, got ';;'"),
    ({"data.delimiter": ""}, "`data.delimiter` must be one character"),
    ({"data.label_names": ["a", "b", "a"]}, "names a class twice"),
    ({"data.classes": 5}, "`data.classes` must be <= 4, got 5"),
    (
        {"data.kind": "file", "data.train": "a.csv", "data.test": "a.csv"},
        "`data.test` must be another file.*a.csv",
    ),
    (
        {"data.kind": "file", "data.train": "a.csv", "data.validation": "b.csv", "data.test": "b.csv"},
        "`data.test` must be another",
    ),
    (
        {"train.max_steps": 10, "optimizer.warmup_steps": 10},
        r"`optimizer.warmup_steps` \(10\) must be < `train.max_steps`",
    ),
    ({"train.early_stopping_evals": 2}, "set `train.eval_every_steps` > 0"),
    ({"adapter.kind": "full", "quantization.kind": "nf4"}, "use adapter=lora or quantization=none"),
    ({"adapter.kind": "head", "adapter.bias": "all"}, "trains the head alone, and `adapter.bias`=all asks for more"),
    ({"launcher.prefix_cache_gib": -1}, "`launcher.prefix_cache_gib` must be >= 0, got -1"),
    ({"launcher.slots": 0}, "`launcher.slots` must be auto or an integer > 0, got 0"),
    ({"launcher.slots": "many"}, "`launcher.slots` must be auto or an integer > 0, got 'many'"),
    ({"launcher.slots": True}, "`launcher.slots` must be"),
    ({"launcher.slots": 2.0}, "`launcher.slots` must be"),
    ({"launcher.resources": ["a100"]}, "`launcher.resources` must be amounts > 0 by name, such as {a100: 1}"),
    ({"launcher.resources": {"a100": 0}}, "`launcher.resources` must be amounts > 0"),
    ({"launcher.device": "gpu"}, "`launcher.device` must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    ({"launcher.device": "cuda:x"}, "`launcher.device` must be"),
    ({"adapter.targets": "q_proj"}, r"`adapter.targets` must be all-linear or a list.*\[q_proj,v_proj\]"),
    ({"adapter.targets": []}, "`adapter.targets` must be"),
    ({"adapter.targets": ["a", 3]}, "`adapter.targets` must be"),
    ({"adapter.layers": 0}, "`adapter.layers` must be null, an integer > 0"),
    ({"adapter.layers": True}, "`adapter.layers` must be"),
    ({"adapter.layers": []}, "`adapter.layers` must be"),
    ({"adapter.layers": [-1]}, "`adapter.layers` must be"),
    ({"adapter.layers": [True]}, "`adapter.layers` must be"),
    ({"adapter.layers": "top"}, "`adapter.layers` must be"),
    ({"task.average": "binary", "data.classes": 4}, "`task.average`=binary.*two classes"),
    ({"task.average": "binary", "data.label_names": ["a", "b", "c"]}, "`task.average`=binary.*two classes"),
    ({"sweep.name": "../x"}, "must start with a letter or digit"),
    ({"sweep.name": "a/b"}, "a sweep name must"),
]


@pytest.mark.parametrize(("changes", "message"), CROSS)
def test_rules_across_fields(changes: dict[str, Any], message: str) -> None:
    config = good()
    for key, value in changes.items():
        put(config, key, value)
    with pytest.raises(ConfigError, match=message):
        check_config(config)


FINE: list[dict[str, Any]] = [
    {"launcher.slots": 4},
    {"launcher.resources": {"a100": 0.5, "ssd": 2}},
    {"launcher.device": "cuda:1"},
    {"adapter.layers": 2},
    {"adapter.layers": [0, 3]},
    {"adapter.targets": ["q_proj", "v_proj"]},
    {"train.max_steps": 10, "optimizer.warmup_steps": 9},
    {"train.max_steps": 0, "optimizer.warmup_steps": 900},
    {"data.classes": 4},
    {"task.average": "binary"},
    {"sweep.name": "rank_lr"},
    {"adapter.kind": "full"},
    {"adapter.kind": "head"},
    {"launcher.prefix_cache_gib": 0, "launcher.prefix_disk_gib": 0},
    {"data.delimiter": "\t"},
]


@pytest.mark.parametrize("changes", FINE)
def test_what_is_allowed(changes: dict[str, Any]) -> None:
    config = good()
    for key, value in changes.items():
        put(config, key, value)
    check_config(config)
