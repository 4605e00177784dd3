"""What could stand at the cursor of a shell: commands, options, sweeps, models, groups, settings and their choices.

Asked at each press of the tab key, so it reads files and databases itself and imports nothing heavy: no torch, Hydra,
Optuna or MLflow. Whatever cannot be read offers nothing. Neighbours: `arguments` (the commands), `config` (settings),
`completions/` (the scripts of the shells, which call `lorasweep __complete WORDS…`), `cli`.
"""

from __future__ import annotations

import argparse
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lorasweep.arguments import OVERRIDE, build_parser
from lorasweep.config.explain import keys, options
from lorasweep.config.home import Home, expanded
from lorasweep.config.schema import GROUPS, Config
from lorasweep.errors import LorasweepError

ASK = "__complete"  # the word by which a shell asks; no command of the help
SCRIPTS = Path(__file__).parent / "completions"
FILES = ("sweep", "plan")  # their NAME is a file of sweeps/
STORED_ALONE = ("leaderboard", "report", "ui", "stop", "workers", "pause", "doctor")  # take tracking.* and no others
NO_OVERRIDES = ("init", "completion")
ROWS_BY = ("rank", "trial", "state", "value", "tied", "samples", "train_seconds", "trainable_params", "total_params")
UNREACHED = ("sweep.space", "sweep.enqueue")  # hold keys with dots, which no override reaches


def script(shell: str) -> str:
    """The completion script of bash, zsh or fish."""
    return (SCRIPTS / f"lorasweep.{shell}").read_text(encoding="utf-8")


def candidates(words: list[str]) -> list[str]:
    """What the last of `words` (those behind `lorasweep`, the last one as far as it is typed) could become, sorted; one
    that ends in `=` or `.` goes on. Empty: nothing of ours, so that the shell offers files."""
    *before, current = words or [""]
    try:
        found = _fitting(before, current)
        return sorted({word for word in found if word.startswith(current) and word != current})
    except (LorasweepError, OSError, sqlite3.Error, ValueError):  # a tab key must never answer with an error
        return []


def answer(words: list[str]) -> int:
    """Print the candidates for a shell, one a line; returns the exit code."""
    for word in candidates(words):
        print(word)
    return 0


def _fitting(before: list[str], current: str) -> Iterable[str]:
    parser = build_parser()
    commands = _commands(parser)
    if not before:
        return [*commands, "--help", "--version"] if not current.startswith("--") else ["--help", "--version"]
    if before[0] not in commands:
        return []
    name, command, given = before[0], commands[before[0]], before[1:]
    taker = _takes_a_value(command, given)
    if taker is not None:
        return _values_of(taker)
    if current.startswith("-"):
        used = {word for word in given if word != "--where"}
        return [word for action in command._actions for word in action.option_strings if word not in used]
    positionals = [action for action in command._actions if not action.option_strings]
    place = len(_positionals(command, given))
    offered = [] if OVERRIDE.match(current) else _names(name, positionals, place, [*given, current])
    return offered if offered or name in NO_OVERRIDES else _overrides(name, current)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _takes_a_value(command: argparse.ArgumentParser, given: list[str]) -> argparse.Action | None:
    """The option whose value comes next."""
    if not given:
        return None
    by_word = {word: action for action in command._actions for word in action.option_strings}
    action = by_word.get(given[-1])
    return action if action is not None and action.nargs != 0 else None


def _values_of(action: argparse.Action) -> Iterable[str]:
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest == "package":
        known = keys()
        return [*GROUPS, "sweep", *known]
    if action.dest == "sort":
        return [*ROWS_BY, *keys()]
    if action.dest == "where":
        return [f"{key}=" for key in (*ROWS_BY, *keys())]
    return []


def _positionals(command: argparse.ArgumentParser, given: list[str]) -> list[str]:
    found: list[str] = []
    for place, word in enumerate(given):
        is_value = _takes_a_value(command, given[:place]) is not None
        if not is_value and not word.startswith("-") and not OVERRIDE.match(word):
            found.append(word)
    return found


def _names(name: str, positionals: list[argparse.Action], place: int, words: list[str]) -> list[str]:
    """What could be the positional at `place`."""
    if place >= len(positionals):
        return []
    action, home = positionals[place], Home.find()
    if action.choices is not None:
        return [str(choice) for choice in action.choices]
    if action.dest == "model_uri":
        return [f"models:/{model}" for model in _models(_place(home, words))]
    if action.dest == "name":
        of_models = name == "export" and not {"--trial", "--best"} & set(words)
        place_of_runs = _place(home, words)
        return home.sweep_names() if name in FILES else (_models if of_models else _stored)(place_of_runs)
    return []


def _place(home: Home, words: list[str]) -> Path:
    """The tracking folder."""
    named = [word.partition("=")[2] for word in words if word.startswith("tracking.dir=")]
    return expanded(Path(named[-1])) if named and named[-1] not in ("", "null") else home.root


def _stored(place: Path) -> list[str]:
    names = _read(place / "mlruns" / "lorasweep" / "study.db", "SELECT study_name FROM studies")
    return [name for (name,) in names if "/" not in name]


def _models(place: Path) -> list[str]:
    """Registered models as NAME@ALIAS, and NAME/VERSION where no alias is."""
    database = place / "mlflow.db"
    aliased = _read(database, "SELECT name, alias FROM registered_model_aliases")
    versions = _read(database, "SELECT name, version FROM model_versions WHERE current_stage <> 'Deleted_Internal'")
    return [f"{name}@{alias}" for name, alias in aliased] + [f"{name}/{version}" for name, version in versions]


def _read(database: Path, query: str) -> list[tuple[Any, ...]]:
    if not database.is_file():
        return []
    with closing(sqlite3.connect(f"file:{quote(str(database.absolute()))}?mode=ro", uri=True, timeout=0.2)) as opened:
        return opened.execute(query).fetchall()


def _overrides(name: str, current: str) -> Iterable[str]:
    """Groups and settings, or the values of the one that is given."""
    key, equals, _ = current.partition("=")
    if equals:
        return [f"{key}={value}" for value in _choices(key)]
    known = [one for one in keys() if one not in UNREACHED]
    if name in STORED_ALONE or name == "predict":
        return [f"{one}=" for one in known if one.startswith("tracking.")]
    if "." in current:
        return [f"{one}=" for one in known]
    return [*(f"{group}=" for group in GROUPS), *(f"{one.partition('.')[0]}." for one in known)]


def _choices(key: str) -> Iterable[str]:
    if key in GROUPS:
        return options(key, Home.find())
    node: Any = Config()
    *sections, name = key.split(".")
    for section in sections:
        node = getattr(node, section, None)
    found = next((one for one in fields(node) if one.name == name), None) if is_dataclass(node) else None
    if found is None:
        return []
    if keys().get(key) == "bool":
        return ["true", "false"]
    return [str(choice) for choice in found.metadata.get("choices") or ()]
