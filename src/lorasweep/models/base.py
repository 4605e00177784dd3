"""The frozen base that many trials share: found, loaded once, and made ready for slots.

Neighbours: `hub` (where the files are), `families` and `stream` (how it runs), `layers` (the stand-ins put into it),
`packed_lora` and `full` (what trains over it), `workbench` (which keeps it resident).
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from lorasweep.config.schema import Config, ModelConfig, QuantizationConfig
from lorasweep.errors import ConfigError, LorasweepError, ModelError
from lorasweep.models import families, hub
from lorasweep.models.counts import count_parameters
from lorasweep.models.decoding import StepBatch
from lorasweep.models.forward import Current, Forward
from lorasweep.models.install import find_heads, inside, install, outside_backbone
from lorasweep.models.stream import Batch, RowStore, Segment

log = logging.getLogger(__name__)

LOADERS = {
    "classification": "AutoModelForSequenceClassification",
    "causal_lm": "AutoModelForCausalLM",
    "question_answering": "AutoModelForQuestionAnswering",
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class BaseKey:
    """All that makes two trials need two bases. Equal keys share one."""

    path: str
    revision: str | None
    trust_remote_code: bool
    quantization: str
    double_quant: bool
    precision: str
    head: str
    label_count: int
    checkpointing: bool
    full: bool
    device: str


def resolve_device(device: str) -> torch.device:
    """`launcher.device` as a device. ConfigError for one that this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"launcher.device={device} is not a device; use auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"launcher.device={device} and this machine has {torch.cuda.device_count()} CUDA devices; "
            "use launcher.device=cpu"
        )
    return resolved


def base_key(config: Config, head: str, label_names: tuple[str, ...] | list[str], device: str | None = None) -> BaseKey:
    """The key of the base that a trial trains over. `device` None: `launcher.device`."""
    return BaseKey(
        config.model.path,
        config.model.revision,
        config.model.trust_remote_code,
        config.quantization.kind,
        config.quantization.double_quant and config.quantization.kind != "none",
        config.train.precision,
        head,
        len(label_names) if head == "classification" else 0,
        config.train.activation_checkpointing,
        config.adapter.kind == "full",
        str(resolve_device(device or config.launcher.device)),
    )


@dataclass
class LoadedBase:
    """A frozen model and what slots need to know of it.

    linear_modules: name -> (inputs, outputs) of the layers that LoRA can adapt; norm_modules: other layers with a bias;
    head_modules: modules trained whole for each slot, head_layers their linear leaves; fresh_modules: head layers that
    the checkpoint lacked; packable: whether several slots can share a forward; blocks: how many of the backbone's
    blocks a forward can enter past (`prefix`), 0 where none; dropouts: name -> rate of those that a slot draws.
    """

    key: BaseKey
    path: str
    model: Any
    tokenizer: Any
    device: torch.device
    current: Current
    fingerprint: str
    stream: bool
    head_modules: list[str]
    head_layers: list[str]
    fresh_modules: set[str]
    total_params: int
    packable: bool = True
    left_pad: bool = False
    linear_modules: dict[str, tuple[int, int]] = field(default_factory=dict)
    norm_modules: dict[str, int] = field(default_factory=dict)
    blocks: int = 0
    dropouts: dict[str, float] = field(default_factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the frozen products."""
        return DTYPES[self.key.precision]

    @property
    def pad_token_id(self) -> int:
        """Token that fills padded batches."""
        return int(self.tokenizer.pad_token_id)

    @property
    def longest_row(self) -> int | None:
        """Tokens that the base has positions for; None where it does not say."""
        config = self.model.config
        limit = getattr(config, "max_position_embeddings", None)
        if limit and config.model_type in families.OFFSET_POSITIONS:
            limit -= (config.pad_token_id or 0) + 1
        return limit if limit and limit > 0 else None

    def batch(self, store: RowStore, segments: list[Segment], *, left_pad: bool = False) -> Batch:
        """Collate rows the way this base takes them; `left_pad`: padded on the left if at all."""
        left = left_pad or self.left_pad
        return Batch(store, segments, stream=self.stream, pad_token_id=self.pad_token_id, left_pad=left)

    @contextlib.contextmanager
    def running(self, forward: Forward) -> Iterator[None]:
        """Run the body, forward and backward, with the layers reading `forward`."""
        self.current.forward = forward
        self.recompute(forward.keys is not None)
        try:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                yield
        finally:
            self.current.forward = None

    def logits(self, batch: Batch | StepBatch) -> torch.Tensor:
        """Logits of a batch, inside `running`: (rows, classes), of a causal language model (supervised tokens,
        vocabulary), of a question's spans (rows, longest, 2), the least number of their type past a row's end."""
        if self.stream:
            return families.stream_logits(self.model, batch, self.key.head)
        assert isinstance(batch, Batch), "generation has its own way through padded bases"
        return families.padded_logits(self.model, batch, self.key.head, self.takes)

    @cached_property
    def takes(self) -> frozenset[str]:
        """Names of the arguments of the model's forward."""
        return frozenset(inspect.signature(type(self.model).forward).parameters)

    def recompute(self, training: bool) -> None:
        """Recompute activations in backward, where the key asks for it, while training."""
        if self.key.checkpointing:  # transformers checkpoints a layer only while that layer itself is in training mode
            for module in self._checkpointed:
                module.training = training

    @cached_property
    def _checkpointed(self) -> list[nn.Module]:
        return [module for module in self.model.modules() if hasattr(module, "gradient_checkpointing")]

    def private_copy(self) -> LoadedBase:
        """A deep copy whose weights nobody shares, with its own running forward."""
        model, current = copy.deepcopy((self.model, self.current))
        return replace(self, model=model, current=current)


def load_tokenizer(model: ModelConfig) -> Any:
    """The base's tokenizer, with a padding token (its end-of-text where it has none).

    Raises:
        ModelError: no tokenizer can be loaded.
    """
    from transformers import AutoTokenizer

    source = hub.locate(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source.path,
            revision=source.revision,
            local_files_only=source.offline,
            trust_remote_code=model.trust_remote_code,
        )
    except Exception as error:  # a damaged or hostile file raises whatever its reader stumbles over
        raise ModelError(f"model.path={model.path}: its tokenizer cannot be loaded: {_first_line(error)}") from error
    if tokenizer.pad_token_id is None:
        token = tokenizer.eos_token or tokenizer.unk_token
        if token is None:
            raise ModelError(
                f"model.path={model.path}: its tokenizer has no padding, end-of-text or unknown token to pad with"
            )
        tokenizer.pad_token = token
    return tokenizer


def load_base(config: Config, head: str, label_names: list[str], device: str | None = None) -> LoadedBase:
    """Load, freeze and prepare the base of a trial.

    Raises:
        ModelError: the base cannot be found, loaded or quantized, or has no class for the task.
        ConfigError: settings that cannot go together on this base.
    """
    key = base_key(config, head, label_names, device)
    source = hub.locate(config.model)
    tokenizer = load_tokenizer(config.model)
    target = resolve_device(key.device)
    if key.full and key.quantization != "none":
        raise ConfigError(
            "adapter=full trains every weight, which 4-bit weights cannot do; use quantization=none or adapter=lora"
        )
    model, missing = _load_model(config, key, source, label_names, target)
    fingerprint = hub.fingerprint(source, getattr(model.config, "_commit_hash", None))
    return prepare_base(model, tokenizer, key, path=config.model.path, fingerprint=fingerprint, missing=missing)


def prepare_base(
    model: Any, tokenizer: Any, key: BaseKey, *, path: str, fingerprint: str, missing: set[str]
) -> LoadedBase:
    """Freeze a model that is on its device and put the stand-ins in. `missing`: parameters that no checkpoint gave.

    Of the tokenizer only pad_token_id and padding_side are used (and what writing a whole checkpoint asks).

    Raises:
        ModelError, ConfigError: as `load_base`.
    """
    model.requires_grad_(False).eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":  # in eval mode bitsandbytes repacks the weights of CPUs for good, in
            module.training = True  # a form that has no backward and rounds to bfloat16
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    heads, fresh = find_heads(model, key.head, missing)
    base = LoadedBase(
        key=key,
        path=path,
        model=model,
        tokenizer=tokenizer,
        device=torch.device(key.device),
        current=Current(),
        fingerprint=fingerprint,
        stream=families.can_stream(model, key.head),
        head_modules=heads,
        head_layers=[
            name for name, module in model.named_modules() if type(module) is nn.Linear and inside(name, heads)
        ],
        fresh_modules=fresh,
        total_params=count_parameters(model),
    )
    install(base)
    return base


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _load_model(
    config: Config, key: BaseKey, source: hub.Source, label_names: list[str], device: torch.device
) -> tuple[Any, set[str]]:
    """The model on its device and the parameter names that the checkpoint lacked."""
    import transformers

    common: dict[str, Any] = {
        "revision": source.revision,
        "local_files_only": source.offline,
        "trust_remote_code": key.trust_remote_code,
    }
    loader = getattr(transformers, LOADERS[key.head])
    try:
        model_config = transformers.AutoConfig.from_pretrained(source.path, **common)
        families.check_serves(model_config, key.head, config.model.path)
        if key.head == "question_answering":
            model_config.num_labels = 2  # start and end
        if key.head == "classification":
            theirs = dict(model_config.id2label)
            model_config.num_labels = len(label_names)
            model_config.id2label = dict(enumerate(label_names))
            model_config.label2id = {name: index for index, name in enumerate(label_names)}
            model_config.problem_type = None
        exact = key.precision != "fp32" and not key.full and model_config.dtype == DTYPES[key.precision]
        extra: dict[str, Any] = {"dtype": DTYPES[key.precision] if exact else torch.float32}
        if key.quantization == "nf4":
            extra = {"dtype": torch.float32, **_nf4(config.quantization, key, model_config, loader, device)}
        with torch.random.fork_rng(devices=[]), _quiet():
            torch.manual_seed(0)  # what the checkpoint lacks is drawn the same at every load
            loaded: Any = loader.from_pretrained(
                source.path,
                config=model_config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **common,
                **extra,
            )
    except LorasweepError:
        raise
    except Exception as error:  # as with its tokenizer
        raise ModelError(f"model.path={config.model.path} cannot be loaded: {_first_line(error)}") from error
    model, info = loaded
    lacking = set(info["missing_keys"]) | {name for name, *_ in info.get("mismatched_keys") or ()}
    if key.head == "classification":
        order_classes(model, [str(name) for _, name in sorted(theirs.items())], label_names, lacking)
    if key.quantization == "none":
        model.to(device)
    return model, lacking


def order_classes(model: Any, theirs: list[str], ours: list[str], lacking: set[str]) -> None:
    """Put the classes of a checkpoint's own head into the order of the data's names, where it calls them the same but
    for case; LABEL_0 and the like say nothing, and names of other things are warned of."""
    names = [name.lower() for name in theirs]
    wanted = [name.lower() for name in ours]
    heads, fresh = find_heads(model, "classification", lacking)
    if fresh or names == wanted or all(name == f"label_{number}" for number, name in enumerate(names)):
        return
    if sorted(names) != sorted(wanted):
        log.warning(
            "the checkpoint's head knows the classes %s, and the data have %s: taken to be the same in this order",
            ", ".join(theirs),
            ", ".join(ours),
        )
        return
    order = torch.tensor([names.index(name) for name in wanted])
    layers = [it for name, it in model.named_modules() if type(it) is nn.Linear and inside(name, heads)]
    for parameter in layers[-1].parameters():
        parameter.data = parameter.data[order.to(parameter.device)]


def _nf4(
    quantization: QuantizationConfig, key: BaseKey, model_config: Any, loader: Any, device: torch.device
) -> dict[str, Any]:
    """Arguments that load linear layers in 4 bits, heads and poolers aside."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "quantization=nf4 needs bitsandbytes, which is not installed: `pip install bitsandbytes`, "
            "or use quantization=none"
        ) from error
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        heads = outside_backbone(loader.from_config(model_config))
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=DTYPES[key.precision],
        bnb_4bit_use_double_quant=quantization.double_quant,
        llm_int8_skip_modules=[*heads, "pooler", "lm_head"],
    )
    return {"quantization_config": four_bit, "device_map": {"": str(device)}}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of newly drawn weights: we know which they are and draw our own."""
    from transformers.utils import logging as theirs

    level = theirs.get_verbosity()
    theirs.set_verbosity_error()
    progress = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if progress:
            theirs.enable_progress_bar()
