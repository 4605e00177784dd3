"""Splits: what the search sees, what it never opens, how labels become ids, and what each error says."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasweep.config.schema import DataConfig
from lorasweep.data.sources import Split, load_search_data, load_test_split
from lorasweep.errors import DataError

SHARED = Path(os.environ.get("LORASWEEP_SHARED", Path(__file__).parents[2].parent / "shared"))


def rows_file(folder: Path, rows: list[tuple[str, str]], name: str = "rows.tsv", header: str = "text\tlabel") -> str:
    file = folder / name
    file.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return str(file)


def balanced(count: int, labels: tuple[str, ...] = ("bad", "good")) -> list[tuple[str, str]]:
    return [(f"row {number}", labels[number % len(labels)]) for number in range(count)]


@pytest.mark.parametrize("kind", ["demo_reviews", "demo_qa"])
def test_demo(kind: str) -> None:
    data = DataConfig(kind=kind, demo_rows=80)
    loaded = load_search_data(data)
    test = load_test_split(data, loaded.label_names)
    assert (len(loaded.train), len(loaded.validation), len(test)) == (80, 20, 20)
    assert (loaded.train.pairs is not None) == (kind == "demo_qa")
    assert load_search_data(data).fingerprint == loaded.fingerprint
    assert load_search_data(DataConfig(kind=kind, demo_rows=80, demo_seed=1)).fingerprint != loaded.fingerprint


def test_four_classes() -> None:
    loaded = load_search_data(DataConfig(kind="demo_reviews", classes=4, demo_rows=80))
    assert loaded.label_names == ["negative", "positive", "neutral", "mixed"]
    assert set(loaded.train.labels) == {0, 1, 2, 3}
    with pytest.raises(DataError, match=r"data\.classes=5: demo_reviews has 2 classes .* or 4"):
        load_search_data(DataConfig(kind="demo_reviews", classes=5))


def test_carved_splits_are_disjoint_stratified_and_sealed(tmp_path: Path) -> None:
    data = DataConfig(kind="file", train=rows_file(tmp_path, balanced(200, ("a", "a", "a", "b"))))
    loaded = load_search_data(data)
    test = load_test_split(data, loaded.label_names)
    parts = [loaded.train, loaded.validation, test]
    assert [len(part) for part in parts] == [160, 20, 20]
    assert sorted(text for part in parts for text in part.texts) == sorted(text for text, _ in balanced(200))
    assert [part.labels.count(1) for part in parts] == [40, 5, 5]


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(40, 90),
    validation=st.floats(0.1, 0.4),
    test=st.floats(0.1, 0.4),
    seed=st.integers(0, 99),
)
def test_carving_loses_and_repeats_no_row(
    tmp_path_factory: pytest.TempPathFactory, rows: int, validation: float, test: float, seed: int
) -> None:
    path = rows_file(tmp_path_factory.mktemp("rows"), balanced(rows))
    data = DataConfig(kind="file", train=path, validation_fraction=validation, test_fraction=test, split_seed=seed)
    loaded = load_search_data(data)
    sealed = load_test_split(data, loaded.label_names)
    texts = [*loaded.train.texts, *loaded.validation.texts, *sealed.texts]
    assert sorted(texts) == sorted(text for text, _ in balanced(rows))


def test_test_split_does_not_depend_on_the_validation_share(tmp_path: Path) -> None:
    path = rows_file(tmp_path, balanced(100))
    some = load_test_split(DataConfig(kind="file", train=path), ["bad", "good"])
    other = load_test_split(DataConfig(kind="file", train=path, validation_fraction=0.3), ["bad", "good"])
    assert some == other


def test_split_seed_moves_the_rows(tmp_path: Path) -> None:
    path = rows_file(tmp_path, balanced(100))
    first, again, other = (load_search_data(DataConfig(kind="file", train=path, split_seed=seed)) for seed in (0, 0, 1))
    assert first == again and first.fingerprint != other.fingerprint


def test_search_never_opens_the_test_file(tmp_path: Path) -> None:
    path = rows_file(tmp_path, balanced(60))
    data = DataConfig(kind="file", train=path, test=str(tmp_path / "not there.tsv"))
    loaded = load_search_data(data)
    assert len(loaded.train) + len(loaded.validation) == 60  # nothing set aside: the test is elsewhere
    with pytest.raises(DataError, match=r"data\.test=.*not there\.tsv does not exist"):
        load_test_split(data, loaded.label_names)


def test_given_validation_leaves_no_test(tmp_path: Path) -> None:
    train, validation = rows_file(tmp_path, balanced(20)), rows_file(tmp_path, balanced(6), "v.tsv")
    data = DataConfig(kind="file", train=train, validation=validation)
    loaded = load_search_data(data)
    assert (len(loaded.train), len(loaded.validation)) == (20, 6)
    with pytest.raises(DataError, match=r"no test split.*data\.test=PATH"):
        load_test_split(data, loaded.label_names)
    set_aside = DataConfig(kind="file", train=train, validation=validation, test_fraction=0.2)
    assert len(load_search_data(set_aside).train) == 16 and len(load_test_split(set_aside, loaded.label_names)) == 4


def test_limits_draw_by_seed_and_keep_order(tmp_path: Path) -> None:
    path = rows_file(tmp_path, [(f"{n:03}", "ab"[n >= 100]) for n in range(200)])
    loaded = load_search_data(DataConfig(kind="file", train=path, max_train_rows=50, max_eval_rows=10))
    assert len(loaded.train) == 50 and len(loaded.validation) == 10
    assert loaded.train.texts == sorted(loaded.train.texts) and set(loaded.train.labels) == {0, 1}


@pytest.mark.parametrize(
    ("written", "given", "names", "ids"),
    [
        (("bad", "good"), [], ["bad", "good"], {0, 1}),
        (("10", "9", "2"), [], ["2", "9", "10"], {0, 1, 2}),
        (("0", "1"), ["negative", "positive"], ["negative", "positive"], {0, 1}),
        (("good", "bad"), ["good", "bad"], ["good", "bad"], {0, 1}),
    ],
)
def test_label_names(
    tmp_path: Path, written: tuple[str, ...], given: list[str], names: list[str], ids: set[int]
) -> None:
    path = rows_file(tmp_path, balanced(60, written))
    loaded = load_search_data(DataConfig(kind="file", train=path, label_names=given))
    assert loaded.label_names == names and set(loaded.train.labels) == ids
    for text, label in zip(loaded.train.texts, loaded.train.labels, strict=True):
        meant = written[int(text.split()[1]) % len(written)]
        assert meant in (names[label], str(label))


def test_jsonl_labels_of_any_type_meet_csv_labels(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("".join(f'{{"text": "r{n}", "label": {n % 2}.0}}\n' for n in range(20)))
    validation = rows_file(tmp_path, [("x", "0"), ("y", " 1 ")], "v.tsv")
    data = DataConfig(kind="file", train=str(tmp_path / "t.jsonl"), validation=validation)
    assert load_search_data(data).validation.labels == [0, 1]


def test_squad_answers_become_answerable_or_not(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{n}", "context": "c", "answers": {"text": ["a"] * (n % 2), "answer_start": [0] * (n % 2)}}
        for n in range(20)
    ]
    (tmp_path / "squad.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = DataConfig(
        kind="file",
        train=str(tmp_path / "squad.jsonl"),
        text_column="question",
        pair_column="context",
        label_column="answers",
        label_names=["unanswerable", "answerable"],
        validation_fraction=0.2,
        test_fraction=0,
    )
    loaded = load_search_data(data)
    assert loaded.train.pairs == ["c"] * 16
    assert all(label == int(text[1:]) % 2 for text, label in zip(loaded.train.texts, loaded.train.labels, strict=True))


class TestBadInput:
    def load(self, folder: Path, rows: list[tuple[str, str]], **settings: object) -> None:
        header = str(settings.pop("header", "text\tlabel"))
        load_search_data(DataConfig(kind="file", train=rows_file(folder, rows, header=header), **settings))  # type: ignore[arg-type]

    def test_no_train_file_given(self) -> None:
        with pytest.raises(DataError, match=r"data\.kind=file needs data\.train=PATH"):
            load_search_data(DataConfig(kind="file"))

    def test_missing_columns_show_those_there_are(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError,
            match=r"no column `text` \(data\.text_column=text\); its columns are: texts, label.*did you mean `texts`",
        ):
            self.load(tmp_path, balanced(10), header="texts\tlabel")
        with pytest.raises(
            DataError, match=r"no column `label` \(data\.label_column=label\); its columns are: text, y"
        ):
            self.load(tmp_path, balanced(10), header="text\ty")
        with pytest.raises(DataError, match=r"no column `context` \(data\.pair_column=context\)"):
            self.load(tmp_path, balanced(10), pair_column="context")

    def test_one_class(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"all 32 training rows have the label `good`; a classifier needs at least two"
        ):
            self.load(tmp_path, balanced(40, ("good",)))

    def test_too_few_rows_to_carve(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"too few rows to carve a test split: 4 rows in 2 classes.*data\.test=PATH"
        ):
            self.load(tmp_path, balanced(4))
        with pytest.raises(DataError, match="of the class `c` 1"):
            self.load(tmp_path, [*balanced(60), ("odd", "c")])

    def test_fractions_that_leave_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"data\.validation_fraction=0\.6 and data\.test_fraction=0\.5 leave no row"
        ):
            self.load(tmp_path, balanced(40), validation_fraction=0.6, test_fraction=0.5)

    def test_empty_text(self, tmp_path: Path) -> None:
        rows = [*balanced(40), ("  ", "good"), ("fine", "")]
        with pytest.raises(
            DataError, match=r"row 41 .*has an empty `text`, as have 1 more rows.*data\.drop_empty=true"
        ):
            self.load(tmp_path, rows)

    def test_empty_rows_can_be_dropped_and_are_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        path = rows_file(tmp_path, [*balanced(40), ("  ", "good"), ("fine", "")])
        loaded = load_search_data(DataConfig(kind="file", train=path, drop_empty=True))
        assert len(loaded.train) + len(loaded.validation) == 36
        assert "left out 2 of 42 rows" in caplog.text

    def test_all_rows_empty(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="all 2 rows have an empty cell"):
            self.load(tmp_path, [(" ", "a"), (" ", "b")], drop_empty=True)

    def test_label_not_among_the_names(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"row 1 has the label `bad`, which is not among the classes good, poor"):
            self.load(tmp_path, balanced(40), label_names=["good", "poor"])
        with pytest.raises(DataError, match="has `good` twice"):
            self.load(tmp_path, balanced(40), label_names=["good", "good"])

    def test_withheld_labels(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"label `-1` \(-1 marks rows whose label is withheld\)"):
            self.load(tmp_path, balanced(40, ("-1", "1")), label_names=["negative", "positive"])

    def test_validation_label_unseen_in_training(self, tmp_path: Path) -> None:
        validation = rows_file(tmp_path, [*balanced(4), ("new", "so-so")], "v.tsv")
        with pytest.raises(
            DataError,
            match=r"v\.tsv: row 5 has the label `so-so`, which no training row of .*rows\.tsv has \(there: bad, good\)",
        ):
            self.load(tmp_path, balanced(10), validation=validation)
        with pytest.raises(DataError, match=r"v\.tsv: row 5 has the label `so-so`, which no training row"):
            self.load(tmp_path, balanced(10), validation=validation, label_names=["bad", "good", "so-so"])

    def test_test_label_the_model_does_not_know(self, tmp_path: Path) -> None:
        data = DataConfig(kind="file", test=rows_file(tmp_path, [("a", "bad"), ("b", "worse")]))
        with pytest.raises(DataError, match="row 2 has the label `worse`, which is not among the classes bad, good"):
            load_test_split(data, ["bad", "good"])

    def test_text_column_taken_for_labels(self, tmp_path: Path) -> None:
        rows = [(f"t{n}", f"l{n}") for n in range(1200)]
        with pytest.raises(DataError, match=r"1200 different labels in 1200 rows; .*Check data\.label_column"):
            self.load(tmp_path, rows)

    def test_class_without_rows_is_a_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.load(tmp_path, balanced(40), label_names=["bad", "good", "mixed"])
        assert "no training row has the label mixed" in caplog.text


def test_split_fingerprint_sees_every_part() -> None:
    base = Split(["ab", "c"], None, [0, 1])
    others = [
        Split(["a", "bc"], None, [0, 1]),
        Split(["c", "ab"], None, [0, 1]),
        Split(["ab", "c"], ["", ""], [0, 1]),
        Split(["ab", "c"], None, [1, 0]),
    ]
    assert len({split.fingerprint() for split in [base, *others]}) == 5
    assert base.select([1, 0]) == Split(["c", "ab"], None, [1, 0])


@pytest.mark.skipif(not (SHARED / "data/sst2/train.tsv").is_file(), reason=f"no SST-2 in {SHARED}/data/sst2")
def test_sst2() -> None:
    folder = SHARED / "data/sst2"
    data = DataConfig(
        kind="file",
        train=str(folder / "train.tsv"),
        validation=str(folder / "dev.tsv"),
        text_column="sentence",
        label_names=["negative", "positive"],
    )
    loaded = load_search_data(data)
    assert (len(loaded.train), len(loaded.validation)) == (6920, 872)
    assert sum(loaded.validation.labels) == 444
