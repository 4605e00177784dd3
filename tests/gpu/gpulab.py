"""What the tests of this folder share. Each test body runs twice: on the CPU in CI, with the products that a GPU would
take, and on CUDA under the mark `gpu` (`make gpu`). Nothing here needs more than torch, transformers, peft and pytest.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from enginelab import NAMES, pad, peft_model, rows
from lorasweep.config.schema import Config, ObjectiveConfig, TaskConfig
from lorasweep.data.encode import Encoded
from lorasweep.models.packed_lora import PackedLora
from lorasweep.tasks import Classify
from lorasweep.training.pack import Pack

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch sees none")
DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]
on_each_device = pytest.mark.parametrize("device", DEVICES)


class Accuracy(Classify):
    """The shipped task with accuracy alone: the machine that runs `make gpu` may lack evaluate and scikit-learn."""

    def metrics(self, probabilities: Any, labels: Any, losses: Any) -> dict[str, float]:
        return {"eval/loss": float(losses.mean()), "eval/accuracy": float((probabilities.argmax(-1) == labels).mean())}


def even_rows(count: int, length: int) -> Encoded:
    """Rows of one length, so that every micro-batch costs the same."""
    offsets = torch.arange(count + 1) * length
    ids = torch.randint(5, 120, (count * length,), generator=torch.Generator().manual_seed(0))
    return Encoded(ids, offsets, torch.arange(count) % 3, None, 0)


def pack_on(base: Any, slots: int, train: Any, prefixes: Any = None) -> Pack:
    """A pack whose products are those of a GPU: unequal ranges in one padded block."""
    pack = Pack(base, Accuracy(TaskConfig(), NAMES), train, rows(12, seed=9), ObjectiveConfig(), slots, prefixes)
    assert isinstance(pack.engine, PackedLora)
    assert pack.engine.pad_ranges or base.device.type == "cpu", "a GPU pads ranges"
    pack.engine.pad_ranges = True
    return pack


def on(trial: Config, device: str, precision: str = "fp32") -> Config:
    """The trial on a device; precision fp32, bf16 or nf4 (4-bit weights, bf16 products)."""
    trial.launcher.device = device
    trial.train.precision = "bf16" if precision == "nf4" else precision
    trial.quantization.kind = "nf4" if precision == "nf4" else "none"
    if precision == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("nf4 needs bitsandbytes, which is not installed here")
    return trial


def start_away_from_zero(pack: Pack, number: int) -> None:
    """B starts at zero, which would hide A's gradient: add a little of everything."""
    index = pack.roster.slot(number).index
    values = pack.engine.save(index)["values"]
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(number))
    pack.engine.load(index, {"values": values + 0.05 * noise.to(values)})


def plain_model(trial: Config, adapter: Path) -> Any:
    """Plain transformers and PEFT on the trial's device, in its precision, dropout off."""
    device, load = trial.launcher.device, dict[str, Any]()
    if trial.quantization.kind == "nf4":
        from transformers import BitsAndBytesConfig

        four_bit = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["classifier", "score", "pooler"],
        )  # fmt: skip
        load = {"quantization_config": four_bit, "device_map": {"": device}}
    model = peft_model(trial, adapter, **load).to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()  # not eval: on a CPU bitsandbytes would repack its weights for good
    return model


def plain_loss(model: Any, trial: Config, encoded: Any, chosen: torch.Tensor) -> torch.Tensor:
    """The mean loss of a padded batch, under autocast where the trial is."""
    device = torch.device(trial.launcher.device)
    batch = {name: tensor.to(device) for name, tensor in pad(encoded, chosen, model.config.pad_token_id).items()}
    with torch.autocast(device.type, torch.bfloat16, enabled=trial.train.precision == "bf16", cache_enabled=False):
        logits = model(**batch).logits
    return cross_entropy(logits.float(), encoded.labels[chosen].to(device))


def relative_difference(mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm of theirs."""
    mine, theirs = mine.float().cpu(), theirs.float().cpu()
    return float((mine - theirs).norm() / theirs.norm().clamp(min=1e-6))


@contextmanager
def little_memory(pack: Pack, run_freely: Callable[[], Any], tokens: int) -> Iterator[list[int]]:
    """Within, forwards run out of memory where they would hold about half of what they want; yields a list that holds
    something once one has. On CUDA the allocator is limited for true, from the peak of `run_freely`; on a CPU a
    training forward of more than `tokens` tokens raises what CUDA would."""
    refused: list[int] = []
    base, real = pack.base, pack.base.logits

    def watched(batch: Any) -> torch.Tensor:
        size = int(batch.lengths.sum())
        try:
            if base.device.type == "cpu" and torch.is_grad_enabled() and size > tokens:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(batch)
        except torch.OutOfMemoryError:
            refused.append(size)
            raise

    if base.device.type == "cuda":
        torch.cuda.empty_cache()
        resting = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        run_freely()
        peak = torch.cuda.max_memory_reserved()
        torch.cuda.empty_cache()
        limit = resting + (peak - resting) // 2
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
    base.logits = watched  # type: ignore[method-assign]
    try:
        yield refused
    finally:
        del base.logits
        if base.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)
