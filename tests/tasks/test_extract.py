"""task=qa_extractive: windows, spans and their scores against plain transformers, on small encoders of every kind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from enginelab import assert_same_adapter, config, config_of, export_now, mixed_trials, peft_vector, run
from lorasweep.config.schema import Config, DataConfig, ObjectiveConfig
from lorasweep.data.answers import Answer
from lorasweep.data.sources import Split, load_search_data
from lorasweep.errors import ConfigError, DataError, ModelError
from lorasweep.models.base import load_base, load_tokenizer
from lorasweep.tasks import make_task
from lorasweep.tasks.base import Sitting
from lorasweep.training.evaluate import evaluate
from lorasweep.training.pack import Pack
from lorasweep.training.slot import DataOrder

BIAS = "base_model.model.qa_outputs.bias"
ENCODERS = ["bert", "distilbert", "roberta", "electra", "albert"]
TINY = "builtin:tiny_encoder"
QUESTIONS = load_search_data(DataConfig(kind="demo_qa", demo_rows=60)).train


def qa_trial(path: str, **changes: Any) -> Config:
    made = config(path, **{"task__kind": "qa", "task__predict": "extract", "data__kind": "demo_qa", **changes})
    made.task.stride = changes.get("task__stride", 8)
    return made


def build_encoder(family: str, folder: Path) -> str:
    """A small random encoder without a head, over the tiny encoder's words."""
    from transformers import AutoModel, AutoTokenizer

    from lorasweep.models.builtin import resolve

    tokenizer, made = AutoTokenizer.from_pretrained(resolve(TINY)), config_of(family)
    made.vocab_size, made.pad_token_id, made.max_position_embeddings = len(tokenizer), tokenizer.pad_token_id, 130
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModel.from_config(made)
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return str(folder)


def pack_of(trials: list[Config], train: Split, validation: Split) -> Pack:
    one = trials[0]
    task, tokenizer = make_task(one, ["unanswerable", "answerable"]), load_tokenizer(one.model)
    base = load_base(one, task.head, task.label_names)
    goal = ObjectiveConfig(metric="eval/loss", direction="minimize")
    encoded = task.encode(train, tokenizer, one.data, None)
    pack = Pack(base, task, encoded, task.exam(validation, tokenizer, one.data, None), goal, len(trials))
    for number, each in enumerate(trials):
        pack.admit(number, each)
    return pack


def peft_qa(one: Config, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForQuestionAnswering

    from lorasweep.models.builtin import resolve

    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForQuestionAnswering.from_pretrained(resolve(one.model.path), attn_implementation="eager")
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=True)


def logits_of(model: Any, encoded: Any, row: int) -> torch.Tensor:
    """Start and end logits of one window, (tokens, 2), as transformers gives them. Past PEFT's own wrapper, which up to
    0.21 drops token_type_ids."""
    more, inner = {}, model.get_base_model()
    if encoded.type_ids is not None:
        own = slice(int(encoded.offsets[row]), int(encoded.offsets[row + 1]))
        more = {"token_type_ids": encoded.type_ids[own][None]}
    if inner.config.model_type == "distilbert":
        more = {}
    out = inner(input_ids=encoded.row(row)[None], **more)
    return torch.stack([out.start_logits[0], out.end_logits[0]], -1)


def loss_of(model: Any, encoded: Any, chosen: torch.Tensor) -> torch.Tensor:
    """As transformers defines it for a window: the mean of the start's and the end's cross-entropy."""
    losses = []
    for row in chosen.tolist():
        logits, labels = logits_of(model, encoded, row), encoded.labels[row]
        losses += [cross_entropy(logits[:, side][None], labels[side][None]) for side in (0, 1)]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.slow
def test_pack_of_three_equals_peft(family: str, tmp_path: Path) -> None:
    path = build_encoder(family, tmp_path / "base")
    trials = mixed_trials(path, 3, train__max_steps=4, train__accumulation=1)
    for one in trials:
        one.task, one.data = qa_trial(path).task, qa_trial(path, data__max_length=40).data
    pack = pack_of(trials, QUESTIONS.select(list(range(20))), QUESTIONS.select([30, 31, 32]))
    starts = [export_now(pack, number, tmp_path / f"start{number}") for number in range(3)]
    steps = run(pack)
    encoded = pack.task.encode(QUESTIONS.select(list(range(20))), load_tokenizer(trials[0].model), trials[0].data, None)
    assert len(encoded) > 20, "no context is read in windows: the test would miss them"
    for number, one in enumerate(trials):
        model = peft_qa(one, starts[number])
        assert model.peft_config["default"].task_type == "QUESTION_ANS"
        losses = by_hand(model, one, encoded)
        assert [event.loss for event in steps[number]] == pytest.approx(losses, rel=2e-5)
        ours, theirs = export_now(pack, number, tmp_path / f"end{number}"), peft_vector(model, tmp_path / f"t{number}")
        # softmax over tokens does not feel the head's bias: its gradient is rounding, which Adam makes as large as any
        theirs[BIAS] = load_file(str(ours / "adapter_model.safetensors"))[BIAS]
        assert_same_adapter(ours, theirs, tolerance=3e-4)


def by_hand(model: Any, one: Config, encoded: Any) -> list[float]:
    from transformers import get_scheduler

    model.eval()
    settings, order = one.optimizer, DataOrder(len(encoded), one.train.seed)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in named if not name.endswith("bias")], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in named if name.endswith("bias")], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    name = {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule)
    scheduler = get_scheduler(name, optimizer, settings.warmup_steps, one.train.max_steps)
    losses = []
    for _ in range(one.train.max_steps):
        loss = loss_of(model, encoded, order.draw(one.train.batch_size))
        loss.backward()
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_([p for _, p in named], settings.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_answers_are_those_of_an_exhaustive_search(family: str, tmp_path: Path) -> None:
    """Every pair of a start and an end in a context, over all windows, by the logits of plain transformers."""
    path, split = build_encoder(family, tmp_path / "base"), QUESTIONS.select(list(range(30, 42)))
    changes = {"data__max_length": 40, "task__n_best": 40, "task__max_answer_tokens": 5, "optimizer__lr": 2e-2}
    trials = [qa_trial(path, **changes, train__seed=k, train__max_steps=3) for k in range(2)]
    pack = pack_of(trials, QUESTIONS.select(list(range(20))), split)
    run(pack)
    exam = pack.sheets.exam
    results = evaluate(pack.engine, pack.task, pack.sheets, pack.roster.held, 200, pack.lanes)
    for number, (metrics, sheet) in enumerate(results):
        model = peft_qa(trials[number], export_now(pack, number, tmp_path / f"adapter{number}")).eval()
        with torch.no_grad():
            found = [by_search(model, exam, row, split) for row in range(len(split))]
            everything = torch.arange(len(exam.rows))
            assert metrics["eval/loss"] == pytest.approx(float(loss_of(model, exam.rows, everything)), rel=1e-5)
        assert sheet.predictions.texts == [text for text, _ in found]
        np.testing.assert_allclose(sheet.predictions.no_answer, [chance for _, chance in found], atol=1e-4)
    assert results[0][1].predictions.texts != results[1][1].predictions.texts


def by_search(model: Any, exam: Any, row: int, split: Split) -> tuple[str, float]:
    rows, best, none = exam.rows, (-float("inf"), ""), float("inf")
    for window in (rows.extras["row"] == row).nonzero().squeeze(1).tolist():
        logits = logits_of(model, rows, window).double()
        _, _, first, past, cls = rows.labels[window].tolist()
        none = min(none, float(logits[cls].sum()))
        characters = rows.extras["characters"][int(rows.offsets[window]) : int(rows.offsets[window + 1])]
        for start in range(first, past):
            for end in range(start, min(start + 5, past)):
                score = float(logits[start, 0] + logits[end, 1])
                assert split.pairs is not None
                text = split.pairs[row][int(characters[start, 0]) : int(characters[end, 1])]
                best = max(best, (score, text), key=lambda pair: pair[0])
    return best[1], 1 / (1 + float(np.exp(best[0] - none)))


# -- windows ----------------------------------------------------------------------------------------------------------


def encode_tiny(split: Split, **changes: Any) -> Any:
    one = qa_trial(TINY, **changes)
    return make_task(one, []).encode(split, load_tokenizer(one.model), one.data, None)


def test_labels_mark_the_answer_in_each_window_that_holds_it_whole() -> None:
    split = QUESTIONS.select([row for row in range(40) if QUESTIONS.labels[row]])
    encoded, tokenizer = encode_tiny(split, data__max_length=40), load_tokenizer(qa_trial(TINY).model)
    marked: dict[int, int] = {}
    for window in range(len(encoded)):
        row, ids = int(encoded.extras["row"][window]), encoded.row(window)
        start, end, first, past, cls = encoded.labels[window].tolist()
        assert ids[cls] == tokenizer.cls_token_id and len(ids) <= 40
        if start == cls:
            continue
        assert first <= start <= end < past
        marked[row] = marked.get(row, 0) + 1
        answer = split.answers[row][0].text  # type: ignore[index]
        assert tokenizer.decode(ids[start : end + 1]).replace(" ", "") == answer.lower().replace(" ", "")
    assert marked.keys() == set(range(len(split))), "some answer is in no window"
    assert len(encoded) > len(split) and any("read in windows" in note for note in encoded.notes)


def test_unanswerable_rows_point_at_the_first_token() -> None:
    split = QUESTIONS.select([row for row in range(20) if not QUESTIONS.labels[row]])
    assert encode_tiny(split, data__max_length=128).labels[:, :2].abs().sum() == 0


def test_answers_outside_their_context_are_left_out_of_training_and_counted() -> None:
    split = copy.deepcopy(QUESTIONS.select([row for row in range(20) if QUESTIONS.labels[row]]))
    assert split.answers is not None
    split.answers[0] = [Answer("nowhere to be found", 3)]
    split.answers[1] = [Answer(split.answers[1][0].text, 10_000)]  # there, at another place than the data say
    encoded = encode_tiny(split, data__max_length=128)
    assert sorted(encoded.extras["row"].tolist()) == list(range(1, len(split)))
    assert any("1 of" in note and "not in their context" in note for note in encoded.notes)
    one = qa_trial(TINY, data__max_length=128)
    exam = make_task(one, []).exam(split, load_tokenizer(one.model), one.data, None)
    assert len(exam.rows) == len(split) and exam.references[0] == ["nowhere to be found"]
    with pytest.raises(DataError, match=r"none of 1 training rows has its answer in its context"):
        encode_tiny(split.select([0]))


def test_long_questions_are_cut_and_a_stride_must_move_on() -> None:
    split = Split(["why " * 60], ["Because it is so."], [0], [[]])
    encoded = encode_tiny(split, data__max_length=40)
    assert int(encoded.lengths.max()) <= 40 and "1 of 1 questions were cut to 20 tokens" in encoded.notes[0]
    with pytest.raises(ConfigError, match=r"task\.stride=17 must be below 17.*lower it, or raise data\.max_length"):
        encode_tiny(split, data__max_length=40, task__stride=17)


def test_contexts_without_any_token_have_no_answer() -> None:
    split = Split(["why?"], ["\u200b"], [0], [[]])
    one = qa_trial(TINY, data__max_length=40)
    task, tokenizer = make_task(one, []), load_tokenizer(one.model)
    exam = task.exam(split, tokenizer, one.data, None)
    longest = int(exam.rows.lengths.max())
    outputs = task.predictions(torch.zeros(len(exam.rows), longest, 2), exam.rows.labels)
    assert outputs is not None
    sitting = Sitting(outputs.numpy(), np.zeros(len(exam.rows), np.float32), np.ones(len(exam.rows), np.int64))
    answers, _ = task.read(exam, sitting)
    assert answers.texts == [""] and answers.no_answer.tolist() == [1.0]


def test_a_decoder_cannot_mark_answers(tmp_path: Path) -> None:
    one = qa_trial("builtin:tiny_decoder")
    with pytest.raises(ModelError, match=r"is a decoder \(llama\).*use an encoder .*or task=qa"):
        load_base(one, "question_answering", [])


def test_data_without_answers_are_refused() -> None:
    with pytest.raises(DataError, match=r"needs questions with contexts and answers.*data=squad_v2"):
        encode_tiny(Split(["a"], ["b"], [0]))
