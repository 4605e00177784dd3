"""Refusals: a bad override or file gives one sentence with the rule, the value and the repair, never Hydra's inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasweep.config.compose import compose
from lorasweep.config.explain import in_words, keys, nearest_key, options
from lorasweep.config.home import Home
from lorasweep.errors import ConfigError, LorasweepError, UsageError

SHIPPED = Home.find().shipped
INSIDE = ("hydra", "omegaconf", "full_key", "object_type", "raised while composing", "primary_config", "traceback")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A user's folder without conf/ or sweeps/."""
    return Home(tmp_path, SHIPPED)


def write(home: Home, path: str, text: str) -> None:
    """A file in the user's home."""
    (home.root / path).parent.mkdir(parents=True, exist_ok=True)
    (home.root / path).write_text(text, encoding="utf-8")


def refusal(home: Home, *overrides: str, sweep: str | None = None) -> str:
    """The message of a composition that must fail, without the names of folders in it."""
    with pytest.raises(LorasweepError) as caught:
        compose(overrides, sweep=sweep, home=home)
    assert caught.value.exit_code == 2
    message = str(caught.value).replace(str(home.root), "HOME")
    assert "\n" not in message
    for word in INSIDE:
        assert word not in message.lower()
    return message


OVERRIDES = [
    ("model=foo", ["`model=foo` is no option; model can be bert, bow_forest, distilbert", "tiny_encoder"]),
    ("model=distilbrt", ["did you mean `distilbert`?"]),
    ("data=demo_review", ["did you mean `demo_reviews`?"]),
    ("data=../data/sst2", ["is no option; data can be"]),
    ("data=/etc/passwd", ["is no option; data can be"]),
    ("pruner=ashen", ["pruner can be"]),
    ("launcher=cluster", ["launcher can be"]),
    ("adapter=5", ["`adapter=5`: adapter can be full, head, lora"]),
    ("adapter=2.5", ["`adapter=2.5`: adapter can be full, head, lora"]),
    ("model=null", ["model can be"]),
    ("data=[a,b]", ["data can be"]),
    ("data={a:1}", ["data can be"]),
    ("optimizer.lrr=1", ["no setting `optimizer.lrr`; did you mean `optimizer.lr`?"]),
    ("adapter.zzzzzz=4", ["no setting `adapter.zzzzzz`; `adapter` has alpha"]),
    ("adapter.r.x=3", ["no setting `adapter.r.x`; did you mean `adapter.r`?"]),
    ("adaptr=full", ["did you mean `adapter`?"]),
    ("lr=3", ["did you mean `optimizer.lr`?"]),
    ("batch_size=3", ["did you mean `train.batch_size`?"]),
    ("optimiser.lr=3", ["did you mean `optimizer.lr`?"]),
    ("optimiser.lrr=3", ["did you mean `optimizer.lr`?"]),
    ("train.lr=3", ["did you mean `optimizer.lr`?"]),
    ("sweep.trails=3", ["did you mean `sweep.trials`?"]),
    ("sweep.objective.metrik=x", ["did you mean `sweep.objective.metric`?"]),
    ("foo.bar=3", ["no setting `foo.bar`", "adapter, data"]),
    ("sweep.space.optimizer.lr=3", ["`sweep.space` holds keys with dots", "change `optimizer.lr` in the sweep file"]),
    ("optimizer.lr=fast", ["`optimizer.lr` must be a number, got 'fast'"]),
    ("optimizer.lr=", ["`optimizer.lr` must be a number, got ''"]),
    ("adapter.r=four", ["`adapter.r` must be an integer, got 'four'"]),
    ("train.seed=1.5", ["must be an integer, got 1.5"]),
    ("train.max_steps=null", ["must be an integer, got null"]),
    ("adapter.rslora=maybe", ["must be true or false, got 'maybe'"]),
    ("data.label_names=3", ["`data.label_names` must be a list"]),
    ("sweep.enqueue=3", ["`sweep.enqueue` must be a list of points"]),
    ("sweep=3", ["`sweep` holds several settings", "sweep.trials"]),
    ("sweep.objective=eval/f1", ["sweep.objective.metric"]),
    ("adapter.r=0", ["`adapter.r` must be > 0, got 0"]),
    ("optimizer.lr=-1e-3", ["`optimizer.lr` must be > 0, got -0.001"]),
    ("optimizer.lr=nan", ["finite"]),
    ("optimizer.lr=inf", ["finite"]),
    ("model=hf", ["`model.path` is missing", "model=hf model.path=/models/my-encoder"]),
    ("data=file", ["`data=file` needs `data.train=PATH`"]),
    ("model.path=${nope}", ["`model.path`", "nope"]),
    ("model.path=???", ["`model.path`"]),
    ("sweep.name=../evil", ["a sweep name must start with", "rename it"]),
]


@pytest.mark.parametrize(("override", "parts"), OVERRIDES, ids=[override for override, _ in OVERRIDES])
def test_bad_overrides(override: str, parts: list[str], home: Home) -> None:
    message = refusal(home, override)
    for part in parts:
        assert part in message, message
    assert ".yaml" not in message  # no file is to blame


HEAD = "# @package _global_\n"
FILES = [
    (HEAD + "adapter: {rr: 4}\n", ["no setting `adapter.rr`; did you mean `adapter.r`?"]),
    (HEAD + "adaptor: {r: 4}\n", ["no setting `adaptor`; did you mean `adapter`?"]),
    (HEAD + "sweep: {trails: 4}\n", ["did you mean `sweep.trials`?"]),
    (HEAD + "adapter: {r: four}\n", ["`adapter.r` must be an integer, got 'four'"]),
    (HEAD + "adapter: {r: -2}\n", ["`adapter.r` must be > 0, got -2"]),
    (HEAD + "adapter: 5\n", ["`adapter` is a group", "got 5"]),
    (HEAD + "sweep: 5\n", ["`sweep` holds several settings"]),
    (HEAD + "adapter: {r: 4\n  x: [\n", ["line 3"]),
    (HEAD + "sweep:\n\ttrials: 5\n", ["line 3"]),
    (HEAD + "adapter:\n  r: 4\n  r: 5\n", ["duplicate key r", "line 4"]),
    (HEAD + "defaults:\n  - override /model: nope\n", ["`model=nope` is no option; model can be bert"]),
    (HEAD + "defaults:\n  - override /model: gpt3\n", ["did you mean `gpt2`?"]),
    (HEAD + "defaults:\n  - override /modle: bert\n", ["no group `modle`", "did you mean `model`?"]),
    (HEAD + "defaults:\n  - /model: bert\n", ["write `override /model: bert`"]),
    (HEAD + "defaults: 5\n", ["`defaults` must be a list", "got 5"]),
    (HEAD + "sweep: {space: 5}\n", ["`sweep.space`", "keys with values"]),
    (HEAD + "sweep: {space: }\n", ["`sweep.space`", "keys with values"]),
    (HEAD + "sweep: {enqueue: {a: 1}}\n", ["`sweep.enqueue` must be a list of points"]),
    (HEAD + "sweep: {name: ../../x}\n", ["a sweep name must start with"]),
    (HEAD + "adapter: {r: '${train.nope}'}\n", ["`adapter.r`", "train.nope"]),
    ("sweep: {trials: 3}\n", ["must begin with the line `# @package _global_`"]),
    ("", ["must be a mapping of settings in groups", "None"]),
    (HEAD + "- 1\n- 2\n", ["must be a mapping of settings in groups", "[1, 2]"]),
    (HEAD + "hello\n", ["no setting `hello`"]),
]


@pytest.mark.parametrize(("text", "parts"), FILES, ids=[repr(text.removeprefix(HEAD)) for text, _ in FILES])
def test_bad_sweep_files_are_named(text: str, parts: list[str], home: Home) -> None:
    write(home, "sweeps/mine.yaml", text)
    message = refusal(home, sweep="mine")
    for part in [*parts, "sweeps/mine.yaml"]:
        assert part in message, message


def test_a_sweep_file_that_is_no_text(home: Home) -> None:
    write(home, "sweeps/mine.yaml", "")
    (home.root / "sweeps" / "mine.yaml").write_bytes(HEAD.encode() + b"data: {train: \xff}\n")
    message = refusal(home, sweep="mine")
    assert "UTF-8" in message
    assert "HOME/sweeps/mine.yaml" in message


def test_the_override_is_blamed_not_the_file(home: Home) -> None:
    assert "quickstart.yaml" not in refusal(home, "adapter.rr=4", sweep="quickstart")
    assert "quickstart.yaml" not in refusal(home, "adapter.r=four", sweep="quickstart")


def test_bad_files_of_the_users_conf_are_named(home: Home) -> None:
    write(home, "conf/model/mine.yaml", "pth: x\n")
    message = refusal(home, "model=mine")
    assert "no setting `model.pth`; did you mean `model.path`?" in message
    assert "HOME/conf/model/mine.yaml" in message
    write(home, "conf/model/mine.yaml", "path: [x\n")
    assert "HOME/conf/model/mine.yaml" in refusal(home, "model=mine")
    write(home, "conf/adapter/mine.yaml", "r: big\n")
    message = refusal(home, "adapter=mine")
    assert "`adapter.r` must be an integer, got 'big'" in message
    assert "HOME/conf/adapter/mine.yaml" in message


def test_another_projects_conf_is_told_apart(home: Home) -> None:
    write(home, "conf/config.yaml", "db: {host: localhost}\n")
    with pytest.raises(ConfigError, match=r"config.yaml is not lorasweep's.*LORASWEEP_HOME"):
        compose(home=home)


@pytest.mark.parametrize("sweep", ["../x", "a/b", "..", "", "/etc/passwd", "x" * 200])
def test_a_sweep_name_cannot_leave_its_folder(sweep: str, home: Home) -> None:
    assert "a sweep name must start with" in refusal(home, sweep=sweep)


def test_a_missing_sweep_names_the_nearest(home: Home) -> None:
    with pytest.raises(UsageError, match=r"no sweep 'quickstrat' in .*did you mean `quickstart`"):
        compose(sweep="quickstrat", home=home)


def test_every_setting_is_its_own_nearest() -> None:
    for key in keys():
        assert nearest_key(key) == f"did you mean `{key}`?"


def test_types_in_words() -> None:
    assert in_words("int | None") == "an integer or null"
    assert in_words("float") == "a number"


def test_options_of_users_and_ours_in_folders_too(home: Home) -> None:
    write(home, "conf/model/ours/large.yaml", "path: org/large\n")
    assert {"ours/large", "bert"} <= set(options("model", home))
    assert compose(["model=ours/large"], home=home).model.path == "org/large"
