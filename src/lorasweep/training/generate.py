"""Generation in an evaluation: the prompts of an exam, continued greedily for several slots at once.

Every chunk holds the same prompts for all slots that are due. A row leaves once its answer has ended; what is left is
packed together again. Neighbours: `evaluate` (when), models' `decoding` (one step), `lanes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lorasweep.models.base import LoadedBase
from lorasweep.models.decoding import KeyValues, PaddedCache, StepBatch, bounds_of, bytes_per_token
from lorasweep.models.forward import Forward
from lorasweep.models.stream import Batch, RowStore, Segment
from lorasweep.models.transfer import to_device
from lorasweep.training.lanes import Lanes

if TYPE_CHECKING:
    from lorasweep.models.packed_lora import Engine

CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # keys and values of one chunk
PACK_AGAIN_BELOW = 0.5  # share of rows that go on, below which the others' places are given up


def generate(
    engine: Engine,
    store: RowStore,
    slots: list[int],
    chunks: list[torch.Tensor],
    *,
    max_new_tokens: int,
    end_ids: tuple[int, ...],
    lanes: Lanes,
) -> list[list[list[int]]]:
    """For each slot the tokens that continue each prompt, in the store's order, end tokens left out. chunks: rows that
    go together."""
    answers: list[list[list[int]]] = [[[] for _ in range(len(store))] for _ in slots]

    def run(rows: torch.Tensor) -> list[list[int]]:
        return Chunk(engine, store, slots, rows, max_new_tokens, end_ids).run()

    tokens = len(slots) * (int(store.offsets[-1]) + len(store) * max_new_tokens)
    for rows, found in zip(chunks, lanes.map(run, chunks, tokens), strict=True):
        for place, row in enumerate(rows.tolist()):
            for slot in range(len(slots)):
                answers[slot][row] = found[slot * len(rows) + place]
    return answers


def tokens_at_most(base: LoadedBase, limit: int) -> int:
    """Tokens of a chunk, those to come included: `limit`, or as many as there is memory for keys and values."""
    return max(1, min(limit, CACHE_BYTES[base.device.type] // bytes_per_token(base)))


class Chunk:
    """The same prompts for some slots, slot by slot."""

    def __init__(
        self,
        engine: Engine,
        store: RowStore,
        slots: list[int],
        rows: torch.Tensor,
        max_new_tokens: int,
        end_ids: tuple[int, ...],
    ):
        self.engine, self.base, self.slots = engine, engine.base, slots
        self.batch = self.base.batch(store, [Segment(slot, rows) for slot in slots], left_pad=True)
        self.max_new_tokens, self.end_ids = max_new_tokens, set(end_ids)
        self.answers: list[list[int]] = [[] for _ in range(len(rows) * len(slots))]
        self.alive = list(range(len(self.answers)))  # the answer of each place in the step's rows
        self.owner = [slot for slot in range(len(slots)) for _ in range(len(rows))]  # of each answer
        self.over: set[int] = set()  # answers that have ended
        self.cache = KeyValues(self.batch, max_new_tokens) if self.base.stream else None
        self.padded = PaddedCache()
        self.longest = int(self.batch.lengths.max())

    @torch.no_grad()
    def run(self) -> list[list[int]]:
        """The answers, slot by slot."""
        tokens = self._read_prompts()
        for step in range(1, self.max_new_tokens + 1):
            self._take(tokens)
            if len(self.over) == len(self.answers) or step == self.max_new_tokens:
                break
            tokens = self._step(self._pack_again(tokens), self.longest + step)
        return self.answers

    def _take(self, tokens: torch.Tensor) -> None:
        """Add each row's new token, (rows,), unless its answer has ended."""
        for answer, token in zip(self.alive, tokens.tolist(), strict=True):
            if answer in self.over:
                continue
            if token in self.end_ids:
                self.over.add(answer)
            else:
                self.answers[answer].append(token)

    def _pack_again(self, tokens: torch.Tensor) -> torch.Tensor:
        """Give up the places of ended answers where that is worth it; the tokens of those that go on."""
        going = [place for place, answer in enumerate(self.alive) if answer not in self.over]
        if self.cache is None or len(going) > PACK_AGAIN_BELOW * len(self.alive):
            return tokens
        places = to_device(torch.tensor(going), tokens.device)
        self.cache.select(places)
        self.alive = [self.alive[place] for place in going]
        return tokens.index_select(0, places)

    def _likeliest(self, forward: Forward) -> torch.Tensor:
        with self.base.running(forward):
            logits = self.base.logits(forward.batch) if self.cache is not None else self._padded_logits(forward)
        return logits.float().argmax(-1)

    def _read_prompts(self) -> torch.Tensor:
        batch = self.batch
        batch.supervised = to_device(batch.starts + batch.lengths - 1, batch.device)  # each prompt's last token
        forward = self.engine.generation(batch)
        forward.cache = self.cache
        return self._likeliest(forward)

    def _step(self, tokens: torch.Tensor, width: int) -> torch.Tensor:
        """The next token of each row, after `tokens` (rows,); `width`: tokens of the longest row with it."""
        counts = [0] * len(self.slots)
        for answer in self.alive:
            counts[self.owner[answer]] += 1
        held = [slot for slot, count in enumerate(counts) if count]
        segments = [Segment(self.slots[slot], self.batch.rows[:0]) for slot in held]
        bounds = bounds_of([counts[slot] for slot in held])
        if self.cache is None:
            assert self.padded.mask is not None
            self.padded.mask = torch.cat([self.padded.mask, torch.ones_like(self.padded.mask[:, :1])], 1)
            positions = self.padded.mask.sum(1, keepdim=True) - 1
            batch = StepBatch(segments, tokens[:, None], positions, bounds, self.batch.device, is_stream=False)
            return self._likeliest(self.engine.generation(batch))
        positions = self.cache.lengths[None]
        batch = StepBatch(segments, tokens[None], positions, bounds, self.batch.device, is_stream=True)
        forward = self.engine.generation(batch)
        forward.cache = self.cache
        self.cache.begin_step(width)
        found = self._likeliest(forward)
        self.cache.end_step()
        return found

    def _padded_logits(self, forward: Forward) -> torch.Tensor:
        """Logits (rows, vocabulary) of each row's last token, through the model's own forward and cache."""
        batch, takes = forward.batch, self.base.takes
        if isinstance(batch, Batch):
            assert batch.attention_mask is not None
            self.padded.mask = batch.attention_mask
            positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        else:
            positions = batch.positions
        more = {"position_ids": positions} if "position_ids" in takes else {}
        out = self.base.model(
            input_ids=batch.ids,
            attention_mask=self.padded.mask,
            past_key_values=self.padded.theirs,
            use_cache=True,
            **more,
        )
        self.padded.theirs = out.past_key_values
        return out.logits[:, -1]
