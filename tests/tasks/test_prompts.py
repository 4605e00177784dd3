"""Prompts: templates and their mistakes, verbalisers, cutting to the window, what follows what."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from lorasweep.config import compose
from lorasweep.config.schema import Config
from lorasweep.data.sources import Split
from lorasweep.errors import ConfigError, DataError, ModelError
from lorasweep.models.base import load_base, load_tokenizer
from lorasweep.models.builtin import resolve
from lorasweep.tasks import Answers, make_task
from lorasweep.tasks.base import Sitting
from lorasweep.tasks.causal import log_likelihoods
from lorasweep.tasks.instruct import Instruct, responses_of
from lorasweep.tasks.prompts import end_ids
from lorasweep.tasks.templates import Row, Template

DECODER = "builtin:tiny_decoder"
SPLIT = Split(["a superb film", "what a dull mess", "{fine} braces"], None, [1, 0, 1])
NAMES = ["negative", "positive"]


def tokenizer_of(name: str = "tiny_decoder") -> Any:
    return AutoTokenizer.from_pretrained(resolve(f"builtin:{name}"))


def config(**changes: Any) -> Config:
    made = Config()
    made.model.path, made.data.max_length = DECODER, 200
    made.task.kind, made.task.template = "instruct", "plain"
    for key, value in changes.items():
        group, _, name = key.partition("__")
        assert hasattr(getattr(made, group), name), key
        setattr(getattr(made, group), name, value)
    return made


def task_of(names: list[str] = NAMES, **changes: Any) -> Instruct:
    made = make_task(config(**changes), names)
    assert isinstance(made, Instruct)
    return made


# -- templates --------------------------------------------------------------------------------------------------------


def test_alpaca_is_stanfords_word_for_word() -> None:
    template = Template("alpaca", "", paired=False, labels=[], instructed=True)
    assert template.render(Row("An input.", None, "Do it.")) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nDo it.\n\n### Input:\nAn input."
        "\n\n### Response:\n"
    )
    assert template.render(Row(" ", None, "Do it.")) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo it.\n\n### Response:\n"
    )


def test_braces_of_rows_are_text_and_those_of_templates_may_be_doubled() -> None:
    template = Template("{{}} {text} | {labels}: ", "", paired=False, labels=["x", "y"], instructed=False)
    assert template.render(Row("{input} {", None, "")) == "{} {input} { | x, y:" and template.lead == " "


def test_line_breaks_may_be_written_as_override_grammar_leaves_them() -> None:
    one = Template(r"{input}\nSentiment: ", "", paired=False, labels=[], instructed=False)
    assert one.render(Row("dull", None, "")) == "dull\nSentiment:"


@pytest.mark.parametrize(
    ("template", "paired", "said"),
    [
        ("Respond now", False, r"neither the name of a template nor a text with slots"),
        ("alpacca", False, r"neither the name .*did you mean `alpaca`"),
        ("{instruction} go", False, r"has no slot for the row.*\{input\}"),
        ("{imput}", False, r"has the slot \{imput\}, which is not known.*did you mean `input`"),
        ("{}", False, r"has the slot \{\}, which is not known"),
        ("{input", False, r"task\.template='\{input': .*\{\{ and \}\} for braces"),
        ("{question}:", True, r"shows text and never the row's pair; add the slot \{pair\}"),
        ("{context}:", True, r"never the row's text"),
        ("{text} {pair}", False, r"asks for a second text, and rows have one"),
    ],
)
def test_templates_without_their_slots_are_refused(template: str, paired: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Template(template, "", paired=paired, labels=[], instructed=False)


def test_an_instruction_that_no_slot_shows_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no \{instruction\} and there is one to be shown"):
        task_of(task__template="{input}:", task__instruction="Be kind.")
    with pytest.raises(ConfigError, match=r"free responses .* need an instruction"):
        task_of([], data__output_column="output", task__predict="none")


# -- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verbalizer", "said"),
    [
        (
            {"negativ": "bad", "positive": "good"},
            r"'negativ', .* not among the classes .*did you mean `negative`",
        ),
        ({"negative": "bad"}, r"has no response for the class 'positive'; add positive: WORDS"),
        ({"negative": "Good", "positive": "good "}, r"has the response 'good' for two classes"),
        ({"negative": " ", "positive": "good"}, r"no response for the class 'negative'"),
    ],
)
def test_verbalizers_must_fit_the_label_map(verbalizer: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        responses_of(verbalizer, NAMES)


def test_a_label_that_begins_another_is_refused_unless_its_end_counts() -> None:
    names, split = ["good", "good film"], Split(["x", "y"], None, [0, 1])
    task_of(names).exam(split, tokenizer_of(), config().data, None)
    with pytest.raises(ConfigError, match=r"'good' is how 'good film' begins.*Set task\.score_end=true"):
        task_of(names, task__score_end=False).exam(split, tokenizer_of(), config().data, None)
    endless = tokenizer_of()
    endless.eos_token = None
    with pytest.raises(ConfigError, match=r"'good' is how 'good film' begins"):
        task_of(names).exam(split, endless, config().data, None)
    with pytest.raises(ModelError, match=r"needs a tokenizer with an end-of-text token"):
        task_of(names, task__predict="generate").exam(split, endless, config().data, None)


def test_likelihoods_are_sums_or_means_with_or_without_the_end() -> None:
    losses, units = np.array([1.0, 2.0, 3.0, 4.0, 5.0], dtype=np.float32), np.array([2, 3])
    assert log_likelihoods(losses, units, mean=False, with_end=True).tolist() == [-3, -12]
    assert log_likelihoods(losses, units, mean=True, with_end=True).tolist() == [-1.5, -4]
    assert log_likelihoods(losses, units, mean=False, with_end=False).tolist() == [-1, -7]
    assert log_likelihoods(losses, units, mean=True, with_end=False).tolist() == [-1, -3.5]


# -- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_decoder", "tiny_gpt2"])
def test_responses_follow_as_if_written_in_one_piece(name: str) -> None:
    tokenizer, data = tokenizer_of(name), config().data
    task = task_of()
    encoded = task.encode(SPLIT, tokenizer, data, None)
    for row, label in enumerate(SPLIT.labels):
        prompt = task.template.render(task._rows(SPLIT)[row])
        wanted = tokenizer(f"{prompt} {NAMES[label]}")["input_ids"]
        assert encoded.row(row).tolist() == [*wanted, tokenizer.eos_token_id]
        asked = encoded.labels[int(encoded.offsets[row]) : int(encoded.offsets[row + 1])]
        own = asked[asked != -100].tolist()
        assert tokenizer.decode(own, skip_special_tokens=True).strip() == NAMES[label]
        assert (asked[-len(own) :] != -100).all()


def test_a_pad_token_is_not_needed_and_the_end_stays_in_the_loss(tmp_path: Any) -> None:
    """Where the end-of-text token pads, it is still asked for behind each response."""
    import shutil

    shutil.copytree(resolve("builtin:tiny_gpt2"), tmp_path / "base")
    tokenizer = tokenizer_of("tiny_gpt2")
    tokenizer.pad_token = None
    tokenizer.save_pretrained(str(tmp_path / "base"))
    one = config(model__path=str(tmp_path / "base"))
    one.launcher.device = "cpu"
    loaded = load_tokenizer(one.model)
    assert loaded.pad_token_id == loaded.eos_token_id
    encoded = task_of().encode(SPLIT, loaded, one.data, None)
    assert (encoded.labels[encoded.offsets[1:] - 1] == loaded.eos_token_id).all()
    assert load_base(one, "causal_lm", []).pad_token_id == loaded.eos_token_id


def test_long_texts_lose_their_end_alone_and_are_counted() -> None:
    tokenizer = tokenizer_of()
    split = Split(["dull " * 300 + "end", "superb"], None, [0, 1])
    task = task_of()
    for encoded in (
        task.encode(split, tokenizer, config(data__max_length=60).data, None),
        task.exam(split, tokenizer, config(data__max_length=60).data, None).rows,
    ):
        assert 50 < int(encoded.lengths[0]) <= 60 and encoded.truncated_rows == 1
        words = tokenizer.decode(encoded.row(0))
        assert "answer with one of" in words and words.endswith("answer: negative</s>") and "end\n" not in words
        assert any("1 of 2 texts were cut to fit data.max_length=60" in note for note in encoded.notes)


def test_a_prompt_that_leaves_no_room_for_the_response_is_an_error() -> None:
    with pytest.raises(DataError, match=r"row 1: the template and the instruction take \d+ tokens .*leaves no room"):
        task_of(task__template="alpaca").encode(SPLIT, tokenizer_of(), config(data__max_length=40).data, None)
    with pytest.raises(DataError, match=r"leaves no room.*or task\.max_new_tokens"):
        generating = task_of(task__predict="generate", task__max_new_tokens=50)
        generating.exam(SPLIT, tokenizer_of(), config(data__max_length=60).data, None)


def test_free_responses_are_cut_to_half_the_window() -> None:
    split = Split(["x", ""], None, [0, 0], None, ["Repeat.", "Be brief."], ["superb " * 200, "yes"])
    changes = {"data__output_column": "output", "data__instruction_column": "i", "task__predict": "none"}
    task = task_of([], **changes)
    encoded = task.encode(split, tokenizer_of(), config(data__max_length=80).data, None)
    assert (encoded.labels != -100).sum() <= 40 + 3 and int(encoded.lengths.max()) <= 80
    assert any("1 of 2 responses were cut to half" in note for note in encoded.notes)
    assert "be brief." in tokenizer_of().decode(encoded.row(1)) and "\n\n" not in tokenizer_of().decode(encoded.row(1))


def test_chat_models_end_their_turn_in_other_ways() -> None:
    tokenizer = tokenizer_of()
    assert end_ids(tokenizer) == (tokenizer.eos_token_id,)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end_of_turn>"]})
    assert end_ids(tokenizer) == (tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>"))


# -- what was written -------------------------------------------------------------------------------------------------


def read(task: Instruct, written: list[str]) -> Any:
    tokenizer = tokenizer_of()
    split = Split(["x"] * len(written), None, [0] * len(written))
    exam = task.exam(split, tokenizer, config().data, None)
    generated = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in written]
    sitting = Sitting(None, np.ones(int((exam.rows.labels != -100).sum()), np.float32), exam_units(exam), generated)
    predictions, losses = task.read(exam, sitting)
    return predictions, task.metrics(predictions, exam.references, losses)


def exam_units(exam: Any) -> Any:
    counts = [(exam.rows.labels[start:end] != -100).sum() for start, end in zip(*bounds(exam), strict=True)]
    return torch.stack(counts).numpy()


def bounds(exam: Any) -> tuple[list[int], list[int]]:
    return exam.rows.offsets[:-1].tolist(), exam.rows.offsets[1:].tolist()


def test_generated_classes_are_read_strictly_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    table, metrics = read(task_of(task__predict="generate"), [" Negative\n", "negative film", "", "positive"])
    assert table.tolist() == [[1, 0], [0, 0], [0, 0], [0, 1]]
    assert metrics["eval/unparsed"] == 2 and metrics["eval/accuracy"] == 0.25
    assert metrics.keys() == {f"eval/{name}" for name in ("loss", "accuracy", "f1", "precision", "recall", "unparsed")}
    assert "1 of 4 generated answers are empty" in caplog.text


def test_free_texts_are_scored_as_texts() -> None:
    task = task_of([], data__output_column="o", task__instruction="Go.", task__predict="generate")
    found = task.metrics(Answers(["a b", ""], None, empty=1), [["a b"], ["c"]], np.ones(3, np.float32))
    assert found["eval/exact_match"] == 0.5 and found["eval/f1"] == 0.5 and found["eval/empty"] == 1
    assert {"eval/bleu", "eval/rougeL", "eval/meteor"} <= found.keys()
    short = task_of(
        [], data__output_column="o", task__instruction="Go.", task__predict="generate", task__text_metrics=False
    )
    assert "eval/bleu" not in short.metrics(Answers(["a"]), [["a"]], np.ones(3, np.float32))


def test_loss_alone_gives_perplexity() -> None:
    task = task_of([], data__output_column="o", task__instruction="Go.", task__predict="none")
    assert task.metrics(task.blank([["x"]]), [["x"]], np.zeros(2)) == {"eval/loss": 0.0, "eval/perplexity": 1.0}


# -- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task=instruct", "task.predict=extract"], r"`task\.predict` must be one of score, generate, none"),
        (["task=qa"], r"`task=qa` needs `data\.answers_column`"),
        (["task=qa", "data=file", "data.train=x.csv", "data.answers_column=a"], r"needs `data\.pair_column`"),
        (
            ["data=file", "data.train=x.csv", "data.output_column=o"],
            r"free responses, which no head can classify",
        ),
        (
            ["task=instruct", "data=file", "data.train=x.csv", "data.output_column=o"],
            r"compares the responses of classes .*use task\.predict=generate or none",
        ),
    ],
)
def test_tasks_that_do_not_fit_their_data_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        compose.compose(overrides)


def test_an_encoder_cannot_be_prompted() -> None:
    with pytest.raises(ModelError, match=r"is an encoder \(bert\).*cannot continue a prompt; use a decoder"):
        load_base(config(model__path="builtin:tiny_encoder"), "causal_lm", [])


def test_binary_averages_need_two_classes() -> None:
    with pytest.raises(ConfigError, match=r"task\.average=binary needs two classes and the data has 3"):
        task_of(["a", "b", "c"], task__average="binary")
