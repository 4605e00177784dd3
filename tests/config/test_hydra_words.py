"""Hydra's own flags and settings end in the name of ours; docs/hydra.md says the same, and names only what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lorasweep.arguments import build_parser, parse
from lorasweep.config import hydra_words
from lorasweep.config.compose import compose
from lorasweep.config.explain import keys, options
from lorasweep.config.home import Home
from lorasweep.config.schema import GROUPS
from lorasweep.errors import ConfigError, UsageError

HOME = Home.find()
PAGE = HOME.shipped / "docs" / "hydra.md"
KNOWN = {*keys(), *GROUPS, "sweep", "sweep.objective", "sweep.space", "sweep.objectives", "sweep.constraints"}
COMMANDS = set(build_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr,arg-type]


def rows() -> list[tuple[str, str]]:
    """(Hydra's, ours) of each row of the page's table."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert all(len(row) == 3 for row in cells)
    return [(hydras, ours) for hydras, ours, _ in cells if hydras != "Hydra"]


def exists(word: str) -> bool:
    """Whether a word of ours in backticks is a setting, an option of a group, a command, or a variable that we read."""
    if word == "LORASWEEP_HOME":
        return True
    if word.startswith("lorasweep "):
        return word.split()[1] in COMMANDS
    if "=" in word:
        group, _, option = word.partition("=")
        return option in options(group, HOME) if group in GROUPS else group in KNOWN
    return word in KNOWN or any(key.startswith(f"{word}.") for key in KNOWN) or word.rstrip(":") == "sweep"


@pytest.mark.parametrize(("hydras", "ours"), rows())
def test_each_row_of_the_page_names_settings_that_exist(hydras: str, ours: str) -> None:
    assert re.findall("`[^`]+`", hydras) or hydras == "pruning"
    for word in re.findall("`([^`]+)`", ours):
        assert exists(word), word


def test_the_page_has_the_rows_that_hydra_users_look_for() -> None:
    said = " ".join(hydras for hydras, _ in rows())
    for key in ("params", "search_space", "custom_search_space", "direction", "study_name", "storage", "n_trials"):
        assert f"`hydra.sweeper.{key}`" in said
    for key in ("n_jobs", "max_failure_rate", "sampler.seed", "sampler.n_startup_trials"):
        assert f"`hydra.sweeper.{key}`" in said
    assert "`hydra.sweep.dir`" in said and "`hydra/launcher=joblib`" in said and "`--multirun`" in said


def test_what_is_refused_and_what_the_page_says_agree() -> None:
    page = {word: ours for hydras, ours in rows() for word in re.findall("`([^`]+)`", hydras)}
    for key, mine in hydra_words.KEYS.items():
        if mine.key and key in page:
            assert f"`{mine.key}`" in page[key], key
    for sampler, mine in hydra_words.SAMPLERS.items():
        assert exists(f"sampler={mine}")
        row = page.get(f"hydra/sweeper/sampler={sampler}")
        assert row is None or row == f"`sampler={mine}`"


@pytest.mark.parametrize("said", [one.text for one in hydra_words.KEYS.values()])
def test_refusals_name_settings_that_exist(said: str) -> None:
    for word in re.findall("`([^`]+)`", said):
        assert exists(word), word


WORDS = {
    "hydra.sweeper.n_trials=20": "write sweep.trials=20",
    "+hydra.sweeper.n_trials=20": "write sweep.trials=20",
    "hydra.sweeper.n_jobs=4": "write launcher.slots=4",
    "hydra.sweeper.study_name=x": "write sweep.name=x",
    "hydra.sweeper.direction=minimize": "write sweep.objective.direction=minimize",
    "hydra/sweeper=optuna": "the search is Optuna's already",
    "hydra/sweeper/sampler=nsgaii": "write sampler=tpe",
    "hydra.sweeper.sampler.seed=3": "write sampler.seed=3",
    "hydra.sweeper.params.lr=3": "`sweep.space` of a file",
    "hydra/launcher=joblib": "write launcher=local launcher.workers=N",
    "hydra.sweep.dir=out": "write tracking.dir=out",
    "hydra.nonsense=1": "composes its config itself",
}


@pytest.mark.parametrize(("word", "says"), WORDS.items())
def test_an_override_of_hydras_own_is_refused_with_ours(word: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([word])
    assert says in str(caught.value) and word.lstrip("+") in str(caught.value)


def test_a_password_in_a_storage_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["hydra.sweeper.storage=postgresql://me:hunter2@host/studies"])
    assert "hunter2" not in str(caught.value) and "`tracking.studies`" in str(caught.value)


FILES = {
    "defaults:\n  - override hydra/sweeper: optuna\n": "`hydra/sweeper=optuna`",
    "defaults:\n  - override /hydra/sweeper/sampler: tpe\n": "write sampler=tpe",
    "hydra:\n  sweeper:\n    n_trials: 20\n": "write sweep.trials=20",
    "hydra: {sweeper: {params: {optimizer.lr: 'interval(1e-5, 1e-3)'}}}\n": "`sweep.space` of a file",
    "hydra: {sweep: {dir: out}}\n": "write tracking.dir=out",
}


@pytest.mark.parametrize(("text", "says"), FILES.items())
def test_a_sweep_file_for_hydras_sweeper_is_refused_with_ours(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    with pytest.raises(ConfigError) as caught:
        compose([], "mine", Home(tmp_path, HOME.shipped))
    assert says in str(caught.value) and str(tmp_path / "sweeps" / "mine.yaml") in str(caught.value)


def test_the_word_hydra_in_a_comment_or_a_value_is_no_matter(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text("# @package _global_\n# hydra: no\nmodel: {name: hydra}\n")
    assert compose([], "mine", Home(tmp_path, HOME.shipped)).model.name == "hydra"


@pytest.mark.parametrize("flag", ["-m", "--multirun", "-cn", "--config-dir=x", "-sc", "--experimental-rerun"])
def test_flags_of_hydras_applications_are_refused_with_ours(flag: str) -> None:
    with pytest.raises(UsageError, match="Here: "):
        parse(["train", flag])


def test_after_two_dashes_a_flag_is_text() -> None:
    arguments, _ = parse(["predict", "models:/x@champion", "--", "-m"])
    assert arguments.text == ["-m"]
