"""docs/adding.md, done: what the page says a new part needs is all that it needs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginelab import build_base
from lorasweep import tasks
from lorasweep.config import compose
from lorasweep.config.home import Folders, Home
from lorasweep.config.schema import SamplerConfig, TaskConfig
from lorasweep.data.sources import load_search_data
from lorasweep.metrics import classification
from lorasweep.search import samplers
from lorasweep.workbench import Workbench

PAGE = (Path(__file__).parent.parent / "docs" / "adding.md").read_text()


def example(section: str) -> dict[str, Any]:
    """The YAML of a section of the page."""
    found = re.search(rf"## {section}\n.*?```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found, section
    return dict(yaml.safe_load(found[1]))


def choices(settings: type, field: str = "kind") -> tuple[str, ...]:
    return tuple(settings.__dataclass_fields__[field].metadata["choices"])  # type: ignore[attr-defined]


def test_a_model_and_a_data_set_are_one_file_each(tmp_path: Path) -> None:
    model, data = example("A model"), example("A data set")
    model |= {"path": build_base("gpt2", tmp_path / "base")}
    for role in ("train", "test"):
        path = tmp_path / data[role]
        path.parent.mkdir(exist_ok=True)
        path.write_text("review,stars\n" + "".join(f"w{n % 9 + 5} w{n % 7 + 5},{n % 2}\n" for n in range(40)))
        data[role] = str(path)
    for group, document in (("model", model), ("data", data)):
        (tmp_path / "conf" / group).mkdir(parents=True)
        (tmp_path / "conf" / group / "mine.yaml").write_text(yaml.safe_dump(document))
    config = compose.compose(
        ["model=mine", "data=mine", "launcher.device=cpu"], home=Home(tmp_path, Home.find().shipped)
    )
    assert (config.model.family, config.data.max_length) == ("gpt2", 128)
    assert load_search_data(config.data).label_names == ["0", "1"]
    pack = Workbench(Folders(tmp_path), config.sweep.objective, 2).pack(config)
    pack.admit(0, config)
    assert {event.number for event in pack.advance()} == {0}


def test_every_task_has_its_maker_and_its_name(tmp_path: Path) -> None:
    assert set(tasks.MAKERS) == set(choices(TaskConfig))


def test_a_task_is_its_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(tasks.Classify):
        pass

    config = compose.compose([])
    config.task.kind = "mine"
    monkeypatch.setitem(tasks.MAKERS, "mine", lambda config, names: Mine(config.task, names))
    assert type(tasks.make_task(config, ["no", "yes"])) is Mine


def test_every_sampler_has_its_maker_or_knows_its_points() -> None:
    assert set(samplers.MAKERS) | {"random", "grid", "qmc", "list"} == set(choices(SamplerConfig))


def test_a_sampler_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna.samplers import NSGAIISampler

    monkeypatch.setitem(samplers.MAKERS, "nsgaii", lambda draw: NSGAIISampler(seed=draw.seed))
    made = samplers.optuna_sampler(SamplerConfig(kind="nsgaii"), 3)
    assert isinstance(made, NSGAIISampler)


def test_a_metric_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    real = classification.classification_metrics

    def more(*given: Any) -> dict[str, float]:
        found = real(*given)
        return {**found, "errors": 1 - found["accuracy"]}

    monkeypatch.setattr(classification, "classification_metrics", more)
    task = tasks.Classify(TaskConfig(), ["no", "yes"])
    found = task.metrics(np.array([[0.9, 0.1], [0.8, 0.2]]), np.array([0, 1]), np.array([0.1, 1.6]))
    assert found["eval/errors"] == 0.5


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:src/|tests/|docs/|[a-z]+/)[\w./]+\.(?:py|md))`", PAGE))))
def test_files_that_the_page_names_are_there(name: str) -> None:
    root = Path(__file__).parent.parent
    if "NAME" not in name:
        assert (root / name).exists() or (root / "src" / "lorasweep" / name).exists(), name
