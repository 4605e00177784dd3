"""How many trials share a base. Pure arithmetic; never touches a device."""

from __future__ import annotations

from lorasweep.config.schema import Config

SLOTS = 8


def automatic_slots(config: Config) -> int:
    """Slots for `launcher.slots=auto`."""
    return 1 if config.adapter.kind == "full" else SLOTS
