"""What a promotion or a rollback did, for people and for scripts. Pure. Neighbours: `registry`, `cli` (prints it)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class PromotionResult:
    """`metrics` are test/* values, `interval` is the 95% interval of `value`; `champion_value` is the former
    champion's objective on the same test rows, None where there was none or it could not be loaded; `comparison` is the
    paired test's account (`stats.Decision`), `reproduced` what loading back showed."""

    action: str  # promoted, kept (it was the champion already) or rolled_back
    model: str
    version: str
    trial: int | None
    run_id: str
    metric: str
    value: float | None
    interval: tuple[float, float] | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    previous_version: str | None = None
    champion_value: float | None = None
    comparison: dict[str, Any] | None = None
    reproduced: dict[str, Any] | None = None
    forced: bool = False
    reason: str | None = None

    @property
    def uri(self) -> str:
        """The champion's address."""
        return f"models:/{self.model}@champion"

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types, every field by its name, and the model's `uri`."""
        bounds = None if self.interval is None else list(self.interval)
        return {**asdict(self), "interval": bounds, "uri": self.uri}

    def describe(self) -> str:
        """What to tell a person: the decision, the numbers, how to use the model."""
        lines = [self._head()]
        if self.value is not None:
            bounds = "" if self.interval is None else f" (95%: {self.interval[0]:.4f} to {self.interval[1]:.4f})"
            against = "" if self.champion_value is None else f"; the champion before had {self.champion_value:.4f}"
            lines.append(f"  {self.metric} = {self.value:.4f}{bounds} on the sealed test split{against}")
        if self.comparison is not None:
            lines.append(f"  {self.comparison['said']}")
        if self.forced:
            lines.append(f"  promoted by --force: {self.reason}")
        elif self.reason:
            lines.append(f"  because: {self.reason}")
        others = [f"{key} {value:.4f}" for key, value in sorted(self.metrics.items()) if key != self.metric]
        lines += ["  " + ", ".join(others)] if others else []
        if self.reproduced is not None:
            lines.append(f"  {self.reproduced['said']}")
        lines.append(f'  lorasweep predict {self.uri} "a text"')
        return "\n".join(lines)

    def _head(self) -> str:
        if self.action == "rolled_back":
            was = f"(it was version {self.previous_version}, now the challenger)"
            return f"Rolled back: version {self.version} of {self.model} is the champion again {was}."
        if self.action == "kept":
            already = f"the champion of {self.model} already (version {self.version})"
            return f"Trial {self.trial} is {already}; nothing changed."
        return f"Promoted trial {self.trial}: version {self.version} of {self.model} is the champion."
