"""Small bases of scale=smoke: every family loads, with and without a head, and nothing half-built is seen."""

from pathlib import Path

import pytest

from lorasweep.config.scale import FAMILIES
from lorasweep.config.schema import Config
from lorasweep.errors import ModelError
from lorasweep.models import builtin, smoke
from lorasweep.models.base import load_base


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "smoke-cache"  # built once for all of these tests
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_serves_every_task_it_can(family: str) -> None:
    trial = Config()
    trial.model.path, trial.launcher.device = f"smoke:{family}", "cpu"
    base = load_base(trial, "classification", ["a", "b", "c"])
    assert base.model.config.model_type == family and base.fresh_modules and base.total_params < 1_000_000
    if family in smoke.TOKENIZERS and family != "gpt2":
        return
    base = load_base(trial, "causal_lm", [])
    assert base.model.config.model_type == family and not base.fresh_modules


def test_a_head_of_its_own_is_not_drawn_again() -> None:
    trial = Config()
    trial.model.path, trial.launcher.device = "smoke:distilbert+head", "cpu"
    assert not load_base(trial, "classification", ["a", "b"]).fresh_modules


def test_a_base_is_built_once_and_whole(cache: Path) -> None:
    first = Path(builtin.resolve("smoke:bert"))
    written = (first / "model.safetensors").stat().st_mtime_ns
    assert Path(builtin.resolve("smoke:bert")) == first and first.is_relative_to(cache)
    assert (first / "model.safetensors").stat().st_mtime_ns == written
    assert not list(first.parent.glob(".*"))


def test_an_unknown_family_is_an_error() -> None:
    with pytest.raises(ModelError, match="no such family"):
        builtin.resolve("smoke:mamba")
