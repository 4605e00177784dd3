"""`lorasweep init`: what it lays out composes and reads as a sweep will, and what cannot work is refused unwritten."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from lorasweep import cli
from lorasweep.config.compose import compose
from lorasweep.config.home import Home
from lorasweep.data.sources import load_search_data, load_test_split

ROWS = [(f"a {word} film, number {n}, and then some", word, n) for n in range(30) for word in ("good", "bad")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("LORASWEEP_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_table(path: Path, head: str = "id,review,stars") -> Path:
    lines = [f'{n},"{text}",{label}' for text, label, n in ROWS]
    path.write_text("\n".join([head, *lines]) + "\n")
    return path


def started(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    assert cli.main(["init", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str, rc: int = 2) -> str:
    assert cli.main(["init", *words]) == rc
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def test_an_empty_folder_becomes_a_project_that_composes_and_reads(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = started(capsys, "shop")
    assert found["sweep"] == "shop" and found["classes"] == ["negative", "positive"]
    written = ["Makefile", "README.md", "conf/data/shop.yaml", "data/reviews.csv", "sweeps/shop.yaml"]
    assert found["files"] == [".gitignore", *written]
    assert all((here / "shop" / name).is_file() for name in found["files"])
    os.chdir("shop")
    config = compose([], "shop")
    assert config.model.path == "builtin:tiny_encoder" and config.data.kind == "file" and config.sweep.name == "shop"
    rows = load_search_data(config.data)
    assert rows.label_names == ["negative", "positive"] and len(rows.train) + len(rows.validation) < found["rows"]
    assert len(load_test_split(config.data, rows.label_names)) > 0


def test_what_is_told_can_be_pasted_and_does_not_act_on_the_terminal(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(here / "rows.csv", "id,re\x1b[31mview,stars")
    assert cli.main(["init", "my shop", "--data", "rows.csv"]) == 0
    out = capsys.readouterr().out
    assert "cd 'my shop' && lorasweep plan my-shop" in out and "\x1b" not in out and "text: re\\x1b[31mview" in out


@pytest.mark.parametrize(("mark", "said"), [(";", "';'"), ("|", "'|'"), ("\t", "'\\t'")])
def test_another_separator_is_seen(mark: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "rows.csv").write_text("".join(f"{text}{mark}{label}\n" for text, label, _ in ROWS).replace(",", ""))
    assert f"look separated by {said}" in refused(capsys, "shop", "--data", "rows.csv")
    assert not (here / "shop").exists()


def test_an_empty_name_is_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "`.` is the current one" in refused(capsys, "")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("head", "options", "columns"),
    [
        ("id,review,stars", (), ("review", "stars")),
        ("id,what,kind", (), ("what", "kind")),  # by their contents
        ("label,text,other", (), ("text", "label")),  # by their names, whatever they hold
        ("id,a,b", ("--text-column", "a", "--label-column", "b"), ("a", "b")),
    ],
)
def test_columns_are_guessed_where_they_are_not_named(
    head: str, options: tuple[str, ...], columns: tuple[str, str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(here / "rows.csv", head)
    if head.startswith("label"):
        (here / "rows.csv").write_text("label,text,other\n" + "".join(f"{n % 2},word,{n}\n" for n in range(60)))
    found = started(capsys, "mine", "--data", "rows.csv", *options)
    assert (found["text_column"], found["label_column"]) == columns and found["rows"] == 60
    os.chdir("mine")
    config = compose([], "mine").data
    assert (config.text_column, config.label_column) == columns and Path(str(config.train)) == here / "rows.csv"
    assert config.max_length in (32, 64, 128, 256)
    assert len(load_search_data(config).label_names) == 2


def test_a_table_inside_the_project_is_named_from_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "shop" / "data").mkdir(parents=True)
    write_table(here / "shop" / "data" / "rows.csv")
    os.chdir("shop")
    found = started(capsys, ".", "--data", "data/rows.csv", "--model", "google/bert_uncased_L-2_H-128_A-2")
    assert found["sweep"] == "shop" and "data/reviews.csv" not in found["files"]
    config = compose([], "shop")
    assert config.data.train == "data/rows.csv" and config.model.path == "google/bert_uncased_L-2_H-128_A-2"


def test_names_that_yaml_or_hydra_would_read_otherwise(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, name in (("2024", "2024"), ("true", "true"), ("my shop (new)", "my-shop-new"), ("...", "mine")):
        root = here / "in" / folder
        found = started(capsys, str(root))
        assert found["sweep"] == name
        assert compose([], name, Home(root, Home.find().shipped)).sweep.name == name
    odd = here / 'od"d ${x} rows.csv'
    write_table(odd, "id,te\u00dft: a,la#bel")
    started(capsys, "odd", "--data", str(odd), "--label-column", "la#bel")
    config = compose([], "odd", Home(here / "odd", Home.find().shipped)).data
    assert (config.train, config.text_column, config.label_column) == (str(odd), "te\u00dft: a", "la#bel")


def test_rows_with_something_empty_are_left_out_and_it_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(here / "rows.csv")
    (here / "rows.csv").write_text((here / "rows.csv").read_text() + '98,"",good\n99,a film,\n')
    assert started(capsys, "shop", "--data", "rows.csv")["rows"] == 62
    assert "2 rows have an empty text or label" in (here / "shop" / "conf" / "data" / "shop.yaml").read_text()
    config = compose([], "shop", Home(here / "shop", Home.find().shipped)).data
    assert config.drop_empty and len(load_search_data(config).label_names) == 2


def test_nothing_is_written_over_without_force(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(capsys, "shop")
    (here / "shop" / "README.md").write_text("mine")
    assert "Makefile, README.md" in refused(capsys, "shop")
    assert (here / "shop" / "README.md").read_text() == "mine"
    started(capsys, "shop", "--force")
    assert (here / "shop" / "README.md").read_text() != "mine"
    write_table(here / "shop" / "data" / "reviews.csv")
    started(capsys, "shop", "--data", "shop/data/reviews.csv", "--force")  # the user's own table stays
    assert (here / "shop" / "data" / "reviews.csv").read_text().startswith("id,review,stars")


def test_what_cannot_work_is_refused_and_nothing_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(here / "rows.csv")
    (here / "one.csv").write_text("text,label\n" + "a good film,good\n" * 20)
    (here / "plain.csv").write_text("a,b\n" + "".join(f"{n},{n}\n" for n in range(40)))
    (here / "empty.csv").write_text("")
    cases = {
        ("--data", "row.csv"): "rows.csv",
        ("--data", "rows.csv", "--text-column", "revew"): "did you mean `review`?",
        ("--data", "rows.csv", "--label-column", "star"): "did you mean `stars`?",
        ("--data", "rows.csv", "--text-column", "stars", "--label-column", "stars"): "must be two columns",
        ("--data", "plain.csv"): "name it with --label-column: 'a', 'b'",
        ("--data", "one.csv"): "class",
        ("--data", "empty.csv"): "empty.csv",
        ("--text-column", "a"): "--data FILE",
        ("--model", "/nowhere/model"): "is no folder",
        ("--name", "../up"): "sweep name",
        ("--name", "a/b"): "sweep name",
        ("optimizer.lr=1",): "no overrides",
    }
    for options, says in cases.items():
        assert says in refused(capsys, "shop", *options), options
        assert not (here / "shop").exists(), options
    (here / "file").write_text("")
    assert "is a file" in refused(capsys, "file")
    assert "cannot be written" in refused(capsys, "file/shop", rc=1)


def test_a_folder_that_cannot_be_written_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "closed").mkdir(mode=0o500)
    if os.access(here / "closed", os.W_OK):
        pytest.skip("this user may write everywhere")
    assert "cannot be written" in refused(capsys, "closed/shop", rc=1)


def test_every_target_of_the_makefile_is_a_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(capsys, "shop")
    targets = subprocess.run(["make", "-C", "shop", "help"], capture_output=True, text=True, check=True).stdout
    for target in ("setup", "plan", "sweep", "resume", "leaderboard", "report", "ui", "promote", "predict"):
        assert f"  {target} " in targets
    dry = ["make", "-C", "shop", "-n", "sweep", "ARGS=sweep.trials=3"]
    assert (
        "lorasweep sweep shop sweep.trials=3" in subprocess.run(dry, check=True, capture_output=True, text=True).stdout
    )
