"""The files of frozen prefixes' states: whole rows or none, bounded, shared."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lorasweep.models import prefix_file
from lorasweep.models.prefix_file import PrefixFile, PrefixFolder

SIZES = torch.tensor([3, 1, 4])


def states(row: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.arange(int(SIZES[row]) * 5).view(-1, 5).to(dtype) + 100 * row


def opened(folder: PrefixFolder, key: str = "a", dtype: torch.dtype = torch.float32) -> PrefixFile:
    file = folder.open(key, SIZES, 5, dtype)
    assert file is not None
    return file


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_as_they_were(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = PrefixFolder(tmp_path / "new", 2**20)
    one, other = opened(folder, dtype=dtype), opened(folder, dtype=dtype)
    assert one.write([2, 0], [states(2, dtype), states(0, dtype)])
    for file in (one, other):  # a second handle, as another process has
        assert file.read(1) is None
        for row in (0, 2):
            found = file.read(row)
            assert found is not None
            assert torch.equal(found, states(row, dtype))


def test_a_row_of_zeros_is_a_row(tmp_path: Path) -> None:
    file = opened(PrefixFolder(tmp_path, 2**20))
    zeros = torch.zeros(3, 5)
    file.write([0], [zeros])
    assert torch.equal(file.read(0), zeros)


def test_damaged_and_cut_rows_count_as_absent(tmp_path: Path) -> None:
    file = opened(PrefixFolder(tmp_path, 2**20))
    file.write([0, 1, 2], [states(0), states(1), states(2)])
    path = next(tmp_path.glob("*.states"))
    raw = bytearray(path.read_bytes())
    raw[4 * 3 + 7] ^= 1  # a bit of row 0
    path.write_bytes(bytes(raw[:-1]))  # and the last byte of row 2 is lost
    assert file.read(0) is None
    assert file.read(2) is None
    assert torch.equal(file.read(1), states(1))


def test_no_more_is_written_than_the_limit_and_the_disk_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = opened(PrefixFolder(tmp_path / "small", 10))
    assert not small.write([0], [states(0)])
    assert small.read(0) is None
    monkeypatch.setattr(prefix_file, "LEFT_FREE_BYTES", 2**62)
    assert not opened(PrefixFolder(tmp_path / "full", 2**20)).write([0], [states(0)])


def test_the_least_recently_opened_files_go_first(tmp_path: Path) -> None:
    for age, key in enumerate(["young", "middle", "old"]):
        path = tmp_path / f"prefix-{key}.states"
        path.write_bytes(bytes(range(256)) * 64)  # 16 KiB
        os.utime(path, (10**9 - age, 10**9 - age))
    other = tmp_path / "train-123.safetensors"
    other.write_bytes(b"tokens")
    folder = PrefixFolder(tmp_path, 40_000)
    opened(folder, "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "prefix-middle.states", "prefix-new.states", "prefix-young.states", other.name
    ]  # fmt: skip


def test_files_in_use_are_kept(tmp_path: Path) -> None:
    folder = PrefixFolder(tmp_path, 0)
    opened(folder, "a")
    opened(folder, "b")
    assert len(list(tmp_path.glob("*.states"))) == 2


def test_without_a_folder_to_write_there_is_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert PrefixFolder(tmp_path / "file" / "under", 2**20).open("a", SIZES, 5, torch.float32) is None
    assert "stay in memory" in caplog.text
