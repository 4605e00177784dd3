"""The functions of `import lorasweep`: docs/api.md runs as it is written, and what a notebook relies on besides."""

from __future__ import annotations

import ast
import inspect
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas as pd
import pytest

import lorasweep
from lorasweep.config.home import Home, named_home, project
from lorasweep.errors import ConfigError, UsageError

PAGE = Home.find().shipped / "docs" / "api.md"
TINY = """# @package _global_
data: {demo_rows: 80}
train: {max_steps: 6, batch_size: 8}
sweep:
  trials: 2
  space:
    optimizer.lr: tag(log, interval(1e-4, 1e-2))
    adapter.r: choice(2, 4)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose quickstart is tiny, as the current folder."""
    monkeypatch.delenv("LORASWEEP_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "quickstart.yaml").write_text(TINY)
    return tmp_path


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.slow
def test_every_block_of_the_page_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    first, *others = blocks()
    thread = threading.Thread(target=lambda: exec(compile(first, str(PAGE), "exec"), names))  # as a server would call
    thread.start()
    thread.join()
    for block in others:
        exec(compile(block, str(PAGE), "exec"), names)
    out = capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    result, more, board = names["result"], names["more"], names["board"]
    assert isinstance(result, lorasweep.SweepResult) and result.counts["complete"] == 2 and more.counts["complete"] == 3
    assert result.best is not None and result.best["trial"] == board["trial"][0] and board["rank"][0] == 1
    assert isinstance(board, pd.DataFrame) and len(board) == 2 and board["value"].is_monotonic_decreasing
    assert (board["eval/accuracy"] == board["value"]).all() and set(board["adapter.r"]) <= {2, 4}
    assert names["config"].adapter.layers == [0, 1] and names["plan"].trials == 2 and names["page"].is_file()

    from peft import PeftModel

    assert isinstance(names["model"], PeftModel) and not names["model"].training
    assert names["model"].config.id2label == {0: "negative", 1: "positive"}
    assert names["promoted"].uri == "models:/quickstart@champion" and names["promoted"].version == "1"
    assert list(names["answers"].columns)[:3] == ["text", "label", "score"] and len(names["answers"]) == 2
    assert (folder / "best-adapter" / "adapter_model.safetensors").is_file()
    assert "no setting `optimizer.learning_rate`" in out

    agrees_with_the_leaderboard(names["model"], names["tokenizer"], more.best)


def agrees_with_the_leaderboard(model: Any, tokenizer: Any, best: dict[str, Any]) -> None:
    """The model that was loaded scores on the validation rows what its trial scored."""
    import torch

    from lorasweep.data.sources import load_validation_split

    rows = load_validation_split(lorasweep.compose(sweep="quickstart").data, ["negative", "positive"])
    batch = tokenizer(rows.texts, padding=True, truncation=True, max_length=64, return_tensors="pt")
    with torch.inference_mode():
        chosen = model(**batch).logits.argmax(-1)
    right = float((chosen == torch.tensor(rows.labels)).float().mean())
    assert best["value"] == pytest.approx(right)


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, lorasweep; assert 'sweep' in dir(lorasweep); lorasweep.leaderboard; from lorasweep import sweep; "
        "print({'torch', 'hydra', 'optuna', 'mlflow', 'pandas', 'numpy', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_room_takes_the_name_of_a_function() -> None:
    import lorasweep.closing
    import lorasweep.sweeping

    for name in lorasweep.__all__:
        assert not inspect.ismodule(getattr(lorasweep, name)), name
    with pytest.raises(AttributeError, match="no attribute 'swep'"):
        lorasweep.swep  # noqa: B018


def test_the_names_are_listed_alike_in_each_place() -> None:
    """`__all__` here and in `api`, and the imports that type checkers read."""
    from lorasweep import api

    (block,) = [one for one in ast.parse(Path(lorasweep.__file__).read_text()).body if isinstance(one, ast.If)]
    (imported,) = [one for one in block.body if isinstance(one, ast.ImportFrom)]
    assert sorted(alias.name for alias in imported.names) == sorted(api.__all__)
    assert sorted(lorasweep.__all__) == sorted([*api.__all__, "__version__"])


def test_every_name_is_typed_documented_and_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in lorasweep.__all__:
        thing = getattr(lorasweep, name)
        if not inspect.isfunction(thing):
            continue
        assert thing.__doc__ and f"`{name}`" in page, name
        signature = inspect.signature(thing)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values()), name
        assert "folder" in signature.parameters


def test_overrides_are_words_or_a_mapping(folder: Path) -> None:
    words = lorasweep.compose(["optimizer.lr=0.5", "adapter.layers=[0,1]", "model=tiny_gpt2"])
    nested = {"optimizer": {"lr": 0.5}, "adapter.layers": [0, 1], "model": "tiny_gpt2"}
    assert lorasweep.compose(nested) == words
    assert lorasweep.compose(iter(["optimizer.lr=0.5"])).optimizer.lr == 0.5
    assert lorasweep.compose({"task.verbalizer": {"negative": "bad, really", "positive": "good"}}).task.verbalizer == {
        "negative": "bad, really",
        "positive": "good",
    }
    assert lorasweep.compose({"tracking.dir": None, "train.activation_checkpointing": True}).tracking.dir is None
    with pytest.raises(UsageError, match="list of words or a mapping"):
        lorasweep.compose("optimizer.lr=0.5")
    with pytest.raises(ConfigError, match=r"no setting `optimizer\.learning`"):
        lorasweep.compose({"optimizer": {"learning": 3}})


def test_a_folder_stands_in_the_place_of_the_variable(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "sweeps").mkdir()
    (other / "sweeps" / "mine.yaml").write_text("# @package _global_\nsweep: {trials: 7}\n")
    monkeypatch.setenv("LORASWEEP_HOME", str(folder))
    assert lorasweep.compose(sweep="mine", folder=other).sweep.trials == 7
    assert named_home() == str(folder)
    with project(other):
        assert Home.find().root == other
        seen: list[str | None] = []
        thread = threading.Thread(target=lambda: seen.append(named_home()))
        thread.start()
        thread.join()
        assert seen == [str(folder)]  # another thread's calls have their own
    with pytest.raises(UsageError, match="no sweep 'mine'"):
        lorasweep.compose(sweep="mine")
    with pytest.raises(UsageError, match="is no folder"):
        lorasweep.compose(folder=other / "nowhere")


def test_what_cannot_be_asked_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="there is no sweep 'nothing'"):
        lorasweep.leaderboard("nothing")
    with pytest.raises(UsageError, match="must be a trial's number, or 'best'"):
        lorasweep.load_trial("quickstart", "first")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="each text needs one"):
        lorasweep.predict("quickstart", ["a", "b"], ["c"])
    with pytest.raises(UsageError, match="must not be empty"):
        lorasweep.promote("quickstart", force=" ")


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "name": (lambda: lorasweep.sweep(None), "`name` must be text, got None"),  # type: ignore[arg-type]
    "path": (lambda: lorasweep.plan(Path("quickstart")), "`name` must be text"),  # type: ignore[arg-type]
    "sweep": (lambda: lorasweep.compose(sweep=3), "`sweep` must be text"),  # type: ignore[arg-type]
    "overrides": (lambda: lorasweep.compose(3), "`overrides` must be a list of texts, got 3"),  # type: ignore[arg-type]
    "override": (lambda: lorasweep.compose([3]), "`overrides` must be text, got 3"),  # type: ignore[list-item]
    "where": (lambda: lorasweep.leaderboard("x", where=[3]), "`where` must be text"),  # type: ignore[list-item]
    "sort": (lambda: lorasweep.leaderboard("x", sort=3), "`sort` must be text"),  # type: ignore[arg-type]
    "top": (lambda: lorasweep.leaderboard("x", top=-1), "`top` must be an integer >= 0, got -1"),
    "half": (lambda: lorasweep.leaderboard("x", top=1.5), "`top` must be an integer >= 0"),  # type: ignore[arg-type]
    "trial": (lambda: lorasweep.promote("x", trial="best"), "`trial` must be an integer"),  # type: ignore[arg-type]
    "force": (lambda: lorasweep.promote("x", force=True), "`force` must be text"),  # type: ignore[arg-type]
    "export": (lambda: lorasweep.export("x", "y", trial=0.5), "`trial` must be a trial's number, or"),  # type: ignore[arg-type]
    "model": (lambda: lorasweep.predict(None, "x"), "`model` must be text"),  # type: ignore[arg-type]
    "texts": (lambda: lorasweep.predict("x", None), "`texts` must be a list of texts"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", WRONG)
def test_a_value_of_the_wrong_type_is_refused_in_words(what: str, folder: Path) -> None:
    call, said = WRONG[what]
    with pytest.raises(UsageError, match=re.escape(said)):
        call()
    assert not (folder / "mlruns").exists()


def test_numbers_of_a_frame_are_numbers(folder: Path) -> None:
    config = lorasweep.compose({"adapter.r": numpy.int64(4), "optimizer.lr": numpy.float64(0.25)})
    assert (config.adapter.r, config.optimizer.lr) == (4, 0.25)
    for trial in (numpy.int64(7), pd.Series([7])[0]):
        with pytest.raises(UsageError, match="there is no sweep 'nothing'"):
            lorasweep.load_trial("nothing", trial)
