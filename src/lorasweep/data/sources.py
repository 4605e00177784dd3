"""Where rows come from: the demo, the hub or a user's files, as train and validation splits with integer labels.

The search calls `load_search_data`, which never opens the test split; promotion alone calls `load_test_split`.
Neighbours: `demo`, `files` and `hub` (raw rows), `table` (column checks), `labels` (ids), `encode` (tokens).
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

from lorasweep.config.schema import DataConfig
from lorasweep.data.answers import Answer
from lorasweep.data.demo import QA_NAMES, REVIEW_NAMES, demo_qa, demo_reviews, ids_among
from lorasweep.data.labels import LabelMap, label_map
from lorasweep.data.table import ANSWERABLE_NAMES, RawRows, Table, raw_rows
from lorasweep.errors import DataError

log = logging.getLogger(__name__)

DEMOS = ("demo_reviews", "demo_qa")
CARVED_TEST_FRACTION = 0.1  # where neither validation nor test is given


@dataclass(frozen=True)
class Split:
    """Rows of one split: texts, second texts of pairs (None where rows are single texts), class ids from 0; accepted
    answers, instructions of a row's own and free responses, each None where the data have none."""

    texts: list[str]
    pairs: list[str] | None
    labels: list[int]
    answers: list[list[Answer]] | None = None
    instructions: list[str] | None = None
    outputs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: list[int]) -> Split:
        """The given rows, in the given order."""

        def of(column: Any) -> Any:
            return None if column is None else [column[row] for row in rows]

        return Split(
            of(self.texts), of(self.pairs), of(self.labels), of(self.answers), of(self.instructions), of(self.outputs)
        )

    def fingerprint(self) -> str:
        """sha256 (hex) of the contents, row order included."""
        digest = hashlib.sha256()

        def add(name: str, column: list[str]) -> None:
            digest.update(f"{name}{len(column)};".encode())
            for text in column:
                raw = text.encode("utf-8", "surrogatepass")
                digest.update(b"%d:" % len(raw) + raw)

        add("", self.texts)
        add("", self.pairs or [])
        digest.update(",".join(map(str, self.labels)).encode())
        if self.answers is not None:
            add("answers", [json.dumps([(it.text, it.start) for it in row]) for row in self.answers])
        for name, column in (("instructions", self.instructions), ("outputs", self.outputs)):
            if column is not None:
                add(name, column)
        return digest.hexdigest()


@dataclass(frozen=True)
class SearchData:
    """All that a search may see. `fingerprint`: sha256 of both splits and the label names; `source`: for people."""

    train: Split
    validation: Split
    label_names: list[str]
    fingerprint: str
    source: str


def load_search_data(data: DataConfig) -> SearchData:
    """Train and validation rows; the same config and files give the same rows in the same order.

    Where no validation is given, it (and, where there is no test either, a test split that is set aside unseen) is
    carved from train, stratified by class and seeded by data.split_seed. Raises DataError for a missing file or
    column, an empty split, fewer than two classes, or a validation label that training lacks.
    """
    if data.kind in DEMOS:
        splits, names = demo_splits(data)
        train, validation = splits["train"], splits["validation"]
        source = f"{data.kind} (generated, seed {data.demo_seed})"
    else:
        table = read(data, "train")
        raw = raw_rows(table, data)
        labels = label_map(raw, names_given(data, table))
        names, source = labels.names, raw.where
        parts = carve(labelled(raw, labels), raw, names, data)
        train, validation = parts["train"], parts["validation"]
        if data.validation is not None:
            rows = raw_rows(read(data, "validation"), data)
            if has_classes(data):
                labels.check_seen(rows, trained_on=set(train.labels), train_where=raw.where)
            validation = labelled(rows, labels)
    train = limited(train, data.max_train_rows, data.split_seed, "train")
    validation = limited(validation, data.max_eval_rows, data.split_seed, "validation")
    if has_classes(data):
        check_classes(train, names, source)
    digest = hashlib.sha256("\n".join([*names, train.fingerprint(), validation.fingerprint()]).encode())
    return SearchData(train, validation, names, digest.hexdigest(), source)


def load_validation_split(data: DataConfig, label_names: list[str]) -> Split:
    """The rows that the search evaluated on, for a trial whose class names are known: training rows are read only
    where validation was carved from them. Raises DataError as `load_search_data` does."""
    if data.kind in DEMOS:
        rows = demo_splits(data)[0]["validation"]
    else:
        role = "train" if data.validation is None else "validation"
        raw = raw_rows(read(data, role), data)
        rows = labelled(raw, LabelMap(label_names))
        if data.validation is None:
            rows = carve(rows, raw, label_names, data)["validation"]
    return limited(rows, data.max_eval_rows, data.split_seed, "validation")


def load_test_split(data: DataConfig, label_names: list[str]) -> Split:
    """The sealed test split, for scoring at promotion alone; `label_names` are those that the model was trained with.

    Raises DataError where there is none (neither data.test nor a share set aside), and as `load_search_data` does.
    """
    if data.kind in DEMOS:
        test = demo_splits(data)[0]["test"]
    elif data.test is not None:
        raw = raw_rows(read(data, "test"), data)
        test = labelled(raw, LabelMap(label_names))
    elif test_share(data) > 0:
        raw = raw_rows(read(data, "train"), data)
        test = carve(labelled(raw, LabelMap(label_names)), raw, label_names, data)["test"]
    else:
        raise DataError(
            "there is no test split: data.test is not set and no share of train was set aside (data.test_fraction is 0 "
            "where validation is given). Give the rows to score with data.test=PATH"
        )
    return limited(test, data.max_eval_rows, data.split_seed, "test")


def has_classes(data: DataConfig) -> bool:
    """Whether rows are there for their label, which then must vary; answers and free responses need none."""
    return data.kind in DEMOS or (data.answers_column is None and data.output_column is None)


def names_given(data: DataConfig, table: Table) -> list[str]:
    """Class names that the config or the data set itself gives; empty: those found."""
    if data.answers_column and not data.label_names:
        return list(ANSWERABLE_NAMES)
    return data.label_names or table.label_names or []


def read(data: DataConfig, role: str) -> Table:
    """The raw table of one role: train, validation or test."""
    setting = f"data.{role}"
    name: str | None = getattr(data, role)
    if data.kind == "hub":
        from lorasweep.data import hub

        return hub.read_split(name or "train", setting, data)
    from lorasweep.data import files

    if name is None:
        raise DataError(f"data.kind=file needs {setting}=PATH (csv, tsv, json, jsonl or parquet)")
    return files.read_table(name, setting, data)


def demo_splits(data: DataConfig) -> tuple[dict[str, Split], list[str]]:
    """All three splits of a generated data set, and its label names."""
    if data.kind == "demo_reviews":
        reviews = demo_reviews(data.demo_rows, data.demo_seed, data.classes)
        ours = REVIEW_NAMES[data.classes]
        names = data.label_names if len(data.label_names) == data.classes else ours
        ids = ids_among(ours, names)
        return {
            name: Split([row.text for row in rows], None, [ids[row.label] for row in rows])
            for name, rows in reviews.items()
        }, list(names)
    questions = demo_qa(data.demo_rows, data.demo_seed)
    return {
        name: Split(
            [row.question for row in rows],
            [row.context for row in rows],
            [row.label for row in rows],
            [[] if row.answer is None else [Answer(row.answer, row.answer_start)] for row in rows],
        )
        for name, rows in questions.items()
    }, list(QA_NAMES)


def labelled(raw: RawRows, labels: LabelMap) -> Split:
    """Checked rows with their labels as ids."""
    return Split(raw.texts, raw.pairs, labels.ids(raw), raw.answers, raw.instructions, raw.outputs)


def test_share(data: DataConfig) -> float:
    """The share of the training rows that is set aside as test."""
    if data.test is not None:
        return 0.0
    if data.test_fraction is not None:
        return data.test_fraction
    return CARVED_TEST_FRACTION if data.validation is None else 0.0


def carve(rows: Split, raw: RawRows, names: list[str], data: DataConfig) -> dict[str, Split]:
    """`rows` cut into train, validation and test, stratified by class; rows keep their order within each part.

    Fractions are of all rows. What is not carved (because it is given elsewhere) is empty. Test is drawn first, so
    that it stays the same whatever data.validation_fraction is.
    """
    shares = {
        "test": test_share(data),
        "validation": data.validation_fraction if data.validation is None else 0.0,
    }
    rest = list(range(len(rows)))
    parts: dict[str, list[int]] = {"test": [], "validation": []}
    if sum(shares.values()) >= 1:
        raise DataError(
            f"data.validation_fraction={shares['validation']} and data.test_fraction={shares['test']} leave no row to "
            "train on; together they must stay below 1"
        )
    for part, share in shares.items():
        if share > 0:
            rest, parts[part] = stratified(
                rest, rows, round(share * len(rows)), data.split_seed, Place(part, raw.where, names)
            )
    return {"train": rows.select(rest), **{part: rows.select(chosen) for part, chosen in parts.items()}}


@dataclass(frozen=True)
class Place:
    """What an error about a carved split names: the split, the source, the class names."""

    part: str
    where: str
    names: list[str]


def stratified(rows: list[int], split: Split, size: int, seed: int, place: Place) -> tuple[list[int], list[int]]:
    """(kept, drawn): `size` of the row numbers `rows` of `split`, drawn by `seed` with the classes in proportion."""
    from sklearn.model_selection import train_test_split

    labels = [split.labels[row] for row in rows]
    counts = Counter(sorted(labels))
    rarest = min(counts, key=lambda label: counts[label])
    if counts[rarest] < 2 or size < len(counts) or len(rows) - size < len(counts):
        raise DataError(
            f"{place.where}: too few rows to carve a {place.part} split: {len(rows)} rows in {len(counts)} classes, "
            f"of the class `{place.names[rarest]}` {counts[rarest]}, and {size} rows wanted. Each class needs at least "
            f"2 rows and each split one row a class. Give a file with data.{place.part}=PATH, or more rows"
        )
    kept, drawn = train_test_split(rows, test_size=size, random_state=seed, stratify=labels)
    return sorted(kept), sorted(drawn)


def limited(rows: Split, limit: int | None, seed: int, name: str) -> Split:
    """At most `limit` rows, drawn by `seed` and kept in their order; None: all."""
    if limit is None or limit >= len(rows):
        return rows
    return rows.select(sorted(random.Random(f"{name} {seed}").sample(range(len(rows)), limit)))


def check_classes(train: Split, names: list[str], where: str) -> None:
    """Training needs rows of at least two classes; a named class without rows is only worth a warning."""
    present = set(train.labels)
    if len(present) < 2:
        only = names[next(iter(present))]
        raise DataError(
            f"{where}: all {len(train)} training rows have the label `{only}`; a classifier needs at least two "
            "classes. Check data.label_column, data.label_names and data.max_train_rows"
        )
    absent = [name for number, name in enumerate(names) if number not in present]
    if absent:
        log.warning("%s: no training row has the label %s", where, ", ".join(absent))
