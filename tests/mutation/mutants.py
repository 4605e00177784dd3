"""Small mistakes in the packed engine, the gate and resume, each with the tests that must notice it.

A mutation is one text of a source file that becomes another: a sign, a bound, an order. `spot_checks.py` applies them,
one at a time, to a copy of src/.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`was` stands once in src/lorasweep/`file`; `tests`: what pytest is asked to run."""

    file: str
    was: str
    becomes: str
    tests: str


EQUIVALENCE = "tests/training/test_equivalence.py::test_pack_of_three_equals_peft[bert]"
PACK = "tests/training/test_pack.py"
STATS = "tests/stats/test_{}.py".format
LEASES = "tests/search/test_leases.py -k sqlite"
RESUME = "tests/worker/test_replay.py"
GATE = "tests/registry/test_registry.py::test_gate_refuse_force_rollback"

PACKED = [
    Mutant("models/packed_lora.py", "bound = 1 / math.sqrt(inputs)", "bound = 2 / math.sqrt(inputs)",
           "tests/models/test_engine_models.py -k drawn"),
    Mutant("models/packed_lora.py", "depth = min(self.depth(", "depth = max(self.depth(",
           "tests/models/test_prefix.py -k different_layers"),
    Mutant("models/packed_lora.py", "if self._jobs_version != self.arena.version:", "if self._jobs_version < 0:",
           f"{PACK} -k come_and_go"),
    Mutant("models/packed_lora.py", "[(slot.undecayed, 0.0), (slot.decayed, config.optimizer.weight_decay)]",
           "[(slot.undecayed, config.optimizer.weight_decay), (slot.decayed, 0.0)]", EQUIVALENCE),
    Mutant("models/targets.py", "math.sqrt(adapter.r) if adapter.rslora", "math.sqrt(adapter.r) if not adapter.rslora",
           EQUIVALENCE),
    Mutant("models/arena.py", "return -(-size // ALIGN) * ALIGN", "return size // ALIGN * ALIGN",
           "tests/models/test_arena.py"),
    Mutant("models/arena.py", "max(rank, self.rank))", "rank)", "tests/models/test_arena.py"),
    Mutant("models/arena.py", '"step": moments["step"].to(self.device, copy=True)',
           '"step": torch.zeros_like(moments["step"])', f"{PACK} -k saved_and_restored"),
    Mutant("models/arena.py", "parts = [\n                state[name] if state",
           'parts = [\n                state["exp_avg"] if state', "tests/models/test_arena.py"),
    Mutant("models/arena.py", "betas=(optimizer.beta1, optimizer.beta2)", "betas=(optimizer.beta2, optimizer.beta1)",
           EQUIVALENCE),
    Mutant("training/stepping.py", "factor = min(1.0, limit", "factor = max(1.0, limit", EQUIVALENCE),
    Mutant("training/stepping.py", "slot.loss_scale < SMALLEST_LOSS_SCALE", "slot.loss_scale > SMALLEST_LOSS_SCALE",
           "tests/models/test_engine_models.py -k fp16"),
    Mutant("training/stepping.py", "= lr\n    if slot.scaler", "= lr * 1.001\n    if slot.scaler", EQUIVALENCE),
    Mutant("training/schedule.py", "max(0.0, (steps - step) /", "max(0.0, (steps - step - 1) /",
           "tests/training/test_schedule.py"),
    Mutant("training/schedule.py", "if step < warmup:", "if step <= warmup:", "tests/training/test_schedule.py"),
    Mutant("training/schedule.py", "math.ceil(steps * optimizer.warmup_ratio)",
           "math.floor(steps * optimizer.warmup_ratio)", "tests/training/test_schedule.py"),
    Mutant("training/pack.py", "slot.loss_scale / slot.config.train.accumulation", "slot.loss_scale", EQUIVALENCE),
    Mutant("training/examine.py", "return value > than if", "return value >= than if", f"{PACK} -k a_tie"),
    Mutant("training/examine.py", "evaluations_without_best >= patience", "evaluations_without_best > patience",
           f"{PACK} -k early_stopping"),
    Mutant("training/slot.py", "before < rung <= self.samples", "before <= rung < self.samples",
           "tests/training/test_trouble.py -k rungs_are"),
    Mutant("training/slot.py", 'f"order/{epoch}"', '"order/0"', "tests/training/test_slot.py"),
    Mutant("training/slot.py", "self.order.cursor, self.micro, self.losses = self.samples, 0, []",
           "self.micro, self.losses = 0, []", f"{PACK} -k out_of_memory_shrinks"),
]  # fmt: skip

JUDGED = [
    Mutant("registry/gate.py", "decision is not None and decision.better)", "decision is None or decision.better)",
           "tests/registry/test_registry.py -k other_labels"),
    Mutant("registry/gate.py", "if not wins and self.force is None:", "if not wins and self.force is not None:", GATE),
    Mutant("registry/gate.py", "            candidate.objective.direction,", '            "maximize",',
           "tests/registry/test_registry.py -k gated_downwards"),
    Mutant("stats/paired.py", "known and p_value <= level and", "known and p_value >= level and", STATS("paired")),
    Mutant("stats/paired.py", "upper = binom.sf(wins - 1, total, 0.5)", "upper = binom.sf(wins, total, 0.5)",
           STATS("paired")),
    Mutant("stats/paired.py", "above = wins - losses - rows * margin", "above = wins - losses + rows * margin",
           STATS("paired")),
    Mutant("stats/paired.py", "(advantage < margin).sum()", "(advantage > margin).sum()", STATS("paired")),
    Mutant("stats/intervals.py", "z * z / (4 * count * count)", "z * z / (2 * count * count)", STATS("intervals")),
    Mutant("stats/intervals.py", "numbers.std(ddof=1)", "numbers.std()", STATS("intervals")),
    Mutant("stats/many.py", "np.arange(len(p), 0, -1)", "np.arange(1, len(p) + 1)", STATS("many")),
    Mutant("stats/many.py", "left * (left - 1) / 2", "left", STATS("many")),
]  # fmt: skip

RESUMED = [
    Mutant("worker/replay.py", "candidate.asked.number <= last_asked", "candidate.asked.number < last_asked", RESUME),
    Mutant("worker/replay.py", "if number > last_asked]", "if number > last_asked + 1]", RESUME),
    Mutant("worker/replay.py", "if post in (leases.post, None)", "if post is not None", RESUME),
    Mutant("worker/replay.py", "state[\"slots\"] == workbench.slots", "state[\"slots\"] >= 0", RESUME),
    Mutant("worker/replay.py", "*sorted(later)", "*sorted(later, reverse=True)", RESUME),
    Mutant("checkpoint.py", "earlier[self.kept - 1 :]", "earlier[self.kept :]",
           "tests/test_checkpoint.py -k newest_two"),
    Mutant("checkpoint.py", "found if match), reverse=True)", "found if match))",
           "tests/test_checkpoint.py -k 'newest_two or one_before'"),
    Mutant("search/leases.py", "row.silent_seconds > self.grace_seconds", "row.silent_seconds > 0", LEASES),
    Mutant("search/leases.py", "if row.attribute != self.post and (row.attribute in gone", "if (row.attribute in gone",
           LEASES),
    Mutant("search/leases.py", "self._lost.update(set(numbers) - set(kept))", "self._lost.update(kept)", LEASES),
]  # fmt: skip

MUTANTS = [*PACKED, *JUDGED, *RESUMED]
