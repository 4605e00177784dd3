"""Checkpoints are whole or not there, and a damaged one gives way to the one before it."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from clusterkit import ObjectStore
from lorasweep import failpoints
from lorasweep.checkpoint import Checkpoints, NotRead, NotSaved, checkpoints_of, forget_checkpoints, full_disk_in
from lorasweep.config.home import Folders
from lorasweep.depot import FolderDepot
from lorasweep.errors import DiskFull, StorageError, UsageError
from smalldisk import small_disk

TENSORS = {
    "0.now.values": torch.arange(300, dtype=torch.float32) / 7,
    "0.best.values": torch.tensor([float("nan"), -0.0, float("inf")]),
    "1.now.half": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
    "1.now.step": torch.tensor(3.0),
    "1.now.empty": torch.empty(0, 4),
}


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def fill(checkpoints: Checkpoints, count: int) -> None:
    for step in range(1, count + 1):
        checkpoints.save({"step": step}, {"a": torch.full((100,), float(step))})


def test_what_was_saved_is_read_bit_for_bit(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "0")
    assert checkpoints.load() is None
    state = {"trials": [{"losses": [0.1, 1e-300, 2 / 3], "text": "é\n"}], "none": None}
    checkpoints.save(state, TENSORS)
    found = checkpoints.load()
    assert found is not None and found.state == state and found.notes == []
    assert found.tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        read = found.tensors[name]
        assert read.dtype == tensor.dtype and read.shape == tensor.shape
        assert read.numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes() if read.dtype != torch.bfloat16 \
            else torch.equal(read, tensor)  # fmt: skip


def test_a_view_and_a_tensor_that_changes_later_are_saved_as_they_were(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    Checkpoints(tmp_path).save({}, {"column": whole[:, 1], "row": whole[1]})
    whole.zero_()
    found = Checkpoints(tmp_path).load()
    assert found is not None
    assert found.tensors["column"].tolist() == [1.0, 5.0, 9.0] and found.tensors["row"].tolist() == [4, 5, 6, 7]


def test_the_newest_two_are_kept_and_none_after_clear(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    fill(checkpoints, 5)
    assert [path.name[:6] for path in files(tmp_path)] == ["000004", "000005"]
    checkpoints.clear()
    assert files(tmp_path) == [] and checkpoints.load() is None
    checkpoints.clear()


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped bit in a tensor", "flipped bit in the header", "longer"])
def test_a_damaged_one_falls_back_to_the_one_before(tmp_path: Path, damage: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    fill(checkpoints, 2)
    newest = files(tmp_path)[-1]
    raw = bytearray(newest.read_bytes())
    if damage.startswith("flipped"):
        raw[len(raw) - 1 if "tensor" in damage else 20] ^= 1
    newest.write_bytes({"cut": raw[:-3], "empty": b"", "longer": raw + b"x"}.get(damage, raw))
    found = checkpoints.load()
    assert found is not None and found.state == {"step": 1} and found.tensors["a"][0] == 1
    (note,) = found.notes
    assert str(newest) in note and "damaged" in note and "the one before it is taken" in note
    checkpoints.save({"step": 3}, {"a": torch.zeros(1)})  # the sweep goes on: the next is whole again
    after = checkpoints.load()
    assert after is not None and after.state == {"step": 3} and after.notes == []


def test_all_damaged_says_so_and_is_no_error(tmp_path: Path) -> None:
    fill(Checkpoints(tmp_path), 2)
    for path in files(tmp_path):
        path.write_bytes(path.read_bytes()[:50])
    found = Checkpoints(tmp_path).load()
    assert found is not None and found.state == {} and len(found.notes) == 2


@pytest.fixture
def in_bucket(s3: ObjectStore, tmp_path: Path) -> Checkpoints:
    return checkpoints_of(Folders(tmp_path, files=f"s3://lorasweep/{tmp_path.name}"), "mini", "0")


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "removed"])
def test_a_damaged_one_in_a_bucket_falls_back_to_the_one_before(in_bucket: Checkpoints, damage: str) -> None:
    assert in_bucket.load() is None
    fill(in_bucket, 3)
    before, newest = sorted(in_bucket.depot.names())
    assert (before[:6], newest[:6]) == ("000002", "000003") and in_bucket.folder is None
    raw = in_bucket.depot.read(newest)
    in_bucket.depot.remove(newest)
    if damage != "removed":
        harm = {"cut": raw[:-3], "empty": b"", "flipped": raw[:-1] + bytes([raw[-1] ^ 1])}
        in_bucket.depot.write(newest, harm[damage])
    found = in_bucket.load()
    assert found is not None and found.state == {"step": 2} and found.tensors["a"][0] == 2
    assert [f"{newest} is damaged" in note for note in found.notes] == ([True] if damage != "removed" else [])
    in_bucket.save({"step": 4}, TENSORS)
    after = in_bucket.load()
    assert after is not None and after.state == {"step": 4} and after.notes == []
    assert torch.equal(after.tensors["1.now.half"], TENSORS["1.now.half"]) and after.tensors["1.now.empty"].shape == (
        0,
        4,
    )
    in_bucket.clear()
    assert in_bucket.depot.names() == [] and in_bucket.load() is None


class Moody:
    """A folder that others reach too, which takes nothing while `away`."""

    shared = True

    def __init__(self, folder: Path):
        self.inner, self.away, self.asked = FolderDepot(folder), False, 0
        self.folder = folder

    def __getattr__(self, name: str) -> Any:
        if name in ("names", "read", "write", "remove"):
            self.asked += 1
            if self.away:
                raise OSError(5, "the store does not answer")
        return getattr(self.inner, name)


def test_a_place_that_is_away_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Moody(tmp_path)
    checkpoints, taken = Checkpoints(place), []

    def state() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        taken.append(1)
        return {"step": len(taken)}, {"a": torch.zeros(3)}

    assert checkpoints.save_where_possible(state)
    place.away = True
    assert not checkpoints.save_where_possible(state)
    asked = place.asked
    assert not checkpoints.save_where_possible(state)  # left alone for a while: not even asked
    assert place.asked == asked and len(taken) == 2
    monkeypatch.setattr("lorasweep.checkpoint.time.monotonic", lambda: 1e9)
    assert not checkpoints.save_where_possible(state)
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == len(caplog.records) == 1
    assert "no checkpoint could be saved: the store does not answer. Training goes on" in caplog.text
    with pytest.raises(NotSaved):
        checkpoints.save({}, {})
    checkpoints.clear()  # at a sweep's end: no error
    place.away = False
    monkeypatch.setattr("lorasweep.checkpoint.time.monotonic", lambda: 2e9)
    assert checkpoints.save_where_possible(state) and "saved again" in caplog.text
    found = checkpoints.load()
    assert found is not None and found.state == {"step": len(taken)}


def test_checkpoints_that_cannot_be_read_now_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the store has must not be trained again because the store was away for a moment."""
    place = Moody(tmp_path)
    checkpoints = Checkpoints(place)
    fill(checkpoints, 2)
    place.away, naps = True, []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        place.away = len(naps) < 3

    monkeypatch.setattr("lorasweep.checkpoint.time.sleep", nap)
    found = checkpoints.load()
    assert len(naps) == 3 and found is not None and found.state == {"step": 2} and found.notes == []
    place.away = True
    monkeypatch.setattr("lorasweep.checkpoint.time.sleep", naps.append)
    with pytest.raises(NotRead, match="checkpoints cannot be read"):
        checkpoints.load(0.0)


def test_a_sweep_that_has_ended_leaves_no_checkpoints(in_bucket: Checkpoints, tmp_path: Path) -> None:
    folders = Folders(tmp_path, files=f"s3://lorasweep/{tmp_path.name}")
    fill(in_bucket, 2)
    fill(checkpoints_of(folders, "mini", "finalists", "a-host-7"), 1)
    fill(checkpoints_of(folders, "mini2", "0"), 1)
    forget_checkpoints(folders, "mini")
    assert in_bucket.load() is None and checkpoints_of(folders, "mini", "finalists", "a-host-7").load() is None
    assert checkpoints_of(folders, "mini2", "0").load() is not None


def _save_and_die(folder: Path, failpoint: str) -> None:
    failpoints.arm(failpoint)
    Checkpoints(folder).save({"step": 3}, {"a": torch.full((100,), 3.0)})


@pytest.mark.parametrize(
    ("failpoint", "step"), [("checkpoint-half", 2), ("checkpoint-unnamed", 2), ("checkpoint-whole", 3)]
)
@pytest.mark.slow
def test_a_kill_inside_a_write_leaves_the_last_whole_one(tmp_path: Path, failpoint: str, step: int) -> None:
    checkpoints = Checkpoints(tmp_path)
    fill(checkpoints, 2)
    process = multiprocessing.get_context("spawn").Process(target=_save_and_die, args=(tmp_path, failpoint))
    process.start()
    process.join(100)
    assert process.exitcode == -9
    found = checkpoints.load()
    assert found is not None and found.state == {"step": step} and found.notes == []
    checkpoints.save({"step": 4}, {"a": torch.zeros(1)})
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"] * 2


@pytest.fixture
def full_at_256k(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 256 KiB; one whose files are limited to that where mounting is not allowed."""
    folder = tmp_path / "small"
    with small_disk(folder, "256k") as mounted:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        if not mounted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, before[1]))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_what_was_there_and_no_half_file(full_at_256k: Path) -> None:
    checkpoints = Checkpoints(full_at_256k / "0")
    checkpoints.save({"step": 1}, {"a": torch.ones(1000)})
    with pytest.raises(DiskFull, match=r"takes no more .*free, 0\.4 MiB were to be written"):
        checkpoints.save({"step": 2}, {"a": torch.ones(100_000)})
    assert [path.suffix for path in files(full_at_256k / "0")] == [".safetensors"]
    found = checkpoints.load()
    assert found is not None and found.state == {"step": 1}


def test_a_full_disk_is_known_below_other_errors() -> None:
    full = OSError(28, "No space left on device")
    try:
        raise StorageError("MLflow could not do it") from full
    except StorageError as error:
        assert full_disk_in(error)
    assert full_disk_in(StorageError("the study database x cannot be used: database or disk is full."))
    assert not full_disk_in(StorageError("database is locked")) and not full_disk_in(OSError(13, "denied"))


def test_a_failpoint_that_does_not_exist_is_refused() -> None:
    for text in ("nowhere", "told:x"):
        with pytest.raises(UsageError, match="checkpoint-half"):
            failpoints.arm(text)
    failpoints.arm(None)
    failpoints.reach("told")
