"""Packs a trial's adapter into a folder that MLflow can serve: code, adapter, base or its address, signature.

A base that ships with us or is small is packed along; one from the hub is named by id and commit; a large local one by
its path, which `model_config` overrides at load. The settings hold the checksums of what is packed, so that a file that
was changed later is refused at every load. mlflow.transformers.log_model is not used: on a PEFT model it reloads with
re-initialised weights (mlflow #23761). Neighbours: `adapter_model` (the code that is packed), `registry` (calls).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from lorasweep.checksums import folder_checksum
from lorasweep.config.schema import Config
from lorasweep.errors import StorageError
from lorasweep.models.unchanged import hub_commit

CODE = Path(__file__).with_name("adapter_model.py")
SMALL_BASE_BYTES = 200_000_000
NOT_PACKED = (".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite", ".mlmodel")  # other frameworks' weights
NOT_PACKED_NAMES = ("optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin", "rng_state.pth")
REQUIRED = ("mlflow", "torch", "transformers", "peft", "pandas")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
EXAMPLE = "a dull start, but a superb end"


def build(
    folder: Path, adapter: Path, base: str, config: Config, label_names: list[str], paired: bool
) -> dict[str, Any]:
    """Write the MLflow model to `folder` and return the settings it loads with.

    `base` is a folder or a hub id (`builtin:` resolved), `paired` whether its rows have a second text (demo_qa's have,
    without a `pair_column`).

    Raises:
        StorageError: the adapter's folder is not there.
    """
    from mlflow.pyfunc import save_model

    if not adapter.is_dir():
        raise StorageError(f"the trial's adapter should be at {adapter}, and nothing is there; train the trial again")
    settings: dict[str, Any] = {
        "base_model": None,
        "base_revision": None,
        "label_names": label_names,
        "max_length": config.data.max_length,
        "batch_size": config.train.eval_batch_size,
        "device": "auto",
        "dtype": DTYPES[config.train.precision],
        "quantization": config.quantization.kind,
        "double_quant": config.quantization.double_quant,
        "trust_remote_code": config.model.trust_remote_code,
    }
    staging = folder.with_name(folder.name + "-parts")
    staging.mkdir(parents=True)
    artifacts = {"adapter": str(adapter)}
    if not (adapter / "adapter_config.json").exists():
        artifacts["tokenizer"] = str(_save_tokenizer(base, config, staging / "tokenizer"))
    else:
        settings |= base_named(base, config.model.revision)
        if settings["base_model"] is None:
            artifacts["base"] = str(copy_base(Path(base), staging / "base"))
    settings["sha256"] = {name: folder_checksum(Path(place)) for name, place in artifacts.items()}
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_model(
            path=str(folder),
            python_model=str(CODE),
            artifacts=artifacts,
            model_config=settings,
            signature=signature(label_names, paired=paired),
            input_example=example(paired=paired),
            pip_requirements=requirements(config),
        )
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache, ignore_errors=True)
    return settings


def address(folder: Path, run_id: str, model_id: str, location: str) -> None:
    """Write into a built model which run it is of and which of MLflow's logged models it becomes."""
    from mlflow.models import Model

    entry = Model.load(str(folder))
    entry.run_id, entry.model_uuid, entry.model_id, entry.artifact_path = run_id, model_id, model_id, location
    entry.save(str(folder / "MLmodel"))


def signature(label_names: list[str], paired: bool) -> Any:
    """What the model takes and gives, for MLflow to check and to show."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    inputs: list[Any] = [ColSpec(DataType.string, "text")] + ([ColSpec(DataType.string, "pair")] if paired else [])
    outputs: list[Any] = [ColSpec(DataType.string, "label"), ColSpec(DataType.double, "score")]
    outputs += [ColSpec(DataType.double, f"probability_{label}") for label in label_names]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def example(paired: bool) -> Any:
    """An input of ours, never a row of the user's data."""
    import pandas as pd

    return pd.DataFrame({"text": [EXAMPLE], **({"pair": ["the whole film in one line"]} if paired else {})})


def requirements(config: Config) -> list[str]:
    """The model's packages, pinned to what is installed; without local version parts such as +cpu."""
    names = [*REQUIRED, *(["bitsandbytes"] if config.quantization.kind == "nf4" else [])]
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def base_named(base: str, revision: str | None) -> dict[str, Any]:
    """base_model and base_revision of an adapter over the base at a folder or hub id; None: it is packed along."""
    if not Path(base).is_dir():
        return {"base_model": base, "base_revision": hub_commit(base, revision)}
    small = packed_bytes(Path(base)) <= SMALL_BASE_BYTES
    return {"base_model": None if small else str(Path(base).resolve()), "base_revision": None}


def packed_bytes(base: Path) -> int:
    """Size of what would be packed of a base's folder."""
    return sum(path.stat().st_size for path in _base_files(base))


def _base_files(base: Path) -> list[Path]:
    """Files at the top of a checkpoint's folder that torch needs; of two weight formats, safetensors."""
    files = [path for path in base.iterdir() if path.is_file() and not path.name.startswith(".")]
    files = [path for path in files if path.suffix not in NOT_PACKED and path.name not in NOT_PACKED_NAMES]
    if any(path.suffix == ".safetensors" for path in files):
        files = [path for path in files if path.suffix != ".bin"]
    return sorted(files)


def copy_base(base: Path, target: Path) -> Path:
    """The files of a base that are packed, in a new folder."""
    target.mkdir()
    for path in _base_files(base):
        shutil.copy2(path, target / path.name)
    return target


def _save_tokenizer(base: str, config: Config, target: Path) -> Path:
    from transformers import AutoTokenizer

    revision, trusted = config.model.revision, config.model.trust_remote_code
    AutoTokenizer.from_pretrained(base, revision=revision, trust_remote_code=trusted).save_pretrained(target)
    return target


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """MLflow and transformers tell of downloads and signatures that are none of a user's business here."""
    import logging

    names = ("mlflow", "mlflow.pyfunc", "mlflow.models.model", "mlflow.utils.requirements_utils", "transformers")
    before = {name: logging.getLogger(name).level for name in names}
    bars = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        if bars is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = bars
