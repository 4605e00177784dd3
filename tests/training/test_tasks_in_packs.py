"""What every task gets from its pack: lanes, the cache of frozen layers, going on from a checkpoint, an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enginelab import config, values
from lorasweep.config.schema import Config, DataConfig, ObjectiveConfig
from lorasweep.data.sources import SearchData, load_search_data
from lorasweep.models.base import load_base, load_tokenizer
from lorasweep.models.prefix_cache import PrefixBudget
from lorasweep.tasks import Answers, make_task
from lorasweep.training.lanes import Lanes
from lorasweep.training.pack import Evaluated, Finished, Pack, Stepped
from lorasweep.training.snapshot import reshape, shape_of

KINDS = {
    "score": ("tiny_gpt2", "demo_reviews", {"kind": "instruct", "predict": "score", "template": "plain"}),
    "generate": ("tiny_decoder", "demo_reviews", {"kind": "instruct", "predict": "generate", "template": "plain"}),
    "qa": ("tiny_decoder", "demo_qa", {"kind": "qa", "predict": "generate", "template": "question"}),
    "extract": ("tiny_encoder", "demo_qa", {"kind": "qa", "predict": "extract", "stride": 16}),
}
TASK_TYPES = {"score": "CAUSAL_LM", "generate": "CAUSAL_LM", "qa": "CAUSAL_LM", "extract": "QUESTION_ANS"}


def trials_of(kind: str, count: int = 3, **changes: Any) -> list[Config]:
    base, data, task = KINDS[kind]
    made = []
    for number in range(count):
        one = config(f"builtin:{base}", train__seed=number, train__batch_size=3 + number, train__max_steps=4)
        one.optimizer.lr, one.train.eval_every_steps, one.adapter.r = 3e-3, 2, 2 + number
        one.data = DataConfig(kind=data, demo_rows=24, max_length=64 if kind == "extract" else 150)
        one.task.max_new_tokens = 6
        for name, value in {**task, **changes}.items():
            setattr(one.task, name, value)
        made.append(one)
    return made


def pack_of(trials: list[Config], prefixes: PrefixBudget | None = None, lanes: int = 1) -> Pack:
    one = trials[0]
    loaded: SearchData = load_search_data(one.data)
    task, tokenizer = make_task(one, loaded.label_names), load_tokenizer(one.model)
    train = task.encode(loaded.train, tokenizer, one.data, None)
    exam = task.exam(loaded.validation, tokenizer, one.data, None)
    goal = ObjectiveConfig("eval/loss", "minimize")
    pack = Pack(load_base(one, task.head, task.label_names), task, train, exam, goal, len(trials), prefixes)
    pack.lanes = Lanes(pack.base.device, 10**9, lanes)
    return pack


def filled(trials: list[Config], **how: Any) -> Pack:
    pack = pack_of(trials, **how)
    for number, one in enumerate(trials):
        pack.admit(number, one)
    return pack


def events_of(pack: Pack) -> list[Any]:
    found: list[Any] = []
    while pack.roster.training:
        found += pack.advance()
    return found


def check_alike(ours: list[Any], theirs: list[Any]) -> None:
    """Events of the same trials, up to the rounding that shapes decide."""
    assert [(type(event), event.number, event.step) for event in ours] == [
        (type(event), event.number, event.step) for event in theirs
    ]
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Stepped):
            assert one.loss == pytest.approx(other.loss, rel=1e-4)
        elif isinstance(one, Evaluated):
            assert one.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-4)
            if isinstance(one.predictions, Answers):
                assert one.predictions.texts == other.predictions.texts
            else:
                np.testing.assert_allclose(one.predictions, other.predictions, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_is_the_same_alone_in_lanes_and_over_cached_layers(kind: str) -> None:
    trials = trials_of(kind)
    for one in trials:
        one.adapter.layers = 1
    together = events_of(filled(trials))
    check_alike(events_of(filled(trials, lanes=3)), together)
    budget = PrefixBudget(1.0)
    cached = filled(trials, prefixes=budget)
    check_alike(events_of(cached), together)
    assert sum(table.served for table in budget.tables) > 0, "nothing was served from the cache"
    for number, one in enumerate(trials):
        alone = filled([one])
        solo = [event for event in events_of(alone) if isinstance(event, Stepped | Evaluated)]
        own = [event for event in together if event.number == number and isinstance(event, Stepped | Evaluated)]
        for event in solo:
            object.__setattr__(event, "number", number)
        check_alike(solo, own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_pack_goes_on_from_its_state_bit_for_bit(kind: str) -> None:
    trials = trials_of(kind)
    pack = filled(trials)
    for _ in range(2):
        pack.advance()
    again = pack_of(trials)
    reshape(again, json.loads(json.dumps(shape_of(pack))))
    for number in pack.active:
        tensors, fields = pack.state(number)
        again.load_state(number, trials[number], tensors, json.loads(json.dumps(fields)))
    ours, theirs = events_of(again), events_of(pack)
    for event in (*ours, *theirs):
        if isinstance(event, Finished):
            object.__setattr__(event, "seconds", 0.0)
            object.__setattr__(event, "eval_seconds", 0.0)
    assert len(ours) == len(theirs) > 6
    for one, other in zip(ours, theirs, strict=True):
        if isinstance(one, Evaluated):
            assert one.metrics == other.metrics and one.is_best == other.is_best
        else:
            assert one == other
    for number in pack.active:
        assert torch.equal(values(pack, number), values(again, number))


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_is_pefts_and_says_what_it_is_for(kind: str, tmp_path: Path) -> None:
    pack = filled(trials_of(kind, 1))
    events_of(pack)
    pack.export(0, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert written["task_type"] == TASK_TYPES[kind]
    assert written["modules_to_save"] == (["qa_outputs"] if kind == "extract" else None)


@pytest.mark.parametrize("kind", ["score", "qa", "extract"])
def test_full_fine_tuning_sits_the_same_exam(kind: str, tmp_path: Path) -> None:
    (one,) = trials_of(kind, 1)
    one.adapter.kind, one.optimizer.lr = "full", 1e-3
    pack = filled([one])
    ends = [event for event in events_of(pack) if isinstance(event, Finished)]
    assert len(ends) == 1 and np.isfinite(ends[0].best_metrics["eval/loss"])
    pack.export(0, tmp_path / "model")
    assert (tmp_path / "model" / "config.json").is_file()


def test_templates_are_a_dimension_of_one_base(tmp_path: Path) -> None:
    """Two prompts, one resident base, two packs."""
    from lorasweep.config.home import Folders
    from lorasweep.workbench import Workbench

    alpaca, plain = trials_of("score", 2)
    alpaca.task.template = "{instruction} {input} so: "
    plain.data = alpaca.data
    bench = Workbench(Folders(tmp_path), ObjectiveConfig(), 2)
    one, other = bench.pack(alpaca), bench.pack(plain)
    assert one is not other and one.base is other.base
    assert int(one.train.offsets[-1]) != int(other.train.offsets[-1])


def test_prompts_and_their_answers_must_fit_the_base() -> None:
    from lorasweep.errors import ConfigError

    trials = trials_of("generate", 1, max_new_tokens=200)
    trials[0].data.max_length = 320
    with pytest.raises(ConfigError, match=r"a row has \d+ tokens with its answer and .* takes at most 256"):
        pack_of(trials)
