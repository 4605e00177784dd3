"""What is said of a PostgreSQL that cannot keep studies, before anything is stored; how a sqlite file comes about."""

from __future__ import annotations

import builtins
import json
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from clusterkit import SECRET, Postgres
from lorasweep import cli
from lorasweep.config.home import Folders
from lorasweep.database import StudiesAway
from lorasweep.errors import StorageError
from lorasweep.search.database import check, exists, open_storage, wait_until_back


@pytest.fixture
def address(postgres_server: Postgres) -> str:
    """An empty database of its own."""
    return postgres_server.make_database(f"db_{secrets.token_hex(4)}")


def refusal(tmp_path: Path, address: str) -> StorageError:
    with pytest.raises(StorageError) as caught:
        check(Folders(tmp_path, studies=address))
    said = str(caught.value)
    assert SECRET not in said and "\n" not in said and len(said) < 700
    return caught.value


def test_a_good_one_is_left_as_it_was(address: str, tmp_path: Path) -> None:
    folders = Folders(tmp_path, studies=address)
    check(folders)
    assert not exists(folders)
    open_storage(folders, create=True)
    check(folders)
    assert exists(folders)
    check(Folders(tmp_path))  # a file needs no look


@pytest.mark.parametrize(
    "change, words",
    [
        (("lorasweep@", "stranger@"), "password authentication failed.*PGPASSWORD"),
        (("/db_", "/none_"), r"database \"none_\w+\" does not exist.*createdb"),
        (("@127.0.0.1:", "@127.0.0.1:1"), "check the host|out of range|does not answer|cannot be used"),
        (("@127.0.0.1", "@nowhere.invalid"), "check the host in `tracking.studies`"),
    ],
)
def test_an_address_that_leads_nowhere(address: str, tmp_path: Path, change: tuple[str, str], words: str) -> None:
    assert refusal(tmp_path, address.replace(*change)).exit_code == 1
    with pytest.raises(StorageError, match=words):
        check(Folders(tmp_path, studies=address.replace(*change)))


def test_nothing_listens(tmp_path: Path) -> None:
    error = refusal(tmp_path, "postgresql://lorasweep@127.0.0.1:9/lorasweep")
    assert isinstance(error, StudiesAway) and "start the server" in str(error)
    assert not wait_until_back(Folders(tmp_path, studies="postgresql://x@127.0.0.1:9/y"), 0.1, lambda: False)


def test_a_wrong_password(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "wrong")
    assert "password authentication failed" in str(refusal(tmp_path, address))


def test_a_user_without_rights(postgres_server: Postgres, address: str, tmp_path: Path) -> None:
    weak, database = f"weak_{secrets.token_hex(4)}", address.rpartition("/")[2]
    postgres_server.execute(f"create role {weak} login password '{SECRET}'")
    theirs = address.replace("lorasweep@", f"{weak}@")
    assert "permission denied for schema public" in str(refusal(tmp_path, theirs))
    open_storage(Folders(tmp_path, studies=address), create=True)
    said = str(refusal(tmp_path, theirs))
    assert "permission denied for table" in said and "grant the user all" in said
    for right in ("usage on schema public", "select on all tables in schema public"):
        postgres_server.execute(f"grant {right} to {weak}", database=database)
    assert "permission denied for table trials" in str(refusal(tmp_path, theirs))  # reading is not enough


def test_an_older_schema(postgres_server: Postgres, address: str, tmp_path: Path) -> None:
    open_storage(Folders(tmp_path, studies=address), create=True)
    database = address.rpartition("/")[2]
    postgres_server.execute("update alembic_version set version_num = 'v2.6.0.a'", database=database)
    assert "made by another version of Optuna" in str(refusal(tmp_path, address))
    assert f"optuna storage upgrade --storage {address.replace('postgresql:', 'postgresql+psycopg:')}" in str(
        refusal(tmp_path, address)
    )


def test_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.startswith("psycopg"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return whole(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    said = str(refusal(tmp_path, f"postgresql://lorasweep@127.0.0.1:9/never_{secrets.token_hex(4)}"))
    assert "pip install 'lorasweep[postgres]'" in said


@pytest.mark.parametrize(
    "address, code, words",
    [
        ("mysql://u@h/d", 2, "must be the address of a PostgreSQL database"),
        ("postgresql://lorasweep:hush-hush@127.0.0.1:9/lorasweep", 1, "does not answer"),
    ],
)
def test_the_command_says_so_and_stores_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    address: str,
    code: int,
    words: str,
) -> None:
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    monkeypatch.setenv("PGPASSWORD", "")
    assert cli.main(["sweep", "quickstart", f"tracking.studies={address}", "--json"]) == code
    said = capsys.readouterr()
    assert words in said.err and "hush-hush" not in said.err + said.out and "Traceback" not in said.err
    assert words in json.loads(said.out)["error"]["message"]
    assert not list(tmp_path.iterdir())


def test_a_file_appears_with_all_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that only reads may come at any moment, and Optuna adds what it misses then, too."""
    folders, seen, opened = Folders(tmp_path), [], RDBStorage.__init__

    def watched(self: RDBStorage, *words: Any, **named: Any) -> None:
        opened(self, *words, **named)
        seen.append(exists(folders))

    monkeypatch.setattr(RDBStorage, "__init__", watched)
    open_storage(folders, create=True)
    assert seen == [False, True]
    assert not list(folders.own.glob("*.part*"))


def test_first_starts_at_the_same_moment_share_one_file(tmp_path: Path) -> None:
    folders = Folders(tmp_path)

    def start(name: str) -> None:
        open_storage(folders, create=True).create_new_study([StudyDirection.MAXIMIZE], name)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, "abcd"))
    assert {study.study_name for study in open_storage(folders).get_all_studies()} == set("abcd")
