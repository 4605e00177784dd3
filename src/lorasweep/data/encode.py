"""Rows to token ids, once per tokenizer, cached on disk; all rows lie end to end in one stream.

The cache key is a fingerprint of the rows, the tokenizer and max_length, so nothing stale is ever read; a damaged or
half-written file is rebuilt. Neighbours: `sources` (rows in), `tasks` (who calls), `training` (who batches).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.data.sources import Split

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

EXTRA = "extra."
FORMAT = "1"  # of the cache files; a change makes all older ones stale


@dataclass(frozen=True)
class Encoded:
    """Token ids of many rows, end to end, without padding.

    ids (tokens,) int64; offsets (rows + 1,) int64: row i is ids[offsets[i]:offsets[i + 1]], never empty;
    labels (rows,) or (rows, n) int64, of a causal language model (tokens,); type_ids (tokens,) int64, None where the
    tokenizer has none; truncated_rows counts the rows that were cut to max_length. extras: what a task keeps beside,
    one entry a row or a token; notes: what to tell people about the rows, one sentence each.
    """

    ids: torch.Tensor
    offsets: torch.Tensor
    labels: torch.Tensor
    type_ids: torch.Tensor | None
    truncated_rows: int
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> torch.Tensor:
        """Tokens of each row, (rows,) int64."""
        return self.offsets[1:] - self.offsets[:-1]

    def row(self, number: int) -> torch.Tensor:
        """Token ids of one row, (tokens of the row,)."""
        return self.ids[self.offsets[number] : self.offsets[number + 1]]

    def select(self, rows: torch.Tensor) -> Encoded:
        """The given rows (n,) int64, in the given order, copied; `truncated_rows` and `notes` stay the whole's."""
        import torch

        lengths = self.lengths[rows]
        offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
        torch.cumsum(lengths, 0, out=offsets[1:])
        # position of each kept token: its row's start in self, plus its place within the row
        shift = torch.repeat_interleave(self.offsets[rows] - offsets[:-1], lengths)
        tokens = torch.arange(int(offsets[-1])) + shift
        type_ids = None if self.type_ids is None else self.type_ids[tokens]

        def of_rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor[rows] if len(tensor) == len(self) else tensor[tokens]

        extras = {name: of_rows(tensor) for name, tensor in self.extras.items()}
        labels = of_rows(self.labels)
        return Encoded(self.ids[tokens], offsets, labels, type_ids, self.truncated_rows, extras, self.notes)


def encode(split: Split, tokenizer: Any, max_length: int, cache: Path | None, key: str) -> Encoded:
    """Tokenise a split, or read it from `cache` (a folder; None: no cache) where the same was tokenised before.

    Pairs become one row, tokenizer(text, pair); rows over `max_length` tokens are cut from the longer of the two texts.
    `key` opens the cache file's name, so that people can tell train from validation.
    """
    parts = [split.fingerprint(), tokenizer_fingerprint(tokenizer), str(max_length)]
    return cached(parts, cache, key, lambda: tokenise(split, tokenizer, max_length), len(split))


def cached(
    parts: list[str], cache: Path | None, key: str, build: Callable[[], Encoded], rows: int | None = None
) -> Encoded:
    """What `build` gives, or what it gave before for the same `parts`, from the folder `cache` (None: no cache).
    `rows`: how many there must be, None: any number."""
    if cache is None:
        return build()
    file = cache / f"{key}-{hashlib.sha256(' '.join([FORMAT, *parts]).encode()).hexdigest()[:32]}.safetensors"
    if file.is_file():
        try:
            return read_cached(file, rows)
        except Exception as error:  # safetensors raises its own types; whatever is wrong, the rows are at hand
            log.warning("the token cache %s is damaged (%s) and is built again", file, error)
    encoded = build()
    write_cached(encoded, file)
    return encoded


def tokenise(split: Split, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenise without a cache; a row without any token (only control characters, say) becomes one filler token."""
    import torch

    out = tokenizer(
        split.texts,
        split.pairs,
        truncation=True,
        max_length=max_length,
        return_attention_mask=False,
        verbose=False,
    )
    rows: list[list[int]] = out["input_ids"]
    types: list[list[int]] | None = out.get("token_type_ids")
    for number, row in enumerate(rows):
        if not row:
            rows[number] = [filler_id(tokenizer)]
            if types is not None:
                types[number] = [0]
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor([len(row) for row in rows], dtype=torch.int64), 0, out=offsets[1:])
    return Encoded(
        ids=torch.tensor([token for row in rows for token in row], dtype=torch.int64),
        offsets=offsets,
        labels=torch.tensor(split.labels, dtype=torch.int64),
        type_ids=None if types is None else torch.tensor([kind for row in types for kind in row], dtype=torch.int64),
        truncated_rows=count_truncated(split, tokenizer, out, rows, max_length),
    )


def count_truncated(split: Split, tokenizer: Any, out: Any, rows: list[list[int]], max_length: int) -> int:
    """How many rows lost tokens. Fast tokenizers keep what they cut; others tokenise their full rows again."""
    full = [number for number, row in enumerate(rows) if len(row) >= max_length]
    if not full:
        return 0
    if getattr(out, "encodings", None):
        return sum(bool(out.encodings[number].overflowing) for number in full)
    whole = tokenizer(
        [split.texts[number] for number in full],
        None if split.pairs is None else [split.pairs[number] for number in full],
        verbose=False,
    )["input_ids"]
    return sum(len(row) > max_length for row in whole)


def filler_id(tokenizer: Any) -> int:
    """A token to stand for a row without tokens: unknown, else end of text, else padding, else id 0."""
    found = (tokenizer.unk_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next((token for token in found if token is not None), 0)


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """sha256 (hex) of what decides a tokenizer's output: model, normalisation, added and special tokens.

    A fast tokenizer's truncation and padding are left out: they are state of its last call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        state.pop("truncation", None)
        state.pop("padding", None)
    else:
        state = {"vocabulary": tokenizer.get_vocab()}
    state["class"] = type(tokenizer).__name__
    state["special"] = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    state["inputs"] = list(tokenizer.model_input_names)
    state["truncation_side"] = tokenizer.truncation_side
    return hashlib.sha256(json.dumps(state, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def write_cached(encoded: Encoded, file: Path) -> None:
    """Write to a temporary file beside `file`, then rename: a reader sees all of it or nothing."""
    from safetensors.torch import save

    tensors = {"ids": encoded.ids, "offsets": encoded.offsets, "labels": encoded.labels}
    if encoded.type_ids is not None:
        tensors["type_ids"] = encoded.type_ids
    tensors |= {f"{EXTRA}{name}": tensor for name, tensor in encoded.extras.items()}
    notes = {"notes": json.dumps(encoded.notes)} if encoded.notes else {}
    raw = save(tensors, metadata={"truncated_rows": str(encoded.truncated_rows), **notes})
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.stem}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(raw)
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def read_cached(file: Path, rows: int | None) -> Encoded:
    """Read a cache file and check that it hangs together; ValueError or safetensors' errors where it does not."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  not a dict
        metadata = stored.metadata() or {}
    encoded = Encoded(
        tensors["ids"],
        tensors["offsets"],
        tensors["labels"],
        tensors.get("type_ids"),
        int(metadata["truncated_rows"]),
        {name.removeprefix(EXTRA): tensor for name, tensor in tensors.items() if name.startswith(EXTRA)},
        tuple(json.loads(metadata.get("notes", "[]"))),
    )
    labels, found = len(encoded.labels), len(encoded)
    wanted = found if rows is None else rows
    if found != wanted or int(encoded.offsets[-1]) != len(encoded.ids) or int(encoded.lengths.min()) < 1:
        raise ValueError(f"{wanted} rows were expected and {found} are there")
    if labels not in (found, len(encoded.ids)):
        raise ValueError(f"{labels} labels are there for {found} rows of {len(encoded.ids)} tokens")
    return encoded
