"""task=qa: prompts with contexts, generation by packs, the probability of no answer, and SQuAD's real questions."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginelab import config, export_now, run
from lorasweep.config.schema import Config, DataConfig, ObjectiveConfig
from lorasweep.data.answers import Answer
from lorasweep.data.sources import load_search_data
from lorasweep.errors import DataError
from lorasweep.models.base import load_base, load_tokenizer
from lorasweep.tasks import make_task
from lorasweep.tasks.base import Sitting
from lorasweep.training.evaluate import evaluate
from lorasweep.training.pack import Pack
from tasklab import peft_causal

DATA = load_search_data(DataConfig(kind="demo_qa", demo_rows=48))
TINY = "builtin:tiny_decoder"
SQUAD = Path(__file__).parents[2].parent / "shared/data/squad_v2/dev-v2.0.json"


def qa_trial(**changes: Any) -> Config:
    made = config(TINY, task__kind="qa", task__predict="generate", task__template="question", data__kind="demo_qa")
    made.data.max_length, made.task.max_new_tokens = 160, 8
    for key, value in changes.items():
        group, _, name = key.partition("__")
        setattr(getattr(made, group), name, value)
    return made


@pytest.mark.slow
def test_a_pack_answers_as_transformers_does_one_by_one(tmp_path: Path) -> None:
    trials = [qa_trial(train__max_steps=4, train__batch_size=8, optimizer__lr=5e-3, train__seed=k) for k in range(2)]
    one, split = trials[0], DATA.validation.select(list(range(8)))
    task, tokenizer = make_task(one, DATA.label_names), load_tokenizer(one.model)
    base = load_base(one, task.head, task.label_names)
    exam = task.exam(split, tokenizer, one.data, None)
    pack = Pack(base, task, task.encode(DATA.train, tokenizer, one.data, None), exam, ObjectiveConfig("eval/f1"), 2)
    for number, each in enumerate(trials):
        pack.admit(number, each)
    run(pack)
    results = evaluate(pack.engine, task, pack.sheets, pack.roster.held, 600, pack.lanes)
    for number, (metrics, sheet) in enumerate(results):
        model = peft_causal(trials[number], export_now(pack, number, tmp_path / f"adapter{number}")).eval()
        losses: list[float] = []
        for row in range(len(split)):
            text = f"Context: {split.pairs[row]}\nQuestion: {split.texts[row]}\nAnswer:"  # type: ignore[index]
            prompt = tokenizer(text)["input_ids"]
            right = split.answers[row][0].text if split.answers[row] else "unanswerable"  # type: ignore[index]
            steps, none = (token_losses(model, tokenizer, prompt, answer) for answer in (right, "unanswerable"))
            losses += steps
            assert sheet.predictions.no_answer[row] == pytest.approx(np.exp(-sum(none)), rel=1e-3)
            ids = torch.tensor([prompt])
            out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
            said = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True).strip()
            assert sheet.predictions.texts[row] == ("" if said == "unanswerable" else said)
        assert metrics["eval/loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
        assert {"eval/exact_match", "eval/f1", "eval/best_f1", "eval/bleu", "eval/meteor"} <= metrics.keys()


def token_losses(model: Any, tokenizer: Any, prompt: list[int], answer: str) -> list[float]:
    ids = [*prompt, *tokenizer(" " + answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        chances = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return [-float(chances[at - 1, ids[at]]) for at in range(len(prompt), len(ids))]


def test_rows_whose_answer_was_cut_away_are_left_out_of_training_and_counted() -> None:
    one = qa_trial(data__max_length=50)
    task, tokenizer = make_task(one, []), load_tokenizer(one.model)
    encoded = task.encode(DATA.train, tokenizer, one.data, None)
    left = len(DATA.train) - len(encoded)
    assert 0 < left < len(DATA.train)
    assert any(f"{left} were left out, for the part that was cut held their answer" in note for note in encoded.notes)
    exam = task.exam(DATA.train, tokenizer, one.data, None)
    assert exam.prompts is not None and len(exam.prompts) == len(exam.references) == len(DATA.train)
    assert int(exam.prompts.lengths.max()) + one.task.max_new_tokens <= 50
    answerable = DATA.train.select([row for row in range(len(DATA.train)) if DATA.train.labels[row]])
    with pytest.raises(DataError, match=r"none of \d+ training rows shows its answer within data\.max_length=40"):
        task.encode(answerable.select([0]), tokenizer, qa_trial(data__max_length=40).data, None)


def test_answers_outside_their_context_are_counted() -> None:
    split = copy.deepcopy(DATA.train.select([row for row in range(20) if DATA.train.labels[row]]))
    assert split.answers is not None
    split.answers[0] = [Answer("nowhere to be found", 3)]
    one = qa_trial()
    encoded = make_task(one, []).encode(split, load_tokenizer(one.model), one.data, None)
    assert len(encoded) == len(split)
    assert any(f"1 of {len(split)} questions have an answer that is not in their context" in it for it in encoded.notes)


def test_what_was_written_is_read_as_an_answer_or_none() -> None:
    one, split = qa_trial(), DATA.validation.select([0, 1, 2])
    task, tokenizer = make_task(one, []), load_tokenizer(one.model)
    exam = task.exam(split, tokenizer, one.data, None)
    units = np.array([int((exam.rows.labels[a:b] != -100).sum()) for a, b in spans(exam.rows)])
    generated = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("Unanswerable.", "", "oslo")]
    answers, _ = task.read(exam, Sitting(None, np.full(units.sum(), 0.25, np.float32), units, generated))
    assert answers.texts == ["", "", "oslo"] and answers.empty == 1
    none = exam.rows.extras["is_none"].numpy().astype(bool)
    np.testing.assert_allclose(answers.no_answer, np.exp(-0.25 * units[none]), rtol=1e-5)


def spans(rows: Any) -> list[tuple[int, int]]:
    return list(zip(rows.offsets[:-1].tolist(), rows.offsets[1:].tolist(), strict=True))


def test_above_the_threshold_no_answer_is_given() -> None:
    from lorasweep.tasks import Answers

    answers = Answers(["oslo", "rome"], np.array([0.9, 0.1], np.float32))
    for threshold, wanted in ((1.0, 0.5), (0.5, 1.0), (0.05, 0.5)):
        task = make_task(qa_trial(task__no_answer_threshold=threshold), [])
        found = task.metrics(answers, [[], ["Rome"]], np.ones(1, np.float32))
        assert found["eval/exact_match"] == wanted and found["eval/best_exact_match"] == 1.0


@pytest.mark.skipif(not SQUAD.is_file(), reason="SQuAD v2's dev file is not here")
def test_squads_own_file_is_read_by_path() -> None:
    data = DataConfig(
        kind="file",
        train=str(SQUAD),
        text_column="question",
        pair_column="context",
        answers_column="answers",
        max_length=256,
        max_eval_rows=40,
    )
    loaded = load_search_data(data)
    assert loaded.label_names == ["unanswerable", "answerable"]
    total = len(loaded.train) + 40
    assert 4800 < total < 6078 and 0.45 < np.mean(loaded.train.labels) < 0.5
    assert loaded.train.answers is not None and loaded.train.pairs is not None
    for answers, context in zip(loaded.train.answers, loaded.train.pairs, strict=True):
        for answer in answers:
            assert answer.start is not None and context.startswith(answer.text, answer.start)
    task = make_task(qa_trial(), loaded.label_names)
    exam = task.exam(loaded.validation, load_tokenizer(qa_trial().model), data, None)
    assert exam.prompts is not None and int(exam.prompts.lengths.max()) <= 256 - 8
    perfect = [answers[0] if answers else "" for answers in exam.references]
    from lorasweep.tasks import Answers

    found = task.metrics(Answers(perfect, np.zeros(40, np.float32)), exam.references, np.ones(1, np.float32))
    assert found["eval/exact_match"] == found["eval/f1"] == 1.0
