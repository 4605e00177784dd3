"""Composition: what ships composes, the user's files come first, trials are typed and fast, nothing leaks."""

from __future__ import annotations

import logging
import os
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lorasweep.config import compose as composing
from lorasweep.config.checks import check_config
from lorasweep.config.compose import compose, compose_trial, from_json, tracking_place, trial_fingerprint
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS, Config
from lorasweep.config.words import override_string
from lorasweep.errors import ConfigError, LorasweepError

SHIPPED = Home.find().shipped
NEEDED = {
    ("model", "hf"): ["model.path=/models/mine"],
    ("data", "file"): ["data.train=rows.csv"],
    ("pruner", "threshold"): ["pruner.lower=0.5"],
    ("task", "qa"): ["data=demo_qa"],
    ("task", "qa_extractive"): ["data=demo_qa"],
}
VARIABLES = {
    ("tracking", "server"): {
        "LORASWEEP_TRACKING_URI": "http://127.0.0.1:5000",
        "LORASWEEP_STUDIES": "postgresql://lorasweep@127.0.0.1:5432/lorasweep",
        "LORASWEEP_FILES": "s3://lorasweep/files",
    }
}
SHIPPED_OPTIONS = sorted((path.parent.name, path.stem) for path in (SHIPPED / "conf").glob("*/*.yaml"))
HEAD = "# @package _global_\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty folder of the user's, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path, SHIPPED)


def write(home: Home, path: str, text: str) -> None:
    """A file in the user's home."""
    (home.root / path).parent.mkdir(parents=True, exist_ok=True)
    (home.root / path).write_text(text, encoding="utf-8")


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


# -- what ships -------------------------------------------------------------------------------------------------------


def test_every_group_has_options() -> None:
    assert {group for group, _ in SHIPPED_OPTIONS} == set(GROUPS)


@pytest.mark.parametrize(("group", "option"), SHIPPED_OPTIONS)
@pytest.mark.slow
def test_every_shipped_option_composes(group: str, option: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in VARIABLES.get((group, option), {}).items():
        monkeypatch.setenv(name, value)
    config = compose([f"{group}={option}", *NEEDED.get((group, option), [])], home=home)
    assert isinstance(config, Config)
    if group not in ("model", "train", "tracking"):
        expected = "hub" if option in ("imdb", "sst2", "squad_v2", "tweet_sentiment") else option
        expected = option.partition("_")[0] if group == "task" else expected
        assert getattr(config, group).kind == expected


def test_an_unset_variable_is_named_with_its_setting(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES["tracking", "server"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LORASWEEP_FILES", "")  # empty is no place either
    with pytest.raises(ConfigError) as caught:
        compose(["tracking=server", "tracking.uri=http://127.0.0.1:5000"], home=home)
    assert str(caught.value) == (
        "a setting that comes from an environment variable needs that variable, and these are not set: "
        "`tracking.studies` from LORASWEEP_STUDIES, `tracking.files` from LORASWEEP_FILES. Set them, or give "
        "tracking.studies=… tracking.files=…"
    )
    words = ["tracking.uri=http://127.0.0.1:5000", "tracking.studies=null", "tracking.files=null"]
    found = compose(["tracking=server", *words, "model.name='\\${oc.env:NOWHERE}'"], home=home)
    assert (found.tracking.uri, found.tracking.files, found.model.name) == (words[0][13:], None, "${oc.env:NOWHERE}")


@pytest.mark.parametrize("sweep", sorted(path.stem for path in (SHIPPED / "sweeps").glob("*.yaml")))
@pytest.mark.slow
def test_every_shipped_sweep_composes(sweep: str, home: Home) -> None:
    config = compose(sweep=sweep, home=home)
    assert config.sweep.name == sweep
    assert config.sweep.space
    assert config.sweep.trials > 1


def test_the_defaults_are_the_demo(home: Home) -> None:
    config = compose(home=home)
    assert (config.model.path, config.data.kind, config.adapter.kind) == (
        "builtin:tiny_encoder",
        "demo_reviews",
        "lora",
    )
    assert (config.sampler.kind, config.pruner.kind, config.tracking.dir) == ("tpe", "none", None)
    assert (config.sweep.space, config.sweep.enqueue, config.sweep.name) == ({}, [], "")


def test_the_quickstart_is_as_promised(home: Home) -> None:
    config = compose(sweep="quickstart", home=home)
    assert (config.model.path, config.data.kind, config.sweep.trials) == ("builtin:tiny_encoder", "demo_reviews", 24)
    assert set(config.sweep.space) == {"optimizer.lr", "adapter.r", "train.batch_size", "train.max_steps"}
    assert config.sweep.enqueue[0]["optimizer.lr"] == 1e-3


RELIED_ON: list[tuple[list[str], dict[str, Any]]] = [  # the keys of DESIGN.md that scripts outside the project use
    (["model=hf", "model.path=org/name"], {"model.path": "org/name"}),
    (
        ["data=file", "data.train=a.tsv", "data.validation=b.tsv", "data.test=c.tsv"],
        {"data.kind": "file", "data.train": "a.tsv", "data.validation": "b.tsv", "data.test": "c.tsv"},
    ),
    (
        ["data.text_column=sentence", "data.label_column=y", "data.max_length=64"],
        {"data.text_column": "sentence", "data.label_column": "y", "data.max_length": 64},
    ),
    (
        ["adapter=lora", "adapter.r=4", "adapter.alpha=8"],
        {"adapter.kind": "lora", "adapter.r": 4, "adapter.alpha": 8.0},
    ),
    (["adapter=full"], {"adapter.kind": "full"}),
    (["adapter=head"], {"adapter.kind": "head"}),
    (["adapter.dropout=0.1", "adapter.layers=2"], {"adapter.dropout": 0.1, "adapter.layers": 2}),
    (["adapter.layers=[0,1]"], {"adapter.layers": [0, 1]}),
    (["optimizer.lr=2e-3", "optimizer.weight_decay=1e-2"], {"optimizer.lr": 2e-3, "optimizer.weight_decay": 1e-2}),
    (["train.batch_size=4", "train.max_steps=20"], {"train.batch_size": 4, "train.max_steps": 20}),
    (["train.eval_every_steps=5", "train.seed=3"], {"train.eval_every_steps": 5, "train.seed": 3}),
    (["train.precision=bf16"], {"train.precision": "bf16"}),
    (["sampler=tpe", "sampler.seed=7"], {"sampler.kind": "tpe", "sampler.seed": 7}),
    (["sampler=random", "sampler.seed=7"], {"sampler.kind": "random", "sampler.seed": 7}),
    (["sampler=grid"], {"sampler.kind": "grid"}),
    (["sampler=list"], {"sampler.kind": "list"}),
    (["pruner=none"], {"pruner.kind": "none"}),
    (["sweep.trials=12", "sweep.timeout_seconds=60"], {"sweep.trials": 12, "sweep.timeout_seconds": 60.0}),
    (["launcher=local", "launcher.slots=auto"], {"launcher.kind": "local", "launcher.slots": "auto"}),
    (["launcher.slots=4"], {"launcher.slots": 4}),
    (["tracking.dir=."], {"tracking.dir": "."}),
    (["quantization=none"], {"quantization.kind": "none"}),
    (["quantization=nf4"], {"quantization.kind": "nf4"}),
]


@pytest.mark.parametrize(("overrides", "expected"), RELIED_ON, ids=[" ".join(words) for words, _ in RELIED_ON])
def test_keys_that_scripts_rely_on(overrides: list[str], expected: dict[str, Any], home: Home) -> None:
    config = compose(overrides, home=home)
    for key, value in expected.items():
        found = value_at(config, key)
        assert found == value
        assert type(found) is type(value)


# -- whose file wins --------------------------------------------------------------------------------------------------


def test_the_users_options_and_sweeps_win(home: Home) -> None:
    write(home, "conf/model/mine.yaml", "path: org/mine\n")
    write(home, "conf/model/bert.yaml", "path: org/my-bert\n")
    write(home, "sweeps/quickstart.yaml", HEAD + "defaults:\n  - override /model: mine\nsweep: {trials: 3}\n")
    assert compose(["model=mine"], home=home).model.path == "org/mine"
    assert compose(["model=bert"], home=home).model.path == "org/my-bert"
    assert compose(["model=gpt2"], home=home).model.path == "openai-community/gpt2"
    config = compose(["sweep.trials=4"], sweep="quickstart", home=home)
    assert (config.model.path, config.sweep.trials, config.sweep.name) == ("org/mine", 4, "quickstart")
    with pytest.raises(ConfigError, match=r"model can be bert, .*mine"):
        compose(["model=nope"], home=home)


def test_the_home_variable_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Home(tmp_path / "there", SHIPPED)
    write(there, "conf/model/mine.yaml", "path: org/mine\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LORASWEEP_HOME", str(there.root))
    assert compose(["model=mine"]).model.path == "org/mine"


def test_folders_beside_sweeps_are_no_groups(home: Home) -> None:
    for group in GROUPS:
        write(home, f"{group}/stray.yaml", "kind: stray\n")
        for path in (SHIPPED / "conf" / group).glob("*.yaml"):
            write(home, f"{group}/{path.name}", "this: {is: not, ours: at all}\n")
    write(home, "config.yaml", "nonsense: 1\n")
    write(home, "lorasweep_schema.yaml", "nonsense: 1\n")
    write(home, "sweeps/mine.yaml", HEAD + "defaults:\n  - override /data: stray\n")
    assert compose(home=home).data.kind == "demo_reviews"
    assert compose(sweep="quickstart", home=home).sweep.trials == 24
    with pytest.raises(ConfigError, match="`data=stray` is no option"):
        compose(["data=stray"], home=home)
    with pytest.raises(ConfigError, match="`data=stray` is no option"):
        compose(sweep="mine", home=home)


def test_the_name_of_the_file_names_the_sweep(home: Home) -> None:
    write(home, "sweeps/mine.yaml", HEAD + "sweep: {trials: 3}\n")
    assert compose(sweep="mine", home=home).sweep.name == "mine"
    assert compose(["sweep.name=other"], sweep="mine", home=home).sweep.name == "other"
    assert compose(home=home).sweep.name == ""


def test_dotted_keys_of_space_and_enqueue_stay_plain(home: Home) -> None:
    write(home, "sweeps/mine.yaml", HEAD + "sweep:\n  space: {adapter.r: '1,2'}\n  enqueue:\n    - {adapter.r: 2}\n")
    config = compose(sweep="mine", home=home)
    assert config.sweep.space == {"adapter.r": "1,2"}
    assert config.sweep.enqueue == [{"adapter.r": 2}]


# -- no trace left ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_composition_leaves_the_process_as_it_was(home: Home) -> None:
    from hydra.core.global_hydra import GlobalHydra

    def state() -> Any:
        root = logging.getLogger()
        return Path.cwd(), list(root.handlers), root.level, logging.getLogger("hydra").level, dict(os.environ)

    before = state()
    first = compose(sweep="quickstart", home=home)
    for _ in range(3):
        with pytest.raises(LorasweepError):
            compose(["model=nope"], home=home)
        with pytest.raises(LorasweepError):
            compose(["adapter.r=x"], home=home)
        compose(["model=gpt2"], home=home)
        assert compose(sweep="quickstart", home=home) == first
    assert state() == before
    assert not GlobalHydra.instance().is_initialized()
    assert list(home.root.iterdir()) == []


def test_a_hydra_of_the_callers_goes_on(home: Home) -> None:
    from hydra import compose as their_compose
    from hydra import initialize_config_dir

    write(home, "theirs/app.yaml", "port: 80\n")
    with initialize_config_dir(str(home.root / "theirs"), version_base="1.3"):
        assert compose(home=home).model.path
        assert their_compose("app").port == 80


# -- trials -----------------------------------------------------------------------------------------------------------


def test_params_of_a_trial_win_over_everything(home: Home) -> None:
    params = {"optimizer.lr": 1, "adapter.r": 4, "model": "tiny_gpt2", "model.name": "x", "adapter.layers": [0]}
    config = compose_trial(["adapter.r=2", "model=bert", "train.seed=5"], "quickstart", params, home)
    assert (config.optimizer.lr, config.adapter.r, config.train.seed) == (1.0, 4, 5)
    assert isinstance(config.optimizer.lr, float)
    assert (config.model.path, config.model.name, config.adapter.layers) == ("builtin:tiny_gpt2", "x", [0])


def test_a_group_as_param_keeps_the_overrides_of_its_values(home: Home) -> None:
    config = compose_trial(["optimizer.lr=5e-4"], None, {"optimizer": "adamw", "data": "demo_qa"}, home)
    assert config.optimizer.lr == 5e-4
    assert config.data.kind == "demo_qa"


def test_values_set_and_values_composed_agree(home: Home) -> None:
    params = {"optimizer.lr": 1, "adapter.targets": ["query", "value"], "data.train": None, "adapter.rslora": True}
    words = [override_string(key, value) for key, value in params.items()]
    assert compose_trial([], "quickstart", params, home) == compose(words, sweep="quickstart", home=home)


def test_trials_share_no_state(home: Home) -> None:
    base = compose_trial([], "quickstart", {}, home)
    config = compose_trial([], "quickstart", {"adapter.r": 2}, home)
    config.sweep.space.clear()
    config.data.label_names.append("x")
    assert compose_trial([], "quickstart", {}, home) == base


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"adapter.r": 0}, "`adapter.r` must be > 0, got 0 at adapter.r=0; check `space` in sweeps/quickstart.yaml"),
        ({"adapter.r": "four"}, "`adapter.r` must be an integer, got 'four' at .*check `space`"),
        ({"adapter.rr": 4}, "no setting `adapter.rr`; did you mean `adapter.r`.*check `space`"),
        ({"train.max_steps": 0.5}, "must be an integer, got 0.5 at .*check `space`"),
        ({"model": "nope"}, "`model=nope` is no option.*check `space`"),
        (
            {"adapter": "full", "quantization": "nf4"},
            "use adapter=lora or quantization=none.*adapter=full, quantization=nf4",
        ),
        (
            {"optimizer.warmup_steps": 60, "train.max_steps": 50},
            "must be < `train.max_steps` .*optimizer.warmup_steps=60",
        ),
    ],
)
def test_a_bad_point_names_itself_and_the_place_to_mend(params: dict[str, Any], message: str, home: Home) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_trial([], "quickstart", params, home)


def test_a_changed_sweep_file_is_read_again(home: Home) -> None:
    write(home, "sweeps/mine.yaml", HEAD + "adapter: {r: 3}\n")
    assert compose_trial([], "mine", {}, home).adapter.r == 3
    write(home, "sweeps/mine.yaml", HEAD + "adapter: {r: 5}\n")
    os.utime(home.root / "sweeps" / "mine.yaml", (1, 1))
    assert compose_trial([], "mine", {}, home).adapter.r == 5


def test_the_cache_does_not_grow_without_end(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing, "COMPOSED_KEPT", 2)
    monkeypatch.setattr(composing, "_composed", {})
    for seed in range(4):
        assert compose_trial([f"train.seed={seed}"], None, {}, home).train.seed == seed
    assert len(composing._composed) == 2


def test_a_trial_composes_fast(home: Home) -> None:
    params = {"optimizer.lr": 1e-3, "adapter.r": 4, "train.batch_size": 8, "train.max_steps": 50}
    for extra in ({}, {"model": "tiny_gpt2"}):
        compose_trial([], "quickstart", {**params, **extra}, home)
        seconds = []
        for seed in range(9):
            start = time.perf_counter()
            compose_trial([], "quickstart", {**params, **extra, "train.seed": seed}, home)
            seconds.append(time.perf_counter() - start)
        assert statistics.median(seconds) < 0.06


# -- the rest ---------------------------------------------------------------------------------------------------------


def test_tracking_place(home: Home, tmp_path: Path) -> None:
    assert tracking_place([], home).tracking == tmp_path
    assert tracking_place(["tracking.dir=null"], home).tracking == tmp_path
    assert tracking_place(["adapter.r=4", "tracking.dir=runs"], home).tracking == tmp_path / "runs"
    with pytest.raises(ConfigError, match=r"did you mean `tracking.dir`"):
        tracking_place(["tracking.dirr=runs"], home)


def test_a_fingerprint_holds_the_trial_and_nothing_else(home: Home) -> None:
    base = trial_fingerprint(compose(home=home))
    assert base == trial_fingerprint(compose(["sweep.trials=3", "launcher.slots=2", "sampler=random"], home=home))
    assert (
        len({base, *(trial_fingerprint(compose([word], home=home)) for word in ("train.seed=1", "adapter.r=4"))}) == 3
    )


def test_a_stored_config_of_an_older_version_gets_defaults(home: Home) -> None:
    config = compose(sweep="quickstart", home=home)
    document = asdict(config)
    del document["train"]["base_dropout"], document["tracking"]
    assert from_json(document) == config
    check_config(from_json(document))


def test_a_stored_config_of_a_newer_version_is_refused(home: Home) -> None:
    document = asdict(compose(home=home))
    document["train"]["warp"] = 9
    with pytest.raises(ConfigError, match=r"does not fit this version.*warp"):
        from_json(document)


def test_the_objective_that_nobody_named_is_the_tasks_own() -> None:
    assert compose([]).sweep.objective.metric == "eval/accuracy"
    assert compose(["task=qa", "data=demo_qa"]).sweep.objective.metric == "eval/f1"
    assert compose(["task=qa_extractive", "data=demo_qa"]).sweep.objective.metric == "eval/f1"
    named = compose(["task=qa", "data=demo_qa", "sweep.objective.metric=eval/accuracy"])
    assert named.sweep.objective.metric == "eval/accuracy"  # never replaced: the check of what is logged refuses it
    several = compose(["task=qa", "data=demo_qa", "sweep.objectives=[{metric: eval/exact_match}, {metric: eval/loss}]"])
    assert several.sweep.objective.metric == "eval/exact_match"
