"""What a sweep cost, and what pruning and packing saved. Arithmetic over records; every estimate says what it rests on.

Neighbours: `material` (read), `page` (shows it).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

from lorasweep.config.schema import TrainConfig
from lorasweep.live import format_seconds
from lorasweep.records import TrialRecord, TrialState
from lorasweep.reporting.material import Material


@dataclass(frozen=True)
class Saving:
    """One line of the section on cost: a figure, what it is, and what it rests on."""

    figure: str
    what: str
    rests_on: str = ""


def savings(material: Material) -> list[Saving]:
    """Cost and savings, as far as the sweep has them."""
    records = list(material.records.values())
    seconds, samples = material.study.seconds(), sum(record.samples for record in records)
    found = [Saving(format_seconds(seconds), "of sweep", f"{samples:,} training samples by {len(records):,} trials")]
    price = material.study.config.tracking.price_per_hour
    if price is not None:
        found.append(Saving(f"{price * seconds / 3600:.2f}", "cost", f"tracking.price_per_hour={price:g}"))
    return [*found, *_pruning(material, price), *_packing(material)]


def planned_samples(train: TrainConfig, params: dict[str, Any]) -> int | None:
    """Training samples of a trial that trains to its end; None where that depends on the number of rows (`epochs`)."""
    steps, batch, parts = (
        params.get(f"train.{key}", getattr(train, key)) for key in ("max_steps", "batch_size", "accumulation")
    )
    return int(steps) * int(batch) * int(parts) or None


def _pruning(material: Material, price: float | None) -> list[Saving]:
    records = list(material.records.values())
    pruned = [record for record in records if record.state is TrialState.PRUNED]
    if not pruned:
        return []
    train = material.study.config.train
    complete = [record.samples for record in records if record.state is TrialState.COMPLETE and record.samples]
    usual = int(median(complete)) if complete else 0
    left, seconds = 0, 0.0
    for record in pruned:
        unseen = max(0, (planned_samples(train, record.params) or usual) - record.samples)
        left += unseen
        seconds += unseen * _pace(record, records)
    seen = sum(record.samples for record in records)
    share = left / (left + seen) if left + seen else 0.0
    concurrent = max(1.0, _concurrency(material))
    money = f", {price * seconds / concurrent / 3600:.2f} in money" if price is not None else ""
    return [
        Saving(
            f"{share:.0%}",
            "of the compute saved by pruning",
            f"{len(pruned):,} pruned trials left {left:,} of their planned training samples; about "
            f"{format_seconds(seconds / concurrent)} at the sweep's pace{money}",
        )
    ]


def _pace(record: TrialRecord, records: list[TrialRecord]) -> float:
    """Seconds a training sample, of the trial itself or of all."""
    if record.samples and record.train_seconds:
        return record.train_seconds / record.samples
    samples = sum(other.samples for other in records)
    return sum(other.train_seconds for other in records) / samples if samples else 0.0


def _concurrency(material: Material) -> float:
    """How many trials were in training at a time, on average."""
    seconds = material.study.seconds()
    return sum(record.train_seconds for record in material.records.values()) / seconds if seconds else 0.0


def _packing(material: Material) -> list[Saving]:
    slots = material.study.slots or 1
    sizes = [record.total_params - record.trainable_params for record in material.records.values()]
    base = max((size for size in sizes if size > 0), default=0)
    concurrent = _concurrency(material)
    if slots < 2 or not base or concurrent <= 1:
        return []
    bits = 4 if material.study.config.quantization.kind == "nf4" else 32
    if bits == 32 and material.study.config.train.precision != "fp32":
        bits = 16
    held = base * bits / 8 * (min(slots, round(concurrent)) - 1) / 2**20
    return [
        Saving(
            f"{concurrent:.1f}",
            f"trials in training at a time over one base, in {slots} slots",
            f"as many processes would hold at least {held:,.0f} MiB more of frozen weights ({base:,} parameters each "
            f"at {bits} bits) and each load the base, the rows and the libraries; docs/performance.md has the speeds",
        )
    ]
