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
from lorasweep.errors import ConfigError, ModelError
from lorasweep.models import families, hub, stream
from lorasweep.models.counts import count_parameters
from lorasweep.models.layers import BiasedNorm, Current, Forward, HeadLinear, LoraLinear, SlotDropout
from lorasweep.models.stream import Batch, RowStore

log = logging.getLogger(__name__)

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
            f"launcher.device={device} and this machine has {torch.cuda.device_count()} CUDA devices; use launcher.device=cpu"
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
        len(label_names),
        config.train.activation_checkpointing,
        config.adapter.kind == "full",
        str(resolve_device(device or config.launcher.device)),
    )


@dataclass
class LoadedBase:
    """A frozen model and what slots need to know of it.

    linear_modules: name -> (inputs, outputs) of the layers that LoRA can adapt; norm_modules: other layers with a bias;
    head_modules: modules trained whole for each slot, head_layers their linear leaves; fresh_modules: head layers that
    the checkpoint lacked; packable: whether several slots can share a forward.
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

    def batch(self, store: RowStore, segments: list[stream.Segment]) -> Batch:
        """Collate rows the way this base takes them."""
        return Batch(store, segments, stream=self.stream, pad_token_id=self.pad_token_id, left_pad=self.left_pad)

    @contextlib.contextmanager
    def running(self, forward: Forward) -> Iterator[None]:
        """Run the body, forward and backward, with the layers reading `forward`."""
        self.current.forward = forward
        self._recompute(forward.keys is not None)
        try:
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
                yield
        finally:
            self.current.forward = None

    def logits(self, batch: Batch) -> torch.Tensor:
        """Logits (rows, classes) of a batch, inside `running`."""
        if self.stream:
            return families.stream_logits(self.model, batch, self.key.head)
        return families.padded_logits(self.model, batch, self.key.head, self._takes)

    @cached_property
    def _takes(self) -> frozenset[str]:
        return frozenset(inspect.signature(type(self.model).forward).parameters)

    def _recompute(self, training: bool) -> None:
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
    except (OSError, ValueError, ImportError, KeyError) as error:
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
    model.requires_grad_(False).eval()
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    heads, fresh = _find_heads(model, head, missing)
    base = LoadedBase(
        key=key,
        path=config.model.path,
        model=model,
        tokenizer=tokenizer,
        device=target,
        current=Current(),
        fingerprint=hub.fingerprint(source, getattr(model.config, "_commit_hash", None)),
        stream=families.can_stream(model, head),
        head_modules=heads,
        head_layers=[
            name for name, module in model.named_modules() if type(module) is nn.Linear and _inside(name, heads)
        ],
        fresh_modules=fresh,
        total_params=count_parameters(model),
    )
    _prepare(base)
    return base


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def _inside(name: str, modules: list[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _load_model(
    config: Config, key: BaseKey, source: hub.Source, label_names: list[str], device: torch.device
) -> tuple[Any, set[str]]:
    """The model on its device and the parameter names that the checkpoint lacked."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    common: dict[str, Any] = {
        "revision": source.revision,
        "local_files_only": source.offline,
        "trust_remote_code": key.trust_remote_code,
    }
    loader = AutoModelForSequenceClassification if key.head == "classification" else AutoModelForCausalLM
    try:
        model_config = AutoConfig.from_pretrained(source.path, **common)
        if key.head == "classification":
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
            model, info = loader.from_pretrained(
                source.path,
                config=model_config,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **common,
                **extra,
            )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise ModelError(f"model.path={config.model.path} cannot be loaded: {_first_line(error)}") from error
    lacking = set(info["missing_keys"]) | {name for name, *_ in info.get("mismatched_keys") or ()}
    if key.quantization == "none":
        model.to(device)
    return model, lacking


def _nf4(
    quantization: QuantizationConfig, key: BaseKey, model_config: Any, loader: Any, device: torch.device
) -> dict[str, Any]:
    """Arguments that load linear layers in 4 bits, heads and poolers aside."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ModelError(
            "quantization=nf4 needs bitsandbytes, which is not installed; `pip install bitsandbytes`, or quantization=none"
        ) from error
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        heads = _outside_backbone(loader.from_config(model_config))
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


def _outside_backbone(model: Any) -> list[str]:
    backbone = model.base_model
    return [
        name
        for name, child in model.named_children()
        if child is not backbone and backbone is not model and any(True for _ in child.parameters())
    ]


def _find_heads(model: Any, head: str, missing: set[str]) -> tuple[list[str], set[str]]:
    """Modules trained whole for each slot, and their linear layers that the checkpoint lacked."""
    heads = _outside_backbone(model) if head == "classification" else []
    owners = {name.rpartition(".")[0] for name in missing}
    for name, module in model.named_modules():
        if name in owners and not _inside(name, heads) and name != "lm_head":
            if type(module) is nn.Linear:
                heads.append(name)
            else:
                log.warning("the checkpoint lacks the weights of %s; they stay as they were drawn", name)
    fresh = {name for name in owners if _inside(name, heads)}
    if head == "classification" and not heads:
        raise ModelError(
            f"{type(model).__name__} has no head outside of its backbone, so there is nothing to classify with"
        )
    return heads, fresh


def _prepare(base: LoadedBase) -> None:
    """Put the stand-ins in, where a probe forward finds rows."""
    model, current = base.model, base.current
    if base.stream:
        stream.register()
        model.set_attn_implementation(stream.ATTENTION)
        for module in model.modules():
            if hasattr(module, "is_causal"):
                module.stream = current
        families.install_pooling(model, current)
    else:
        base.left_pad = _padding_side(base) == "left"
    watched = dict(_trainable_layers(base))
    dropouts = {name: module for name, module in model.named_modules() if type(module) is nn.Dropout}
    kinds = _probe(base, {**watched, **dropouts})
    reached = {name: layer for name, layer in watched.items() if name in kinds}
    base.packable = all(kinds[name] != "loose" for name in reached)
    for index, (name, layer) in enumerate(reached.items()):
        kind = kinds[name]
        if name in base.head_layers:
            layer.forward = HeadLinear(layer, name, kind, current)
        elif _is_linear(layer):
            base.linear_modules[name] = _linear_shape(layer)
            layer.forward = LoraLinear(layer, name, index, kind, current)
        else:
            base.norm_modules[name] = layer.bias.numel()
            layer.forward = BiasedNorm(layer, name, kind, current)
    for index, (name, layer) in enumerate(dropouts.items()):
        layer.forward = SlotDropout(layer, index, kinds.get(name, "loose"), current)
    _store_in(base)
    if base.key.checkpointing:
        if not model.supports_gradient_checkpointing:
            raise ConfigError(f"train.activation_checkpointing=true and {type(model).__name__} does not support it")
        model.gradient_checkpointing_enable({"use_reentrant": False})
        base._recompute(False)


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def _linear_shape(layer: Any) -> tuple[int, int]:
    if type(layer).__name__ == "Conv1D":
        return tuple(layer.weight.shape)
    return layer.in_features, layer.out_features


def _trainable_layers(base: LoadedBase) -> Iterator[tuple[str, nn.Module]]:
    """Linear layers, heads and whatever else has a bias vector, in the model's order; the output embedding aside."""
    output = base.model.get_output_embeddings()
    for name, module in base.model.named_modules():
        bias = getattr(module, "bias", None)
        norm = isinstance(bias, nn.Parameter) and bias.dim() == 1 and not list(module.children())
        if (_is_linear(module) or (norm and not _inside(name, base.head_modules))) and module is not output:
            yield name, module


def _probe_store(base: LoadedBase) -> RowStore:
    return families.probe_store(base.model.get_input_embeddings().weight.shape[0], base.pad_token_id, base.device)


@torch.no_grad()
def _bare_logits(base: LoadedBase, store: RowStore, rows: torch.Tensor) -> torch.Tensor:
    batch = base.batch(store, [stream.Segment(0, rows)])
    with base.running(Forward(batch, {}, base.dtype, torch.zeros(0, device=base.device))):
        return base.logits(batch).float()


def _probe(base: LoadedBase, watched: dict[str, nn.Module]) -> dict[str, str]:
    store = _probe_store(base)
    return families.probe(lambda rows: _bare_logits(base, store, rows), store, base.stream, watched)


def _padding_side(base: LoadedBase) -> str:
    """The side on which padding leaves a row's logits alone: the tokenizer's own, or else the other.

    Raises:
        ModelError: a row's logits depend on the rows beside it whichever side is padded.
    """
    store, own = _probe_store(base), getattr(base.tokenizer, "padding_side", "right")
    alone = torch.cat([_bare_logits(base, store, torch.tensor([row])) for row in range(families.PROBE_ROWS)])
    for side in (own, "left" if own == "right" else "right"):
        base.left_pad = side == "left"
        together = _bare_logits(base, store, torch.arange(families.PROBE_ROWS))
        if bool((together - alone).abs().max() <= 1e-2 * alone.abs().max().clamp(min=1.0)):
            return side
    raise ModelError(
        f"model.path={base.path} ({base.model.config.model_type}) gives a row other logits when it is padded, on either "
        "side, so trials could not be compared; use another base"
    )


def _store_in(base: LoadedBase) -> None:
    """Frozen linear weights in the type of the products, once; everything else in float32, as autocast wants it."""
    if base.dtype == torch.float32 or base.key.full:
        return
    for name, module in base.model.named_modules():
        dtype = base.dtype if name in base.linear_modules else torch.float32
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and getattr(parameter, "quant_state", None) is None:
                parameter.data = parameter.data.to(dtype)
