"""The rules of the tree: which room may import which, and who alone may import a heavy library."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "lorasweep"

# Rooms from the top down: a module imports from its own room or from rooms further down, never up.
LAYERS = [
    ("__init__",),
    ("cli",),
    ("completion",),
    ("arguments", "refusal", "api"),
    ("given",),
    (
        "planning",
        "promotion",
        "prediction",
        "exporting",
        "reproduction",
        "ui",
        "doctor",
        "control",
        "workers",
        "starting",
    ),
    ("sweeping",),
    ("launchers",),
    ("closing",),
    ("reporting", "forking", "prechecks", "publishing", "outcome"),
    ("finalists",),
    ("ranking", "registry", "live"),
    ("worker",),
    ("workbench",),
    ("search", "tracking", "training"),
    ("posts",),
    ("provenance", "checkpoint", "results", "database"),
    ("depot",),
    ("models", "tasks"),
    ("metrics",),
    ("data",),
    ("config",),
    ("progress", "failpoints", "environment"),
    ("records", "errors", "stats", "checksums", "spread", "locked"),
]
RANK = {room: depth for depth, rooms in enumerate(LAYERS) for room in rooms}

# library -> the only rooms or modules that may import it
OWNERS = {
    "optuna": {"search"},
    "mlflow": {"tracking", "registry"},
    "ray": {"launchers/ray"},
    "hydra": {"config", "search/space", "cli"},
    "omegaconf": {"config", "search/space", "cli"},
    "datasets": {"data", "metrics"},
    "evaluate": {"metrics"},
    "bitsandbytes": {"models"},
    "skops": {"models"},
    "nltk": {"metrics"},
    "rouge_score": {"metrics"},
    "sacrebleu": {"metrics"},
}


def room_of(relative: Path) -> str:
    """`training/pack.py` -> `training`; `sweeping.py` -> `sweeping`."""
    return relative.parts[0].removesuffix(".py")


MODULES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def imports_of(relative: Path) -> set[str]:
    """Absolute dotted names that a module imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse((SOURCE / relative).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative}: relative import; write the full name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("relative", MODULES, ids=str)
def test_imports_point_down(relative: Path) -> None:
    here = room_of(relative)
    assert here in RANK, f"{relative}: place this room in LAYERS"
    for name in imports_of(relative):
        parts = name.split(".")
        if parts[0] != "lorasweep" or len(parts) < 2 or parts[1] == "__version__":
            continue
        target = room_of(Path(parts[1]))
        assert target in RANK, f"{relative} imports {name}, a room that LAYERS does not know"
        assert target == here or RANK[target] > RANK[here], f"{relative} ({here}) imports {name}: that is not below it"


@pytest.mark.parametrize("relative", MODULES, ids=str)
def test_heavy_libraries_have_one_owner(relative: Path) -> None:
    for name in imports_of(relative):
        library = name.split(".")[0]
        if library in OWNERS:
            module = str(relative).removesuffix(".py")
            allowed = OWNERS[library]
            assert room_of(relative) in allowed or module in allowed, f"{relative} imports {library}"


@pytest.mark.parametrize("relative", MODULES, ids=str)
def test_modules_open_with_their_reason_and_stay_short(relative: Path) -> None:
    text = (SOURCE / relative).read_text()
    assert ast.get_docstring(ast.parse(text)), f"{relative} has no docstring that says why it exists"
    assert text.count("\n") <= 410, f"{relative} has {text.count(chr(10))} lines; split it"


def test_no_pickle_is_read_or_written() -> None:
    for relative in MODULES:
        for name in imports_of(relative):
            assert name.split(".")[0] not in {"pickle", "dill", "cloudpickle", "joblib"}, f"{relative} imports {name}"
        text = (SOURCE / relative).read_text()
        assert "torch.save(" not in text, f"{relative}: safetensors and JSON only for what we write"
        assert "torch.load(" not in text or "weights_only=True" in text, relative


RUNS_WHAT_IT_READS = {  # call -> why it is not used
    "eval(": "runs text",
    "exec(": "runs text",
    "yaml.load(": "makes any object; safe_load makes none",
    "yaml.unsafe_load": "makes any object",
    "np.load(": "may unpickle",
    "numpy.load(": "may unpickle",
    "read_pickle": "unpickles",
    "shell=True": "a name becomes a command",
    "os.system(": "a name becomes a command",
    "extractall(": "an archive's names may lead out of the folder",
    "mktemp(": "somebody else may make the file first",
    "0.0.0.0": "listens to every machine",
}


@pytest.mark.parametrize("relative", MODULES, ids=str)
def test_nothing_is_loaded_that_could_run(relative: Path) -> None:
    text = (SOURCE / relative).read_text()
    for call, why in RUNS_WHAT_IT_READS.items():
        found = re.search(rf"(?<![\w.]){re.escape(call)}", text)
        assert not found, f"{relative} has {call}: it {why}"
