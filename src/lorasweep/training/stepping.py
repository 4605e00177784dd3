"""One optimizer step of a slot: its gradient's norm, its clip, its learning rate, its loss scale.

Neighbours: `pack` (when a step is due), `slot` (the schedule), models' engines (gradients and AdamW).
"""

from __future__ import annotations

import math

import torch

from lorasweep.models.packed_lora import Engine
from lorasweep.training.events import Stepped
from lorasweep.training.slot import Slot

SMALLEST_LOSS_SCALE = 2**-10  # fp16: gradients that overflow even so are a divergence


class Diverged(ArithmeticError):
    """A gradient that is not finite and will not be."""


def gradient_norms(engine: Engine, slots: list[Slot]) -> list[float]:
    """Global norms of the slots' gradients, as torch's clip_grad_norm_ takes them; one wait for the device."""
    norms = []
    for slot in slots:
        if slot.scaler is not None:
            slot.scaler.unscale_(engine.optimizer(slot.index))
        parts = [torch.linalg.vector_norm(gradient) for gradient in engine.gradients(slot.index)]
        norms.append(parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts)))
    return torch.stack(norms).tolist() if norms else []


def optimizer_step(engine: Engine, slot: Slot, norm: float) -> Stepped | None:
    """Clip, step, and forget the gradients; `norm` is theirs. None where fp16 overflowed and the step is tried again at
    a smaller loss scale.

    Raises:
        Diverged: the norm is not finite.
    """
    optimizer, gradients = engine.optimizer(slot.index), engine.gradients(slot.index)
    if not math.isfinite(norm):
        if slot.scaler is None or slot.loss_scale < SMALLEST_LOSS_SCALE:
            raise Diverged(f"the gradient's norm is {norm}")
        slot.scaler.update(slot.loss_scale * slot.scaler.get_backoff_factor())
        slot.rewind()
        engine.zero_gradients(slot.index)
        return None
    limit = slot.config.optimizer.max_grad_norm
    factor = min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0
    if factor < 1.0:
        for gradient in gradients:
            gradient.mul_(factor)
    lr = slot.lr
    for group in optimizer.param_groups:
        group["lr"] = lr
    if slot.scaler is None:
        optimizer.step()
    else:
        slot.scaler.step(optimizer)
        slot.scaler.update()
    engine.zero_gradients(slot.index)
    loss = sum(slot.losses) / len(slot.losses)
    slot.step, slot.micro, slot.losses, slot.last_loss = slot.step + 1, 0, [], loss
    return Stepped(slot.number, slot.step, slot.samples, loss, lr, norm)
