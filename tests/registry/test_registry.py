"""Promotion against a real MLflow registry on sqlite: what is served is what was trained, and the gate holds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from lorasweep.data.sources import Split
from lorasweep.errors import ConfigError, PromotionRefused, StorageError, UsageError
from lorasweep.records import TrialRecord, TrialState
from lorasweep.registry import package as registry_package
from lorasweep.registry import promote as registry
from lorasweep.registry.adapter_model import as_texts
from lorasweep.registry.promote import choose, rollback
from lorasweep.tracking.store import database_uri, open_client
from registrykit import (
    LABELS,
    Workshop,
    plain_labels,
    promote,
    save_adapter,
    save_bert,
    save_gpt2,
    save_tokenizer,
    texts,
)

pytestmark = pytest.mark.slow  # trains, registers and loads


@pytest.fixture
def shop(tmp_path: Path, bert: tuple[Path, list[Path], list[list[str]], Split]) -> Workshop:
    return Workshop(tmp_path, bert[0])


SERVE = """
import json, sys, mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
answer = model.predict(pd.DataFrame({"text": json.loads(sys.argv[2])}))
assert not [name for name in sys.modules if name.startswith("lorasweep")], "the model needs lorasweep"
print(json.dumps({"labels": list(answer["label"]), "columns": list(answer.columns)}))
"""


def test_the_champion_predicts_the_same_in_a_fresh_process_elsewhere(
    shop: Workshop, bert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, adapters, answers, test = bert
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    environment = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    record = shop.trial(0, adapters[0])
    result = promote(shop.folders, shop.candidate(record, test), "demo")
    assert {name: os.environ.get(name) for name in environment} == environment
    assert list(elsewhere.iterdir()) == []  # no stray mlflow.db
    expected = sum(a == b for a, b in zip(*answers, strict=True)) / 40
    assert (result.action, result.version, result.metric) == ("promoted", "1", "test/accuracy")
    assert result.value == pytest.approx(expected) and result.metrics["test/loss"] > 0

    client = MlflowClient(tracking_uri=database_uri(shop.folders), registry_uri=database_uri(shop.folders))
    version = client.get_model_version_by_alias("demo", "champion")
    assert version.tags["lorasweep.trial"] == "0" and float(version.tags["test/accuracy"]) == result.value
    assert version.tags["lorasweep.fingerprint.test"] == test.fingerprint()
    assert version.tags["lorasweep.fingerprint.data"] == "d" * 64 and version.tags["lorasweep.base"] == "packed along"
    run = client.get_run(record.run_id)
    assert run.data.metrics["test/accuracy"] == result.value and run.info.status == "FINISHED"
    assert client.get_metric_history(record.run_id, "test/accuracy")[0].step == 10

    # Elsewhere: the base and our sources are out of reach, the model needs neither.
    gone = shop.base.rename(shop.base.with_name("gone"))
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", SERVE, "models:/demo@champion", json.dumps(test.texts)],
            cwd=elsewhere,
            env={**os.environ, "MLFLOW_TRACKING_URI": database_uri(shop.folders)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        gone.rename(shop.base)
    assert done.returncode == 0, done.stderr
    assert "LOAD REPORT" not in done.stderr and "Loading weights" not in done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["labels"] == answers[0]
    assert told["columns"] == ["label", "score", *(f"probability_{label}" for label in LABELS)]

    answers_here = registry.predict(shop.folders, "models:/demo@champion", ["word1 word2", ""])
    assert [set(answer) for answer in answers_here] == [{"label", "score", "probabilities"}] * 2
    assert sum(answers_here[0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    again = promote(shop.folders, shop.candidate(record, test), "demo")
    assert (again.action, again.version, again.value) == ("kept", "1", result.value)
    assert len(client.get_metric_history(record.run_id, "test/accuracy")) == 1


def test_the_model_folder_holds_signature_example_requirements_and_no_pickle(shop: Workshop, bert: Any) -> None:
    from mlflow.models import Model

    _, adapters, _, test = bert
    promote(shop.folders, shop.candidate(shop.trial(0, adapters[0]), test), "demo")
    [folder] = (shop.folders.mlruns).glob("*/models/m-*/artifacts")
    model = Model.load(str(folder))
    assert [column.name for column in model.signature.inputs.inputs] == ["text"]
    assert [column.name for column in model.signature.outputs.inputs][:2] == ["label", "score"]
    assert model.saved_input_example_info is not None
    pinned = (folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in pinned} >= {"mlflow", "torch", "transformers", "peft", "pandas"}
    assert all("==" in line and "+" not in line for line in pinned)
    assert not [path for path in folder.rglob("*") if path.suffix in (".pkl", ".pickle", ".bin")]
    assert (folder / "artifacts" / "base" / "model.safetensors").exists()
    assert "lorasweep" not in [line.partition("==")[0] for line in pinned]


def test_gate_refuse_force_rollback(shop: Workshop, bert: Any) -> None:
    _, adapters, _, test = bert
    worse, better, equal = shop.trial(0, adapters[0]), shop.trial(1, adapters[1]), shop.trial(2, adapters[1])
    first = promote(shop.folders, shop.candidate(worse, test), "demo")
    second = promote(shop.folders, shop.candidate(better, test), "demo")
    assert (second.version, second.previous_version, second.value) == ("2", "1", 1.0)
    assert second.champion_value == first.value
    with pytest.raises(
        PromotionRefused, match=r"trial 2 has test/accuracy = 1\.0000; the champion .*version 2, trial 1"
    ):
        promote(shop.folders, shop.candidate(equal, test), "demo")
    client = open_client(shop.folders)
    assert client.get_model_version_by_alias("demo", "champion").version == 2
    challenger = client.get_model_version_by_alias("demo", "challenger")
    assert challenger.version == 3 and challenger.tags["lorasweep.decision"].startswith("refused: test/accuracy 1.0")

    forced = promote(shop.folders, shop.candidate(equal, test), "demo", force="hotfix")
    assert (forced.version, forced.forced, forced.previous_version) == ("4", True, "2")
    assert client.get_model_version("demo", "4").tags["lorasweep.forced"] == "true"
    back = rollback(shop.folders, "demo")
    assert (back.action, back.version, back.previous_version, back.trial, back.value) == (
        "rolled_back",
        "2",
        "4",
        1,
        1.0,
    )
    assert rollback(shop.folders, "demo").version == "1"
    with pytest.raises(PromotionRefused, match="version 1 is the first champion of demo"):
        rollback(shop.folders, "demo")
    with pytest.raises(PromotionRefused, match="no champion to roll back; Registered models: did you mean `demo`"):
        rollback(shop.folders, "dem")
    assert registry.champion(shop.folders, "demo")["version"] == "1"  # type: ignore[index]
    assert registry.champion(shop.folders, "other") is None
    for result in (first, forced, back):
        assert "demo" in result.describe()
        json.dumps(result.to_json(), allow_nan=False)


def test_a_champion_scored_on_other_rows_is_scored_again(shop: Workshop, bert: Any) -> None:
    _, adapters, answers, test = bert
    promote(shop.folders, shop.candidate(shop.trial(0, adapters[0]), test), "demo")
    flattering = Split(test.texts, None, [LABELS.index(label) for label in answers[0]])
    with pytest.raises(PromotionRefused, match=r"has 1\.0000 on the same 40 rows"):
        promote(shop.folders, shop.candidate(shop.trial(1, adapters[1]), flattering), "demo")


def test_a_champion_with_other_labels_cannot_be_compared(shop: Workshop, bert: Any) -> None:
    _, adapters, _, test = bert
    promote(shop.folders, shop.candidate(shop.trial(0, adapters[0]), test), "demo")
    renamed = shop.candidate(
        shop.trial(1, adapters[1]), Split(test.texts[:5], None, test.labels[:5]), label_names=list("abc")
    )
    with pytest.raises(PromotionRefused, match="predicts negative, positive, mixed, not the labels a, b, c, so"):
        promote(shop.folders, renamed, "demo")


def test_minimised_objectives_are_gated_downwards(shop: Workshop, bert: Any) -> None:
    _, adapters, _, test = bert
    config = shop.config()
    config.sweep.objective.metric, config.sweep.objective.direction = "eval/loss", "minimize"
    worse, better = (shop.candidate(shop.trial(i, adapters[i]), test, config=config) for i in (0, 1))
    promote(shop.folders, better, "demo")
    with pytest.raises(PromotionRefused, match="test/loss"):
        promote(shop.folders, worse, "demo")


# demo_qa's rows are pairs without any pair_column
@pytest.mark.parametrize(("pairs", "column"), [(False, None), (True, "context"), (True, None)])
def test_decoders_pairs_and_large_bases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: bool, column: str | None
) -> None:
    monkeypatch.setattr(registry_package, "SMALL_BASE_BYTES", 10)
    base = save_gpt2(tmp_path / "base")
    shop = Workshop(tmp_path, base)
    adapter = save_adapter(base, tmp_path / "adapter", 5)
    rows = Split(texts(12), texts(12, seed=1) if pairs else None, [0] * 12)
    expected = plain_labels(base, adapter, rows)
    test = Split(rows.texts, rows.pairs, [LABELS.index(label) for label in expected])
    config = shop.config()
    config.data.pair_column = column
    result = promote(shop.folders, shop.candidate(shop.trial(0, adapter), test, config=config), "gpt")
    assert result.value == 1.0
    [folder] = shop.folders.mlruns.glob("*/models/m-*/artifacts")
    assert not (folder / "artifacts" / "base").exists()
    moved = tmp_path / "moved"
    base.rename(moved)
    uri = "models:/gpt@champion"
    with pytest.raises((StorageError, UsageError), match=r"nothing is there\. Give its place at load"):
        registry.predict(shop.folders, uri, rows.texts, rows.pairs)
    elsewhere = {"base_model": str(moved)}
    answers = registry.predict(shop.folders, uri, rows.texts, rows.pairs, elsewhere)
    assert [answer["label"] for answer in answers] == expected
    with pytest.raises(UsageError, match=r"--pair"):
        registry.predict(shop.folders, uri, rows.texts, None if pairs else rows.texts, elsewhere)


def test_a_sweep_with_a_dot_in_its_name_is_promoted(tmp_path: Path, bert: Any) -> None:
    shop = Workshop(tmp_path, bert[0], "v1.2")
    candidate = shop.candidate(shop.trial(0, bert[1][0]), bert[3])
    assert promote(shop.folders, candidate, "v1.2").action == "promoted"
    assert len(registry.predict(shop.folders, "models:/v1.2@champion", ["a text"])) == 1


def test_four_bit_bases_and_lower_precision(tmp_path: Path) -> None:
    base = save_bert(tmp_path / "base", hidden=64)  # bitsandbytes on a CPU wants rows of 64
    adapter = save_adapter(base, tmp_path / "adapter", 3)
    blank = Split(texts(30), None, [0] * 30)
    test = Split(blank.texts, None, [LABELS.index(label) for label in plain_labels(base, adapter, blank)])
    shop = Workshop(tmp_path, base)
    for number, (quantization, precision) in enumerate((("nf4", "fp32"), ("nf4", "bf16"), ("none", "bf16"))):
        config = shop.config()
        config.quantization.kind, config.train.precision = quantization, precision
        result = promote(shop.folders, shop.candidate(shop.trial(number, adapter), test, config=config), f"m{number}")
        assert result.value is not None and result.value > 0.6, (quantization, precision)


def test_a_full_checkpoint_is_served_too(shop: Workshop, tmp_path: Path, bert: Any) -> None:
    base, adapters, _, test = bert
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    PeftModel.from_pretrained(model, adapters[1]).merge_and_unload().save_pretrained(tmp_path / "full")
    result = promote(shop.folders, shop.candidate(shop.trial(0, tmp_path / "full"), test), "full")
    assert result.value == 1.0


def test_another_base_is_refused_instead_of_served_with_random_weights(
    shop: Workshop, tmp_path: Path, bert: Any
) -> None:
    _, adapters, _, test = bert
    other = BertForSequenceClassification.from_pretrained(bert[0])
    tensors = {name: value for name, value in other.state_dict().items() if "pooler" not in name}
    other.save_pretrained(tmp_path / "other", state_dict=tensors)
    save_tokenizer(tmp_path / "other")
    broken = shop.candidate(shop.trial(0, adapters[0]), test, base=str(tmp_path / "other"))
    with pytest.raises((StorageError, UsageError), match=r"holds the weights .*pooler"):
        promote(shop.folders, broken, "demo")
    assert registry.champion(shop.folders, "demo") is None


def test_bad_names_models_and_adapters(shop: Workshop, bert: Any, tmp_path: Path) -> None:
    _, adapters, _, test = bert
    record = shop.trial(0, adapters[0])
    for name in ("a/b", "a:b", "", "../x"):
        with pytest.raises(ConfigError, match="a model name must start with"):
            promote(shop.folders, shop.candidate(record, test), name)
    promote(shop.folders, shop.candidate(record, test), "demo")
    with pytest.raises(UsageError, match="did you mean `demo`"):
        registry.predict(shop.folders, "models:/demoo@champion", ["x"])
    with pytest.raises(UsageError, match=r"Aliases of demo: @champion \(version 1\)"):
        registry.predict(shop.folders, "models:/demo@winner", ["x"])
    empty = tmp_path / "config.txt"
    empty.write_text("x")
    lost = shop.trial(1, empty)
    with pytest.raises(StorageError, match=r"the trial's adapter should be at .*adapter"):
        promote(shop.folders, shop.candidate(lost, test), "demo")
    unscored = shop.config()
    unscored.sweep.objective.metric = "eval/bleu"
    with pytest.raises(
        ConfigError, match=r"eval/bleu cannot be scored on the test split as test/bleu; scored are test/acc"
    ):
        promote(shop.folders, shop.candidate(shop.trial(2, adapters[1]), test, config=unscored), "demo")


def test_inputs_of_the_served_model() -> None:
    table = pd.DataFrame({"id": [1, 2], "text": ["a", "b"], "pair": ["c", "d"]})
    assert as_texts(table) == (["a", "b"], ["c", "d"])
    assert as_texts(table[["text"]]) == (["a", "b"], None)
    assert as_texts(["a", "b"]) == (["a", "b"], None) and as_texts("a") == (["a"], None)
    with pytest.raises(ValueError, match=r"needs a column `text`; it has id, body"):
        as_texts(pd.DataFrame({"id": [1], "body": ["x"]}))
    for wrong in (["a", "b"], None, 3):
        with pytest.raises(ValueError, match=r"column `text`, row 1: a text is needed"):
            as_texts(pd.DataFrame({"text": ["fine", wrong]}))


def test_choosing_the_trial() -> None:
    records = [
        TrialRecord(0, TrialState.COMPLETE, 0.5),
        TrialRecord(1, TrialState.COMPLETE, 0.9),
        TrialRecord(2, TrialState.PRUNED, 0.95, reason="rung 1"),
        TrialRecord(3, TrialState.COMPLETE, 0.9),
        TrialRecord(4, TrialState.COMPLETE, float("nan")),
    ]
    assert choose(records, "maximize").trial == 1
    assert choose(records, "minimize").trial == 0
    assert choose(records, "maximize", 3).trial == 3
    with pytest.raises(PromotionRefused, match="trial 2 is pruned: rung 1"):
        choose(records, "maximize", 2)
    with pytest.raises(UsageError, match="there is no trial 9; trials of this sweep: 0 to 4"):
        choose(records, "maximize", 9)
    with pytest.raises(PromotionRefused, match="only: pruned"):
        choose(records[2:3], "maximize")
    with pytest.raises(PromotionRefused, match="no trials at all"):
        choose([], "maximize")


def test_a_hub_base_is_named_by_id_and_commit(tmp_path: Path, bert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base in the hub's cache, as a download leaves it; the branch moves on after the promotion."""
    from huggingface_hub import constants
    from mlflow.models import Model

    base, adapters, answers, test = bert
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    repo, commits = cache / "models--owner--base", ("a" * 40, "b" * 40)
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commits[0])
    shutil.copytree(base, repo / "snapshots" / commits[0])
    shop = Workshop(tmp_path, base)
    result = promote(shop.folders, shop.candidate(shop.trial(0, adapters[0]), test, base="owner/base"), "hub")
    assert result.reproduced is not None and result.reproduced["test_difference"] == 0
    [folder] = shop.folders.mlruns.glob("*/models/m-*/artifacts")
    settings = Model.load(str(folder)).flavors["python_function"]["config"]
    assert (settings["base_model"], settings["base_revision"]) == ("owner/base", commits[0])
    assert not (folder / "artifacts" / "base").exists()
    shutil.copytree(base, repo / "snapshots" / commits[1])
    (repo / "snapshots" / commits[1] / "model.safetensors").write_bytes(b"another model")
    (repo / "refs" / "main").write_text(commits[1])
    answered = registry.predict(shop.folders, "models:/hub@champion", test.texts)
    assert [answer["label"] for answer in answered] == answers[0]
