"""The code of a registered model: base + adapter in, labels with probabilities out.

`registry` hands this file to MLflow as a model from code, and MLflow copies it into the model's folder. It therefore
stands alone: torch, transformers, peft, pandas and MLflow are all it needs, never lorasweep.

Artifacts: `adapter`, a PEFT folder or a whole Hugging Face checkpoint; `base`, where a small base is packed along;
`tokenizer`, where the checkpoint has none of its own. Settings (`model_config`, each may be overridden at load):
base_model (a folder or a hub id; wins over the packed base), base_revision, label_names, max_length (tokens a row is
cut to), batch_size (rows), device (auto, cpu, cuda, cuda:N), dtype (of the products: float32, bfloat16, float16),
quantization (none, nf4), double_quant, trust_remote_code, sha256 (artifact -> checksum of its files; {} checks none).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class AdapterModel(PythonModel):
    """Classifies texts. Input: a DataFrame with a column `text` (and `pair`, where the model was trained on pairs);
    without MLflow's check of the signature in between also a list of texts or one text. Output: a DataFrame with one
    row each and the columns `label`, `score` (the label's probability) and `probability_LABEL` for every label."""

    def load_context(self, context: Any) -> None:
        """Load base, adapter and tokenizer.

        Raises:
            RuntimeError: the base is not where the model expects it, or is not the base the adapter was trained on; a
                file was changed since the model was saved.
        """
        import torch

        self.settings = dict(context.model_config)
        self.labels = list(self.settings["label_names"])
        device = self.settings.get("device") or "auto"
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(automatic if device == "auto" else device)
        self.dtype = getattr(torch, self.settings.get("dtype") or "float32")
        used = {name: place for name, place in context.artifacts.items() if name != "base" or not self._named_base}
        check_files(used, self.settings.get("sha256") or {})
        adapter = Path(used["adapter"])
        base = self._named_base or used.get("base")
        if (adapter / "adapter_config.json").exists():
            self.model = self._load_adapter(adapter, self._checked(base))
            words = base
        else:
            self.model = self._load_base(str(adapter), None, [])[0]
            words = context.artifacts.get("tokenizer") or base
        self.tokenizer = self._load_tokenizer(self._checked(words))
        self.model.eval()

    @property
    def _named_base(self) -> str | None:
        """The base that the settings name, instead of one that is packed along."""
        return self.settings.get("base_model") or None

    def _checked(self, base: str | None) -> str:
        if not base:
            raise RuntimeError("this model has no base: give model_config={'base_model': FOLDER_OR_HUB_ID} at load")
        if Path(base).is_absolute() and not Path(base).is_dir():
            raise RuntimeError(
                f"the base that this adapter was trained on was at {base}, and nothing is there. Give its place at "
                "load: mlflow.pyfunc.load_model(URI, model_config={'base_model': FOLDER_OR_HUB_ID})"
            )
        return base

    def _load_base(self, path: str, revision: str | None, heads: list[str]) -> tuple[Any, set[str]]:
        """The classification model at `path` as training had it, and the names of the weights that its files lack.

        Weights stay in float32 and run under autocast, but for a checkpoint that is stored in `dtype` itself."""
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        trusted = bool(self.settings.get("trust_remote_code"))
        stored = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trusted).dtype
        kept = self.dtype if heads and stored == self.dtype else torch.float32
        options: dict[str, Any] = {"num_labels": len(self.labels), "dtype": kept, "revision": revision}
        if self.settings.get("quantization") == "nf4":
            from transformers import BitsAndBytesConfig

            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=bool(self.settings.get("double_quant")),
                bnb_4bit_compute_dtype=self.dtype,
                llm_int8_skip_modules=[*heads, "pooler", "lm_head"],
            )
            options["dtype"] = torch.float32
            options["device_map"] = {"": self.device}
        with silent_loading():
            model, told = AutoModelForSequenceClassification.from_pretrained(
                path,
                id2label=dict(enumerate(self.labels)),
                label2id={label: number for number, label in enumerate(self.labels)},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                trust_remote_code=trusted,
                **options,
            )
        if "device_map" not in options:
            model = model.to(self.device)
        lacking = {str(name) for name in told["missing_keys"]}
        lacking |= {str(entry[0] if isinstance(entry, tuple) else entry) for entry in told["mismatched_keys"]}
        return model, lacking

    def _load_adapter(self, adapter: Path, base: str) -> Any:
        """Base with adapter. What the base's files lack must come with the adapter: random weights never serve."""
        from peft import PeftModel

        saved = json.loads((adapter / "adapter_config.json").read_text()).get("modules_to_save") or []
        model, lacking = self._load_base(base, self.settings.get("base_revision"), saved)
        random = {name for name in lacking if not set(name.split(".")) & set(saved)}
        if random:
            raise RuntimeError(
                f"neither the base at {base} nor the adapter holds the weights {', '.join(sorted(random)[:5])}: this "
                "is not the base that the adapter was trained on"
            )
        return PeftModel.from_pretrained(model, str(adapter))

    def _load_tokenizer(self, path: str) -> Any:
        from transformers import AutoTokenizer

        revision = self.settings.get("base_revision")
        trusted = bool(self.settings.get("trust_remote_code"))
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trusted)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"
        return tokenizer

    # Annotated as a table, the one type from which MLflow infers no signature: the model comes with its own.
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Labels and probabilities, in the order of the input."""
        texts, pairs = as_texts(model_input)
        rows = self._encode(texts, pairs)
        order = sorted(range(len(rows)), key=lambda number: len(rows[number]["input_ids"]))
        size = int(self.settings.get("batch_size") or 32)
        probabilities: list[list[float]] = [[] for _ in rows]
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            for number, values in zip(batch, self._probabilities([rows[number] for number in batch]), strict=True):
                probabilities[number] = values
        best = [max(range(len(self.labels)), key=values.__getitem__) for values in probabilities]
        columns: dict[str, list[Any]] = {
            "label": [self.labels[winner] for winner in best],
            "score": [values[winner] for winner, values in zip(best, probabilities, strict=True)],
        }
        for number, label in enumerate(self.labels):
            columns[f"probability_{label}"] = [values[number] for values in probabilities]
        return pd.DataFrame(columns)

    def _encode(self, texts: list[str], pairs: list[str] | None) -> list[dict[str, list[int]]]:
        """Token ids of each row, cut to max_length; a text without any token becomes one unknown token."""
        if not texts:
            return []
        names = ["input_ids", "token_type_ids"]
        out = self.tokenizer(
            texts, pairs, truncation=True, max_length=int(self.settings["max_length"]), return_attention_mask=False
        )
        rows = [{name: out[name][number] for name in names if name in out} for number in range(len(texts))]
        tokens = (self.tokenizer.unk_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)
        filler = next((token for token in tokens if token is not None), 0)
        for row in rows:
            if not row["input_ids"]:
                row.update({name: [0] for name in row}, input_ids=[filler])
        return rows

    def _probabilities(self, rows: list[dict[str, list[int]]]) -> list[list[float]]:
        """One padded batch through the model: (rows, classes) as lists."""
        import torch

        longest = max(len(row["input_ids"]) for row in rows)
        # Decoders pool the last token that is not `pad_token_id`. Where padding is also the end-of-text token, which
        # rows may end with, that would be the token before it: pad with an id that ends no row of this batch.
        ends = {row["input_ids"][-1] for row in rows}
        usual = self.tokenizer.pad_token_id
        pad = (
            usual if usual is not None and usual not in ends else next(i for i in range(len(ends) + 1) if i not in ends)
        )
        self.model.config.get_text_config().pad_token_id = pad
        padding = {"input_ids": pad, "token_type_ids": 0}
        batch = {
            name: torch.tensor([row[name] + [padding[name]] * (longest - len(row[name])) for row in rows])
            for name in rows[0]
        }
        batch["attention_mask"] = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows]
        )
        mixed = (
            contextlib.nullcontext()
            if self.dtype is torch.float32
            else torch.autocast(self.device.type, dtype=self.dtype)
        )
        with torch.inference_mode(), mixed:
            logits = self.model(**{name: tensor.to(self.device) for name, tensor in batch.items()}).logits
        return logits.float().softmax(-1).cpu().tolist()


def check_files(artifacts: dict[str, str], checksums: dict[str, str]) -> None:
    """RuntimeError where an artifact's files are not those that were saved."""
    for name, place in artifacts.items():
        if name in checksums and folder_checksum(Path(place)) != checksums[name]:
            raise RuntimeError(
                f"the files of `{name}` at {place} were changed after the model was saved: their sha256 is not that of "
                "the model's settings. Take them from a backup or another copy of the model"
            )


def folder_checksum(place: Path) -> str:
    """sha256 (hex) over the names and contents of all files below a folder, hidden ones aside."""
    whole = hashlib.sha256()
    for path in sorted(path for path in place.rglob("[!.]*") if path.is_file()):
        content = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                content.update(block)
        whole.update(f"{path.relative_to(place).as_posix()}\0{content.hexdigest()}\n".encode())
    return whole.hexdigest()


@contextlib.contextmanager
def silent_loading() -> Iterator[None]:
    """transformers reports heads that the base lacks; here they come with the adapter, which is checked for them."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def as_texts(model_input: Any) -> tuple[list[str], list[str] | None]:
    """(texts, second texts or None) of whatever a caller hands in.

    Raises:
        ValueError: a table without a column `text`, or something in it that is no text.
    """
    if isinstance(model_input, str):
        return [model_input], None
    if not isinstance(model_input, pd.DataFrame):
        return _strings(model_input, "the input"), None
    if "text" not in model_input.columns:
        raise ValueError(f"the input needs a column `text`; it has {', '.join(map(str, model_input.columns))}")
    pairs = _strings(model_input["pair"], "column `pair`") if "pair" in model_input.columns else None
    return _strings(model_input["text"], "column `text`"), pairs


def _strings(values: Any, where: str) -> list[str]:
    found = list(values)
    for row, value in enumerate(found):
        if not isinstance(value, str):
            raise ValueError(f"{where}, row {row}: a text is needed, got {type(value).__name__} ({str(value)[:60]})")
    return found


set_model(AdapterModel())
