"""Overrides: every value survives the way through Hydra's grammar, every bad word is refused in one sentence."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from lorasweep.config.compose import compose, compose_trial, from_json, to_yaml, trial_fingerprint
from lorasweep.config.home import Home
from lorasweep.config.words import override_string, parse_overrides
from lorasweep.errors import ConfigError

HOME = Home(Path("/nowhere"), Home.find().shipped)
AWKWARD = [
    "null",
    "NULL",
    "true",
    "False",
    "1",
    "1e3",
    "nan",
    "-inf",
    "",
    " a ",
    "${a}",
    "\\${a}",
    "${",
    "x\\",
    "x\\\n",
    "a,b",
]
AWKWARD += [
    "choice(1)",
    "'",
    '"',
    '\\"',
    'it\'s "so"\\',
    "naïve/路径.tsv",
    "a\nb",
    "~/x",
    "{a: 1}",
    "[1]",
    "${oc.env:HOME}",
]
texts = st.one_of(
    st.sampled_from(AWKWARD),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.text(st.sampled_from("ab \\'\"${}[](),=:~/.\n\t#%&|<>@é☃"), max_size=12),
).filter(lambda text: text != "???")
scalars = st.one_of(texts, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False))


@settings(deadline=None, max_examples=400)
@given(st.recursive(scalars, lambda inner: st.lists(inner, max_size=4), max_leaves=6))
@example(["a,b", ["c", None], "'", '"'])
@example({"negative": "so-so: {}", "0": ["a,b", None]})
@example("a\\\n")
@pytest.mark.slow
def test_any_value_is_read_back_as_itself(value: Any) -> None:
    from omegaconf import OmegaConf

    parsed = parse_overrides([override_string("adapter.targets", value)])["adapter.targets"]
    found = OmegaConf.to_object(OmegaConf.create({"value": parsed}))  # undoes the escape of `${`
    assert found == {"value": value}
    assert repr(found["value"]) == repr(value)


# a composition takes a good part of a second: a failing example is shown as it was found, not shrunk for minutes
@settings(deadline=None, max_examples=15, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(st.lists(texts, min_size=5, max_size=5), st.lists(texts, max_size=8, unique=True), st.floats(1e-300, 1e300))
@example(AWKWARD[:5], AWKWARD, 1e-5)
@example(AWKWARD[5:10], ["\x85\U000b6db5", "a\x85", "1e3", "\u2028 b"], 1e-5)  # line breaks of YAML's own
@pytest.mark.slow
def test_text_survives_composition_storage_and_yaml(values: list[str], names: list[str], lr: float) -> None:
    keys = ("model.revision", "model.name", "data.validation", "data.text_column", "data.hub_id")
    params = {**dict(zip(keys, values, strict=True)), "data.label_names": names, "optimizer.lr": lr, "data.train": None}
    config = compose([override_string(key, value) for key, value in params.items()], home=HOME)
    found = [
        config.model.revision,
        config.model.name,
        config.data.validation,
        config.data.text_column,
        config.data.hub_id,
    ]
    assert found == values
    assert (config.data.label_names, config.optimizer.lr, config.data.train) == (names, lr, None)
    assert compose_trial([], None, params, HOME) == config
    assert from_json(asdict(config)) == config
    assert trial_fingerprint(from_json(asdict(config))) == trial_fingerprint(config)
    assert yaml.safe_load(to_yaml(config))["data"]["label_names"] == names


@pytest.mark.parametrize("value", ["???", {"a b": 1}, {"true": 1}, {"1e3": 1}, object(), ["a", "???"]])
def test_what_an_override_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be a value|an override holds"):
        override_string("model.path", value)


@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=30), st.text(st.sampled_from("adpter.=r[](){}',\"$\\+~@ 12"), max_size=20)))
@example("=4")
@example("@x=1")
@example("adapter.r=glob(*)")
def test_any_word_is_read_or_is_a_config_error(word: str) -> None:
    try:
        parsed = parse_overrides([word])
    except ConfigError:
        return
    assert len(parsed) == 1


REFUSED = [
    ("adapter.r", "`adapter.r` is no override; write key=value"),
    ("--trials", "write key=value"),
    ("", "write key=value"),
    ("=4", "`=4` is no override"),
    ("adapter.r=4,8", "`adapter.r=4,8` holds several values; `sweep.space`"),
    ("adapter.r=choice(4,8)", "several values"),
    ("adapter.r=range(4,8)", "several values"),
    ("+adapter.x=4", r"`\+adapter.x=4`: every setting exists already"),
    ("~adapter.r=4", "`~adapter.r=4`: every setting exists already"),
    ("model.path='a", "cannot read the override `model.path='a`.*Quote"),
    ("model.path=~/rows", "cannot read the override `model.path=~/rows`.*Quote"),
    ("model@other=bert", "no setting `model@other`"),
    ("hydra.run.dir=x", "`hydra.run.dir=x` is Hydra's own.*write tracking.dir=x"),
    ("sweeps=rank_lr", "a sweep file is named by its command, `lorasweep sweep rank_lr`"),
    ("adapter.rr=4", "no setting `adapter.rr`; did you mean `adapter.r`"),
]


@pytest.mark.parametrize(("word", "message"), REFUSED)
def test_bad_words(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_overrides(["adapter.r=4", word])
    assert re.search(message, str(caught.value)), caught.value
    assert "\n" not in str(caught.value)


def test_values_are_pythons() -> None:
    words = [
        "adapter.r=4",
        "optimizer.lr=1e-3",
        "adapter.rslora=true",
        "data.test=null",
        "adapter.layers=[0,1]",
        "model='a b'",
    ]
    assert parse_overrides(words) == {
        "adapter.r": 4,
        "optimizer.lr": 1e-3,
        "adapter.rslora": True,
        "data.test": None,
        "adapter.layers": [0, 1],
        "model": "a b",
    }
    assert parse_overrides([]) == {}
