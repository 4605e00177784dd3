"""What a base is known by on this machine."""

from __future__ import annotations

from pathlib import Path

from lorasweep.config.schema import ModelConfig
from lorasweep.models.unchanged import base_here


def test_other_bytes_are_another_base_and_nobody_is_asked_for_what_is_not_here(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    here = ModelConfig(path=str(tmp_path))
    before = base_here(here)
    assert before is not None and base_here(here) == before
    (tmp_path / "model.safetensors").write_bytes(b"Weights!")
    assert base_here(here) not in (before, None)
    assert base_here(ModelConfig(path="no-such-owner/no-such-model")) is None
    assert base_here(ModelConfig(path="no-such-owner/no-such-model", revision="v1")) is None
    assert base_here(ModelConfig(path=str(tmp_path / "nowhere"))) is None
