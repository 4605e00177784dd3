"""Whose folder is whose: no name leaves its folder, the user's files win, errors name the nearest."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasweep.config.home import Folders, Home, check_name
from lorasweep.config.schema import TrackingConfig
from lorasweep.errors import ConfigError, UsageError

SHIPPED = Home.find().shipped
LEAVES_ITS_FOLDER = [
    "../x",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    " ",
    "x" * 101,
    "x" * 200,
    "-rf",
    ".hidden",
    "a..b",
    "a\nb",
    "a\n",
    "é",
]


@pytest.mark.parametrize("name", LEAVES_ITS_FOLDER)
def test_a_name_that_would_leave_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    for use in (check_name, Home(tmp_path, SHIPPED).find_sweep, Folders(tmp_path).sweep, Folders(tmp_path).spool):
        with pytest.raises(ConfigError, match="must start with a letter or digit") as caught:
            use(name)
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["a", "rank_lr", "Rank-1.2", "0", "x" * 100])
def test_plain_names_are_names(name: str) -> None:
    assert check_name(name) == name


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=120))
@pytest.mark.slow
def test_an_accepted_name_stays_in_its_folder(name: str) -> None:
    try:
        check_name(name)
    except ConfigError:
        return
    root = Path("/somewhere/deep")
    assert (root / f"{name}.yaml").parent == root
    assert (root / name).resolve().parent == root


def test_the_kind_of_name_stands_in_the_message() -> None:
    with pytest.raises(ConfigError, match="a model name must"):
        check_name("a/b", "model name")


def test_lorasweep_home_wins_over_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORASWEEP_HOME", raising=False)
    assert Home.find().root == tmp_path
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path / "project"))
    assert Home.find().root == tmp_path / "project"
    monkeypatch.setenv("LORASWEEP_HOME", "")
    assert Home.find().root == tmp_path


def test_a_home_that_is_no_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"LORASWEEP_HOME.*nowhere.*is no folder"):
        Home.find()


def test_home_expands_the_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LORASWEEP_HOME", "~/project")
    assert Home.find().root == tmp_path / "project"


def test_what_ships_is_found(tmp_path: Path) -> None:
    assert (SHIPPED / "conf" / "config.yaml").is_file()
    assert (SHIPPED / "sweeps" / "quickstart.yaml").is_file()
    assert {"quickstart", "rank_lr", "file_template"} <= set(Home(tmp_path, SHIPPED).sweep_names())


def test_the_users_sweep_wins_and_both_are_listed(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    for name in ("mine", "quickstart"):
        (tmp_path / "sweeps" / f"{name}.yaml").write_text("sweep: {trials: 2}\n")
    home = Home(tmp_path, SHIPPED)
    assert home.find_sweep("quickstart") == tmp_path / "sweeps" / "quickstart.yaml"
    assert home.find_sweep("rank_lr") == SHIPPED / "sweeps" / "rank_lr.yaml"
    assert {"mine", "rank_lr"} <= set(home.sweep_names())
    assert home.sweep_names().count("quickstart") == 1


def test_a_missing_sweep_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no sweep 'quikstart'.*did you mean `quickstart`"):
        Home(tmp_path, SHIPPED).find_sweep("quikstart")
    with pytest.raises(UsageError, match=r"no sweep 'zzz'.*known: .*quickstart"):
        Home(tmp_path, SHIPPED).find_sweep("zzz")


def test_a_folder_named_like_a_sweep_is_none(tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "rank.yaml").mkdir(parents=True)
    home = Home(tmp_path, SHIPPED)
    with pytest.raises(UsageError, match=r"no sweep 'rank'"):
        home.find_sweep("rank")
    assert "rank" not in home.sweep_names()


def test_tracking_dir_counts_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    home = Home(tmp_path, SHIPPED)
    assert home.tracking_dir(TrackingConfig()) == tmp_path
    assert home.tracking_dir(TrackingConfig(dir="runs")) == tmp_path / "here" / "runs"
    assert home.tracking_dir(TrackingConfig(dir=str(tmp_path / "x"))) == tmp_path / "x"


def test_files_lie_where_mlflow_looks(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    assert folders.mlflow_db == tmp_path / "mlflow.db"
    assert folders.own == tmp_path / "mlruns" / "lorasweep"
    assert folders.study_db.parent == folders.cache.parent == folders.own
    assert folders.spool("s").parent == folders.sweep("s") == folders.own / "sweeps" / "s"
