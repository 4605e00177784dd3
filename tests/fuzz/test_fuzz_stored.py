"""Stored files with bytes flipped, cut, swapped between trials or made up: what is read is what was written there, or
nothing, with a note or an error that names the file."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from fuzzkit import both
from lorasweep import results
from lorasweep.checkpoint import Checkpoints, checkpoints_of
from lorasweep.config.home import Folders
from lorasweep.depot import FolderDepot
from lorasweep.errors import StorageError
from lorasweep.stats import Results

Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """Something that happens to the bytes of a file."""
    kind = draw(st.sampled_from(["flip", "cut", "insert", "random", "header"]))
    at, bit, more = draw(st.floats(0, 1)), draw(st.integers(0, 7)), draw(st.binary(min_size=1, max_size=40))

    def damage(raw: bytes) -> bytes:
        place = min(len(raw) - 1, int(at * len(raw)))
        if kind == "flip":
            return raw[:place] + bytes([raw[place] ^ (1 << bit)]) + raw[place + 1 :]
        if kind == "cut":
            return raw[:place]
        if kind == "insert":
            return raw[:place] + more + raw[place:]
        return more if kind == "random" else (len(raw) * (at > 0.5)).to_bytes(8, "little") + raw[8:]

    return damage


def damaged_checkpoints(damage: Damage, renamed: bool) -> None:
    """The newest gives way to the one before it; also where an attacker gives damaged bytes the name that they need."""
    with tempfile.TemporaryDirectory() as folder:
        mine = Checkpoints(Path(folder), owner="sweep/0")
        mine.save({"step": 1}, {"a": torch.ones(3)})
        mine.save({"step": 2}, {"a": torch.full((3,), 2.0)})
        newest = max(Path(folder).iterdir())
        raw = newest.read_bytes()
        bad = damage(raw)
        newest.write_bytes(bad)
        if renamed:
            newest.rename(newest.with_name(f"{newest.name[:6]}-{hashlib.sha256(bad).hexdigest()[:32]}.safetensors"))
        found = mine.load()
        assert found is not None
        if renamed and found.notes == []:  # what is whole in itself is not told from what was written
            return
        expected = 2 if bad == raw else 1
        assert found.state["step"] == expected and torch.equal(found.tensors["a"], torch.full((3,), float(expected)))
        assert len(found.notes) == (bad != raw)


test_damaged_checkpoints, test_damaged_checkpoints_at_length = both(
    80, 10_000, damage=damages(), renamed=st.booleans()
)(damaged_checkpoints)

MADE = Results(
    np.array([0, 1, 1]),
    np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], dtype=np.float32),
    np.array([0.1, 0.2, 0.5], dtype=np.float32),
    ["no", "yes"],
    {},
    "rows",
)


def damaged_results(damage: Damage) -> None:
    """A trial's answers are read as written, or a StorageError names the file."""
    with tempfile.TemporaryDirectory() as folder:
        place = FolderDepot(Path(folder))
        results.write(place, 7, MADE)
        file = Path(folder) / results.name_of(7)
        file.write_bytes(damage(file.read_bytes()))
        try:
            found = results.read_in(place, 7)
        except StorageError as error:
            assert results.name_of(7) in str(error)
            return
        assert found is not None
        for name in ("labels", "probabilities", "losses"):
            assert np.array_equal(getattr(found, name), getattr(MADE, name))


test_damaged_results, test_damaged_results_at_length = both(80, 10_000, damage=damages())(damaged_results)


def test_results_of_another_trial_are_not_taken(tmp_path: Path) -> None:
    place = FolderDepot(tmp_path)
    results.write(place, 1, MADE)
    shutil.copy(tmp_path / results.name_of(1), tmp_path / results.name_of(2))
    with pytest.raises(StorageError, match="it is that of trial 1"):
        results.read_in(place, 2)


def test_a_checkpoint_of_another_worker_or_sweep_is_not_taken(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    mine, other = checkpoints_of(folders, "one", "0"), checkpoints_of(folders, "one", "1")
    mine.save({"step": 1}, {})
    other.save({"step": 9}, {})
    other.save({"step": 9}, {})
    assert mine.folder is not None and other.folder is not None
    shutil.copy(max(other.folder.iterdir()), mine.folder)
    found = mine.load()
    assert found is not None and found.state == {"step": 1}
    assert "is that of one/1, not of one/0" in found.notes[0]


@pytest.mark.parametrize("state", ["[]", "null", "{", '{"format": []}', "[" * 50_000])
def test_a_checkpoint_that_somebody_made_up(state: str, tmp_path: Path) -> None:
    raw = save({"a": torch.ones(1)}, metadata={"lorasweep": state})
    (tmp_path / f"000001-{hashlib.sha256(raw).hexdigest()[:32]}.safetensors").write_bytes(raw)
    found = Checkpoints(tmp_path).load()
    assert found is not None and found.state == {} and len(found.notes) == 1


def test_older_checkpoints_and_results_are_read(tmp_path: Path) -> None:
    """Those written before owners and sums were."""
    raw = save({"a": torch.ones(1)}, metadata={"lorasweep": json.dumps({"format": 1, "step": 3})})
    (tmp_path / f"000001-{hashlib.sha256(raw).hexdigest()[:32]}.safetensors").write_bytes(raw)
    found = Checkpoints(tmp_path, owner="sweep/0").load()
    assert found is not None and found.state == {"step": 3} and found.notes == []


def test_a_link_in_a_checkpoint_folder_leads_nowhere(tmp_path: Path) -> None:
    """Neither a write nor a cleaning goes through links that somebody else laid."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "mine.safetensors"
    victim.write_text("precious")
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "new.part").symlink_to(victim)
    (folder / "000009-aa.safetensors").symlink_to(victim)
    (folder / "deep").symlink_to(outside)
    checkpoints = Checkpoints(FolderDepot(folder, "checkpoint"))
    checkpoints.save({"step": 1}, {})
    assert victim.read_text() == "precious"
    FolderDepot(folder).clear()
    assert victim.read_text() == "precious" and [path.name for path in outside.iterdir()] == ["mine.safetensors"]
