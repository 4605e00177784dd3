"""What the tab key offers, in bash, zsh and fish themselves too, and that nothing heavy is imported for it."""

from __future__ import annotations

import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lorasweep import cli
from lorasweep.arguments import build_parser
from lorasweep.completion import ASK, candidates, script
from lorasweep.config.explain import keys
from lorasweep.config.schema import GROUPS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a sweep file of its own, two stored sweeps and a registered model."""
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "shop.yaml").write_text("# @package _global_\n")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "ours.yaml").write_text("path: x\n")
    store(tmp_path, "shop", "shop/finalists", "older")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.execute("CREATE TABLE registered_model_aliases (name TEXT, alias TEXT)")
        database.execute("CREATE TABLE model_versions (name TEXT, version INT, current_stage TEXT)")
        database.execute("INSERT INTO registered_model_aliases VALUES ('shop', 'champion')")
        database.execute("INSERT INTO model_versions VALUES ('shop', 1, 'None'), ('shop', 2, 'Deleted_Internal')")
        database.commit()
    return tmp_path


def store(folder: Path, *names: str) -> None:
    database = folder / "mlruns" / "lorasweep" / "study.db"
    database.parent.mkdir(parents=True)
    with closing(sqlite3.connect(database)) as opened:
        opened.execute("CREATE TABLE studies (study_id INT, study_name TEXT)")
        opened.executemany("INSERT INTO studies VALUES (0, ?)", [(name,) for name in names])
        opened.commit()


def after(line: str) -> list[str]:
    """Candidates where the cursor stands behind `lorasweep LINE`."""
    words = line.split(" ")
    return candidates(words)


OFFERED = {
    "swe": ["sweep"],
    "sweep sh": ["shop"],
    "sweep --join qui": ["quickstart"],
    "leaderboard ": ["older", "shop"],
    "resume ol": ["older"],
    "sweep quickstart optimizer.l": ["optimizer.lr="],
    "sweep quickstart quant": ["quantization.", "quantization="],
    "sweep model=gpt2 sh": ["shop"],
    "train model=o": ["model=ours"],
    "train model=tiny_g": ["model=tiny_gpt2"],
    "train optimizer.schedule=": [
        "optimizer.schedule=constant",
        "optimizer.schedule=cosine",
        "optimizer.schedule=linear",
    ],
    "train model.trust_remote_code=": ["model.trust_remote_code=false", "model.trust_remote_code=true"],
    "train sweep.objective.dir": ["sweep.objective.direction="],
    "train --cfg ": ["all", "hydra", "job"],
    "train -c job --pack": ["--package"],
    "train --cfg job -p optimizer.l": ["optimizer.lr"],
    "plan shop --info defaults-": ["defaults-tree"],
    "ui shop --view ": ["curves", "failures", "finalists", "leaderboard"],
    "leaderboard shop --sort train_s": ["train_seconds"],
    "leaderboard shop --where tie": ["tied="],
    "leaderboard shop tracking.d": ["tracking.dir="],
    "predict models:/": ["models:/shop/1", "models:/shop@champion"],
    "export sh": ["shop/1", "shop@champion"],
    "export --best ol": ["older"],
    "completion ": ["bash", "fish", "zsh"],
    "leaderboard shop adapter": [],  # it changes nothing there
    "train data.train=": [],  # the shell offers files
    "init ": [],
    "nonsense ": [],
    "sweep shop nonsense.": [],
    "train sweep.spa": [],
}


@pytest.mark.parametrize(("line", "offered"), OFFERED.items())
def test_what_is_offered(line: str, offered: list[str]) -> None:
    assert after(line) == offered


def test_first_the_commands_then_the_groups_and_sections() -> None:
    assert set(after("")) == {*build_parser()._subparsers._group_actions[0].choices, "--help", "--version"}  # type: ignore[union-attr,arg-type]
    assert ASK not in after("")
    offered = after("train ")
    assert {f"{group}=" for group in GROUPS} <= set(offered) and "sweep." in offered
    assert set(after("train train.")) == {f"{key}=" for key in keys() if key.startswith("train.")}
    assert "--json" in after("sweep shop --") and "--json" not in after("sweep --json --")


def test_another_tracking_folder_is_looked_into(tmp_path: Path) -> None:
    store(tmp_path / "away", "far")
    assert after(f"leaderboard tracking.dir={tmp_path}/away ") == ["far"]


def test_what_cannot_be_read_offers_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mlruns" / "lorasweep" / "study.db").write_bytes(b"no database" * 100)
    assert after("leaderboard sh") == []
    monkeypatch.setenv("LORASWEEP_HOME", str(home / "nowhere"))
    assert after("sweep sh") == []


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from lorasweep import cli; cli.main(['__complete', 'train', 'model=tiny_g']); "
        "print({'torch', 'hydra', 'omegaconf', 'optuna', 'mlflow', 'numpy', 'yaml', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["model=tiny_gpt2", "set()"]


ASK_BASH = """
source "$SCRIPT"
complete -p lorasweep > /dev/null || exit 3
while IFS= read -r line; do
    COMP_LINE="$line"; COMP_POINT=${#line}
    _lorasweep
    echo "$line|${COMPREPLY[*]}"
done
"""


@pytest.fixture
def shell_home(tmp_path: Path) -> Path:
    """A home folder with our program in ~/bin, and each shell's script."""
    program = tmp_path / "bin" / "lorasweep"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lorasweep.cli "$@"\n')
    program.chmod(0o755)
    for shell in ("bash", "zsh", "fish"):
        (tmp_path / f"script.{shell}").write_text(script(shell))
    return tmp_path


def environment(home: Path, shell: str) -> dict[str, str]:
    path = f"{home}/bin:{os.environ['PATH']}"
    return {**os.environ, "SCRIPT": f"{home}/script.{shell}", "PATH": path, "HOME": str(home), "TERM": "dumb"}


def installed(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


def test_the_script_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", "fish"]) == 0
    assert capsys.readouterr().out == script("fish")


@installed("bash")
def test_bash_completes_behind_what_it_takes_for_the_end_of_a_word(shell_home: Path) -> None:
    lines = {
        "lorasweep sweep sh": "shop",
        "lorasweep train model=tiny_g": "tiny_gpt2",  # `=` and `:` end a word in bash: the part behind is replaced
        "lorasweep predict models:/shop@": "/shop@champion",
        "lorasweep train data.train=": "",
        "lorasweep leaderboard ": "older shop",
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK_BASH], input="\n".join(lines) + "\n", env=environment(shell_home, "bash"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert dict(line.split("|") for line in done.stdout.splitlines()) == lines


ASK_FISH = """
source $SCRIPT
while read --line line
    echo -s $line '|' (complete -C $line | string join ' ')
end
"""


@installed("fish")
@pytest.mark.slow
def test_fish_offers_names_settings_and_files(shell_home: Path) -> None:
    lines = {
        "lorasweep sweep sh": "shop",
        "lorasweep train 'model=tiny_g": "model=tiny_gpt2",
        "lorasweep predict models:/shop@": "models:/shop@champion",
        "lorasweep train data.train=script.b": "data.train=script.bash",
        "~/bin/lorasweep leaderboard ": "older shop",
        "~/gone/lorasweep leaderboard m": "mlflow.db mlruns/",  # no program: files, and no error on the screen
    }
    done = subprocess.run(
        ["fish", "--no-config", "-c", ASK_FISH], input="\n".join(lines) + "\n", env=environment(shell_home, "fish"),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (dict(line.split("|") for line in done.stdout.splitlines()), done.stderr) == (lines, "")


ASK_ZSH = r"""
autoload -Uz compinit && compinit -C -D
source $SCRIPT
show() { print -r -- "$BUFFER" >> $HOME/shown; BUFFER= }
zle -N show
bindkey '^T' show
"""


@installed("zsh")
@pytest.mark.slow
def test_zsh_completes_at_its_prompt(shell_home: Path) -> None:
    lines = {
        "lorasweep sweep sh": "lorasweep sweep shop ",
        "lorasweep train optimizer.l": "lorasweep train optimizer.lr=",
        "lorasweep train 'model=tiny_g": "lorasweep train 'model=tiny_gpt2' ",
        "lorasweep predict models:/shop@": "lorasweep predict models:/shop@champion ",
        "lorasweep train data.train=script.b": "lorasweep train data.train=script.bash ",
        "~/bin/lorasweep leaderboard o": "~/bin/lorasweep leaderboard older ",
    }
    (shell_home / ".zshrc").write_text(ASK_ZSH)
    ours, its = pty.openpty()
    try:
        os.write(ours, "".join(f"{line}\t\x14" for line in lines).encode() + b"exit\n")
        subprocess.run(
            ["zsh", "-d", "-i"], stdin=its, stdout=its, stderr=its, cwd=shell_home, timeout=60, check=True,
            env={**environment(shell_home, "zsh"), "ZDOTDIR": str(shell_home)}, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(its)
    assert dict(zip(lines, (shell_home / "shown").read_text().splitlines(), strict=True)) == lines


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_script_asks_this_program_and_is_read_by_its_shell(shell: str, tmp_path: Path) -> None:
    assert f" {ASK} " in script(shell)
    if shutil.which(shell):
        (tmp_path / "script").write_text(script(shell))
        subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
