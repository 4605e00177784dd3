"""Names of sweeps, models, runs and folders as attackers and accidents write them: refused with a repair or taken, and
nothing is ever written outside of the home."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from fuzzkit import NASTY, both, nasty, run
from lorasweep.config.home import NAME, Folders, check_name
from lorasweep.errors import ConfigError
from made_sweep import build

pytestmark = pytest.mark.slow  # every example composes

COMMANDS = [
    "sweep NAME", "sweep quickstart --fork NAME", "sweep made sweep.name=NAME", "plan NAME", "resume NAME",
    "leaderboard NAME", "leaderboard made --sort NAME", "leaderboard made --where NAME", "report NAME", "promote NAME",
    "promote made --as NAME", "promote made --rollback --as NAME", "export NAME out", "export made NAME --trial 0",
    "reproduce NAME", "predict NAME text", "predict models:/NAME text", "predict models:/made@NAME text",
    "predict models:/made/NAME text", "predict runs:/NAME text", "predict made text --base NAME",
    "predict models:/made@champion --csv NAME", "ui NAME", "ui --port NAME", "stop NAME 0", "stop made NAME",
    "clone NAME 0", "clone made 0 adapter.r=NAME", "pause NAME", "workers NAME", "train model=NAME",
    "train model.path=NAME", "train data=file data.train=NAME", "train adapter.targets=[NAME]", "NAME", "doctor NAME",
    "leaderboard made tracking.dir=NAME", "leaderboard made tracking.uri=NAME", "resume made tracking.studies=NAME",
    "sweep quickstart tracking.files=s3://NAME",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a sweep that is stored and complete; its parent must keep it as its only entry."""
    home = tmp_path_factory.mktemp("fuzz") / "home"
    (home / "sweeps").mkdir(parents=True)
    build(Folders(home), 3)
    return home


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORASWEEP_HOME", str(home))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.chdir(home)


def quoted(name: str) -> str:
    """As an override holds it."""
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


def names_stay_home(home: Path, capsys: pytest.CaptureFixture, command: str, name: str) -> None:
    words = [word.replace("NAME", quoted(name) if "=" in word else name) for word in command.split()]
    if name == "--help" or words[:1] == ["quickstart"] or (command.startswith("ui") and name in ("", "made")):
        return  # these run for long, and rightly
    run(capsys, *words)
    assert [path.name for path in home.parent.iterdir()] == ["home"]
    assert {path.name for path in (home / "mlruns" / "lorasweep" / "sweeps").glob("*")} <= {"made"}


HEAVY = ("train", "sweep", "promote", "predict", "export", "reproduce")  # they load models or MLflow
test_names_stay_home, _ = both(
    15, 1, command=st.sampled_from([one for one in COMMANDS if not one.startswith(HEAVY)]), name=nasty
)(names_stay_home)
_, test_names_stay_home_at_length = both(1, 4_000, command=st.sampled_from(COMMANDS), name=nasty)(names_stay_home)


@pytest.mark.parametrize("name", [name for name in NASTY if not NAME.fullmatch(name)], ids=ascii)
def test_no_such_name_is_one_of_a_sweep(name: str) -> None:
    with pytest.raises(ConfigError, match="rename it"):
        check_name(name)
