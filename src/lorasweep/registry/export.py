"""A registered model as plain Hugging Face files: a merged checkpoint, or the PEFT adapter, with tokenizer and card.

What is written needs neither MLflow nor lorasweep. A small base that is not on the hub goes along in `base/`.
Neighbours: `registry.card` (what the card says), `adapter_model` (loads and checks the model), `registry.hub` (pushes).
"""

from __future__ import annotations

import json
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
from lorasweep.registry.package import quiet
from lorasweep.registry.serve import known_models, mlflow_here
from lorasweep.tracking.store import local_folder, open_client, readable_errors

if TYPE_CHECKING:
    from lorasweep.config.home import Folders

ADDRESS = re.compile(r"(?:models:/)?(?P<name>[^/@:]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))?")
PACKED_BASE = "base"  # the folder of a base that goes along


@dataclass(frozen=True)
class Exported:
    """What was written. `kind`: merged or adapter; `base_here_alone`: the adapter's base is a large local folder."""

    folder: Path
    model: str
    version: str
    kind: str
    facts: Facts
    base_here_alone: bool

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types."""
        files = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        named = {"folder": str(self.folder), "model": self.model, "version": self.version, "kind": self.kind}
        return {**named, "files": files}


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
    target = target.expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not an empty folder; name another one")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _model_folder(folders, address) as (package, name, version):
        facts = Facts.load(package)
        with tempfile.TemporaryDirectory(prefix=".lorasweep-", dir=target.parent) as temporary:
            written = Path(temporary) / "export"
            written.mkdir()
            whole = merged or facts.kind == "full"
            settings = _settings(package)
            if base is not None and not (facts.base_on_hub or facts.base_packed):
                settings["base_model"] = base
            python_model = _load(package, whole, base)
            settings["own_dtype"] = _own_dtype(package, settings)
            _settle_padding(python_model.tokenizer)
            if whole:
                _write_merged(python_model, written, settings["own_dtype"])
            else:
                _write_adapter(package, written, settings)
            python_model.tokenizer.save_pretrained(str(written))
            kind = "merged" if whole else "adapter"
            place = repo or target.name
            (written / CARD).write_text(card(facts, kind, place, settings), encoding="utf-8")
            if target.is_dir():
                target.rmdir()
            written.rename(target)
    here_alone = kind == "adapter" and not facts.base_on_hub and not facts.base_packed
    return Exported(target, name, version, kind, facts, here_alone)


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
        raise UsageError(f"there is no model {address}: {error.message}. {known_models(client, name)}") from None
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


def _settle_padding(tokenizer: Any) -> None:
    """Decoders pool the last token that is no padding: where rows end with the padding token, because that is also the
    end of text, another token pads."""
    if tokenizer("a")["input_ids"][-1:] != [tokenizer.pad_token_id]:
        return
    others = (tokenizer.unk_token, tokenizer.bos_token, tokenizer.cls_token, tokenizer.mask_token)
    tokenizer.pad_token = next(
        (token for token in others if token not in (None, tokenizer.pad_token)), tokenizer.pad_token
    )


def _own_dtype(package: Path, settings: dict[str, Any]) -> str | None:
    """The type that the base is stored in, where the trial's products had it too; None: float32."""
    from transformers import AutoConfig

    packed = package / "artifacts" / "base"
    source = settings.get("base_model") or (str(packed) if packed.is_dir() else None)
    if source is None:
        return None
    trusted = bool(settings.get("trust_remote_code"))
    stored = AutoConfig.from_pretrained(source, revision=settings.get("base_revision"), trust_remote_code=trusted).dtype
    name = str(stored).removeprefix("torch.")
    return name if name == settings.get("dtype") else None


def _write_merged(python_model: Any, written: Path, dtype: str | None) -> None:
    """One checkpoint: the adapter's update in the base's weights, its head in place. Added in float32, then stored as
    `dtype`."""
    import torch
    from peft import PeftModel

    model = python_model.model
    if isinstance(model, PeftModel):
        model = model.merge_and_unload(safe_merge=True)
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    model.config.pad_token_id = python_model.tokenizer.pad_token_id
    with silent_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own deprecations
        model.save_pretrained(str(written))


def _write_adapter(package: Path, written: Path, settings: dict[str, Any]) -> None:
    adapter, base = package / "artifacts" / "adapter", package / "artifacts" / "base"
    for path in adapter.iterdir():
        if path.is_file() and path.name != CARD and not path.name.startswith("."):
            shutil.copy2(path, written / path.name)
    config_file = written / "adapter_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if settings.get("base_model"):
        config |= {"base_model_name_or_path": settings["base_model"], "revision": settings.get("base_revision")}
    else:  # no hub id: a name that could be one might load someone else's model
        config |= {"base_model_name_or_path": f"./{PACKED_BASE}", "revision": None}
        shutil.copytree(base, written / PACKED_BASE)
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
            task_type="text-classification",
            dataset_type=hub_id or "private",
            dataset_name=str(facts.data["source"]),
            dataset_split="test",
            metric_type=score.name.rpartition("/")[2],
            metric_value=round(score.value, 6),
        )
        for score in facts.test
        if score.name != "test/loss"
    ]
    on_hub = facts.base if facts.base_on_hub else None
    relation: dict[str, Any] = {"base_model_relation": "adapter" if kind == "adapter" else "finetune"} if on_hub else {}
    return ModelCardData(
        model_name=facts.model,
        library_name="peft" if kind == "adapter" else "transformers",
        pipeline_tag="text-classification",
        base_model=on_hub,
        datasets=[hub_id] if hub_id else None,
        tags=["lorasweep", "text-classification", *(["lora"] if facts.kind == "lora" else [])],
        metrics=sorted({result.metric_type for result in results}),
        eval_results=results,
        **relation,
    )


def snippet(facts: Facts, kind: str, place: str, settings: dict[str, Any]) -> str:
    """Python that loads an exported model from `place` with transformers and peft alone and answers a text."""
    trusted = ", trust_remote_code=True" if settings.get("trust_remote_code") else ""
    lines = ["from transformers import AutoModelForSequenceClassification, AutoTokenizer", ""]
    source = repr(place)
    if kind == "merged":
        lines += [f"model = AutoModelForSequenceClassification.from_pretrained({place!r}{trusted}).eval()"]
    else:
        where = f"folder + '/{PACKED_BASE}'" if facts.base_packed else repr(settings["base_model"])
        revision = f", revision={settings['base_revision']!r}" if settings.get("base_revision") else ""
        lines = [
            "from peft import PeftModel",
            *(_folder_lines(place, lines) if facts.base_packed else lines),
            f"labels = {facts.labels!r}",
            "base = AutoModelForSequenceClassification.from_pretrained(",
            f"    {where}{revision}, num_labels={len(facts.labels)}, id2label=dict(enumerate(labels)),",
            "    label2id={label: i for i, label in enumerate(labels)}, ignore_mismatched_sizes=True,",
            f"    dtype={settings['own_dtype'] or 'float32'!r}{trusted},",
            ")",
            f"model = PeftModel.from_pretrained(base, {'folder' if facts.base_packed else source}).eval()",
        ]
    second = ", ['its second text']" if facts.paired else ""
    length = facts.settings["data"]["max_length"]
    return "\n".join(
        [
            *lines,
            f"tokenizer = AutoTokenizer.from_pretrained({source}{trusted})",
            "model.config.pad_token_id = tokenizer.pad_token_id",
            f"batch = tokenizer(['a text']{second}, truncation=True, max_length={length}, padding=True, "
            "return_tensors='pt')",
            "probabilities = model(**batch).logits.softmax(-1)",
            "answers = [model.config.id2label[int(best)] for best in probabilities.argmax(-1)]",
            "",
        ]
    )


def _folder_lines(place: str, imports: list[str]) -> list[str]:
    """Imports, and where the files lie. Not by `subfolder=`: beside an adapter transformers would load the adapter."""
    if "/" not in place:
        return [*imports, f"folder = {place!r}"]
    return ["from huggingface_hub import snapshot_download", *imports, f"folder = snapshot_download({place!r})"]
