"""`lorasweep doctor`: what is well says so, and whatever is not says what to do about it."""

from __future__ import annotations

import importlib.metadata
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorasweep import cli, doctor
from lorasweep.config.home import Folders, Home
from lorasweep.search.database import open_storage

Look = Callable[..., dict[str, Any]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Look:
    """(words, exit code) -> finding's name -> finding."""
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))

    def run(*words: str, code: int = 0) -> dict[str, Any]:
        assert cli.main(["doctor", "--json", *words]) == code
        document = json.loads(capsys.readouterr().out)
        assert document["ok"] == (code == 0)
        return {finding["name"]: finding for finding in document["findings"]}

    return run


def test_a_machine_that_is_well(look: Look, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_storage(Folders(tmp_path), create=True)
    found = look()
    assert {"python", "torch", "mlflow", "cpu", "disk", "sweeps", "hugging face hub"} <= found.keys()
    assert found["torch"]["detail"] == importlib.metadata.version("torch")
    assert found["tracking database"]["detail"].endswith("mlflow.db will be made by the first sweep")
    assert found["study database"]["detail"].endswith("MiB") and "quickstart" in found["sweeps"]["detail"]
    assert "HF_HUB_OFFLINE is set" in found["hugging face hub"]["detail"]
    assert not list(tmp_path.glob(".lorasweep-doctor-*")) and not (tmp_path / "mlflow.db").exists()
    assert cli.main(["doctor"]) == 0
    assert found["python"]["detail"].split()[0] in capsys.readouterr().out


def test_a_damaged_database_and_a_file_in_the_folders_place(look: Look, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"not a database, for more than its header's hundred bytes" * 10)
    damaged = look(code=1)["tracking database"]
    assert "not a database" in damaged["detail"] and "backup" in damaged["repair"]
    (tmp_path / "mlflow.db").unlink()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.executescript("create table t (x); insert into t values (zeroblob(9000));")
    database.close()
    raw = bytearray((tmp_path / "mlflow.db").read_bytes())
    raw[4096:4196] = b"\xff" * 100  # the table's page
    (tmp_path / "mlflow.db").write_bytes(raw)
    assert "restore it from a backup" in look(code=1)["tracking database"]["repair"]
    (tmp_path / "taken").write_text("")
    place = look(f"tracking.dir={tmp_path / 'taken' / 'below'}", code=1)["tracking folder"]
    assert "tracking.dir=PATH" in place["repair"]


def test_servers_and_stores_that_do_not_answer(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "x")
    (tmp_path / "taken").write_text("")
    found = look(
        "tracking.uri=http://127.0.0.1:9", "tracking.studies=postgresql://nobody@127.0.0.1:9/none",
        f"tracking.files={tmp_path / 'taken' / 'files'}", code=1,
    )  # fmt: skip
    for name, repair in (("tracking server", "`tracking.uri`"), ("study database", "`tracking.studies`"),
                         ("files", "`tracking.files`")):  # fmt: skip
        assert not found[name]["ok"] and repair in found[name]["repair"], found[name]


def test_what_is_not_installed_or_running_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(doctor, "LOW_DISK_BYTES", 1 << 60)
    monkeypatch.setattr(doctor, "LOW_MEMORY_BYTES", 1 << 60)
    found = {one.name: one for one in doctor.examine(Home.find(), Folders(tmp_path))}
    assert found["peft"].detail == "not installed" and "make setup" in found["peft"].repair
    assert not found["disk"].ok and not found["cpu"].ok and found["torch"].ok
