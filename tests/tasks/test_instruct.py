"""task=instruct: losses of responses alone, labels scored as by a loop of single forwards, generation as one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginelab import assert_same_adapter, export_now, mixed_trials, peft_vector, run
from lorasweep.models.base import load_tokenizer
from lorasweep.models.builtin import resolve
from lorasweep.models.stream import RowStore
from lorasweep.training.evaluate import Sheets, continue_prompts, evaluate, read_rows, shared_responses
from lorasweep.training.slot import DataOrder
from tasklab import (
    CAUSAL,
    PADDED,
    WORDS,
    build_causal,
    causal_loss,
    pack_of,
    padded,
    peft_causal,
    task_of,
    texts,
    trial,
)


@pytest.fixture(scope="module")
def causal_path(tmp_path_factory: pytest.TempPathFactory) -> Any:
    built: dict[str, str] = {}

    def path_of(family: str) -> str:
        if family not in built:
            built[family] = build_causal(family, tmp_path_factory.mktemp(family))
        return built[family]

    return path_of


def test_the_prompt_is_never_asked_for(causal_path: Any) -> None:
    one = trial(causal_path("llama"))
    tokenizer = load_tokenizer(one.model)
    encoded = task_of(one).encode(texts(6), tokenizer, one.data, None)
    for row, label in enumerate(texts(6).labels):
        own = slice(int(encoded.offsets[row]), int(encoded.offsets[row + 1]))
        words = tokenizer.decode(encoded.ids[own]).split()
        response = WORDS[label].split()
        prompt = ["w4", "w20", "w21", "w5", *texts(6).texts[row].split(), "w6"]
        assert words == [*prompt, *response, "<end>"]
        assert encoded.labels[own].tolist() == [-100] * len(prompt) + tokenizer.convert_tokens_to_ids(
            [*response, "<end>"]
        )


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_loss_is_that_of_the_response_and_feels_no_other_label(family: str, causal_path: Any) -> None:
    """Asking for one prompt token more, as a mistake would, changes the loss; the loss is the response's mean."""
    one = trial(causal_path(family), train__max_steps=1, train__batch_size=8)
    pack = pack_of([one], texts(8))
    encoded = task_of(one).encode(texts(8), load_tokenizer(one.model), one.data, None)
    model = load_plain(one)
    (stepped,) = run(pack, 1)[0]
    batch = padded(encoded, torch.arange(8))
    with torch.no_grad():
        assert stepped.loss == pytest.approx(float(causal_loss(model, batch)), rel=1e-5)
        batch["labels"][:, 2] = batch["input_ids"][:, 2]
        assert abs(stepped.loss - float(causal_loss(model, batch))) > 1e-3


def load_plain(one: Any) -> Any:
    from transformers import AutoModelForCausalLM

    path = resolve(one.model.path)
    return AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager", dtype=torch.float32).eval()


@pytest.mark.parametrize("family", [*CAUSAL, *PADDED])
def test_pack_of_three_equals_peft(family: str, causal_path: Any, tmp_path: Path) -> None:
    common = {"task": trial("x").task, "data": trial("x").data}
    trials = mixed_trials(causal_path(family), 3, adapter__targets="all-linear")
    for one in trials:
        one.task, one.data = common["task"], common["data"]
    train = texts(30)
    pack = pack_of(trials, train)
    starts = [export_now(pack, number, tmp_path / f"start{number}") for number in range(3)]
    steps = run(pack)
    encoded = task_of(trials[0]).encode(train, load_tokenizer(trials[0].model), trials[0].data, None)
    for number, one in enumerate(trials):
        model = peft_causal(one, starts[number])
        assert model.peft_config["default"].task_type == "CAUSAL_LM"
        losses = by_hand(model, one, encoded)
        assert [event.loss for event in steps[number]] == pytest.approx(losses, rel=2e-5)
        assert_same_adapter(
            export_now(pack, number, tmp_path / f"end{number}"), peft_vector(model, tmp_path / f"t{number}")
        )


def by_hand(model: Any, one: Any, encoded: Any) -> list[float]:
    """Plain torch: AdamW, transformers' schedule, the loss the mean over a micro-batch's response tokens."""
    from transformers import get_scheduler

    model.eval()
    settings, order = one.optimizer, DataOrder(len(encoded), one.train.seed)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
    )
    name = {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule)
    scheduler = get_scheduler(name, optimizer, settings.warmup_steps, one.train.max_steps)
    losses = []
    for _ in range(one.train.max_steps):
        total = 0.0
        for _ in range(one.train.accumulation):
            loss = causal_loss(model, padded(encoded, order.draw(one.train.batch_size))) / one.train.accumulation
            loss.backward()
            total += loss.item()
        if settings.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


def trained_pack(family: str, causal_path: Any, tmp_path: Path, **changes: Any) -> tuple[Any, list[Any], list[Any]]:
    """Three slots after a few steps of a high rate, and their adapters in plain PEFT."""
    trials = [
        trial(
            causal_path(family),
            **{"train__max_steps": 3, "optimizer__lr": 2e-2, "train__seed": k, "adapter__r": 2 + 2 * k, **changes},
        )
        for k in range(3)
    ]
    pack = pack_of(trials, texts(30), texts(9, seed=9))
    run(pack)
    models = [peft_causal(one, export_now(pack, k, tmp_path / f"adapter{k}")).eval() for k, one in enumerate(trials)]
    return pack, trials, models


@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("family", ["mistral", "gpt2", "gemma2", "opt"])
def test_scores_equal_a_loop_of_single_forwards(family: str, how: str, causal_path: Any, tmp_path: Path) -> None:
    pack, trials, models = trained_pack(family, causal_path, tmp_path, task__score=how)
    one, split = trials[0], texts(9, seed=9)
    tokenizer = load_tokenizer(one.model)
    results = evaluate(pack.engine, pack.task, pack.sheets, pack.roster.held, 200, pack.lanes)
    for (metrics, sheet), model in zip(results, models, strict=True):
        wanted, losses = [], []
        for text, label in zip(split.texts, split.labels, strict=True):
            scores = []
            for name, response in enumerate(WORDS):
                prompt = tokenizer(f"w4 w20 w21 w5 {text} w6")["input_ids"]
                answer = tokenizer(f"{response} <end>")["input_ids"]
                ids = torch.tensor([prompt + answer])
                with torch.no_grad():
                    chances = model(input_ids=ids).logits[0].log_softmax(-1)
                steps = [float(chances[len(prompt) - 1 + at, token]) for at, token in enumerate(answer)]
                scores.append(sum(steps) / (len(steps) if how == "mean" else 1))
                losses += [-step for step in steps] if name == label else []
            wanted.append(torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist())
        np.testing.assert_allclose(sheet.predictions, np.array(wanted), atol=2e-5)
        assert metrics["eval/loss"] == pytest.approx(float(np.mean(losses)), rel=1e-5)
        assert metrics["eval/accuracy"] == np.mean(np.array(wanted).argmax(-1) == split.labels)
        assert {"eval/f1", "eval/roc_auc"} <= metrics.keys()
    assert not np.allclose(results[0][1].predictions, results[1][1].predictions, atol=1e-3), (
        "slots answer alike: the test would see nothing"
    )


@pytest.mark.parametrize("ends", [True, False])
def test_responses_behind_a_shared_prompt_lose_what_whole_rows_do(ends: bool, causal_path: Any, tmp_path: Path) -> None:
    """Also where a response is a single token, which nothing is read of but the prompt; chunks of every size."""
    pack, trials, _ = trained_pack("gemma2", causal_path, tmp_path)
    tokenizer, slots = load_tokenizer(trials[0].model), pack.roster.held
    tokenizer.eos_token = tokenizer.eos_token if ends else None
    exam = pack.task.exam(texts(9, seed=9), tokenizer, trials[0].data, None)
    stores = [RowStore(rows, 0, pack.base.device, causal=True) for rows in (exam.rows, exam.prompts)]
    sheets = Sheets(exam, *stores)
    shared = shared_responses(pack.engine, sheets, slots)
    assert shared is not None and (int(stores[0].units.min()) == 1) != ends
    whole = [sitting.losses for sitting in read_rows(pack.engine, pack.task, sheets.rows, slots, 500, pack.lanes)]
    for tokens in (50, 200, 5000):
        outcomes = continue_prompts(pack.engine, pack.task, sheets, slots, tokens, pack.lanes, shared)
        for outcome, losses in zip(outcomes, whole, strict=True):
            np.testing.assert_allclose(outcome.losses, losses, atol=1e-5)
            assert not any(outcome.written)


@pytest.mark.parametrize("family", [*CAUSAL, *PADDED])
def test_generation_of_a_pack_equals_transformers_one_by_one(family: str, causal_path: Any, tmp_path: Path) -> None:
    changes = {"task__predict": "generate", "task__max_new_tokens": 12, "data__max_length": 60}
    pack, trials, models = trained_pack(family, causal_path, tmp_path, **changes)
    split, tokenizer = texts(9, seed=9), load_tokenizer(trials[0].model)
    exam = pack.sheets.exam
    outcomes = continue_prompts(pack.engine, pack.task, pack.sheets, pack.roster.held, 150, pack.lanes)
    results = [outcome.written for outcome in outcomes]
    lengths = set()
    for answers, model in zip(results, models, strict=True):
        wanted = []
        for text in split.texts:
            ids = torch.tensor([tokenizer(f"w4 w20 w21 w5 {text} w6")["input_ids"]])
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
            )
            new = out[0, ids.shape[1] :].tolist()
            lengths.add(len(new))
            wanted.append(tokenizer.decode(new, skip_special_tokens=True).strip())
        assert [exam.decode(ids) for ids in answers] == wanted
    assert len(lengths) > 1, "all answers are of one length: nothing is packed again"
    assert results[0] != results[1]
