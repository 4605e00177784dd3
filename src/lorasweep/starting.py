"""The command `init`: lays out a user's own project in a folder, so that `lorasweep sweep NAME` works there at once.

A data config for their table, whose columns are guessed where they are not named, or for a small example; a sweep file;
a Makefile, README and .gitignore. All of it is checked before anything is written: the rows are read as a sweep would.
Neighbours: `starter/` (the files, with {{slots}}), `data` (reads the table), `cli` (calls).
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, quantiles
from typing import Any

from lorasweep import __version__
from lorasweep.config.home import NAME, Home, check_name, exists, expanded
from lorasweep.config.schema import DataConfig
from lorasweep.config.words import literal
from lorasweep.errors import StorageError, UsageError, nearest, readable, shortened

STARTER = Path(__file__).parent / "starter"
EXAMPLE_ROWS = 320
MOST_CLASSES = 100  # more distinct values are no label
TEXT_NAMES = ("text", "review", "sentence", "content", "body", "comment", "message", "tweet", "document", "utterance")
LABEL_NAMES = ("label", "labels", "class", "category", "sentiment", "target", "stars", "rating", "intent", "topic")
LENGTHS = (32, 64, 128, 256)  # what max_length may become
SEPARATORS = (";", "\t", "|", ",")
TOKENS_A_WORD = 1.5  # subwords, a little more than most tokenizers make
TINY = {"model": "tiny_encoder", "low_lr": "1e-4", "high_lr": "1e-2", "max_steps": "100"}
YOURS = {"model": "hf", "low_lr": "2e-5", "high_lr": "2e-3", "max_steps": "200"}


@dataclass(frozen=True)
class Started:
    """What was laid out: `files` lie in `folder`; `rows` and `classes` are those of the training table."""

    folder: Path
    sweep: str
    files: list[str]
    rows: int
    classes: list[str]
    text_column: str
    label_column: str

    def to_json(self) -> dict[str, Any]:
        """The document of `init --json`."""
        return {**vars(self), "folder": str(self.folder)}

    def describe(self) -> str:
        """What to tell a person."""
        shown = ", ".join(self.classes[:6]) + (", …" if len(self.classes) > 6 else "")
        there = os.path.relpath(self.folder)
        lines = [f"Laid out {self.folder}:", *(f"  {file}" for file in self.files)]
        lines.append(f"{self.rows:,} rows; text: {self.text_column}, label: {self.label_column} ({shown})")
        place = shlex.quote(str(self.folder) if there.startswith("..") else there)
        step = "" if there == "." else f"cd {place} && "
        lines.append(f"Next:  {step}lorasweep plan {self.sweep}   |   {step}lorasweep sweep {self.sweep}")
        return readable("\n".join(lines))


def init(
    folder: str,
    data: str | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    model: str | None = None,
    name: str | None = None,
    force: bool = False,
) -> Started:
    """Lay out a project in `folder`, which may exist. `data`: the table of training rows, None: a small example is
    written; `model`: a folder or hub id, None: the tiny base that ships with us; `name`: the sweep's, None: the
    folder's; `force`: write over files that are there.

    Raises:
        UsageError: files that would be written over, a column that is not there or cannot be guessed.
        DataError: the table cannot be read, or no classifier could be trained on it.
        StorageError: the folder cannot be written.
    """
    if not folder.strip():
        raise UsageError("init needs a folder, and its name is empty; `.` is the current one")
    root = expanded(Path(folder)).absolute()
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} is a file, and a project needs a folder; name another one")
    sweep = check_name(name) if name is not None else _name_of(root)
    if data is None and (text_column or label_column):
        raise UsageError("--text-column and --label-column are columns of the table --data FILE")
    files: dict[str, str] = {}
    if data is None:
        files["data/reviews.csv"] = _example()
        given, path = None, "data/reviews.csv"
        text_column, label_column = "text", "label"
    else:
        given = expanded(Path(data)).absolute()
        path = str(given.relative_to(root)) if given.is_relative_to(root) else str(given)
        text_column, label_column = _columns(given, text_column, label_column)
    rows, classes, words, empty = _read(given, text_column, label_column)
    length = next((length for length in LENGTHS if words * TOKENS_A_WORD <= length), LENGTHS[-1])
    base = TINY if model is None else YOURS
    slots = {
        **base,
        "name": sweep,
        "about": f"{rows:,} rows in {len(classes)} classes" + (", generated as an example" if given is None else ""),
        "rows": f"the {rows:,} rows of {path}" if given else f"{rows:,} generated reviews, an example",
        "train": _text(path),
        "text_column": _text(text_column),
        "label_column": _text(label_column),
        "max_length": str(length),
        "drop_empty": f"drop_empty: true      # {empty:,} rows have an empty text or label\n" if empty else "",
        "model_comment": "      # ships with lorasweep, needs no network; yours: hf, and model.path"
        if not model
        else "",
        "model_lines": f"model:\n  path: {_text(_model(model))}\n" if model else "",
        "version": __version__,
        "origin": _origin(),
    }
    templates = {
        f"sweeps/{sweep}.yaml": "sweep.yaml",
        f"conf/data/{sweep}.yaml": "data.yaml",
        "Makefile": "Makefile",
        "README.md": "README.md",
        ".gitignore": "gitignore",
    }
    files |= {place: _filled(template, slots) for place, template in templates.items()}
    _write(root, files, force, given)
    return Started(root, sweep, sorted(files), rows, classes, text_column, label_column)


def _text(value: str) -> str:
    """Any text as YAML reads it back: quoted, and never an interpolation."""
    return json.dumps(literal(value), ensure_ascii=False)


def _name_of(root: Path) -> str:
    """The folder's name as a sweep's: what cannot stand in one becomes `-`."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", root.name).strip("-_")[:100]
    return name if NAME.fullmatch(name) else "mine"


def _model(model: str) -> str:
    """A folder's absolute path, so that it is found from everywhere; a hub id as it is.

    Raises:
        UsageError: a path that leads to no folder.
    """
    folder = expanded(Path(model))
    if not exists(folder, Path.is_dir) and model.startswith(("/", ".", "~")):
        raise UsageError(f"--model {model} is no folder; give a checkpoint's folder, or a hub id such as org/name")
    return str(folder.absolute()) if exists(folder, Path.is_dir) else model


def _origin() -> str:
    """What pip installs this lorasweep from: the checkout that it runs from, or its release."""
    checkout = Home.find().shipped
    return str(checkout) if (checkout / "pyproject.toml").is_file() else f"lorasweep=={__version__}"


def _example() -> str:
    """Generated reviews as csv."""
    from lorasweep.data.demo import REVIEW_NAMES, demo_reviews

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "label"])
    for review in demo_reviews(EXAMPLE_ROWS)["train"]:
        writer.writerow([review.text, REVIEW_NAMES[2][review.label]])
    return out.getvalue()


def _columns(table: Path, text: str | None, label: str | None) -> tuple[str, str]:
    """The columns that were named, or the likely ones.

    Raises:
        UsageError: a column that is not there, or none that could be it.
    """
    from lorasweep.data.files import read_table

    columns = read_table(str(table), "--data", DataConfig(kind="file")).columns
    for option, name in (("--text-column", text), ("--label-column", label)):
        if name is not None and name not in columns:
            raise UsageError(f"{option} {name}: the table has no such column; {nearest(name, columns)}")
    only = next(iter(columns), "")
    if len(columns) == 1 and (mark := next((mark for mark in SEPARATORS if mark in only), None)) is not None:
        raise UsageError(
            f"{table} has one column, {shortened(only)!r}: its cells look separated by {mark!r}. Save it as "
            f".csv with commas or as .tsv with tabs; a sweep reads it as it is with \"data.delimiter='{mark}'\""
        )
    label = label or _guessed(LABEL_NAMES, [name for name in columns if name != text]) or _few_values(columns, text)
    if label is None:
        raise UsageError(
            f"no column of {table} looks like a label; name it with --label-column: {', '.join(map(repr, columns))}"
        )
    others = [name for name in columns if name != label]
    text = text or _guessed(TEXT_NAMES, others) or _longest(columns, others)
    if text is None:
        raise UsageError(
            f"no column of {table} looks like text beside {label!r}; name it with --text-column: "
            f"{', '.join(map(repr, columns))}"
        )
    if text == label:
        raise UsageError(f"--text-column and --label-column are both {text!r}; they must be two columns")
    return text, label


def _guessed(known: tuple[str, ...], columns: list[str]) -> str | None:
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    return next((by_name[name] for name in known if name in by_name), None)


def _few_values(columns: dict[str, list[Any]], text: str | None) -> str | None:
    """The column with the fewest different values, at least two, each in five rows on average."""
    counts = {name: len(set(map(str, cells))) for name, cells in columns.items() if name != text}
    rows = len(next(iter(columns.values()), []))
    fitting = {name: count for name, count in counts.items() if 2 <= count <= min(MOST_CLASSES, rows / 5)}
    return min(fitting, key=lambda name: fitting[name]) if fitting else None


def _longest(columns: dict[str, list[Any]], names: list[str]) -> str | None:
    """The column of the longest texts, of two words on average at least."""
    words = {name: mean(len(str(cell).split()) for cell in columns[name]) for name in names if columns[name]}
    best = max(words, key=lambda name: words[name], default=None)
    return best if best is not None and words[best] >= 2 else None


def _read(given: Path | None, text_column: str, label_column: str) -> tuple[int, list[str], float, int]:
    """(rows, class names, words in a long text, rows with something empty) of the table, read as a sweep will.

    Raises:
        DataError: it cannot be read, or no classifier could be trained on it.
    """
    if given is None:
        return EXAMPLE_ROWS, ["negative", "positive"], 40, 0
    from lorasweep.data.files import read_table
    from lorasweep.data.sources import load_search_data

    config = DataConfig(kind="file", train=str(given), text_column=text_column, label_column=label_column)
    columns = read_table(str(given), "--data", config).columns
    cells = list(zip(columns[text_column], columns[label_column], strict=True))
    empty = sum(any(cell is None or not str(cell).strip() for cell in row) for row in cells)
    found = load_search_data(replace(config, drop_empty=bool(empty)))
    words = [len(text.split()) for text in found.train.texts]
    return len(cells), list(found.label_names), quantiles(words, n=20)[-1] if len(words) > 1 else words[0], empty


def _filled(template: str, slots: dict[str, str]) -> str:
    text = (STARTER / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda slot: slots[slot.group(1)], text)


def _write(root: Path, files: dict[str, str], force: bool, given: Path | None) -> None:
    there = [name for name in files if (root / name).exists()]
    if there and not force:
        raise UsageError(
            f"{root} has {', '.join(sorted(there))} already, and nothing was written; name another folder, or write "
            "over them with --force"
        )
    if given is not None and given in {root / name for name in files}:
        raise UsageError(f"the table --data {given} would be written over; give it another name")
    try:
        for name, text in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{root} cannot be written: {error.strerror}; name a folder that can be") from None
