"""A sweep over a user's own files, from its sealed test split to a served, exported and reproduced champion."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hubkit import hub
from lorasweep import cli
from lorasweep.config.compose import compose
from lorasweep.data.demo import demo_reviews
from lorasweep.data.sources import load_search_data, load_test_split
from lorasweep.registry import probe as registry_probe
from serverkit import free_port, stop, wait_until_up

pytestmark = pytest.mark.slow

SWEEP = """# @package _global_
defaults:
  - override /model: tiny_encoder
  - override /data: file
  - override /pruner: median
  - override /sampler: random
data: {train: rows/train.csv, max_length: 48%s}
pruner: {interval_samples: 32, startup_trials: 1}
train: {eval_every_steps: 4, log_every_steps: 2, batch_size: 8}
launcher: {slots: 1}
sweep:
  trials: 3
  space: {optimizer.lr: "choice(0.003, 0.006)", train.max_steps: "choice(8, 12)"}
"""
MINE = SWEEP % ", validation: rows/validation.csv, test: rows/sealed/test.csv"

# Everything that a sweep and its readers do, while the test split cannot be read: the file is a folder, any look below
# `sealed` raises, and so does the one function that loads it.
SEARCH = """
import os, sys
sealed = sys.argv[1]

def watch(event, details):
    for detail in details if event.startswith(("open", "os.", "shutil.", "glob.", "pathlib.")) else ():
        if isinstance(detail, (str, bytes, os.PathLike)) and sealed in os.fsdecode(detail):
            raise AssertionError(f"{event} of {detail}: the test split is sealed")

sys.addaudithook(watch)
try:
    open(os.path.join(sealed, "test.csv"))
except AssertionError:
    pass
else:
    raise SystemExit("the watch does not work")
from lorasweep.data import sources

def poisoned(*words, **named):
    raise AssertionError("the test split was loaded")

sources.load_test_split = poisoned
from lorasweep import cli
finalists = ["sweep.finalists.top=1", "sweep.finalists.seeds=2"]
for words in (
    ["plan", "mine"], ["sweep", "mine", *finalists], ["resume", "mine"], ["leaderboard", "mine"],
    ["leaderboard", "mine", "--json"], ["report", "mine"], ["sweep", "carved", "sweep.trials=1"],
):
    assert cli.main(words) == 0, words
"""


def write_rows(path: Path, rows: list, mark: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number, row in enumerate(rows):
            writer.writerow([f"{row.text} {mark}{number:04}", ("negative", "positive")[row.label]])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose sweeps `mine` (test rows in a file of their own) and `carved` ran without their test rows."""
    home = tmp_path_factory.mktemp("home") / "a home"
    (home / "sweeps").mkdir(parents=True)
    (home / "sweeps" / "mine.yaml").write_text(MINE)
    (home / "sweeps" / "carved.yaml").write_text(SWEEP % "")
    reviews = demo_reviews(240, 0, 2)
    write_rows(home / "rows" / "train.csv", reviews["train"], "canary")
    write_rows(home / "rows" / "validation.csv", reviews["validation"], "v")
    sealed = home / "rows" / "sealed"
    (sealed / "test.csv").mkdir(parents=True)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, str(sealed)], cwd=elsewhere, env={**os.environ, "LORASWEEP_HOME": str(home)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((sealed / "test.csv").iterdir()) == []
    (sealed / "test.csv").rmdir()
    write_rows(sealed / "test.csv", reviews["test"], "t")
    return home


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another folder than the home, as the current one: relative paths of a sweep count from the home."""
    monkeypatch.setenv("LORASWEEP_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lorasweep(capsys: pytest.CaptureFixture, *words: str, rc: int = 0) -> str:
    capsys.readouterr()
    found = cli.main(list(words))
    out, err = capsys.readouterr()
    assert found == rc, f"{words}: {found}\n{out}\n{err}"
    assert "Traceback" not in err
    return out if rc == 0 else err


def rows_of(capsys: pytest.CaptureFixture, sweep: str) -> list[dict]:
    return json.loads(lorasweep(capsys, "leaderboard", sweep, "--json"))["rows"]


@pytest.fixture(scope="module")
def champion(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    """What `promote mine --json` says, with the training file out of reach."""
    train = home / "rows" / "train.csv"
    train.rename(train.with_suffix(".gone"))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lorasweep.cli", "promote", "mine", "--json"],
            cwd=tmp_path_factory.mktemp("promoted"), env={**os.environ, "LORASWEEP_HOME": str(home)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        train.with_suffix(".gone").rename(train)
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)


def test_carved_test_rows_leave_no_trace(home: Path, here: Path) -> None:
    """Rows that are carved from the training file are read with it; nothing of them goes further."""
    data = compose([], sweep="carved").data
    searched = load_search_data(data)
    sealed = load_test_split(data, searched.label_names)
    canaries = [text.rpartition(" ")[2].encode() for text in sealed.texts]
    assert len(set(canaries)) == 24 and not set(sealed.texts) & set(searched.train.texts + searched.validation.texts)
    left = [path for path in [*home.glob("mlflow.db*"), *(home / "mlruns").rglob("*")] if path.is_file()]
    assert len(left) > 20
    for path in left:
        raw = path.read_bytes()
        assert not [canary for canary in canaries if canary in raw], path
    from safetensors.numpy import load_file

    cached = list((home / "mlruns" / "lorasweep" / "cache").glob("*-*.safetensors"))
    sizes = {len(load_file(path)["labels"]) for path in cached if "labels" in load_file(path)}
    assert sizes == {240, 60, len(searched.train), len(searched.validation)}


def test_the_champion_is_the_best_and_reproduces_it(
    home: Path, here: Path, champion: dict, capsys: pytest.CaptureFixture
) -> None:
    best = rows_of(capsys, "mine")[0]
    assert champion["action"] == "promoted" and champion["run_id"] == best["run_id"]
    assert champion["reproduced"]["metric_differences"]["eval/loss"] < 1e-4
    assert champion["reproduced"]["validation_difference"] < 1e-4
    texts, labels = zip(*[(row["text"], row["label"]) for row in read_csv(home / "rows/sealed/test.csv")], strict=True)
    asked = json.loads(lorasweep(capsys, "predict", champion["uri"], *texts, "--json"))["predictions"]
    right = sum(answer["label"] == label for answer, label in zip(asked, labels, strict=True))
    assert right / len(labels) == champion["metrics"]["test/accuracy"]
    low, high = champion["interval"]
    assert low < champion["value"] < high


def read_csv(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_worse_trial_is_refused_and_force_needs_words(
    home: Path, here: Path, champion: dict, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorasweep.registry import promote as registry

    monkeypatch.setattr(registry, "ask_fresh_process", registry_probe.ask)
    other = next(row for row in rows_of(capsys, "mine") if row["rank"] not in (1, None))["trial"]
    said = lorasweep(capsys, "promote", "mine", "--trial", str(other), rc=1)
    assert "is not shown to beat" in said and "alias `challenger`" in said and "--force --reason" in said
    assert "--force --reason TEXT" in lorasweep(capsys, "promote", "mine", "--force", "--reason", " ", rc=2)
    assert "neither" in lorasweep(capsys, "promote", "mine", "--reason", "x", rc=2)
    forced = json.loads(lorasweep(capsys, "promote", "mine", "--trial", str(other), "--force", "--json"))
    assert forced["forced"] and forced["reason"].startswith("no reason was given (by ")
    assert "champion again" in lorasweep(capsys, "promote", "mine", "--rollback", "--reason", "worse")
    assert "nothing changed" in lorasweep(capsys, "promote", "mine")


@contextmanager
def changed(path: Path, how: Callable[[bytes], bytes]) -> Iterator[None]:
    """A file with other contents, for a while."""
    whole = path.read_bytes()
    path.write_bytes(how(whole))
    try:
        yield
    finally:
        path.write_bytes(whole)


def test_what_was_changed_since_is_refused(home: Path, here: Path, capsys: pytest.CaptureFixture) -> None:
    best = rows_of(capsys, "mine")[0]
    words = ("promote", "mine", "--as", "another")
    with changed(home / "rows" / "validation.csv", lambda raw: raw.replace(b"v0001", b"v9999")):
        assert "validation rows of trial" in lorasweep(capsys, *words, rc=2)
    with changed(home / "rows" / "train.csv", lambda raw: raw + b"one more row,positive\n"):
        assert "were changed after it was trained" in lorasweep(capsys, "promote", "carved", rc=2)
    with changed(home / "rows" / "train.csv", lambda raw: raw.replace(b" canary", b"  canary")):
        assert "were changed after it was trained" in lorasweep(capsys, "promote", "carved", rc=2)
    [weights] = home.glob(f"mlruns/*/{best['run_id']}/artifacts/adapter/adapter_model.safetensors")
    with changed(weights, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])):
        assert "was changed after the trial ended" in lorasweep(capsys, *words, rc=1)
    assert "would be another trial" in lorasweep(capsys, *words, "optimizer.lr=0.1", rc=2)
    assert "there is no trial 77" in lorasweep(capsys, *words, "--trial", "77", rc=2)


def test_predict_reads_words_lines_and_tables(
    home: Path, here: Path, champion: dict, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, texts = champion["uri"], ["a superb film", "terrible, and\nlong", ""]
    asked = json.loads(lorasweep(capsys, "predict", uri, *texts, "--json"))["predictions"]
    assert [set(one["probabilities"]) for one in asked] == [{"negative", "positive"}] * 3
    lines = lorasweep(capsys, "predict", uri, *texts).splitlines()
    assert [line.split("\t")[0] for line in lines] == [one["label"] for one in asked]
    assert lines[1].endswith("\tterrible, and long")

    class Stdin:
        buffer = io.BytesIO(b"a superb film\n\nterrible\n")

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert len(lorasweep(capsys, "predict", uri, "-").splitlines()) == 3
    table = here / "rows.csv"
    table.write_text('id,body,label\n7,"a superb, superb film",1\n8,terrible,0\n')
    told = list(csv.DictReader(io.StringIO(lorasweep(capsys, "predict", uri, "--csv", str(table), "--column", "body"))))
    assert [(row["id"], row["label"]) for row in told] == [("7", "1"), ("8", "0")]
    for row in told:
        assert float(row["score"]) == max(float(row["probability_negative"]), float(row["probability_positive"]))
        assert float(row[f"probability_{row['predicted_label']}"]) == float(row["score"])
    Stdin.buffer = io.BytesIO(table.read_bytes())
    piped = lorasweep(capsys, "predict", uri, "--csv", "-", "--column", "body", "--json")
    assert [one["label"] for one in json.loads(piped)["predictions"]] == [row["predicted_label"] for row in told]
    assert lorasweep(capsys, "predict", uri, "a superb film", "--csv-out").startswith("text,label,score,probability_")

    assert "models:/mine@champion?" in lorasweep(capsys, "predict", "mine", "x", rc=2)
    assert "--column text: the table has no such column" in lorasweep(capsys, "predict", uri, "--csv", str(table), rc=2)
    assert "not both" in lorasweep(capsys, "predict", uri, "x", "--csv", str(table), rc=2)
    assert "give texts to answer" in lorasweep(capsys, "predict", uri, rc=2)
    assert "trained on single texts" in lorasweep(capsys, "predict", uri, "x", "--pair", "y", rc=2)
    assert "did you mean `mine`" in lorasweep(capsys, "predict", "models:/mime@champion", "x", rc=2)


def test_reproduce_says_whether_the_numbers_are_the_same(
    home: Path, here: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(capsys, "mine")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.name in ("config.yaml", "study.db")}
    for row in rows:  # complete and pruned
        told = json.loads(lorasweep(capsys, "reproduce", row["run_id"], "--json"))
        assert told["same"] and told["identical"] and told["trial"] == row["trial"] and not told["changed"]
        assert told["metrics"]["eval/accuracy"]["points"] >= 1 and told["metrics"]["train/loss"]["points"] > 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(rows_of(capsys, "mine")) == len(rows)

    run_id = rows[0]["run_id"]
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    client.log_metric(run_id, "train/loss", 0.123, step=3)  # a number that training did not give
    said = lorasweep(capsys, "reproduce", run_id, rc=1)
    assert cli.main(["reproduce", run_id]) == 1
    out = capsys.readouterr().out
    assert "is NOT reproduced" in out and "differs" in out, said
    assert "is reproduced" in lorasweep(capsys, "reproduce", run_id, "--tolerance", "10")

    with changed(home / "rows" / "train.csv", lambda raw: raw + b"one more row,positive\n"):
        assert "is not what it was trained on: 241 training" in lorasweep(capsys, "reproduce", run_id, rc=2)
    assert "would be another trial" in lorasweep(capsys, "reproduce", run_id, "train.seed=3", rc=2)
    assert "there is no run" in lorasweep(capsys, "reproduce", "f" * 32, rc=2)
    assert "--tolerance is a number" in lorasweep(capsys, "reproduce", run_id, "--tolerance", "-1", rc=2)


@pytest.mark.torture  # its short twin: test_main_job.py::test_promote_then_serve_from_another_process_and_folder
def test_mlflow_serves_the_champion(home: Path, champion: dict, tmp_path: Path) -> None:
    """As docs/registry.md says, by MLflow's own command and a request over HTTP."""
    port, log = free_port(), tmp_path / "serve.log"
    words = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", champion["uri"], "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by its name
        "PYTHONPATH": "",
    }
    with log.open("w") as out:
        process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}/ping", log)
        body = json.dumps({"dataframe_records": [{"text": "a superb film"}, {"text": "terrible"}]}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            told = json.load(answer)["predictions"]
    finally:
        stop(process)
    assert len(told) == 2 and told[0].keys() == {"label", "score", "probability_negative", "probability_positive"}
    assert told[0]["score"] == max(told[0]["probability_negative"], told[0]["probability_positive"])


# the hub's address is read where huggingface_hub is imported: in a process of its own, for two exports
EXPORTS = """
import json, sys
from lorasweep import cli
codes = []
for out, repository in json.loads(sys.argv[1]):
    words = ["export", "mine", out, "--merged", "--push-to-hub", repository, "--private"]
    codes.append(cli.main(words))
    print("--next--")
    print("--next--", file=sys.stderr)
assert codes == [0, 1], codes
"""


def test_an_export_is_pushed_to_the_hub(home: Path, champion: dict, tmp_path: Path) -> None:
    """Against a stand-in of the hub's HTTP API (tests/hubkit.py)."""
    token = "hf_" + "k" * 34
    with hub(token, refuse="me/refused") as there:
        environment = {**os.environ, "LORASWEEP_HOME": str(home), "HF_ENDPOINT": there.address, "HF_TOKEN": token}
        environment.pop("HF_HUB_OFFLINE")
        pushes = json.dumps([[str(tmp_path / "out"), "me/mine"], [str(tmp_path / "again"), "me/refused"]])
        done = subprocess.run(
            [sys.executable, "-c", EXPORTS, pushes], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert token not in done.stderr + done.stdout and "Traceback" not in done.stderr
    assert there.created["organization"] == "me"
    assert there.created.get("private") or there.created.get("visibility") == "private", there.created
    said, _, _ = done.stdout.partition("--next--")
    assert "https://" not in said and f"{there.address}/me/mine/commit/" in said
    local = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes()
             for path in (tmp_path / "out").rglob("*") if path.is_file() and ".cache" not in path.parts}  # fmt: skip
    assert there.files == local and "model.safetensors" in local
    assert b"from_pretrained('me/mine'" in local["README.md"] and "version 1" in there.message
    _, refusal, _ = done.stderr.split("--next--")
    assert "the hub did not take" in refusal and (tmp_path / "again").is_dir()
