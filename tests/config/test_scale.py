"""scale=smoke: what becomes small, what stays, and what cannot be made small."""

import json
from pathlib import Path

import pytest

from lorasweep.config.compose import compose, compose_trial
from lorasweep.config.home import Home
from lorasweep.config.scale import FAMILIES, SUFFIX
from lorasweep.errors import ConfigError
from lorasweep.models.smoke import _shapes

SHIPPED = Home.find().shipped


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path, SHIPPED)


def test_what_varies_and_how_it_is_trained_stays(home: Home) -> None:
    full, small = compose(sweep="llama2_variants", home=home), compose(["scale=smoke"], "llama2_variants", home)
    assert small.sweep.space == full.sweep.space and small.sweep.enqueue == full.sweep.enqueue
    assert small.adapter == full.adapter and small.quantization == full.quantization and small.sampler == full.sampler
    assert small.train.precision == "fp16" and small.train.batch_size == full.train.batch_size
    assert small.task.kind == full.task.kind and small.data.label_names == ["negative", "neutral", "positive"]


def test_model_data_and_budget_become_small(home: Home) -> None:
    small = compose(["scale=smoke"], "llama2_variants", home)
    assert (small.model.path, small.model.name) == ("smoke:llama", "Llama-2-7b-hf")
    assert (small.data.kind, small.data.classes, small.data.hub_id, small.data.train) == ("demo_reviews", 3, None, None)
    assert small.train.max_steps <= small.scale.max_steps and small.train.eval_every_steps <= 3
    assert small.sweep.trials == 3 and small.sweep.name == f"llama2_variants{SUFFIX}"


def test_a_trial_is_made_small_after_its_point_is_set(home: Home) -> None:
    point = {"model": "gpt2", "adapter": "full", "train.max_steps": 5000, "train.batch_size": 64}
    trial = compose_trial(["scale=smoke"], "llama2_variants", point, home)
    assert trial.model.path == "smoke:gpt2" and trial.train.max_steps == 2 and trial.train.batch_size == 64


def test_a_name_that_ends_in_smoke_is_no_reason_to_run_in_full(home: Home) -> None:
    small = compose(["scale=smoke", "sweep.name=mine-smoke", "model=bert"], "quickstart", home)
    assert (small.sweep.name, small.model.path) == ("mine-smoke", "smoke:bert") and small.train.max_steps <= 6


def test_warm_up_and_rungs_fit_into_the_few_steps(home: Home) -> None:
    words = ["scale=smoke", "pruner=asha", "train.max_steps=275", "optimizer.warmup_steps=100"]
    small = compose(words, home=home)
    assert small.optimizer.warmup_steps < small.train.max_steps <= 6
    assert small.pruner.min_samples < small.train.max_steps * small.train.batch_size


def test_bases_that_ship_with_us_are_small_already(home: Home) -> None:
    small = compose(["scale=smoke"], "quickstart", home)
    assert small.model.path == "builtin:tiny_encoder" and small.data.demo_rows <= 2 * small.scale.train_rows


def test_a_checkpoint_with_a_head_of_its_own_has_one_when_small(home: Home) -> None:
    assert compose(["scale=smoke", "model=distilbert_sst2"], home=home).model.path == "smoke:distilbert+head"
    assert compose(["scale=smoke", "model=distilbert"], home=home).model.path == "smoke:distilbert"


def test_a_folder_tells_its_family(home: Home, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    assert compose(["scale=smoke", "model=hf", f"model.path={tmp_path}"], home=home).model.path == "smoke:qwen2"


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("distilbert/distilbert-base-uncased", "distilbert"),
        ("google-bert/bert-base-uncased", "bert"),
        ("meta-llama/Llama-3.2-1B", "llama"),
        ("google/gemma-2-2b-it", "gemma2"),
        ("google/gemma-2b", "gemma"),
        ("openai-community/gpt2", "gpt2"),
        ("Qwen/Qwen2.5-0.5B", "qwen2"),
        ("FacebookAI/xlm-roberta-base", "roberta"),
    ],
)
def test_most_names_tell_the_family(path: str, family: str, home: Home) -> None:
    assert compose(["scale=smoke", "model=hf", f"model.path={path}"], home=home).model.path == f"smoke:{family}"


@pytest.mark.parametrize("path", ["albert/albert-base-v2", "microsoft/deberta-v3-base", "someone/something"])
def test_other_families_are_not_taken_for_one_of_ours(path: str, home: Home) -> None:
    with pytest.raises(ConfigError, match=r"tells none; set `model.family`"):
        compose(["scale=smoke", "model=hf", f"model.path={path}"], home=home)


def test_an_unknown_family_is_asked_for(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"scale=smoke needs the model's family.*set `model.family` to one of bert"):
        compose(["scale=smoke", "model=hf", "model.path=someone/something"], home=home)
    with pytest.raises(ConfigError, match=r"model\.family=mamba` is none that it can build"):
        compose(["scale=smoke", "model=hf", "model.path=a/b", "model.family=mamba"], home=home)


def test_a_file_that_is_here_is_cut_and_one_that_is_not_is_generated(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("text,label\na,x\nb,y\n")
    here = compose(["scale=smoke", "data=file", f"data.train={file}"], home=home).data
    assert (here.kind, here.train, here.max_train_rows) == ("file", str(file), 64)
    words = ["scale=smoke", "data=file", "data.train=nowhere.csv", "data.label_names=[Mixed,Good,Bad,Ugly]"]
    gone = compose(words, home=home).data
    assert (gone.kind, gone.classes, gone.label_names) == ("demo_reviews", 4, ["Mixed", "Good", "Bad", "Ugly"])


def test_questions_stay_questions(home: Home) -> None:
    data = compose(["scale=smoke"], "llama_squad_v2", home).data
    assert (data.kind, data.pair_column, data.answers_column) == ("demo_qa", None, None)


def test_more_classes_than_can_be_generated_are_refused(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"2 to 4 classes and `data.label_names` has 5"):
        compose(["scale=smoke", "data=sst2", "data.label_names=[a,b,c,d,e]"], home=home)


@pytest.mark.slow
def test_every_option_of_model_and_data_can_be_made_small(home: Home) -> None:
    for option in (home.shipped / "conf" / "model").glob("*.yaml"):
        if option.stem != "hf":
            small = compose(["scale=smoke", f"model={option.stem}"], home=home)
            assert small.model.path.startswith(("smoke:", "builtin:", "")), option
    for option in (home.shipped / "conf" / "data").glob("*.yaml"):
        words = ["scale=smoke", f"data={option.stem}"] + (["data.train=x.csv"] if option.stem == "file" else [])
        assert compose(words, home=home).data.kind.startswith("demo"), option


def test_families_that_are_named_can_be_built() -> None:
    assert set(FAMILIES) == set(_shapes(0, 0))
