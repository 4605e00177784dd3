"""Exports are opened as a stranger opens them: by the code in their README, with transformers and peft alone."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from lorasweep import cli, exporting, results
from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.data import sources
from lorasweep.data.sources import Split
from lorasweep.errors import StorageError, UsageError
from lorasweep.registry import export as registry_export
from lorasweep.registry import hub as registry_hub
from lorasweep.registry import package as registry_package
from lorasweep.registry import trial as registry_trial
from lorasweep.registry.export import export
from lorasweep.search.study import SweepStudy
from lorasweep.stats import Results
from lorasweep.tasks import make_task
from lorasweep.tracking.recorded import Recorded
from registrykit import LABELS, Workshop, plain_labels, promote, save_adapter, save_gpt2, texts

pytestmark = pytest.mark.slow  # trains, exports and loads


def opened_by_its_readme(folder: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """(logits, answers) of the README's own code, run in the folder's parent with our texts in place of its one."""
    monkeypatch.chdir(folder.parent)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code.group(1).replace("['a text']", repr(asked)), names)  # what a reader copies
    with torch.no_grad():
        return names["model"](**names["batch"]).logits, names["answers"]


def plain_logits(base: Path, adapter: Path, asked: list[str]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    model = PeftModel.from_pretrained(model, adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        rows = [tokenizer(text, truncation=True, max_length=16, return_tensors="pt") for text in asked]
        return torch.cat([model(input_ids=row["input_ids"]).logits for row in rows])


@pytest.mark.parametrize("merged", [False, True])
def test_an_exported_bert_gives_the_logits_of_the_trial(
    tmp_path: Path, bert: Any, merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapters, answers, test = bert
    shop = Workshop(tmp_path, base)
    promote(shop.folders, shop.candidate(shop.trial(0, adapters[0]), test), "demo")
    done = export(shop.folders, "demo", tmp_path / "out", merged)
    assert (done.kind, done.version) == ("merged" if merged else "adapter", "1")
    files = set(done.to_json()["files"])
    assert files >= {"README.md", "tokenizer.json"}
    assert ("model.safetensors" in files) == merged and ("base/model.safetensors" in files) != merged
    base.rename(base.with_name("gone"))  # whatever is needed went along
    try:
        logits, said = opened_by_its_readme(tmp_path / "out", test.texts, monkeypatch)
    finally:
        base.with_name("gone").rename(base)
    assert said == answers[0]
    torch.testing.assert_close(logits, plain_logits(base, adapters[0], test.texts), atol=1e-4, rtol=1e-4)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == ("transformers" if merged else "peft")
    assert card.data.eval_results and card.data.eval_results[0].metric_type == "accuracy"
    assert "## Limits" in card.text and "f" * 64 in card.text


@pytest.mark.parametrize("merged", [False, True])
def test_decoders_with_a_large_local_base(tmp_path: Path, merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a padding token of its own, with Conv1D layers, and a base that is named by its path."""
    from lorasweep.registry import package as registry_package

    monkeypatch.setattr(registry_package, "SMALL_BASE_BYTES", 10)
    base = save_gpt2(tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", 5)
    rows = Split(texts(12), None, [0] * 12)
    shop = Workshop(tmp_path, base)
    promote(shop.folders, shop.candidate(shop.trial(0, adapter), rows), "gpt")
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(StorageError, match=r"nothing is there.*--base PATH"):
        export(shop.folders, "gpt", tmp_path / "out", merged)
    assert not (tmp_path / "out").exists()
    done = export(shop.folders, "gpt@champion", tmp_path / "out", merged, base=str(moved))
    assert done.base_here_alone != merged
    logits, said = opened_by_its_readme(tmp_path / "out", rows.texts, monkeypatch)
    assert said == plain_labels(moved, adapter, rows)
    torch.testing.assert_close(logits, plain_logits(moved, adapter, rows.texts), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("how", ["head alone", "biases", "full"])
def test_heads_biases_and_full_checkpoints_merge(
    tmp_path: Path, bert: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, _, test = bert
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, ignore_mismatched_sizes=True)
    torch.manual_seed(3)
    if how == "full":
        with torch.no_grad():
            model.classifier.weight.normal_(0, 1)
        trained: Any = model
        AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "trained")
    else:
        only_head = {"target_modules": "dummy-target-modules", "modules_to_save": ["classifier"]}
        lora = only_head if how == "head alone" else {"target_modules": ["query", "value"], "bias": "all"}
        trained = get_peft_model(model, LoraConfig(r=4, task_type="SEQ_CLS", **lora))
        with torch.no_grad():
            for weight in trained.parameters():
                if weight.requires_grad:
                    weight.normal_(0, 0.5)
    trained.save_pretrained(tmp_path / "trained")
    trained.eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    batch = tokenizer(test.texts, truncation=True, max_length=16, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = trained(**batch).logits
    shop = Workshop(tmp_path, base)
    config = shop.config()
    config.adapter.kind = {"head alone": "head", "biases": "lora", "full": "full"}[how]
    rows = Split(test.texts, None, wanted.argmax(-1).tolist())
    promote(shop.folders, shop.candidate(shop.trial(0, tmp_path / "trained"), rows, config=config), "demo")
    export(shop.folders, "demo/1", tmp_path / "out", merged=how != "full")
    logits, _ = opened_by_its_readme(tmp_path / "out", test.texts, monkeypatch)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.id2label[2] == LABELS[2]


def test_what_cannot_be_exported_is_said(tmp_path: Path, bert: Any) -> None:
    base, adapters, _, test = bert
    shop = Workshop(tmp_path, base)
    promote(shop.folders, shop.candidate(shop.trial(0, adapters[0]), test), "demo")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a file").write_text("x")
    with pytest.raises(UsageError, match="exists and is not an empty folder"):
        export(shop.folders, "demo", tmp_path / "full", merged=False)
    for address, said in (
        ("demoo", "did you mean `demo`"),
        ("demo@winner", "@champion"),
        ("demo/7", "Aliases of demo"),
    ):
        with pytest.raises(UsageError, match=said):
            export(shop.folders, address, tmp_path / "out", merged=False)
    with pytest.raises(UsageError, match="write NAME, NAME@ALIAS or NAME/VERSION"):
        export(shop.folders, "runs:/1/2", tmp_path / "out", merged=False)
    [weights] = shop.folders.mlruns.glob("*/models/m-*/artifacts/artifacts/adapter/adapter_model.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(StorageError, match="were changed after the model was saved"):
        export(shop.folders, "demo", tmp_path / "out", merged=False)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".lorasweep-*"))


def test_an_adapter_over_a_hub_base_names_it(tmp_path: Path, bert: Any) -> None:
    facts = registry_export.Facts(
        model="m", sweep="s", trial=1, run_id="r", base="owner/base", base_revision="abc", base_on_hub=True,
        base_packed=False, labels=LABELS, paired=True,
        settings={"adapter": {"kind": "lora", **dict.fromkeys(["r", "alpha", "dropout", "targets", "layers", "bias"])},
                  "quantization": {"kind": "nf4"}, "optimizer": dict.fromkeys(["lr", "weight_decay", "schedule",
                  "warmup_steps", "warmup_ratio", "max_grad_norm"]), "train": dict.fromkeys(["batch_size",
                  "accumulation", "max_steps", "epochs", "precision", "seed"]), "data": {"max_length": 9}, "task": {}},
        data={"source": "x", "train_rows": 1, "validation_rows": 1, "test_rows": 1, "fingerprint": "f",
              "test_fingerprint": "t", "hub_id": "owner/data"},
        test=[registry_export.registry_card.Score("test/accuracy", 0.5, 0.4, 0.6)], validation=[],
    )  # fmt: skip
    settings = {"base_model": "owner/base", "base_revision": "abc", "own_dtype": None}
    text = registry_export.card(facts, "adapter", "me/mine", settings)
    card = ModelCard(text)
    assert (card.data.base_model, card.data.datasets) == ("owner/base", ["owner/data"])
    assert "'owner/base', revision='abc', num_labels=3" in text and "PeftModel.from_pretrained(base, 'me/mine')" in text
    assert "0.5000 (0.4000 to 0.6000)" in text and "4-bit" in text and "['its second text']" in text
    assert json.dumps(card.data.to_dict())


# -- trials that were never registered --------------------------------------------------------------------------------

SWEEP = """# @package _global_
defaults:
  - override /model: {model}
  - override /data: {data}
  - override /task: {task}
  - override /adapter: {adapter}
data: {{demo_rows: 48, max_length: {length}}}
task: {{stride: 16}}
train: {{max_steps: 6, eval_every_steps: 3, batch_size: 4}}
launcher: {{slots: 2}}
sweep:
  trials: 2
  objective: {{metric: {metric}}}
  space: {{optimizer.lr: "choice(0.003, 0.006)"}}
"""
TRIALS = {
    "prompted": {"model": "tiny_decoder", "data": "demo_reviews", "task": "instruct", "adapter": "lora", "length": 256},
    "marked": {"model": "tiny_encoder", "data": "demo_qa", "task": "qa_extractive", "adapter": "lora", "length": 64},
    "whole": {"model": "tiny_encoder", "data": "demo_reviews", "task": "classify", "adapter": "full", "length": 48},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a small sweep of each kind."""
    home = tmp_path_factory.mktemp("trials")
    (home / "sweeps").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORASWEEP_HOME", str(home))
        patch.chdir(home)
        for name, parts in TRIALS.items():
            metric = "eval/f1" if name == "marked" else "eval/accuracy"
            (home / "sweeps" / f"{name}.yaml").write_text(SWEEP.format(**parts, metric=metric))
            assert cli.main(["sweep", name]) == 0
    return home


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("LORASWEEP_HOME", str(trained))
    monkeypatch.chdir(tmp_path)

    def sealed(*_: Any) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(sources, "load_test_split", sealed)
    return Home.find()


def of_trial(home: Home, sweep: str, trial: int) -> tuple[Recorded, Split, Results]:
    """(the run, its validation rows, what its checkpoint answered on them)."""
    study = SweepStudy.load(compose.tracking_place([], home), sweep)
    record = next(record for record in study.records() if record.trial == trial)
    recorded = Recorded.read(study.folders, record.run_id)
    kept = results.read(study.folders, sweep, trial)
    assert kept is not None
    return recorded, sources.load_validation_split(recorded.config.data, recorded.label_names), kept


def readme(folder: Path, **given: str) -> dict[str, Any]:
    """The names that the README's code leaves, with our values in place of its examples."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    text = code.group(1)
    for example, value in given.items():
        assert repr(example.replace("_", " ")) in text
        text = text.replace(repr(example.replace("_", " ")), repr(value))
    names: dict[str, Any] = {}
    exec(text, names)  # what a reader copies
    return names


@pytest.mark.parametrize("merged", [False, True])
def test_a_prompted_trial_answers_as_it_did_in_its_evaluation(home: Home, tmp_path: Path, merged: bool) -> None:
    assert cli.main(["export", "prompted", "out", "--trial", "1", *(["--merged"] if merged else [])]) == 0
    recorded, rows, kept = of_trial(home, "prompted", 1)
    for number in (0, 3, 5):
        said = readme(Path("out"), a_text=rows.texts[number])
        told = torch.from_numpy(kept.probabilities[number])
        torch.testing.assert_close(said["probabilities"], told, atol=1e-5, rtol=1e-4)
        assert said["answer"] == recorded.label_names[int(kept.predicted[number])]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.pipeline_tag == "text-generation"
    assert "It was not scored on a test split" in card.text and "### Instruction:" in card.text
    accuracy = re.search(r"\| accuracy \| (\S+) \(", card.text)
    assert accuracy is not None and float(accuracy[1]) == pytest.approx(float(kept.correct.mean()), abs=1e-4)
    assert ("base" in {path.name for path in Path("out").iterdir()}) != merged


@pytest.mark.parametrize("merged", [False, True])
def test_an_extractive_trial_marks_what_it_did_in_its_evaluation(
    home: Home, merged: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    best = ["export", "marked", "out", "--best", "--json", *(["--merged"] if merged else [])]
    assert cli.main(best) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == ("merged" if merged else "adapter") and "README.md" in document["files"]
    recorded, rows, kept = of_trial(home, "marked", document["trial"])
    assert rows.pairs is not None and kept.losses is not None
    said = readme(Path("out"), a_question=rows.texts[0], its_context=rows.pairs[0])
    assert said["answer"] in rows.pairs[0]
    task = make_task(recorded.config, recorded.label_names)
    exam = task.exam(rows, said["tokenizer"], recorded.config.data, None).rows
    for window in range(6):
        part = slice(int(exam.offsets[window]), int(exam.offsets[window + 1]))
        types = {} if exam.type_ids is None else {"token_type_ids": exam.type_ids[part][None]}
        with torch.no_grad():
            out = said["model"](input_ids=exam.ids[part][None], **types)
        logits = torch.stack([out.start_logits, out.end_logits], -1)
        loss = float(task.unit_losses(logits, exam.labels[window : window + 1]))
        assert loss == pytest.approx(float(kept.losses[window]), abs=1e-4)


def test_a_full_checkpoint_is_copied_and_needs_no_base(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry_hub, "check", lambda repo: None)
    monkeypatch.setattr(registry_hub, "push", lambda *given: f"{given[1]}: {given[2]}")
    document = exporting.export("whole", "out", [], repo="me/mine", trial=0)
    assert document["commit"] == ("me/mine: trial 0 of sweep whole, exported by lorasweep (merged)")
    assert "from_pretrained('me/mine')" in Path("out/README.md").read_text()
    exporting.export("whole", "again", [], trial=0)
    recorded, rows, kept = of_trial(home, "whole", 0)
    logits, said = opened_by_its_readme(tmp_path / "again", rows.texts, monkeypatch)
    torch.testing.assert_close(logits.softmax(-1), torch.from_numpy(kept.probabilities), atol=1e-4, rtol=1e-4)
    assert said == [recorded.label_names[int(best)] for best in kept.predicted]


def test_a_prompted_adapter_over_a_large_local_base_is_not_pushed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_package, "SMALL_BASE_BYTES", 10)
    monkeypatch.setattr(registry_hub, "check", lambda repo: None)
    with pytest.raises(UsageError, match="was written and not pushed"):
        exporting.export("prompted", "out", [], repo="me/mine", trial=0)
    assert not Path("out/base").exists() and "tiny_decoder'" in Path("out/README.md").read_text()


def test_trials_that_cannot_be_exported_are_refused(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    recorded, _, _ = of_trial(home, "prompted", 0)
    for words, told in (
        (["prompted", "out", "--trial", "7"], "there is no trial 7; trials of this sweep: 0 to 1"),
        (["promptd", "out", "--best"], "did you mean `prompted`"),
        (["prompted", "out", "--trial", "0", "adapter.r=64"], "would be another trial"),
    ):
        assert cli.main(["export", *words]) == 2
        assert told in capsys.readouterr().err
    for group, kind in (("model", "bag_of_words"), ("adapter", "none")):
        study = SweepStudy.load(compose.tracking_place([], home), "prompted")
        config = copy.deepcopy(recorded.config)
        getattr(config, group).kind = kind
        with pytest.raises(UsageError, match=f"{group}.kind={kind}"):
            registry_trial.export(registry_trial.Source(study.records()[0], recorded, config), Path("out"), False)
    with recorded.artifact("adapter") as adapter:
        weights = adapter / "adapter_model.safetensors"
        raw = weights.read_bytes()
        weights.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        try:
            assert cli.main(["export", "prompted", "out", "--trial", "0"]) != 0
        finally:
            weights.write_bytes(raw)
    assert "was changed after the trial ended" in capsys.readouterr().err
    assert not Path("out").exists() and not list(Path().glob(".lorasweep-*"))
    assert cli.main(["promote", "prompted", "--trial", "0"]) == 1
    assert "lorasweep export prompted DIR --trial 0" in capsys.readouterr().err
