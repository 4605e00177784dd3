"""lorasweep: hyperparameter sweeps over LoRA and QLoRA fine-tuning, many trials over one resident base.

For notebooks and scripts the commands are functions here: `lorasweep.sweep("quickstart")`. They lie in `lorasweep.api`
and are looked up when they are first used, so that importing lorasweep loads nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lorasweep.api import (
        LorasweepError,
        SweepResult,
        compose,
        export,
        leaderboard,
        load_tokenizer,
        load_trial,
        plan,
        predict,
        promote,
        report,
        resume,
        sweep,
        train,
    )

__all__ = [
    "LorasweepError",
    "SweepResult",
    "__version__",
    "compose",
    "export",
    "leaderboard",
    "load_tokenizer",
    "load_trial",
    "plan",
    "predict",
    "promote",
    "report",
    "resume",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'lorasweep' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module("lorasweep.api"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
