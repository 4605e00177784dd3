"""`--cfg`, `--package`, `--resolve` and `--info` print what Hydra's own applications print, and run nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from lorasweep import cli
from lorasweep.config import address, shown
from lorasweep.config.compose import compose, to_yaml


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(
        "# @package _global_\nmodel: {name: '${oc.env:NAMED,plain}'}\nsweep: {trials: 3}\n"
    )
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def test_the_resolved_config_is_the_one_that_trials_take(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "sweep", "mine", "optimizer.lr=0.5", "--cfg", "job", "--resolve")
    assert yaml.safe_load(text) == yaml.safe_load(to_yaml(compose(["optimizer.lr=0.5"], "mine")))
    small = printed(capsys, "sweep", "quickstart", "scale=smoke", "-c", "job", "-p", "sweep.trials", "--resolve")
    assert small == "4\n"


def test_the_config_as_written_keeps_interpolations_and_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "sweep", "mine", "model=hf", "--cfg", "job")
    found = yaml.safe_load(text)
    assert found["model"]["name"] == "${oc.env:NAMED,plain}" and found["model"]["path"] == ""
    assert found["sweep"]["trials"] == 3 and "sweeps" not in found and "hydra" not in found


def test_a_package_is_a_part_under_hydras_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "train", "optimizer.lr=0.5", "--cfg", "job", "--package", "optimizer")
    assert text.startswith("# @package optimizer\n") and yaml.safe_load(text)["lr"] == 0.5
    assert printed(capsys, "plan", "mine", "--cfg", "all", "-p", "sweep.objective.direction") == "maximize\n"
    document = json.loads(printed(capsys, "train", "--cfg", "job", "-p", "model.bag", "--json"))
    assert document["package"] == "model.bag" and document["config"]["trees"] == 100


def test_the_defaults_list_is_in_the_order_of_merging(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capsys, "sweep", "quickstart", "model=gpt2", "--info", "defaults", "--json"))
    names = [one["config"] for one in document["defaults"]]
    assert names[0] == "lorasweep_schema" and names[-2:] == ["config", "sweeps/quickstart"]
    assert "model/gpt2" in names and "model/tiny_encoder" not in names
    table = printed(capsys, "sweep", "quickstart", "--info", "defaults")
    assert "| model/tiny_encoder | model        | False  | config |" in table
    tree = printed(capsys, "train", "--info", "defaults-tree")
    assert tree.splitlines()[1:4] == ["config:", "  lorasweep_schema", "  model/tiny_encoder"] and "  _self_" in tree


def test_the_search_path_has_the_users_folders_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capsys, "train", "-i", "searchpath", "--json"))
    assert [one["whose"] for one in document["searchpath"]] == ["yours", "shipped"] * 2
    assert document["searchpath"][0]["folder"] == str(home / "conf")
    assert "conf   (not there)" in printed(capsys, "train", "--info", "searchpath")
    whole = printed(capsys, "train", "--info")
    assert all(part in whole for part in ("search path", "Defaults Tree", "Defaults List", "optimizer:"))


def test_logins_in_addresses_are_not_printed(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in (address.USERNAME, address.PASSWORD, address.DATABASE_PASSWORD):
        monkeypatch.setenv(variable, "")  # put back afterwards: logins move there
    (home / "sweeps" / "mine.yaml").write_text("# @package _global_\ntracking: {uri: 'http://me:hunter2@host:5000'}\n")
    for words in (["sweep", "mine"], ["train", "tracking.studies=postgresql://me:hunter2@host/studies"]):
        for more in ([], ["--resolve"]):
            text = printed(capsys, *words, "--cfg", "job", *more)
            assert "hunter2" not in text and "host" in text


def test_nothing_runs_and_nothing_is_stored(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--cfg", "job"], ["--info", "config"]):
        printed(capsys, "train", *options)
    assert [path.name for path in home.iterdir()] == ["sweeps"]


REFUSED = {
    ("--cfg", "hydra"): "--cfg job",
    ("--cfg", "job", "-p", "optimiser"): "did you mean `optimizer`?",
    ("--cfg", "job", "--info"): "leave one of them out",
    ("--package", "model"): "go with --cfg job",
    ("--resolve",): "go with --cfg job",
    ("--cfg", "job", "adapter.rr=1"): "did you mean `adapter.r`?",
}


@pytest.mark.parametrize(("options", "says"), REFUSED.items())
def test_what_cannot_be_shown_is_refused(
    options: tuple[str, ...], says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *options]) == 2
    assert says in capsys.readouterr().err
    assert not (home / "mlflow.db").exists()


def test_single_values_are_printed_as_yaml_would() -> None:
    assert [shown.to_text(value) for value in (None, True, 3, 1e-3, "text")] == ["null", "true", "3", "0.001", "text"]
