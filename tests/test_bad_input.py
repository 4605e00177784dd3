"""Bad input of every kind gets one clear screen and exit code 2, before anything is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorasweep import cli

pytestmark = pytest.mark.slow  # every refusal composes a config or two

GOOD_CSV = "text,label\n" + "".join(f"a {word} film number {n},{word}\n" for n in range(20) for word in ("good", "bad"))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("LORASWEEP_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (home / "sweeps").mkdir(parents=True)
    (home / "rows.csv").write_text(GOOD_CSV)
    monkeypatch.chdir(home)
    return home


def write_sweep(home: Path, space: str = "{adapter.r: 'choice(2, 4)'}", more: str = "") -> None:
    (home / "sweeps" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: tiny_encoder\n  - override /data: demo_reviews\n"
        "data: {demo_rows: 40}\ntrain: {max_steps: 2, batch_size: 2}\n"
        f"sweep:\n  trials: 2\n  space: {space}\n{more}"
    )


def refused(capsys: pytest.CaptureFixture, *words: str, rc: int = 2) -> str:
    """Run a command that must fail; returns what it said."""
    assert cli.main(list(words)) == rc
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert len(captured.err.splitlines()) < 30  # one screen
    return captured.err


def nothing_stored(home: Path) -> bool:
    return not (home / "mlflow.db").exists() and not (home / "mlruns" / "lorasweep" / "study.db").exists()


FILE = ("data=file", "data.train=rows.csv")
CASES = {
    "unknown group option": (("model=gpt3",), ["`model=gpt3`", "tiny_encoder", "did you mean `gpt2`"]),
    "unknown key": (("optimizer.learning_rate=1",), ["no setting `optimizer.learning_rate`"]),
    "unknown key, near": (("adapter.rr=1",), ["did you mean `adapter.r`"]),
    "wrong type": (("adapter.r=eight",), ["`adapter.r`", "integer", "eight"]),
    "rank zero": (("adapter.r=0",), ["`adapter.r` must be > 0, got 0"]),
    "negative learning rate": (("optimizer.lr=-0.1",), ["`optimizer.lr` must be > 0, got -0.1"]),
    "no model path": (("model=hf",), ["model.path"]),
    "missing file": (("data=file", "data.train=nowhere.csv"), ["nowhere.csv", "data.train"]),
    "missing text column": ((*FILE, "data.text_column=review"), ["review", "text, label"]),
    "missing label column": ((*FILE, "data.label_column=stars"), ["stars", "text, label"]),
    "target module": (("adapter.targets=[q_proj]",), ["q_proj", "query"]),
    "base that is nowhere": (("model=hf", "model.path=/no/such/folder"), ["/no/such/folder"]),
    "base that is not reachable": (("model=hf", "model.path=someone/something"), ["someone/something"]),
    "objective never logged": (
        ("sweep.objective.metric=eval/acuracy",),
        ["eval/acuracy", "never logged", "eval/accuracy", "eval/f1"],
    ),
    "row longer than the base": (("data.max_length=100000", *FILE), ["max_length"]),
    "trials without end": (("sweep.trials=0",), ["`sweep.trials` must be > 0"]),
    "slots": (("launcher.slots=many",), ["launcher.slots"]),
    "device": (("launcher.device=cuda:77",), ["cuda:77"]),
    "full with 4 bits": (("adapter=full", "quantization=nf4"), ["adapter=full", "nf4"]),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_overrides(name: str, home: Path, capsys: pytest.CaptureFixture) -> None:
    overrides, expected = CASES[name]
    if name == "row longer than the base":
        (home / "rows.csv").write_text(GOOD_CSV + f"{'long ' * 3000},good\n")
    write_sweep(home)
    said = refused(capsys, "sweep", "mine", *overrides)
    for text in expected:
        assert text in said, said
    assert nothing_stored(home)


SPACES = {
    "empty": ("{}", ["`sweep.space` is empty"]),
    "upside down": ("{optimizer.lr: 'interval(1, 0.1)'}", ["optimizer.lr", "upside down"]),
    "log of zero": ("{optimizer.lr: 'tag(log, interval(0, 1))'}", ["optimizer.lr", "> 0"]),
    "no grammar": ("{adapter.r: 'chose(1, 2)'}", ["adapter.r", "chose(1, 2)"]),
    "unknown key": ("{adapter.rank: 'choice(2, 4)'}", ["adapter.rank"]),
    "choice out of bounds": ("{adapter.r: 'choice(0, 4)'}", ["`adapter.r` must be > 0, got 0", "sweeps/mine.yaml"]),
    "unknown option of a group": ("{model: 'choice(tiny_encoder, gpt9)'}", ["gpt9", "tiny_decoder"]),
}


@pytest.mark.parametrize("name", SPACES)
def test_bad_spaces(name: str, home: Path, capsys: pytest.CaptureFixture) -> None:
    space, expected = SPACES[name]
    write_sweep(home, space)
    said = refused(capsys, "sweep", "mine")
    for text in expected:
        assert text in said, said
    assert nothing_stored(home)


def test_empty_split(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home)
    (home / "empty.csv").write_text("text,label\n")
    said = refused(capsys, "sweep", "mine", *FILE, "data.validation=empty.csv")
    assert "empty.csv" in said
    assert nothing_stored(home)


def test_label_unseen_in_training(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home)
    (home / "valid.csv").write_text("text,label\na film,good\nanother,mixed\n")
    said = refused(capsys, "sweep", "mine", *FILE, "data.validation=valid.csv")
    assert "mixed" in said
    assert "valid.csv" in said
    assert nothing_stored(home)


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "/etc/passwd", "a b", "x" * 200])
def test_sweep_names_that_would_leave_their_folder(name: str, home: Path, capsys: pytest.CaptureFixture) -> None:
    for command in ("sweep", "resume", "leaderboard", "plan", "report", "promote"):
        said = refused(capsys, command, name)
        assert "name" in said or "sweep" in said
    write_sweep(home)
    said = refused(capsys, "sweep", "mine", f"sweep.name='{name}'")
    assert "name" in said
    assert nothing_stored(home)
    assert {path.name for path in home.parent.iterdir()} == {home.name}


def test_commands_on_a_sweep_that_never_started(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home)
    for command in ("resume", "leaderboard", "report", "promote"):
        assert "mine" in refused(capsys, command, "mine")
    assert "did you mean `mine`" in refused(capsys, "sweep", "min")
    assert nothing_stored(home)


def test_errors_as_json(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home)
    assert cli.main(["sweep", "mine", "adapter.r=0", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["type"] == "ConfigError"
    assert "must be > 0" in document["error"]["message"]


def test_a_bad_command_line_is_a_usage_error(capsys: pytest.CaptureFixture) -> None:
    tops = [["leaderboard", "x", "--top", top] for top in ("many", "-1", "0")]
    for words in ([], ["swep"], ["sweep"], ["sweep", "quickstart", "--tpo"], *tops):
        assert "usage" in refused(capsys, *words)
        assert cli.main([*words, "--json"]) == 2
        assert json.loads(capsys.readouterr().out)["error"]["type"] == "UsageError"


def test_a_later_mistake_loses_nothing_that_is_stored(home: Path, capsys: pytest.CaptureFixture) -> None:
    write_sweep(home)
    assert cli.main(["sweep", "mine", "--json"]) == 0
    capsys.readouterr()
    assert cli.main(["leaderboard", "mine", "--json"]) == 0
    before = capsys.readouterr().out
    for words in (["adapter.r=0"], ["data=file", "data.train=nowhere.csv"], ["optimizer.lr=0.5"]):
        refused(capsys, "sweep", "mine", *words)
    assert cli.main(["leaderboard", "mine", "--json"]) == 0
    assert capsys.readouterr().out == before
