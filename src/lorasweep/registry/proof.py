"""Is the registered model the trial? What a fresh process hears from it, against what training and scoring saw.

The served code is not the training code: another attention, padded batches, PEFT's own layers. So equal predictions
are evidence for both. Neighbours: `registry.gate` (asks), `registry.serve` (answers).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lorasweep.errors import LorasweepError, PromotionRefused
from lorasweep.registry.serve import probabilities_of

if TYPE_CHECKING:
    import numpy as np

    from lorasweep.config.schema import Config
    from lorasweep.registry.candidate import Candidate


@dataclass(frozen=True)
class Tolerance:
    """How far a served model may be from training. Probabilities and losses differ in the last bits of the products;
    a metric that counts rows may then change by a few rows at the border."""

    probability: float  # of one row's class
    loss: float
    rows: float  # of the validation split, that may count differently

    @classmethod
    def of(cls, config: Config) -> Tolerance:
        """1e-3 in float32; products in half precision or over 4-bit weights depend on how rows are batched."""
        exact = config.train.precision == "fp32" and config.quantization.kind == "none"
        return cls(1e-3, 1e-3, 1.5) if exact else cls(0.1, 0.03, 3.5)


@dataclass(frozen=True)
class Proof:
    """Largest differences that were found: of the test rows' probabilities to the first scoring, of the validation
    metrics and probabilities to training; None: could not be looked at, and `said` says why."""

    test_difference: float
    metric_differences: dict[str, float] | None
    validation_difference: float | None
    said: str

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        return asdict(self)


def prove(candidate: Candidate, scored: np.ndarray, answer: dict[str, Any]) -> Proof:
    """Check what a fresh process heard from the registered model; `scored` are the test probabilities of the first
    scoring, (rows, classes).

    Raises:
        PromotionRefused: it cannot be loaded, or does not repeat predictions or metrics.
    """
    import numpy as np

    names, allowed = candidate.label_names, Tolerance.of(candidate.config)
    if "error" in answer:
        raise PromotionRefused(f"the registered model cannot be loaded by a fresh process: {answer['error']}")
    try:
        tables = {table: probabilities_of(found, names, "the registered model") for table, found in answer.items()}
    except LorasweepError as error:
        raise PromotionRefused(f"the registered model is not the trial: {error}") from None
    on_test = _largest(tables["test"], scored)
    if on_test > allowed.probability:
        raise PromotionRefused(
            f"the registered model does not repeat itself: loaded by a fresh process, its probabilities on the test "
            f"rows differ by up to {on_test:.3g} (allowed: {allowed.probability:g}) from those before it was registered"
        )
    if candidate.validation is None:
        return Proof(on_test, None, None, f"Loaded back; validation was not repeated: {candidate.unread}.")
    truth = np.asarray(candidate.validation.labels, dtype=np.int64)
    metrics = candidate.score(tables["validation"], truth)
    differences = _metric_differences(candidate, metrics)
    limits = {key: allowed.loss if key == "eval/loss" else allowed.rows / len(truth) for key in differences}
    wrong = [key for key, difference in differences.items() if not difference <= max(limits[key], 1e-9)]
    if wrong:
        told = ", ".join(f"{key} {metrics[key]:.6f} instead of {candidate.record.metrics[key]:.6f}" for key in wrong)
        raise PromotionRefused(
            f"the registered model does not reproduce the validation values of trial {candidate.record.trial}: {told} "
            f"on {len(truth)} rows. Was its checkpoint, its base or the validation data changed?"
        )
    on_validation = None
    kept = candidate.expected
    if kept is not None and len(kept) == len(truth):
        on_validation = _largest(tables["validation"], kept.probabilities)
        if on_validation > allowed.probability:
            raise PromotionRefused(
                f"the registered model does not repeat the validation predictions of trial {candidate.record.trial}: "
                f"probabilities differ by up to {on_validation:.3g} (allowed: {allowed.probability:g})"
            )
    rows = f"{len(truth)} validation rows"
    furthest = max(differences.values(), default=0.0)
    said = f"Loaded back by a fresh process: metrics on {rows} within {furthest:.2g} of training's"
    said += "." if on_validation is None else f", predictions within {on_validation:.2g}."
    return Proof(on_test, differences, on_validation, said)


def _metric_differences(candidate: Candidate, metrics: dict[str, float]) -> dict[str, float]:
    """Of every eval/* metric that training logged and that can be scored again."""
    logged = candidate.record.metrics
    return {key: abs(value - logged[key]) for key, value in metrics.items() if key in logged}


def _largest(one: np.ndarray, other: np.ndarray) -> float:
    """Largest absolute difference; infinite where the shapes differ."""
    return float(abs(one - other).max()) if one.shape == other.shape else float("inf")
