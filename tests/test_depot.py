"""Places of whole files: one suite over a folder and an S3 store; and what is told before anything is stored there."""

from __future__ import annotations

import importlib
import os
import socket
import sys
import time
from pathlib import Path

import pytest

from clusterkit import SECRET, ObjectStore
from lorasweep.cli import main
from lorasweep.config import address
from lorasweep.config.home import Folders
from lorasweep.depot import Depot, FolderDepot, StoreDepot, check_files, files_of
from lorasweep.errors import StorageError


@pytest.fixture(params=["folder", "shared folder", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Folders:
    """Where a sweep's files lie: in the tracking folder, in a folder of `tracking.files`, in a bucket."""
    if request.param == "folder":
        return Folders(tmp_path / "home")
    if request.param == "shared folder":
        return Folders(tmp_path / "home", files=str(tmp_path / "mount with a space"))
    request.getfixturevalue("s3")
    return Folders(tmp_path / "home", files=f"s3://lorasweep/{tmp_path.name}")


@pytest.fixture
def depot(files: Folders) -> Depot:
    return files_of(files, "mini", "checkpoints", "0")


def test_nothing_was_written_yet(depot: Depot) -> None:
    assert depot.names() == []
    with pytest.raises(FileNotFoundError):
        depot.read("a.json")
    depot.remove("a.json")
    depot.clear()


def test_what_was_written_is_read_listed_replaced_and_removed(depot: Depot) -> None:
    depot.write("a.json", b"one")
    depot.write("b-é.bin", bytes(range(256)) * 5000)
    depot.write("empty", b"")
    assert sorted(depot.names()) == ["a.json", "b-é.bin", "empty"]
    assert depot.read("a.json") == b"one" and depot.read("empty") == b""
    assert depot.read("b-é.bin") == bytes(range(256)) * 5000
    depot.write("a.json", b"two")
    assert depot.read("a.json") == b"two" and depot.place_of("a.json").endswith("mini/checkpoints/0/a.json")
    depot.remove("a.json")
    depot.remove("a.json")
    assert sorted(depot.names()) == ["b-é.bin", "empty"]


def test_places_below_are_apart(files: Folders, depot: Depot) -> None:
    other, above = files_of(files, "mini", "checkpoints", "1"), files_of(files, "mini", "checkpoints")
    depot.write("a", b"0")
    other.write("a", b"1")
    above.write("top", b"2")
    assert (depot.read("a"), other.read("a")) == (b"0", b"1") and above.names() == ["top"]
    assert above.at("1").names() == ["a"] and above.at("1") == files_of(files, "mini", "", "checkpoints", "", "1")
    above.clear()
    assert depot.names() == other.names() == above.names() == []


def test_another_process_sees_at_once_what_was_written(files: Folders, depot: Depot) -> None:
    """No listing is remembered: between two looks somebody else wrote."""
    reader = files_of(files, "mini", "checkpoints", "0")
    depot.write("a", b"1")
    assert reader.names() == ["a"]
    pid = os.fork()
    if pid == 0:  # a child that was forked after the parent spoke to the store speaks to it too
        try:
            files_of(files, "mini", "checkpoints", "0").write("b", b"2")
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert sorted(reader.names()) == ["a", "b"] and reader.read("b") == b"2"


def test_where_files_lie(tmp_path: Path) -> None:
    assert files_of(Folders(tmp_path), "s", "results").folder == Folders(tmp_path).sweep("s") / "results"
    shared = files_of(Folders(tmp_path, files="/nfs/x"), "s", "results")
    assert shared == FolderDepot(Path("/nfs/x/s/results"), shared=True)
    store = files_of(Folders(tmp_path, files="s3://b/p/"), "s", "results")
    assert store == StoreDepot("s3://b/p/s/results") and store.shared


def test_a_half_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.part").write_bytes(b"ha")
    assert FolderDepot(tmp_path).names() == []


# -- what is told before anything is stored ---------------------------------------------------------------------------


def test_a_place_that_works_is_left_as_it_was(files: Folders) -> None:
    check_files(files)
    assert files.files is None or files_of(files, "mini").at("..").names() == []


def refused(place: str, tmp_path: Path) -> str:
    began = time.monotonic()
    with pytest.raises(StorageError) as error:
        check_files(Folders(tmp_path, files=place))
    assert time.monotonic() - began < 40
    assert SECRET not in str(error.value) and place in str(error.value) and len(str(error.value)) < 900
    return str(error.value)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Choose a folder that you may write" in refused(str(tmp_path / "file" / "below"), tmp_path)
    assert "Choose a folder" in refused("/proc/lorasweep", tmp_path)


def test_a_bucket_that_does_not_exist(s3: ObjectStore, tmp_path: Path) -> None:
    assert "bucket must exist" in refused("s3://nowhere-at-all/x", tmp_path)


def test_wrong_keys(s3: ObjectStore, tmp_path: Path) -> None:
    s3.refuse(True)
    try:
        said = refused("s3://lorasweep/x", tmp_path)
    finally:
        s3.refuse(False)
    assert "does not let us in" in said and "AWS_ACCESS_KEY_ID" in said


def test_no_keys_at_all(s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert "AWS_ACCESS_KEY_ID" in refused("s3://lorasweep/x", tmp_path)


@pytest.mark.parametrize("silent", [False, True], ids=["nobody there", "never answers"])
def test_an_endpoint_that_does_not_answer(
    s3: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if silent:
            listening.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setattr("lorasweep.depot.CHECK_SECONDS", 2.0)
        said = refused("s3://lorasweep/x", tmp_path)
    assert "does not answer" in said and "AWS_ENDPOINT_URL, which is http://127.0.0.1" in said


def test_no_s3fs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(importlib.import_module("fsspec.registry")._registry, "s3", raising=False)
    assert "pip install 'lorasweep[s3]'" in refused("s3://lorasweep/x", tmp_path)


def test_a_scheme_that_nobody_knows(tmp_path: Path) -> None:
    assert "s3://bucket/prefix" in refused("warehouse://x/y", tmp_path)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (f"s3://key:{SECRET}@bucket/x", "must hold no login"),
        (f"s3://key:{SECRET}", "must hold no login"),
        (f"s3://bucket/x?secret={SECRET}", "must be a folder or an address such as s3://"),
        ("s3:///x", "must be a folder or an address such as s3://"),
        ("s3://bucket/../x", "must be a folder or an address such as s3://"),
        ("", "is empty"),
    ],
)
def test_an_address_that_is_none(
    place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    for words in (["sweep", "quickstart"], ["train", "model=tiny_encoder", "data=demo_reviews"]):
        assert main([*words, f"tracking.files='{place}'"]) == 2
        said = capsys.readouterr()
        assert message in said.err and SECRET not in said.err + said.out and "Traceback" not in said.err
    assert not (tmp_path / "mlruns").exists()


def test_an_override_of_files_means_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given, stored in [
        ("shared/x", f"{tmp_path}/shared/x"), ("'a b'", f"'{tmp_path}/a b'"), ("file:///nfs/x", "/nfs/x"),
        ("s3://b/p/", "s3://b/p"), ("null", "null"), ("${oc.env:FILES}", "${oc.env:FILES}"),
    ]:  # fmt: skip
        assert address.without_logins([f"tracking.files={given}", "x=1"]) == [f"tracking.files={stored}", "x=1"]
