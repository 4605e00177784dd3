"""Settings of libraries that must stand in the environment before they are imported. Pure.

Neighbours: `cli` and `launchers`, which set them in each process.
"""

from __future__ import annotations

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


def settle() -> None:
    """Set what nobody has set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    # bitsandbytes asks for an optional kernel package at each import on CPUs with avx512_bf16; it works without
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # what they will change one day is for their callers to mend, not for who reads our output
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft)\b")
