"""Any trial's kept checkpoint as Hugging Face files, of every task, straight from what its run recorded.

Nothing is registered and no test split is opened; the card says so. The rules are those of a registered model's export:
checksums first, the base by hub id and commit, packed along where it is small and local, by its path otherwise.
Neighbours: `registry.export` (whose pieces write the files), `registry.card` and `registry.usage` (README.md),
`exporting` (the command).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.checksums import TAG as CHECKSUM
from lorasweep.errors import StorageError, UsageError
from lorasweep.models.base import LOADERS, load_tokenizer
from lorasweep.models.unchanged import unchanged_base
from lorasweep.records import TrialRecord, TrialState
from lorasweep.registry import card as registry_card
from lorasweep.registry import export as registry_export
from lorasweep.registry.adapter_model import silent_loading
from lorasweep.registry.card import CARD, Facts, Score
from lorasweep.registry.export import Exported
from lorasweep.registry.package import DTYPES, base_named
from lorasweep.stats import interval
from lorasweep.tasks import make_task
from lorasweep.tasks.answering import Answering
from lorasweep.tasks.instruct import Instruct
from lorasweep.tasks.prompts import end_ids
from lorasweep.tasks.templates import Row

if TYPE_CHECKING:
    from lorasweep.config.schema import Config
    from lorasweep.stats import Results
    from lorasweep.tasks import Task
    from lorasweep.tracking.recorded import Recorded


@dataclass(frozen=True)
class Source:
    """A trial with its run, the config that it trained with (files may have moved since), and what its checkpoint
    answered on the validation rows, None: not kept."""

    record: TrialRecord
    recorded: Recorded
    config: Config
    kept: Results | None = None


def choose(records: list[TrialRecord], trial: int) -> TrialRecord:
    """The trial of this number.

    Raises:
        UsageError: there is none, or it has not ended with a checkpoint.
    """
    found = next((record for record in records if record.trial == trial), None)
    if found is None:
        known = f"0 to {max(record.trial for record in records)}" if records else "none"
        raise UsageError(f"there is no trial {trial}; trials of this sweep: {known}")
    if found.state in (TrialState.RUNNING, TrialState.FAILED) or not found.run_id:
        why = f" ({found.reason})" if found.reason else ""
        raise UsageError(f"trial {trial} is {found.state}{why} and has no checkpoint to export; choose another one")
    return found


def export(source: Source, target: Path, merged: bool, repo: str | None = None) -> Exported:
    """Write the trial's adapter, or where `merged` one checkpoint, into `target`; of adapter=full always the
    checkpoint, as it is. `repo`: the hub repository that the card names.

    Raises:
        UsageError: it is no fine-tuned model, or kept no checkpoint; a target that is not empty.
        StorageError: the checkpoint's files cannot be read, or were changed since.
        ModelError: the base cannot be found, or was changed since.
    """
    config, recorded = source.config, source.recorded
    full = config.adapter.kind == "full"
    kind = "merged" if merged or full else "adapter"
    with registry_export.new_folder(target) as written, _opened(source) as kept:
        adapter, base, settings, task, tokenizer = kept.adapter, kept.base, kept.settings, kept.task, kept.tokenizer
        if full:
            _copy(adapter, written, _classes(task, tokenizer.pad_token_id))
        elif merged:
            settings["own_dtype"] = registry_export.own_dtype(base, settings)
            model = _loaded(adapter, base, settings, task)
            registry_export.write_merged(model, tokenizer, written, settings["own_dtype"])
        else:
            settings["own_dtype"] = registry_export.own_dtype(base, settings)
            registry_export.write_adapter(adapter, Path(base), written, settings)
        tokenizer.save_pretrained(str(written))
        named = f"{recorded.sweep}, trial {recorded.trial}"
        facts = registry_card.untested(named, recorded, config, settings, _scores(source))
        facts = replace(facts, head=task.head, asking=asking(task, config, tokenizer))
        if full:  # the checkpoint is all there is: no base goes along
            facts = replace(facts, base_packed=False, base_on_hub=False)
        text = registry_export.card(facts, kind, repo or target.name, settings)
        (written / CARD).write_text(text, encoding="utf-8")
    here_alone = kind == "adapter" and not facts.base_on_hub and not facts.base_packed
    return Exported(target.expanduser(), recorded.sweep, None, kind, facts, here_alone)


def load(source: Source) -> Any:
    """The trial's model in evaluation mode, in float32: a `PeftModel` over its base; of adapter=full the transformers
    model itself. Classes have their names in its config.

    Raises:
        UsageError, StorageError, ModelError: as `export`.
    """
    import torch
    import transformers

    with _opened(source) as kept:
        if source.config.adapter.kind == "full":
            loader = getattr(transformers, LOADERS[kept.task.head])
            with silent_loading():
                model = loader.from_pretrained(
                    kept.base,
                    dtype=torch.float32,
                    trust_remote_code=kept.settings["trust_remote_code"],
                    **_classes(kept.task, None),
                )
        else:
            model = _loaded(kept.adapter, kept.base, kept.settings, kept.task)
        if kept.task.head == "classification":  # which position to pool, where rows of a batch are padded
            model.config.pad_token_id = kept.tokenizer.pad_token_id
        return model.eval()


def tokenizer_of(source: Source) -> Any:
    """The tokenizer that the trial's texts went through, with the padding that its model expects.

    Raises:
        UsageError, StorageError, ModelError: as `export`.
    """
    with _opened(source) as kept:
        return kept.tokenizer


@dataclass(frozen=True)
class _Kept:
    """A trial's checkpoint while its files are here, and what goes with it. `base`: the folder or hub id to load; of
    adapter=full the checkpoint itself."""

    adapter: Path
    base: str
    settings: dict[str, Any]
    task: Task
    tokenizer: Any


@contextmanager
def _opened(source: Source) -> Iterator[_Kept]:
    config, recorded = source.config, source.recorded
    _check_trained(source)
    task = make_task(config, recorded.label_names)
    full = config.adapter.kind == "full"
    with recorded.artifact("adapter") as adapter:
        recorded.check("adapter", adapter)
        noted = recorded.tags.get("lorasweep.fingerprint.base")
        base = str(adapter) if full else unchanged_base(config.model, noted, recorded.trial)
        settings: dict[str, Any] = {
            **({"base_model": None, "base_revision": None} if full else base_named(base, config.model.revision)),
            "dtype": DTYPES[config.train.precision],
            "trust_remote_code": config.model.trust_remote_code,
        }
        tokenizer = load_tokenizer(replace(config.model, path=base, revision=settings["base_revision"]))
        if task.head == "classification":
            registry_export.settle_padding(tokenizer)
        yield _Kept(adapter, base, settings, task, tokenizer)


def _check_trained(source: Source) -> None:
    config, recorded = source.config, source.recorded
    who = f"trial {recorded.trial} of sweep {recorded.sweep}"
    if config.model.kind != "transformer":
        raise UsageError(
            f"{who} has model.kind={config.model.kind}, a baseline: only fine-tuned models are exported. Choose "
            "another trial with --trial N"
        )
    if config.adapter.kind == "none":
        raise UsageError(
            f"{who} has adapter.kind=none: it is the base {config.model.path} as it was, and nothing was trained. "
            "Choose another trial with --trial N"
        )
    if source.record.state is not TrialState.COMPLETE and CHECKSUM + "adapter" not in recorded.tags:
        why = f" ({source.record.reason})" if source.record.reason else ""
        raise UsageError(f"{who} is {source.record.state}{why} and kept no checkpoint; choose another with --trial N")


def _loaded(adapter: Path, base: str, settings: dict[str, Any], task: Task) -> Any:
    """The base in float32 with the adapter. What the base's files lack must come with the adapter.

    Raises:
        StorageError: some weights are in neither.
    """
    import torch
    import transformers
    from peft import PeftModel

    classes = _classes(task, None) if task.head == "classification" else {}
    with silent_loading():
        model, told = getattr(transformers, LOADERS[task.head]).from_pretrained(
            base,
            revision=settings["base_revision"],
            trust_remote_code=settings["trust_remote_code"],
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **classes,
        )
        lacking = {str(name) for name in told["missing_keys"]}
        lacking |= {str(entry[0] if isinstance(entry, tuple) else entry) for entry in told["mismatched_keys"]}
        saved = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("modules_to_save") or []
        random = sorted(name for name in lacking if not set(name.split(".")) & set(saved))
        if random:
            raise StorageError(
                f"neither the base at {base} nor the adapter holds the weights {', '.join(random[:5])}: this is not "
                "the base that the adapter was trained on"
            )
        return PeftModel.from_pretrained(model, str(adapter))


def _classes(task: Task, pad_token_id: int | None) -> dict[str, Any]:
    """What a checkpoint's config says of a classifier."""
    if task.head != "classification":
        return {}
    named = {"id2label": dict(enumerate(task.label_names)), "label2id": {n: i for i, n in enumerate(task.label_names)}}
    return named if pad_token_id is None else {**named, "pad_token_id": pad_token_id}


def _copy(checkpoint: Path, written: Path, named: dict[str, Any]) -> None:
    """A whole checkpoint's files, with what its config is to say besides."""
    for path in checkpoint.iterdir():
        if path.is_file() and path.name != CARD and not path.name.startswith("."):
            shutil.copy2(path, written / path.name)
    config_file = written / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) | named
    config_file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _scores(source: Source) -> list[Score]:
    """The validation metrics of the kept checkpoint, with intervals where its answers say them."""
    record, kept, objective = source.record, source.kept, source.config.sweep.objective.metric

    def bounds(name: str) -> tuple[float | None, float | None]:
        if name == objective and record.interval is not None:
            return record.interval[0], record.interval[1]
        if kept is None or not kept.knows(name):
            return None, None
        return interval(kept, name, source.config.task.average) or (None, None)

    return [Score(name, value, *bounds(name)) for name, value in sorted(record.metrics.items())]


def asking(task: Task, config: Config, tokenizer: Any) -> dict[str, Any]:
    """How a causal model is asked, as JSON types; {} for other heads. `prompt` has `slots` in braces, `lead` begins
    each response; `responses`: class -> response, {}: it writes freely; `closed`: end tokens that the tokenizer adds.
    """
    if not isinstance(task, Instruct | Answering):
        return {}
    instruction = "{instruction}" if config.data.instruction_column else task.instruction
    responses: dict[str, str] = {}
    if isinstance(task, Answering):
        row = Row("{question}", "{context}", instruction, is_question=True)
    else:
        paired = config.data.pair_column is not None or config.data.kind == "demo_qa"
        row = Row("{text}", "{pair}" if paired else None, instruction)
        responses = dict(zip(task.label_names, task.responses, strict=True))
    prompt = task.template.render(row)
    short = (
        task.template.short and task.template.render(Row("", None, instruction)) if config.data.output_column else ""
    )
    ends = {tokenizer.eos_token_id, tokenizer.sep_token_id} - {None}
    closed = next((count for count, token in enumerate(reversed(tokenizer("a")["input_ids"])) if token not in ends), 0)
    return {
        "prompt": prompt,
        "prompt_without_input": short,
        "slots": [name for name in ("question", "context", "text", "pair", "instruction") if f"{{{name}}}" in prompt],
        "lead": task.template.lead,
        "responses": responses,
        "predict": config.task.predict if responses else "generate",
        "score": config.task.score,
        "score_end": config.task.score_end,
        "max_new_tokens": config.task.max_new_tokens,
        "end": tokenizer.eos_token_id,
        "end_ids": list(end_ids(tokenizer)),
        "closed": closed,
    }


__all__ = ["Exported", "Facts", "Source", "asking", "choose", "export", "load", "tokenizer_of"]
