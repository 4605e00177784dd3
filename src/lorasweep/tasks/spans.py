"""Contexts in windows: each question with as much of its context as fits, again and again, and where its answer stands.

Neighbours: `extract` (the task), `data.answers` (places of answers), `data.encode` (what comes out).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lorasweep.data.answers import locate
from lorasweep.data.encode import Encoded
from lorasweep.data.sources import Split
from lorasweep.errors import ConfigError, ModelError


def windows(
    split: Split, tokenizer: Any, max_length: int, stride: int, what: str, notes: tuple[str, ...] = ()
) -> Encoded:
    """Every window of every row, at most max_length tokens each; neighbours of one row share `stride` tokens.

    Labels as `extract.Extract` has them: a window that does not hold the whole answer is one without answer, as in
    BERT's own preparation. extras: row (windows,), the row of the split; is_known (windows,), whether the row's answer
    is where the data say or there is none; characters (tokens, 2), where each token stands in its text.
    A question of more than half a window is cut to that.

    Raises:
        ModelError: a tokenizer that does not say where its tokens stand.
        ConfigError: a stride that leaves no room to go on.
    """
    import torch

    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"task=qa_extractive needs a fast tokenizer, which says where its tokens stand, and "
            f"{type(tokenizer).__name__} is none; use another base"
        )
    questions, cut = _questions(split, tokenizer, max_length // 2)
    _check_stride(questions, tokenizer, max_length, stride)
    out = tokenizer(
        questions,
        split.pairs,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    owner: list[int] = out["overflow_to_sample_mapping"]
    spans = [_span(split, row) for row in range(len(split))]
    labels = [_labels(out, window, spans[row], tokenizer.cls_token_id) for window, row in enumerate(owner)]
    rows: list[list[int]] = out["input_ids"]
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    types = out.get("token_type_ids")
    said = list(notes)
    if cut:
        said.append(f"{what} rows: {cut} of {len(split)} questions were cut to {max_length // 2} tokens")
    if len(owner) > len(split):
        many = sum(count > 1 for count in Counter(owner).values())
        said.append(
            f"{what} rows: {many} of {len(split)} contexts are longer than data.max_length={max_length} tokens and are "
            f"read in windows that share {stride} tokens: {len(owner)} windows in all"
        )
    return Encoded(
        ids=torch.tensor([token for row in rows for token in row], dtype=torch.int64),
        offsets=offsets,
        labels=torch.tensor(labels, dtype=torch.int64),
        type_ids=None if types is None else torch.tensor([kind for row in types for kind in row], dtype=torch.int64),
        truncated_rows=cut,
        extras={
            "row": torch.tensor(owner, dtype=torch.int64),
            "is_known": torch.tensor([spans[row] is not None for row in owner], dtype=torch.int64),
            "characters": torch.tensor([pair for row in out["offset_mapping"] for pair in row], dtype=torch.int64),
        },
        notes=tuple(said),
    )


def _questions(split: Split, tokenizer: Any, most: int) -> tuple[list[str], int]:
    """Questions of at most `most` tokens, and how many were cut."""
    stripped = [text.strip() for text in split.texts]
    found = tokenizer(stripped, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    cut = 0
    for row, places in enumerate(found["offset_mapping"]):
        if len(places) > most:
            stripped[row] = stripped[row][: places[most - 1][1]]
            cut += 1
    return stripped, cut


def _check_stride(questions: list[str], tokenizer: Any, max_length: int, stride: int) -> None:
    longest = max(len(ids) for ids in tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"])
    room = max_length - longest - tokenizer.num_special_tokens_to_add(pair=True)
    if stride >= room:
        raise ConfigError(
            f"task.stride={stride} must be below {room}, the tokens of a context that fit into data.max_length="
            f"{max_length} beside the longest question ({longest} tokens), or windows would never move on; lower it, "
            "or raise data.max_length"
        )


def _span(split: Split, row: int) -> tuple[int, int] | None:
    """First character of a row's answer and the one past its last; (-1, -1) where there is no answer, None where none
    of its answers is in its context."""
    assert split.answers is not None and split.pairs is not None
    if not split.answers[row]:
        return -1, -1
    for answer in split.answers[row]:
        start = locate(answer, split.pairs[row])
        if start is not None:
            return start, start + len(answer.text)
    return None


def _labels(out: Any, window: int, span: tuple[int, int] | None, cls_id: int | None) -> list[int]:
    """The five labels of a window."""
    ids, places, sequence = out["input_ids"][window], out["offset_mapping"][window], out.sequence_ids(window)
    none = ids.index(cls_id) if cls_id in ids else 0
    context = [at for at, part in enumerate(sequence) if part == 1]
    if not context:
        return [none, none, 0, 0, none]
    first, past = context[0], context[-1] + 1
    start, end = span or (-1, -1)
    if start < 0 or places[first][0] > start or places[past - 1][1] < end:
        return [none, none, first, past, none]
    from_token = next(at for at in range(first, past) if places[at][1] > start)
    to_token = next(at for at in range(past - 1, first - 1, -1) if places[at][0] < end)
    return [from_token, max(from_token, to_token), first, past, none]
