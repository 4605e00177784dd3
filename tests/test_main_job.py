"""The main job as a user runs it: sweep, read back, resume, promote, predict; each command in a process of its own.

The first sweep starts as a user's does, from nothing; later commands are forked from one that has imported everything.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from torturekit import Command, the_nursery
from trackkit import new_folders

pytestmark = pytest.mark.slow  # commands in processes of their own

SWEEP = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: demo_reviews
  - override /sampler: random
data: {demo_rows: 240}
train: {eval_every_steps: 4, log_every_steps: 2}
sweep:
  trials: 5
  space:
    optimizer.lr: tag(log, interval(1e-4, 1e-2))
    adapter.r: choice(2, 4)
    train.batch_size: choice(4, 8)
    train.max_steps: range(8, 12, 4)
"""


def home_with_sweep(folder: Path, fresh: bool = False) -> Path:
    """`fresh`: without the empty MLflow database whose making takes a second."""
    if not fresh:
        new_folders(folder)
    (folder / "sweeps").mkdir(parents=True)
    (folder / "sweeps" / "mini.yaml").write_text(SWEEP)
    return folder


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "LORASWEEP_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(home: Path, *words: str, **how: Any) -> Command:
    return the_nursery().start(home, *words, **how)


def lorasweep(home: Path, *words: str, rc: int = 0, **how: Any) -> str:
    """What a command writes to its standard output."""
    command = start(home, *words, **how)
    code = command.wait(300)
    assert code == rc, f"{words} left with {code}:\n{command.output}"
    assert "Traceback" not in command.err, command.err
    return command.out


def rows_by_trial(home: Path) -> dict[int, dict]:
    document = json.loads(lorasweep(home, "leaderboard", "mini", "--json"))
    return {row["trial"]: row for row in document["rows"]}


def client_of(home: Path):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{home / 'mlflow.db'}")


def trial_runs(home: Path) -> list:
    client = client_of(home)
    experiment = client.get_experiment_by_name("mini")
    return client.search_runs([experiment.experiment_id], "tags.`lorasweep.kind` = 'trial'")


def histories(home: Path) -> dict:
    """trial -> metric -> [(step, value)], straight from MLflow."""
    client = client_of(home)
    keys = ("train/loss", "eval/loss", "eval/accuracy", "train/samples")
    return {
        int(run.data.tags["lorasweep.trial"]): {
            key: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)]
            for key in keys
        }
        for run in trial_runs(home)
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose sweep `mini` has run to its end, one trial at a time."""
    home = home_with_sweep(tmp_path_factory.mktemp("home") / "a home", fresh=True)  # a space in the path on purpose
    done = subprocess.run(
        [sys.executable, "-m", "lorasweep.cli", "sweep", "mini", "launcher.slots=1", "--json"], cwd=home,
        env=environment(home), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    document = json.loads(done.stdout)
    assert document["counts"] == {"running": 0, "complete": 5, "pruned": 0, "failed": 0}
    assert document["slots"] == 1
    assert document["best"]["rank"] == 1
    assert document["train_samples"] == sum(row["samples"] for row in rows_by_trial(home).values())
    return home


def test_second_sweep_and_resume_say_that_all_is_done(finished: Path) -> None:
    before = rows_by_trial(finished)
    for command in ("sweep", "resume"):
        words = ("launcher.slots=1",) if command == "sweep" else ()
        assert "All is done" in lorasweep(finished, command, "mini", *words)
    assert rows_by_trial(finished) == before


def test_packed_sweep_gives_the_same_leaderboard(finished: Path, tmp_path: Path) -> None:
    home = home_with_sweep(tmp_path / "packed")
    lorasweep(home, "sweep", "mini", "launcher.slots=4", "--json")
    alone, packed = rows_by_trial(finished), rows_by_trial(home)
    assert packed.keys() == alone.keys()
    for trial, row in alone.items():
        assert packed[trial]["params"] == row["params"]
        assert packed[trial]["value"] == pytest.approx(row["value"], abs=1e-4)
        assert packed[trial]["metrics"]["eval/loss"] == pytest.approx(row["metrics"]["eval/loss"], rel=1e-4)


def test_every_run_holds_what_the_docs_promise(finished: Path) -> None:
    import yaml

    client, rows = client_of(finished), rows_by_trial(finished)
    runs = trial_runs(finished)
    assert sorted(int(run.data.tags["lorasweep.trial"]) for run in runs) == [0, 1, 2, 3, 4]
    for run in runs:
        tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
        row = rows[int(tags["lorasweep.trial"])]
        assert run.info.run_id == row["run_id"]
        assert run.info.status == "FINISHED"
        assert "mlflow.parentRunId" not in tags  # flat: nested runs hide in one collapsed row
        assert (tags["lorasweep.sweep"], tags["lorasweep.state"]) == ("mini", "complete")
        assert float(params["optimizer.lr"]) == row["params"]["optimizer.lr"]
        assert params["adapter.r"] == str(row["params"]["adapter.r"])
        assert params["data.demo_rows"] == "240"
        for key in ("train/loss", "train/lr", "train/grad_norm", "train/samples", "train/samples_per_second"):
            assert key in metrics, key
        for key, value in row["metrics"].items():
            assert metrics[key] == value, key  # the newest value is that of the kept checkpoint
        seen = row["params"]["train.batch_size"] * row["params"]["train.max_steps"]
        assert metrics["train/samples"] == row["samples"] == seen
        trained = metrics["parameters/adapter"] + metrics["parameters/head"]
        assert metrics["parameters/trainable"] == row["trainable_params"] == trained
        assert metrics["parameters/total"] == row["total_params"]
        assert run.inputs.dataset_inputs, "the data set is an MLflow input"
        for tag in ("git.commit", "git.dirty", "fingerprint.config", "fingerprint.data", "packages", "device", "seed"):
            assert tags[f"lorasweep.{tag}"], tag
        for key in ("train/loss", "eval/accuracy"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
            assert len(steps) == len(set(steps)), f"{key} has a step twice"
        artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
        assert artifacts.is_relative_to(finished / "mlruns")
        config = yaml.safe_load((artifacts / "config.yaml").read_text())
        assert config["optimizer"]["lr"] == row["params"]["optimizer.lr"]
        files = {path.name for path in (artifacts / "adapter").iterdir()}
        assert files >= {"adapter_config.json", "adapter_model.safetensors"}
    experiment = client.get_experiment_by_name("mini")
    own = client.search_runs([experiment.experiment_id], "tags.`lorasweep.kind` = 'sweep'")
    assert len(own) == 1
    assert "mlflow.sharedViewState.leaderboard" in experiment.tags
    files = {item.path for item in client.list_artifacts(own[0].info.run_id)}
    assert {"summary.json", "report", "config.yaml"} <= files


def test_adapters_open_in_peft_and_reproduce_the_logged_accuracy(finished: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from lorasweep.config.compose import compose
    from lorasweep.data.sources import load_search_data
    from lorasweep.models.builtin import resolve

    rows = load_search_data(compose(["data.demo_rows=240"]).data).validation
    folder = resolve("builtin:tiny_encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(rows.texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    for run in trial_runs(finished):
        base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        adapter = Path(run.info.artifact_uri.removeprefix("file://")) / "adapter"
        model = PeftModel.from_pretrained(base, adapter).eval()
        with torch.no_grad():
            guesses = model(**tokens).logits.argmax(-1)
        accuracy = float((guesses == torch.tensor(rows.labels)).double().mean())
        assert accuracy == run.data.metrics["eval/accuracy"]


def test_promote_then_serve_from_another_process_and_folder(finished: Path, tmp_path: Path) -> None:
    document = json.loads(lorasweep(finished, "promote", "mini", "--as", "reviews", "--json"))
    assert document["uri"] == "models:/reviews@champion"
    texts = ["a dull start but a superb end", "a terrible film", "i loved every minute of it"]
    ours = json.loads(lorasweep(finished, "predict", "models:/reviews@champion", *texts, "--json"))["predictions"]
    code = (
        "import json, sys, mlflow, pandas\n"
        "model = mlflow.pyfunc.load_model('models:/reviews@champion')\n"
        "found = model.predict(pandas.DataFrame({'text': json.loads(sys.argv[1])}))\n"
        "print(json.dumps(list(found['label'])))\n"
        "assert not any(name.split('.')[0] == 'lorasweep' for name in sys.modules)\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(texts)], cwd=elsewhere, capture_output=True, text=True, timeout=200,
        env={**environment(finished), "MLFLOW_TRACKING_URI": f"sqlite:///{finished / 'mlflow.db'}"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [answer["label"] for answer in ours]
    test_accuracy = client_of(finished).get_run(document["run_id"]).data.metrics["test/accuracy"]
    assert test_accuracy == document["metrics"]["test/accuracy"]


def wait_for_metrics(home: Path, process: Command, sweep: str = "mini") -> None:
    """Return once some trial has reported a few steps."""
    spool = home / "mlruns" / "lorasweep" / "sweeps" / sweep / "spool"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if sum(len(path.read_text().splitlines()) for path in spool.glob("*.jsonl")) > 12:
            return
        time.sleep(0.02)
    raise AssertionError(f"no metrics: {process.output}")


def test_kill_and_run_again_gives_the_sweep_that_was_never_stopped(finished: Path, tmp_path: Path) -> None:
    home = home_with_sweep(tmp_path / "killed")
    for command in ("sweep", "resume"):
        words = ("launcher.slots=1",) if command == "sweep" else ()
        process = start(home, command, "mini", *words)
        wait_for_metrics(home, process)
        process.send(signal.SIGKILL)
        process.wait()
    lorasweep(home, "sweep", "mini", "launcher.slots=1")
    alone, again = rows_by_trial(finished), rows_by_trial(home)
    for trial, row in alone.items():
        assert again[trial]["params"] == row["params"]
        assert again[trial]["value"] == row["value"]
        assert again[trial]["metrics"] == row["metrics"]
    assert len(trial_runs(home)) == 5
    assert histories(home) == histories(finished)
    assert {run.info.status for run in trial_runs(home)} == {"FINISHED"}


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    home = home_with_sweep(tmp_path / "stopped")
    endless = SWEEP.replace("range(8, 12, 4)", "choice(40000)").replace("eval_every_steps: 4", "eval_every_steps: 400")
    (home / "sweeps" / "mini.yaml").write_text(endless)
    process = start(home, "sweep", "mini", "sweep.trials=2")
    wait_for_metrics(home, process)
    second = start(home, "sweep", "mini", "sweep.trials=2")
    assert second.wait() == 1, second.output  # or it would train the trials that are running here once more
    assert f"process {process.pid} is training sweep mini" in second.err
    process.send(signal.SIGINT)
    assert process.wait(60) == 130, process.output
    assert "lorasweep resume mini" in process.err
    assert "Traceback" not in process.err


def test_a_changed_sweep_is_refused_and_a_larger_budget_is_not(finished: Path) -> None:
    process = start(finished, "sweep", "mini", "launcher.slots=1", "train.eval_every_steps=2")
    assert process.wait(100) == 2
    assert "train.eval_every_steps: 4 -> 2" in process.err
    assert "resume mini" in process.err


def test_train_runs_one_trial_beside_the_others(tmp_path: Path) -> None:
    words = ("data.demo_rows=120", "train.max_steps=4", "train.batch_size=4")
    for r in (2, 4):
        document = json.loads(lorasweep(tmp_path, "train", *words, f"adapter.r={r}", "--json"))
        assert document["best"]["params"]["adapter.r"] == r
    board = json.loads(lorasweep(tmp_path, "leaderboard", "train", "--json"))
    assert sorted(row["params"]["adapter.r"] for row in board["rows"]) == [2, 4]


def test_plan_trains_nothing(tmp_path: Path) -> None:
    home = home_with_sweep(tmp_path / "planned", fresh=True)
    document = json.loads(lorasweep(home, "plan", "mini", "--json"))
    assert document["space"]["adapter.r"] == {"kind": "categorical", "choices": [2, 4]}
    assert document["space"]["train.max_steps"]["step"] == 4
    assert document["memory_bytes"] > 647_000 * 4
    assert 5 * 4 * 8 <= document["train_samples"] <= 5 * 8 * 12
    assert not (home / "mlflow.db").exists()
    assert not (home / "mlruns" / "lorasweep" / "study.db").exists()


def test_a_sweep_named_unlike_its_file_resumes_by_its_name(tmp_path: Path) -> None:
    home = home_with_sweep(tmp_path)
    tiny = ("sweep.name=other", "sweep.trials=1", "data.demo_rows=120")
    lorasweep(home, "sweep", "mini", *tiny)
    document = json.loads(lorasweep(home, "resume", "other", "sweep.trials=2", "--json"))
    assert document["sweep"] == "other" and document["counts"]["complete"] == 2


def test_a_spent_budget_of_samples_is_the_end_of_a_sweep(tmp_path: Path) -> None:
    home = home_with_sweep(tmp_path)
    words = ("sweep.total_samples=1", "sweep.trials=9", "launcher.slots=1", "data.demo_rows=120")
    lorasweep(home, "sweep", "mini", *words)
    assert "1 complete. All is done" in lorasweep(home, "resume", "mini")
    document = json.loads(lorasweep(home, "resume", "mini", "sweep.total_samples=1000000", "sweep.trials=2", "--json"))
    assert document["counts"]["complete"] == 2


def test_train_leaves_the_trials_of_the_dead_to_resume(tmp_path: Path) -> None:
    tiny = ("data.demo_rows=120", "train.batch_size=4")
    process = start(tmp_path, "train", *tiny, "train.max_steps=4000")
    wait_for_metrics(tmp_path, process, "train")
    process.send(signal.SIGKILL)
    process.wait()
    document = json.loads(lorasweep(tmp_path, "train", *tiny, "train.max_steps=4", "--json"))
    assert document["best"]["trial"] == 1
    assert document["counts"]["complete"] == 1 and document["counts"]["running"] == 1
