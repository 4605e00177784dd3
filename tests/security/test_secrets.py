"""Tokens, passwords and logins: in no file, no message, no command line of another process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorasweep import cli, ui
from lorasweep.config import address, compose
from lorasweep.config.home import Folders, Home
from lorasweep.launchers.local import PROGRAM
from lorasweep.launchers.orders import Orders
from test_bad_input import home, write_sweep

__all__ = ["home"]
SECRET = "q8ZkP2vLx0Tn7WcR"
TOKEN = f"hf_{SECRET}{SECRET}"
PLANTED = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "WANDB_API_KEY")


def holding(folder: Path, secret: str) -> list[str]:
    """Files below a folder that hold a secret."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_secrets_of_the_environment_are_in_nothing_that_a_sweep_leaves(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in PLANTED:
        monkeypatch.setenv(name, TOKEN if name == "HF_TOKEN" else f"{SECRET}{name}")
    write_sweep(home)
    assert cli.main(["sweep", "mine"]) == 0
    assert cli.main(["report", "mine"]) == 0
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    assert holding(home, SECRET) == []


LEAKY = [
    ("tracking.uri=http://me:{}@127.0.0.1:9/?x=1",),
    ("tracking.uri=ftp://me:{}@host",),
    ("tracking.studies=postgresql://me:{}@127.0.0.1:9/db?connect_timeout=1",),
    ("tracking.studies=mysql://me:{}@127.0.0.1:9/db",),
    ("tracking.files=s3://key:{}@bucket/x",),
    ("model.path=https://me:{}@host/model",),
    ("data=file", "data.train=https://me:{}@host/rows.csv"),
    ("data=file", "data.train=https://me:p@{}@host/rows.csv"),
    ("data=hub", "data.hub_id=hf_{0}{0}"),
    ("tracking.studies='postgresql://me@127.0.0.1:9/db?sslpassword={}'",),
    ("task.instruction=hf_{0}{0}",),
    ("task.verbalizer={{negative:hf_{0}{0},positive:good}}",),
    ("hub.token={}",),
    ("adapter.r=hf_{0}{0}",),
    ("--hf-token={}",),
]


@pytest.mark.parametrize("words", LEAKY, ids=lambda words: words[-1].partition("=")[0])
@pytest.mark.parametrize("command", ["sweep", "plan"])
def test_no_refusal_repeats_a_secret(
    command: str, words: tuple[str, ...], home: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (address.USERNAME, address.PASSWORD, address.DATABASE_PASSWORD):
        monkeypatch.delenv(name, raising=False)
    write_sweep(home)
    assert cli.main([command, "mine", *(word.format(SECRET) for word in words), "--json"]) in (1, 2)
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err, said
    assert holding(home, SECRET) == []
    for name in (address.USERNAME, address.PASSWORD, address.DATABASE_PASSWORD):
        os.environ.pop(name, None)


def test_no_command_line_of_ours_holds_a_login(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of the machine reads command lines; the environment and standard input only their own."""
    for name in (address.USERNAME, address.PASSWORD, address.DATABASE_PASSWORD):
        monkeypatch.setenv(name, "")
    words = [f"tracking.uri=http://me:{SECRET}@host:5000", f"tracking.studies=postgresql://me:{SECRET}@db/x"]
    kept = address.without_logins(words)
    assert SECRET not in str(kept) and os.environ[address.PASSWORD] == SECRET
    config = compose.compose([*kept, "model=tiny_encoder", "data=demo_reviews"])
    folders = Home.find().folders(config.tracking)
    orders = Orders("mine", 0, str(home), server=folders.server, studies=folders.studies)
    assert SECRET not in orders.to_text() + compose.to_yaml(config)
    assert SECRET not in " ".join([*PROGRAM, *ui.command(Folders(home), 5000)])


@pytest.mark.parametrize("login", ["me:other@", "me@", ""])
def test_a_password_behind_the_question_mark_is_kept_apart(login: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(address.DATABASE_PASSWORD, "")
    kept = address.keep_password_apart(f"postgresql://{login}db:5432/x?password={SECRET}%2F&connect_timeout=5")
    assert kept == f"postgresql://{login.replace(':other', '')}db:5432/x?connect_timeout=5"
    assert os.environ[address.DATABASE_PASSWORD] == f"{SECRET}/"


def test_an_address_without_a_bucket_is_no_folder_of_that_name() -> None:
    assert address.settled_files("s3://") == "s3://" and address.files_problem("s3://") is not None
    assert address.settled_files("s3://bucket/prefix/") == "s3://bucket/prefix"


def test_what_is_served_listens_on_this_machine_alone(home: Path) -> None:
    words = ui.command(Folders(home), 5000)
    assert words[words.index("--host") + 1] == "127.0.0.1"
