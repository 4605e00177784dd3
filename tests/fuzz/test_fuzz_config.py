"""Any override and any sweep file is a config that works, or one LorasweepError on one screen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import strategies as st

from fuzzkit import both, nasty
from lorasweep.config import compose, explain
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS
from lorasweep.errors import LorasweepError
from lorasweep.search.objectives import Goals
from lorasweep.search.space import parse_space

pytestmark = pytest.mark.slow  # every example composes

SHIPPED = Home.find().shipped
GRAMMAR = [
    "choice(1,2)", "choice(2, 4)", "range(1,9,2)", "range(9,1,-1)", "interval(0.1,1)", "tag(log, interval(1e-4, 1e-2))",
    "shuffle(range(1,5))", "choice([1],[2])", "choice({a:1})", "glob(*)", "int(interval(1,4))", "sort(3,1)", "1,2",
    "extend_list(1)", "float(range(1,2))", "tag(log, range(1, 8))", "interval(1e400, 2)", "range(1, 9, 1e-12)",
]  # fmt: skip
plain = st.none() | st.booleans() | st.integers(-2, 10**20) | st.floats()
leaf = st.one_of(plain, st.sampled_from(GRAMMAR), nasty)
word = st.sampled_from(
    ["when", "values", "name", "metric", "direction", "trials", "adapter.r", "optimizer.lr", "adapter"]
)
tree = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(word | nasty, inner, max_size=3))
setting = st.sampled_from([*GROUPS, *explain.keys(), "hydra.run.dir", "sweeps", "model@x", ""])
space = st.dictionaries(setting, tree, max_size=3)
GOOD = [{"override /model": "tiny_encoder"}, {"override /data": "demo_reviews"}]


@st.composite
def sweep_files(draw: st.DrawFn) -> bytes:
    """A sweep file with one part made up, or none of it as it should be."""
    sweep: dict[str, Any] = {"trials": 2, "space": {"adapter.r": "choice(2, 4)"}}
    document: Any = {"defaults": GOOD, "sweep": sweep}
    which = draw(st.sampled_from(["space", "sweep", "group", "defaults", "all"]))
    if which == "space":
        sweep["space"] = draw(space)
    elif which == "sweep":
        keys = [
            "space",
            "enqueue",
            "objective",
            "objectives",
            "constraints",
            "name",
            "trials",
            "finalists",
            "warm_start",
        ]
        sweep[draw(st.sampled_from(keys))] = draw(tree)
    elif which == "group":
        document[draw(st.sampled_from([*GROUPS, "zz", "hydra"]))] = draw(tree)
    elif which == "defaults":
        document["defaults"] = draw(tree)
    else:
        document = draw(tree)
    head = "# @package _global_\n" if draw(st.integers(0, 9)) else ""
    raw = (head + yaml.safe_dump(document, allow_unicode=True)).encode("utf-8", "surrogatepass")
    return raw if draw(st.integers(0, 9)) else raw + draw(st.binary(max_size=5))


def works_or_is_refused(work: Callable[[], None]) -> None:
    try:
        work()
    except LorasweepError as error:
        assert error.exit_code == 2
        assert 10 < len(str(error)) < 4000
        assert len(str(error).splitlines()) < 20


def any_override(keys: list[str], values: list[str]) -> None:
    words = [f"{key}={value}" for key, value in zip(keys, values, strict=False)]
    home = Home(Path("/nowhere"), SHIPPED)

    def work() -> None:
        config = compose.compose(["model=tiny_encoder", "data=demo_reviews", *words], home=home)
        compose.to_yaml(config)
        compose.trial_fingerprint(config)

    works_or_is_refused(work)


values = st.sampled_from(GRAMMAR) | nasty | plain.map(str)
test_any_override, test_any_override_at_length = both(
    25, 5_000, keys=st.lists(setting, min_size=1, max_size=2), values=st.lists(values, min_size=2, max_size=2)
)(any_override)


def any_sweep_file(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sweeps").mkdir()
        (Path(folder) / "sweeps" / "mine.yaml").write_bytes(raw)
        home = Home(Path(folder), SHIPPED)

        def work() -> None:
            config = compose.compose([], sweep="mine", home=home)
            found = parse_space(config.sweep.space, config)
            Goals(config)
            for place, point in enumerate(config.sweep.enqueue):
                found.check_point(point, f"enqueue {place}")
            for point in found.probe_points()[:6]:
                compose.compose_trial([], "mine", point, home)

        works_or_is_refused(work)


test_any_sweep_file, test_any_sweep_file_at_length = both(12, 5_000, raw=sweep_files())(any_sweep_file)


@pytest.mark.parametrize(
    "content", ["'true'\n", "true\n", "- a\n", "\0", "a: &a [*a]\n", "&a [*a]\n", "!!python/object:os.system {}\n"]
)
def test_found_by_fuzzing(content: str, tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(content)
    with pytest.raises(LorasweepError):
        compose.compose([], sweep="mine", home=Home(tmp_path, SHIPPED))
