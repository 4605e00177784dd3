"""Settings of Python and of libraries that must stand before these are imported.

Neighbours: `cli` and `launchers`, which set them in each process.
"""

from __future__ import annotations

import gc
import logging
import os
import warnings

DEFAULTS = {  # a user's own setting wins
    # OpenMP threads that spin while they wait slow a step several-fold wherever another program wants the core too
    "GOMP_SPINCOUNT": "1000",
    # nothing here compiles, and bitsandbytes (which PEFT imports) would load torch's compiler: a fifth of all imports
    "TORCHDYNAMO_DISABLE": "1",
    # libraries that would talk over the live view
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# objects that are made between two looks for cycles. At Python's own number a third of a start goes into looking
# through modules that stay
LOOK_FOR_CYCLES_EVERY = 20_000


def settle(own_process: bool = True) -> None:
    """Set what nobody has set. `own_process`: it is ours, not a notebook's."""
    if own_process and 0 < gc.get_threshold()[0] < LOOK_FOR_CYCLES_EVERY:
        gc.set_threshold(LOOK_FOR_CYCLES_EVERY, 10, 10)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # bitsandbytes asks for an optional kernel package at each import on CPUs with avx512_bf16; it works without
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # what they will change one day is for their callers to mend, not for who reads our output
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\b")
