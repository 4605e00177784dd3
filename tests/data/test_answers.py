"""Answers as data write them, their places, and the columns and files that hold them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lorasweep.config.schema import DataConfig
from lorasweep.data.answers import Answer, answers_of, locate
from lorasweep.data.sources import Split, load_search_data
from lorasweep.errors import DataError


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ({"text": ["a", "b"], "answer_start": [3, 5]}, [Answer("a", 3), Answer("b", 5)]),
        ({"text": [], "answer_start": []}, []),
        ({"text": ["a"]}, [Answer("a")]),
        ([{"text": "a", "answer_start": 3}], [Answer("a", 3)]),
        (["a", "b"], [Answer("a"), Answer("b")]),
        ({"text": "a", "answer_start": 1}, [Answer("a", 1)]),
        ('{"text": ["a"], "answer_start": [3]}', [Answer("a", 3)]),
        ("[not JSON", [Answer("[not JSON")]),
        ("plain", [Answer("plain")]),
        (1867, [Answer("1867")]),
        ("  ", []),
        (None, []),
        (math.nan, []),
        ([{"text": " "}], []),
    ],
)
def test_cells_become_answers(cell: Any, wanted: list[Answer]) -> None:
    assert answers_of(cell, "row 1") == wanted


@pytest.mark.parametrize("cell", [{"answer": "a"}, [3], {"text": ["a"], "answer_start": [1, 2]}, ("a",)])
def test_other_cells_are_refused_by_row(cell: Any) -> None:
    with pytest.raises(DataError, match=r"f\.json: row 7 has "):
        answers_of(cell, "f.json: row 7")


def test_answers_are_found_where_the_data_say_or_nearest_to_it() -> None:
    context = "one two one two"
    assert locate(Answer("two", 12), context) == 12
    assert locate(Answer("two", 11), context) == 12 and locate(Answer("two", 5), context) == 4
    assert locate(Answer("two"), context) == 4 and locate(Answer("three", 0), context) is None
    assert locate(Answer("two", 10_000), context) == 12 and locate(Answer("one", -4), context) == 0


def qa_file(path: Path, **changes: Any) -> DataConfig:
    common = {"text_column": "question", "pair_column": "context", "answers_column": "answers"}
    return DataConfig(kind="file", train=str(path), **{**common, **changes})


def test_squads_json_becomes_rows(tmp_path: Path) -> None:
    asked = [
        {"question": f"q{n}", "id": str(n), "answers": [{"text": "c", "answer_start": 0}] * (n % 2)} for n in range(20)
    ]
    file = tmp_path / "squad.json"
    file.write_text(
        json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": "c d", "qas": asked}]}]})
    )
    loaded = load_search_data(qa_file(file))
    assert len(loaded.train) == 16 and loaded.label_names == ["unanswerable", "answerable"]
    for text, answers, label in zip(loaded.train.texts, loaded.train.answers or [], loaded.train.labels, strict=True):
        assert bool(answers) == bool(label) == bool(int(text[1:]) % 2)


def test_a_csv_holds_one_answer_in_a_plain_column(tmp_path: Path) -> None:
    file = tmp_path / "qa.csv"
    file.write_text("question,context,answers\n" + "".join(f"q{n},c d,{'d' * (n % 2)}\n" for n in range(20)))
    loaded = load_search_data(qa_file(file))
    assert {tuple(row) for row in loaded.train.answers or []} == {(), (Answer("d"),)}


def test_answers_alone_need_no_unanswerable_rows(tmp_path: Path) -> None:
    file = tmp_path / "squad1.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"q{n}", "context": "c", "answers": ["c"]}) + "\n" for n in range(20))
    )
    loaded = load_search_data(qa_file(file))
    assert set(loaded.train.labels) == {1} and loaded.label_names == ["unanswerable", "answerable"]


def test_alpacas_list_has_instructions_inputs_and_outputs(tmp_path: Path) -> None:
    rows = [{"instruction": f"do {n}", "input": "x" * (n % 2), "output": f"done {n}"} for n in range(20)]
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps(rows))
    data = DataConfig(
        kind="file", train=str(file), text_column="input", instruction_column="instruction", output_column="output"
    )
    loaded = load_search_data(data)
    assert loaded.label_names == [] and set(loaded.train.labels) == {0}
    outputs = dict(zip(loaded.train.instructions or [], loaded.train.outputs or [], strict=True))
    assert outputs and all(out == f"done {asked.split()[1]}" for asked, out in outputs.items())
    rows[3]["output"] = ""
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"row 4 .* has an empty `output`"):
        load_search_data(data)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"line 1: not JSON .*One object a line is a \.jsonl file"),
        ('{"rows": []}', r"this is a dict"),
        ("[1, 2]", r"a \.json file is a list of objects"),
        (
            '{"data": [{"paragraphs": [{"qas": [{"question": "q"}]}]}]}',
            r"not SQuAD's form .*: KeyError: 'context'",
        ),
    ],
)
def test_other_json_is_refused(content: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(content)
    with pytest.raises(DataError, match=said):
        load_search_data(qa_file(file))


def test_fingerprints_see_answers_instructions_and_outputs() -> None:
    plain = Split(["a"], ["b"], [1])
    same = Split(["a"], ["b"], [1], [[Answer("b", 0)]])
    others = [
        plain,
        Split(["a"], ["b"], [1], [[Answer("b", 1)]]),
        Split(["a"], ["b"], [1], None, ["b"]),
        Split(["a"], ["b"], [1], None, None, ["b"]),
    ]
    prints = [split.fingerprint() for split in (same, *others)]
    assert len(set(prints)) == 5 and same.select([0]).fingerprint() == prints[0]
