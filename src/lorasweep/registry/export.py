"""A registered model as plain Hugging Face files: a merged checkpoint, or the PEFT adapter, with tokenizer and card.

What is written needs neither MLflow nor lorasweep. A small base that is not on the hub goes along in `base/`.
Neighbours: `registry.card` (what the card says), `registry.usage` (the code in it), `adapter_model` (loads and checks
the model), `registry.trial` (exports what was never registered), `registry.hub` (pushes).
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.errors import StorageError, UsageError
from lorasweep.registry import card as registry_card
from lorasweep.registry.adapter_model import silent_loading
from lorasweep.registry.card import CARD, Facts
from lorasweep.registry.package import copy_base, quiet
from lorasweep.registry.serve import known_models, mlflow_here
from lorasweep.registry.usage import PACKED_BASE, PIPELINES, snippet
from lorasweep.tracking.store import local_folder, open_client, readable_errors

if TYPE_CHECKING:
    from lorasweep.config.home import Folders

ADDRESS = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))?")


@dataclass(frozen=True)
class Exported:
    """What was written. `version` of the registered `model`, None: the trial of the sweep `model`, which is in `facts`.
    `kind`: merged or adapter; `base_here_alone`: the adapter's base is a large local folder."""

    folder: Path
    model: str
    version: str | None
    kind: str
    facts: Facts
    base_here_alone: bool

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        files = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        own: dict[str, Any] = {"model": self.model, "version": self.version}
        if self.version is None:
            own = {"sweep": self.facts.sweep, "trial": self.facts.trial, "run_id": self.facts.run_id}
        return {"folder": str(self.folder), **own, "kind": self.kind, "files": files}

    def __str__(self) -> str:
        if self.version is None:
            return f"trial {self.facts.trial} of sweep {self.facts.sweep}"
        return f"version {self.version} of {self.model}"


def export(
    folders: Folders, address: str, target: Path, merged: bool, repo: str | None = None, base: str | None = None
) -> Exported:
    """Write the model at an address (NAME, which means its champion; NAME@ALIAS; NAME/VERSION) into `target`.

    `merged`: one checkpoint instead of an adapter beside its base; `repo`: the hub repository that the card names;
    `base`: where the model's base lies now.

    Raises:
        UsageError: no such model; a target that is not empty.
        StorageError: the model's files cannot be read, or were changed since it was registered.
    """
    with new_folder(target) as written, _model_folder(folders, address) as (package, name, version):
        facts = Facts.load(package)
        whole = merged or facts.kind == "full"
        settings = _settings(package)
        if base is not None and not (facts.base_on_hub or facts.base_packed):
            settings["base_model"] = base
        python_model = _load(package, whole, base)
        packed = package / "artifacts" / "base"
        source = settings.get("base_model") or (str(packed) if packed.is_dir() else None)
        settings["own_dtype"] = own_dtype(source, settings)
        settle_padding(python_model.tokenizer)
        if whole:
            write_merged(python_model.model, python_model.tokenizer, written, settings["own_dtype"])
        else:
            write_adapter(package / "artifacts" / "adapter", packed, written, settings)
        python_model.tokenizer.save_pretrained(str(written))
        kind = "merged" if whole else "adapter"
        (written / CARD).write_text(card(facts, kind, repo or target.name, settings), encoding="utf-8")
    here_alone = kind == "adapter" and not facts.base_on_hub and not facts.base_packed
    return Exported(target.expanduser(), name, version, kind, facts, here_alone)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` at the end, or vanishes where there was an error.

    Raises:
        UsageError: the target exists and is not an empty folder.
    """
    target = target.expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder; name another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lorasweep-", dir=target.parent) as temporary:
        written = Path(temporary) / "export"
        written.mkdir()
        yield written
        if target.is_dir():
            target.rmdir()
        written.rename(target)


# -- the model's own files --------------------------------------------------------------------------------------------


@contextmanager
def _model_folder(folders: Folders, address: str) -> Iterator[tuple[Path, str, str]]:
    """(the MLflow model's folder, registered name, version) of an address."""
    import mlflow
    from mlflow.exceptions import MlflowException

    match = ADDRESS.fullmatch(address)
    if match is None:
        raise UsageError(f"{address!r} is no registered model; write NAME, NAME@ALIAS or NAME/VERSION")
    name, client = match["name"], open_client(folders)
    try:
        if match["version"]:
            found = client.get_model_version(name, match["version"])
        else:
            found = client.get_model_version_by_alias(name, match["alias"] or "champion")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise StorageError(f"MLflow could not read the model {name}: {error.message}") from error
        raise UsageError(
            f"there is no model {address}: {error.message}. {known_models(client, name)}. "
            "--trial N or --best exports a trial of a sweep, registered or not"
        ) from None
    doing = f"read version {found.version} of {name}"
    with readable_errors(doing):
        logged = client.get_logged_model(found.model_id) if found.model_id else None
        place = None if logged is None else local_folder(logged.artifact_location)
    if place is not None:
        yield place, name, str(found.version)
        return
    with tempfile.TemporaryDirectory(prefix="lorasweep-") as temporary:
        with readable_errors(doing), mlflow_here(folders), quiet():
            uri = f"models:/{name}/{found.version}"
            fetched = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=temporary)
        yield Path(fetched), name, str(found.version)


def _settings(package: Path) -> dict[str, Any]:
    from mlflow.models import Model

    return dict(Model.load(str(package)).flavors["python_function"].get("config") or {})


def _load(package: Path, whole: bool, base: str | None) -> Any:
    """The model's own Python object, which checks the files that it loads; for merging over unquantized weights."""
    import mlflow
    from mlflow.exceptions import MlflowException

    config: dict[str, Any] = {"device": "cpu"}
    if whole:
        config |= {"quantization": "none", "dtype": "float32"}
    if base is not None:
        config["base_model"] = base
    try:
        with quiet():
            return mlflow.pyfunc.load_model(str(package), model_config=config).unwrap_python_model()
    except (MlflowException, OSError, RuntimeError, ValueError) as error:
        raise StorageError(
            f"the model cannot be loaded: {error}. Where its base was moved, give --base PATH"
        ) from error


def settle_padding(tokenizer: Any) -> None:
    """Decoders pool the last token that is no padding: where rows end with the padding token, because that is also the
    end of text, another token pads."""
    if tokenizer("a")["input_ids"][-1:] != [tokenizer.pad_token_id]:
        return
    others = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.cls_token, tokenizer.mask_token)
    tokenizer.pad_token = next(
        (token for token in others if token not in (None, tokenizer.pad_token)), tokenizer.pad_token
    )


def own_dtype(source: str | None, settings: dict[str, Any]) -> str | None:
    """The type that the base at `source` is stored in, where the trial's products had it too; None: float32."""
    from transformers import AutoConfig

    if source is None:
        return None
    trusted = bool(settings.get("trust_remote_code"))
    stored = AutoConfig.from_pretrained(source, revision=settings.get("base_revision"), trust_remote_code=trusted).dtype
    name = str(stored).removeprefix("torch.")
    return name if name == settings.get("dtype") else None


def write_merged(model: Any, tokenizer: Any, written: Path, dtype: str | None) -> None:
    """One checkpoint: the adapter's update in the base's weights, its head in place. Added in float32, then stored as
    `dtype`."""
    import torch
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    model.config.pad_token_id = tokenizer.pad_token_id
    with silent_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own deprecations
        model.save_pretrained(str(written))


def write_adapter(adapter: Path, base: Path, written: Path, settings: dict[str, Any]) -> None:
    """The adapter's files, naming its base: `settings["base_model"]`, or where that is None `base`, copied along."""
    for path in adapter.iterdir():
        if path.is_file() and path.name != CARD and not path.name.startswith("."):
            shutil.copy2(path, written / path.name)
    config_file = written / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if settings.get("base_model"):
        config |= {"base_model_name_or_path": settings["base_model"], "revision": settings.get("base_revision")}
    else:  # no hub id: a name that could be one might load someone else's model
        config |= {"base_model_name_or_path": f"./{PACKED_BASE}", "revision": None}
        copy_base(base, written / PACKED_BASE)
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


# -- the card ---------------------------------------------------------------------------------------------------------


def card(facts: Facts, kind: str, place: str, settings: dict[str, Any]) -> str:
    """README.md for the hub: its metadata, what the model is, how to load it."""
    metadata = _metadata(facts, kind).to_yaml()
    usage = f"## Use\n\n```python\n{snippet(facts, kind, place, settings)}```"
    return f"---\n{metadata}\n---\n\n# {facts.model}\n\n{usage}\n\n{registry_card.body(facts)}\n"


def _metadata(facts: Facts, kind: str) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    hub_id = facts.data.get("hub_id")
    results = [
        EvalResult(
            task_type=PIPELINES[facts.head],
            dataset_type=hub_id or "private",
            dataset_name=str(facts.data["source"]),
            dataset_split="test" if facts.test else "validation",
            metric_type=score.name.rpartition("/")[2],
            metric_value=round(score.value, 6),
        )
        for score in facts.test or facts.validation
        if not score.name.endswith("/loss") and math.isfinite(score.value)
    ]
    on_hub = facts.base if facts.base_on_hub else None
    relation: dict[str, Any] = {"base_model_relation": "adapter" if kind == "adapter" else "finetune"} if on_hub else {}
    return ModelCardData(
        model_name=facts.model,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag=PIPELINES[facts.head],
        base_model=on_hub,
        datasets=[hub_id] if hub_id else None,
        tags=["lorasweep", PIPELINES[facts.head], *(["lora"] if facts.kind == "lora" else [])],
        metrics=sorted({result.metric_type for result in results}),
        eval_results=results or None,
        **relation,
    )
