"""Checkpoints are whole or not there, and a damaged one gives way to the one before it."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lorasweep import failpoints
from lorasweep.checkpoint import Checkpoints, full_disk_in
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


def _save_and_die(folder: Path, failpoint: str) -> None:
    failpoints.arm(failpoint)
    Checkpoints(folder).save({"step": 3}, {"a": torch.full((100,), 3.0)})


@pytest.mark.parametrize(
    ("failpoint", "step"), [("checkpoint-half", 2), ("checkpoint-unnamed", 2), ("checkpoint-whole", 3)]
)
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
