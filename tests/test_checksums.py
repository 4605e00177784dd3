"""One checksum for a folder: the same wherever it lies, another for any change of a name or a byte."""

from __future__ import annotations

import shutil
from pathlib import Path

from lorasweep.checksums import folder_checksum
from lorasweep.registry import adapter_model


def test_a_folder_is_known_by_names_and_contents(tmp_path: Path) -> None:
    one = tmp_path / "one"
    (one / "inner").mkdir(parents=True)
    (one / "a.bin").write_bytes(b"\0" * 3_000_000)
    (one / "inner" / "b.json").write_text("{}")
    whole = folder_checksum(one)
    assert adapter_model.folder_checksum(one) == whole  # models compute it without us
    shutil.copytree(one, tmp_path / "two")
    assert folder_checksum(tmp_path / "two") == whole
    (one / ".hidden").write_text("what a file browser leaves")
    assert folder_checksum(one) == whole == adapter_model.folder_checksum(one)

    def changed(change: str) -> str:
        other = tmp_path / change
        shutil.copytree(one, other)
        if change == "renamed":
            (other / "a.bin").rename(other / "c.bin")
        elif change == "moved":
            (other / "inner" / "b.json").rename(other / "b.json")
        elif change == "cut":
            (other / "a.bin").write_bytes(b"\0" * 2_999_999)
        else:
            (other / "new").touch()
        return folder_checksum(other)

    found = [changed(change) for change in ("renamed", "moved", "cut", "added")]
    assert len({whole, *found}) == 5
    assert len(whole) == 64 and folder_checksum(one / "a.bin") != folder_checksum(one / "inner" / "b.json")
