"""The pack's loop: neighbours come and go, diverge, stop early, run out of memory; state is saved exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from enginelab import (
    assert_same_adapter,
    base_of,
    clone,
    config,
    export_now,
    finished,
    mixed_trials,
    pack_of,
    rows,
    run,
    values,
)
from lorasweep.errors import ConfigError, ModelError, TrialFailed, UsageError
from lorasweep.training.pack import Evaluated, Failed, Finished, Pack, Stepped

Path_of = Callable[[str], str]


def alone(base: Any, trial: Any, train: Any, number: int = 0) -> tuple[list[float], Pack]:
    """Losses of a trial in a pack of one, and that pack."""
    pack = pack_of(base, 1, train)
    pack.admit(number, trial)
    steps = run(pack)[number]
    return [event.loss for event in steps], pack


def assert_as_alone(
    pack: Pack, steps: dict[int, list[Stepped]], number: int, trial: Any, train: Any, folder: Path
) -> None:
    """Each loss within 1e-5, each adapter tensor within 1e-4: what is left is the order of sums in shared products."""
    losses, other = alone(pack.base, trial, train, number)
    assert [event.loss for event in steps[number]] == pytest.approx(losses, rel=1e-5)
    theirs = load_file(str(export_now(other, number, folder / f"alone{number}") / "adapter_model.safetensors"))
    assert_same_adapter(export_now(pack, number, folder / f"packed{number}"), theirs)


@pytest.mark.parametrize("family", ["bert", "gpt2", "albert", "xlnet"])
@pytest.mark.slow
def test_dropout_is_the_same_packed_and_alone(family: str, base_path: Path_of, tmp_path: Path) -> None:
    train = rows(30)
    trials = mixed_trials(base_path(family), 3, adapter__dropout=0.2, train__base_dropout=0.1)
    base = base_of(trials[0])
    pack = pack_of(base, 3, train)
    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    steps = run(pack)
    for number, trial in enumerate(trials):
        assert_as_alone(pack, steps, number, trial, train, tmp_path)
    undropped, _ = alone(base, clone(trials[0], adapter__dropout=0.0, train__base_dropout=0.0), train)
    assert [event.loss for event in steps[0]] != pytest.approx(undropped, rel=1e-3)


def test_neighbours_come_and_go_unnoticed(base_path: Path_of, tmp_path: Path) -> None:
    """Trial 0 stays; trial 1 is evicted midway; trials 2 (larger rank, other modules, biases) and 3 enter midway."""
    path, train = base_path("bert"), rows(30)
    common = {"adapter__dropout": 0.1, "optimizer__weight_decay": 0.1}
    trials = [
        config(path, train__max_steps=14, adapter__targets=["query"], adapter__r=2, train__batch_size=3, **common),
        config(path, train__max_steps=14, train__seed=1, train__batch_size=5, **common),
        config(path, train__max_steps=6, train__seed=2, adapter__r=16, adapter__bias="all", **common),
        config(path, train__max_steps=5, train__seed=3, train__accumulation=2, train__batch_size=4, **common),
    ]
    pack = pack_of(base_of(trials[0]), 3, train)
    steps: dict[int, list[Stepped]] = {}

    def advance(turns: int | None) -> None:
        for number, events in run(pack, turns).items():
            steps.setdefault(number, []).extend(events)

    pack.admit(0, trials[0])
    advance(2)
    pack.admit(1, trials[1])
    advance(3)
    pack.evict(1)
    pack.admit(2, trials[2])
    advance(1)
    pack.admit(3, trials[3])
    advance(None)
    for number in (0, 2, 3):
        assert_as_alone(pack, steps, number, trials[number], train, tmp_path)


def test_nan_in_one_slot_leaves_the_others_bit_unchanged(base_path: Path_of) -> None:
    path, train = base_path("bert"), rows(30)
    trials = [config(path, train__seed=k, train__max_steps=6, adapter__dropout=0.1) for k in range(3)]

    def train_all(poison: bool) -> tuple[Pack, list[Failed]]:
        pack, failures = pack_of(base_of(trials[0]), 3, train), []
        for number, trial in enumerate(trials):
            pack.admit(number, trial)
        for turn in range(6):
            if poison and turn == 2:
                pack.engine.arena.row(1).fill_(math.nan)  # type: ignore[attr-defined]
            failures += [event for event in pack.advance() if isinstance(event, Failed)]
            if turn == 2:  # the same neighbours in both runs: bits depend on which ranges share a product
                pack.evict(1)
        return pack, failures

    clean, none = train_all(poison=False)
    poisoned, failures = train_all(poison=True)
    assert not none
    assert [(failure.number, failure.cause) for failure in failures] == [(1, "diverged")]
    assert "step 3" in failures[0].message
    assert "optimizer.lr" in failures[0].message
    for number in (0, 2):
        assert torch.equal(values(clean, number), values(poisoned, number))


def test_a_diverging_trial_fails_and_its_neighbour_finishes(base_path: Path_of) -> None:
    path, train = base_path("bert"), rows(30)
    wild = config(path, optimizer__lr=1e30, optimizer__max_grad_norm=0.0, train__max_steps=20)
    calm = config(path, train__max_steps=20)
    pack = pack_of(base_of(calm), 2, train)
    pack.admit(0, wild)
    pack.admit(1, calm)
    events = [event for _ in range(20) for event in pack.advance()]
    failed = [event for event in events if isinstance(event, Failed)]
    assert [(event.number, event.cause) for event in failed] == [(0, "diverged")]
    assert [event.number for event in events if isinstance(event, Finished)] == [1]
    assert pack.active == [0, 1]  # until the worker evicts them
    pack.evict(0)
    assert pack.free == 1


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_best_checkpoint_is_kept(direction: str, base_path: Path_of) -> None:
    path = base_path("bert")
    trial = config(path, train__max_steps=12, train__eval_every_steps=3, optimizer__lr=1e-2)
    pack = pack_of(base_of(trial), 1, rows(30), rows(6, seed=5), metric="eval/accuracy", direction=direction)
    pack.admit(4, trial)
    seen: list[Evaluated] = []
    kept = {}
    end = None
    while end is None:
        for event in pack.advance():
            if isinstance(event, Evaluated):
                seen.append(event)
                kept[event.step] = values(pack, 4)
            if isinstance(event, Finished):
                end = event
    assert [event.step for event in seen] == [3, 6, 9, 12]
    scores = [event.metrics["eval/accuracy"] for event in seen]
    best = scores.index(max(scores) if direction == "maximize" else min(scores))
    assert end.best_step == seen[best].step
    assert end.best_metrics == seen[best].metrics
    slot = pack.roster.slot(4)
    assert slot.best is not None
    assert torch.equal(slot.best.values["values"], kept[end.best_step])


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_tie_keeps_the_earlier(direction: str, base_path: Path_of) -> None:
    trial = config(base_path("bert"), train__max_steps=6, train__eval_every_steps=2, optimizer__lr=0.0)
    pack = pack_of(base_of(trial), 1, rows(30), rows(6, seed=5), metric="eval/accuracy", direction=direction)
    pack.admit(0, trial)
    events = [event for _ in range(6) for event in pack.advance()]
    (end,) = [event for event in events if isinstance(event, Finished)]
    assert end.best_step == 2
    assert [event.is_best for event in events if isinstance(event, Evaluated)] == [True, False, False]


def test_early_stopping_counts_evaluations_without_a_best(base_path: Path_of) -> None:
    trial = config(
        base_path("bert"),
        train__max_steps=50,
        train__eval_every_steps=2,
        train__early_stopping_evals=2,
        optimizer__lr=1e-9,  # nothing changes, so that the first evaluation stays the best
    )
    pack = pack_of(base_of(trial), 1, rows(30))
    pack.admit(0, trial)
    (end,) = finished(pack)
    assert (end.reason, end.step, end.best_step) == ("early_stopping", 6, 2)
    assert end.samples == 6 * 16


def test_objective_that_is_not_logged_fails_with_what_is(base_path: Path_of) -> None:
    trial = config(base_path("bert"), train__max_steps=1)
    pack = pack_of(base_of(trial), 1, rows(30), metric="eval/bleu")
    pack.admit(0, trial)
    failed = [event for event in pack.advance() if isinstance(event, Failed)]
    assert failed[0].cause == "objective"
    assert "eval/bleu" in failed[0].message
    assert "eval/accuracy" in failed[0].message
    with pytest.raises(TrialFailed, match="no kept checkpoint"):
        pack.export(0, Path("unused"))


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.slow
def test_saved_and_restored_pack_goes_on_bit_for_bit(kind: str, base_path: Path_of) -> None:
    path, train = base_path("bert"), rows(30)
    count = 3 if kind == "lora" else 1
    trials = mixed_trials(
        path, count, adapter__dropout=0.1, adapter__kind=kind, train__eval_every_steps=2, train__max_steps=9
    )
    trials = [clone(trial, train__accumulation=3) for trial in trials]
    base = base_of(trials[0])

    def fresh() -> Pack:
        return pack_of(base, count, train)

    whole = fresh()
    for number, trial in enumerate(trials):
        whole.admit(number, trial)
    run(whole, 10)  # in the middle of an accumulation
    saved = {number: whole.state(number) for number in whole.active}
    rest = run(whole)
    final = [_all_values(whole, number) for number in range(count)]
    for number in list(whole.active):
        whole.evict(number)

    again = fresh()
    for number in reversed(range(count)):  # order of restoring does not matter: each takes the slot it had
        tensors, fields = saved[number]
        again.load_state(number, trials[number], tensors, json.loads(json.dumps(fields)))
    resumed = run(again)
    for number in range(count):
        assert [(e.step, e.loss, e.grad_norm) for e in resumed[number]] == [
            (e.step, e.loss, e.grad_norm) for e in rest[number]
        ]
        assert all(torch.equal(a, b) for a, b in zip(_all_values(again, number), final[number], strict=True))


def _all_values(pack: Pack, number: int) -> list[torch.Tensor]:
    slot = pack.roster.slot(number)
    assert slot.best is not None
    return [*pack.engine.save(slot.index).values(), *slot.best.values.values()]


def test_state_is_a_copy_and_does_not_depend_on_neighbours(base_path: Path_of) -> None:
    path, train = base_path("bert"), rows(30)
    small, large = config(path, adapter__r=2, train__max_steps=8), config(path, adapter__r=8, train__max_steps=8)
    pack = pack_of(base_of(small), 2, train)
    pack.admit(0, small)
    pack.admit(1, large)
    run(pack, 3)
    tensors, fields = pack.state(0)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    run(pack, 2)
    assert all(torch.equal(tensors[name], before[name]) for name in before)
    other = pack_of(pack.base, 1, train)  # a pack of another size
    other.load_state(0, small, tensors, fields)
    assert [event.step for event in run(other, 1)[0]] == [4]


@pytest.mark.parametrize("family", ["bert", "albert"])
@pytest.mark.slow
def test_out_of_memory_shrinks_forwards_and_loses_nothing(
    family: str, base_path: Path_of, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train = rows(30)
    trials = mixed_trials(base_path(family), 3, adapter__dropout=0.1, train__base_dropout=0.1)
    base = base_of(trials[0])
    pack = pack_of(base, 3, train)
    real, raised = base.logits, []

    def small_memory(batch: Any) -> torch.Tensor:
        if int(batch.lengths.sum()) > 45:
            raised.append(int(batch.lengths.sum()))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(batch)

    for number, trial in enumerate(trials):
        pack.admit(number, trial)
    monkeypatch.setattr(base, "logits", small_memory)
    steps = run(pack)
    monkeypatch.undo()
    assert 1 <= len(raised) <= 4
    assert pack.limits.tokens <= 45
    for number, trial in enumerate(trials):
        assert len(steps[number]) == trial.train.max_steps
        assert_as_alone(pack, steps, number, trial, train, tmp_path)


def test_a_row_that_does_not_fit_fails_with_its_numbers(base_path: Path_of, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = config(base_path("bert"), train__max_steps=2)
    base = base_of(trial)
    pack = pack_of(base, 1, rows(30))
    pack.admit(0, trial)

    def no_memory(batch: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(base, "logits", no_memory)
    failed: list[Failed] = []
    while not failed:
        failed = [event for event in pack.advance() if isinstance(event, Failed)]
    assert failed[0].cause == "out_of_memory"
    assert str(base.total_params) in failed[0].message


def test_steps_by_epochs_and_counts(base_path: Path_of) -> None:
    trial = config(base_path("bert"), train__epochs=1.5, train__batch_size=4, train__accumulation=2, adapter__r=3)
    pack = pack_of(base_of(trial), 1, rows(30))
    pack.admit(7, trial)
    assert pack.max_steps(7) == math.ceil(1.5 * 30 / 8)
    counts = pack.counts(7)
    inputs_outputs = 2 * (4 * (32 + 32) + 2 * (32 + 48)) + (32 + 32)  # two layers and the pooler
    # this checkpoint has a pooler, so that it is adapted and not a head
    assert counts.adapter == 3 * inputs_outputs
    assert counts.head == 32 * 3 + 3
    assert counts.trainable == counts.adapter + counts.head
    plain = sum(parameter.numel() for parameter in pack.base.model.parameters())
    assert counts.total == plain + counts.trainable  # as PEFT: the trained head is a copy


def test_what_cannot_enter_says_so(base_path: Path_of) -> None:
    path = base_path("bert")
    trial = config(path)
    base = base_of(trial)
    pack = pack_of(base, 1, rows(30))
    pack.admit(0, trial)
    with pytest.raises(UsageError, match="0 of 1 slots are free"):
        pack.admit(1, trial)
    with pytest.raises(UsageError, match="trial 5 is not in this pack"):
        pack.evict(5)
    pack.evict(0)
    with pytest.raises(ModelError, match=r"`querry`.*did you mean `query`.*all-linear"):
        pack.admit(1, config(path, adapter__targets=["querry"]))
    with pytest.raises(ModelError, match="in the head, which is always trained"):
        pack.admit(1, config(path, adapter__targets=["classifier"]))
    with pytest.raises(ModelError, match="the base has 2"):
        pack.admit(1, config(path, adapter__layers=3))
    with pytest.raises(ModelError, match="layers 0 to 1"):
        pack.admit(1, config(path, adapter__layers=[0, 2]))
    assert pack.free == 1
    with pytest.raises(ConfigError, match=r"has 50 tokens and .* at most 40; set data.max_length=40"):
        pack_of(base, 1, rows(200, longest=50))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.slow
def test_any_pack_equals_its_trials_alone(data: st.DataObject, base_path: Path_of) -> None:
    path, train = base_path("bert"), rows(17)
    drawn = st.fixed_dictionaries(
        {
            "adapter__r": st.integers(1, 9),
            "adapter__alpha": st.sampled_from([1.0, 8.0, 16.0]),
            "adapter__dropout": st.sampled_from([0.0, 0.3]),
            "adapter__targets": st.sampled_from(["all-linear", ["query"], ["dense", "value"]]),
            "adapter__layers": st.sampled_from([None, 1, [0]]),
            "adapter__bias": st.sampled_from(["none", "lora_only", "all"]),
            "optimizer__lr": st.sampled_from([1e-3, 1e-2]),
            "optimizer__schedule": st.sampled_from(["linear", "cosine", "constant"]),
            "train__batch_size": st.integers(1, 20),
            "train__accumulation": st.integers(1, 3),
            "train__max_steps": st.integers(1, 4),
            "train__seed": st.integers(0, 3),
            "train__base_dropout": st.sampled_from([0.0, 0.2, None]),
        }
    )
    trials = [config(path, **changes) for changes in data.draw(st.lists(drawn, min_size=2, max_size=5))]
    base = base_of(trials[0])
    pack = pack_of(base, len(trials), train)
    waits = [data.draw(st.integers(0, 2)) for _ in trials]
    steps: dict[int, list[Stepped]] = {}
    for number, (trial, wait) in enumerate(zip(trials, waits, strict=True)):
        pack.admit(number, trial)
        for known, events in run(pack, wait).items() if wait else ():
            steps.setdefault(known, []).extend(events)
    for known, events in run(pack).items():
        steps.setdefault(known, []).extend(events)
    for number, trial in enumerate(trials):
        losses, _ = alone(base, trial, train)
        assert [event.loss for event in steps[number]] == pytest.approx(losses, rel=2e-5, abs=1e-6)


def test_four_bit_bases_train_in_mixed_precision(base_path: Path_of) -> None:
    """A 4-bit layer answers in its input's type, which under autocast is not always that of the products."""
    trial = config(base_path("bert"), quantization__kind="nf4", train__precision="bf16", train__max_steps=3)
    pack = pack_of(base_of(trial), 1, rows(30))
    pack.admit(0, trial)
    assert all(math.isfinite(event.loss) for event in run(pack)[0])
