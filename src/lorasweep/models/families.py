"""From a collated batch to logits, for every family of base: on the token stream where we know the family's pooling,
else padded through the model's own forward.

Where each layer's input holds its rows is found by one probe forward with sizes that cannot be confused, never
guessed from a name. A base whose layers cannot be told apart by row (DeBERTa sends shared position embeddings
through them) is trained right all the same, one slot a forward. Neighbours: `stream` (batches), `base` (loads),
`packed_lora` (reads the placements).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lorasweep.errors import ModelError
from lorasweep.models.last_layer import POOLS_FIRST, install_last_layer
from lorasweep.models.stream import Batch, RowStore

if TYPE_CHECKING:
    from lorasweep.models.decoding import StepBatch

STREAM_FAMILIES = (*POOLS_FIRST, "gpt2", "llama", "mistral", "qwen2", "gemma", "gemma2")
CLASSES = {
    "classification": ("ForSequenceClassification",),
    "causal_lm": ("ForCausalLM", "LMHeadModel"),
    "question_answering": ("ForQuestionAnswering",),
}
OFFSET_POSITIONS = ("roberta", "xlm-roberta")  # positions start at pad_token_id + 1


def can_stream(model: Any, head: str) -> bool:
    """Whether we know how to run this base on a token stream."""
    config = model.config
    if config.model_type not in STREAM_FAMILIES or getattr(config, "add_cross_attention", False):
        return False
    if getattr(config, "position_embedding_type", "absolute") not in ("absolute", None):
        return False
    is_encoder = config.model_type in POOLS_FIRST
    if is_encoder and (head == "causal_lm" or getattr(config, "is_decoder", False)):
        return False
    if not is_encoder and head == "question_answering":
        return False
    return type(model).__name__.endswith(CLASSES[head])


def check_serves(config: Any, head: str, path: str) -> None:
    """Whether a base of this configuration can do what a task asks.

    Raises:
        ModelError: an encoder is asked to write, or a decoder to mark answers in what it reads.
    """
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = config.model_type
    fills_gaps, continues = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES, kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if head == "causal_lm" and fills_gaps and not getattr(config, "is_decoder", False):
        raise ModelError(
            f"model.path={path} is an encoder ({kind}), which reads both ways and cannot continue a prompt; use a "
            "decoder such as model=tiny_decoder, or task=classify, or task=qa_extractive for questions"
        )
    if head == "question_answering" and continues and not fills_gaps:
        raise ModelError(
            f"model.path={path} is a decoder ({kind}), whose tokens do not see what follows them, so it cannot mark an "
            "answer's start; use an encoder such as model=tiny_encoder, or task=qa, which lets it write the answer"
        )


def install_pooling(model: Any, head: str, current: Any) -> None:
    """Let a classifier's last layer, and BERT's pooler, see pooled tokens alone."""
    if head != "classification":
        return
    install_last_layer(model, current)
    pooler = getattr(model.base_model, "pooler", None)
    if model.config.model_type == "bert" and pooler is not None:
        pooler.stream = current
        pooler.register_forward_pre_hook(_rows_first)


def _rows_first(pooler: Any, args: tuple[torch.Tensor, ...]) -> torch.Tensor | None:
    """(1, rows, hidden) -> (rows, 1, hidden), as BERT's pooler takes each row's first token."""
    return None if pooler.stream.forward is None else args[0].transpose(0, 1)


def stream_logits(model: Any, batch: Batch | StepBatch, head: str) -> torch.Tensor:
    """Logits of a stream batch: classification (rows, classes); causal_lm (supervised tokens, vocabulary);
    question_answering (rows, longest, 2)."""
    config, kwargs, positions = model.config, dict[str, Any](), batch.positions
    assert positions is not None, "the batch is padded"
    if config.model_type in OFFSET_POSITIONS:
        positions = positions + config.pad_token_id + 1
    if batch.type_ids is not None and config.model_type in POOLS_FIRST and config.model_type != "distilbert":
        kwargs["token_type_ids"] = batch.type_ids
    if config.model_type not in POOLS_FIRST:
        kwargs["use_cache"] = False
    outputs = model.base_model(input_ids=batch.ids, position_ids=positions, **kwargs)
    hidden = outputs.last_hidden_state[0]  # (rows, hidden) by `last_layer`, else (tokens, hidden)
    if head == "causal_lm":
        return _language_logits(model, hidden if batch.supervised is None else hidden.index_select(0, batch.supervised))
    assert isinstance(batch, Batch), "one token more is asked of causal language models alone"
    if head == "question_answering":
        if config.model_type == "distilbert":
            hidden = model.dropout(hidden)
        return _span_logits(model.qa_outputs(hidden[None])[0], batch)
    if config.model_type == "gpt2":
        hidden = hidden.index_select(0, batch.last)
    if config.model_type not in POOLS_FIRST:
        return model.score(hidden)
    if config.model_type == "bert":
        return model.classifier(model.dropout(outputs.pooler_output))
    if config.model_type == "distilbert":
        return model.classifier(model.dropout(torch.relu(model.pre_classifier(hidden))))
    return model.classifier(hidden[:, None])  # RoBERTa's head takes the first token itself


def _span_logits(flat: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Start and end logits of every token, (tokens, 2) -> (rows, longest, 2), the least number past a row's end."""
    places, past = batch.tokens_of_rows
    return flat[places].masked_fill(past[:, :, None], torch.finfo(flat.dtype).min)


def _language_logits(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def padded_logits(model: Any, batch: Batch, head: str, takes: frozenset[str]) -> torch.Tensor:
    """Logits of a padded batch through the model's own forward. `takes`: names of its forward's arguments."""
    kwargs: dict[str, Any] = {"input_ids": batch.ids, "attention_mask": batch.attention_mask}
    if batch.type_ids is not None and "token_type_ids" in takes:
        kwargs["token_type_ids"] = batch.type_ids
    if "use_cache" in takes and head == "causal_lm":
        kwargs["use_cache"] = False
    if head == "question_answering":
        out = model(**kwargs)
        return _span_logits(torch.stack([out.start_logits, out.end_logits], -1).flatten(0, 1), batch)
    logits = model(**kwargs).logits
    if head == "classification" or batch.supervised is None:
        return logits
    return logits.flatten(0, 1).index_select(0, batch.supervised)


PROBE_LENGTHS = (7, 3, 11, 2, 9)  # 5 rows, 32 tokens in a stream, 55 padded: no two counts are alike
PROBE_ROWS, PROBE_TOKENS, PROBE_LONGEST = len(PROBE_LENGTHS), sum(PROBE_LENGTHS), max(PROBE_LENGTHS)


def probe_store(vocabulary: int, pad_token_id: int, device: torch.device) -> RowStore:
    """The probe's rows; none holds the padding token."""
    from lorasweep.data.encode import Encoded

    lengths = torch.tensor(PROBE_LENGTHS)
    offsets = torch.zeros(PROBE_ROWS + 1, dtype=torch.int64)
    offsets[1:] = torch.cumsum(lengths, 0)
    ids = torch.arange(PROBE_TOKENS) * 7 % vocabulary
    ids = ids.where(ids != pad_token_id, (pad_token_id + 1) % vocabulary)
    return RowStore(Encoded(ids, offsets, torch.zeros(PROBE_ROWS, dtype=torch.int64), None, 0), None, device)


def probe(
    run: Callable[[torch.Tensor], Any], store: RowStore, stream: bool, watched: dict[str, nn.Module]
) -> dict[str, str]:
    """Where the input of each watched layer holds its rows, from one forward over the probe rows.

    "stream": (1, tokens, …); "pooled": (1, rows, …); "grid": (rows, longest, …) or (rows, …); "second": (…, rows, …);
    "flat": (rows * longest, …); "loose": no rows to be seen, or not the same at every call; missing: not reached.
    run(rows) is that forward.
    """
    found: dict[str, str] = {}

    def watch(name: str) -> Any:
        def seen(_module: nn.Module, args: tuple[Any, ...]) -> None:
            kind = _kind(args[0].shape, stream)
            found[name] = kind if found.get(name, kind) == kind else "loose"

        return seen

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in watched.items()]
    try:
        run(torch.arange(PROBE_ROWS))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _kind(shape: torch.Size, stream: bool) -> str:
    lead = tuple(shape[:-1])
    if stream and lead == (1, PROBE_TOKENS):
        return "stream"
    if stream and lead == (1, PROBE_ROWS):
        return "pooled"
    if lead in ((PROBE_ROWS,), (PROBE_ROWS, 1)) or (not stream and lead == (PROBE_ROWS, PROBE_LONGEST)):
        return "grid"
    if not stream and lead == (PROBE_LONGEST, PROBE_ROWS):
        return "second"
    return "flat" if not stream and lead == (PROBE_ROWS * PROBE_LONGEST,) else "loose"
