"""What trials make of an exam's prompts: how likely the given responses are, and what they write themselves.

Every chunk holds the same prompts for all slots that are due. A prompt is read once; its given responses follow
together, then greedy decoding goes on from it. A row leaves once its answer has ended; what is left is packed together
again. Neighbours: `evaluate` (when), models' `decoding` (what follows a prompt), `lanes`.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    from lorasweep.tasks import Task

CACHE_BYTES = {"cpu": 1 << 30, "cuda": 8 << 30}  # keys and values of one chunk
PACK_AGAIN_BELOW = 0.5  # share of rows that go on, below which the others' places are given up


@dataclass(frozen=True)
class Responses:
    """The given responses of an exam: `rows` are prompts with one response each, `prompt` (rows,) says which prompt of
    the exam a row begins with, `prompts` has how long these are."""

    rows: RowStore
    prompt: torch.Tensor
    prompts: RowStore

    def of(self, prompts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows that begin with the given prompts (n,), prompt by prompt, and the place of each one's prompt in n."""
        place = torch.full((len(self.prompts),), -1)
        place[prompts] = torch.arange(len(prompts))
        at = place[self.prompt]
        rows = (at >= 0).nonzero().squeeze(1)
        rows = rows[torch.argsort(at[rows], stable=True)]
        return rows, at[rows]

    @property
    def longest_of_prompt(self) -> torch.Tensor:
        """(prompts,) tokens of all responses of each prompt together."""
        lengths = self.rows.lengths - self.prompts.lengths[self.prompt]
        return torch.zeros_like(self.prompts.lengths).index_add_(0, self.prompt, lengths)


@dataclass(frozen=True)
class Plan:
    """What is done with every prompt: `responses` are scored by `task`, None: none are; at most `max_new_tokens` are
    written, until one of `end_ids`."""

    task: Task
    responses: Responses | None
    max_new_tokens: int
    end_ids: tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What one slot made of all prompts. losses (units,): those of the responses, in the order of their rows, None
    where none were scored; written: tokens after each prompt, end tokens left out."""

    losses: torch.Tensor | None
    written: list[list[int]]


def answer_prompts(
    engine: Engine, store: RowStore, slots: list[int], chunks: list[torch.Tensor], plan: Plan, lanes: Lanes
) -> list[Outcome]:
    """What each slot makes of the prompts in `store`; chunks: prompts that go together."""
    written: list[list[list[int]]] = [[[] for _ in range(len(store))] for _ in slots]
    scored = plan.responses
    losses = starts = None
    if scored is not None:
        starts = torch.cumsum(scored.rows.units, 0) - scored.rows.units
        losses = torch.zeros(len(slots), int(scored.rows.units.sum()))

    def run(rows: torch.Tensor) -> Chunk:
        chunk = Chunk(engine, store, slots, rows, plan)
        chunk.run()
        return chunk

    tokens = len(slots) * (int(store.offsets[-1]) + len(store) * max(1, plan.max_new_tokens))
    for rows, chunk in zip(chunks, lanes.map(run, chunks, tokens), strict=True):
        for place, row in enumerate(rows.tolist()):
            for slot in range(len(slots)):
                written[slot][row] = chunk.answers[slot * len(rows) + place]
        if scored is not None and losses is not None and starts is not None and chunk.losses is not None:
            units = scored.rows.units[chunk.response_rows]
            within = torch.arange(int(units.sum())) - torch.repeat_interleave(torch.cumsum(units, 0) - units, units)
            losses[:, torch.repeat_interleave(starts[chunk.response_rows], units) + within] = chunk.losses
    return [Outcome(None if losses is None else losses[slot], written[slot]) for slot in range(len(slots))]


def tokens_at_most(base: LoadedBase, limit: int) -> int:
    """Tokens of a chunk, those to come included: `limit`, or as many as there is memory for keys and values."""
    return max(1, min(limit, CACHE_BYTES[base.device.type] // bytes_per_token(base)))


class Chunk:
    """The same prompts for some slots, slot by slot."""

    def __init__(self, engine: Engine, store: RowStore, slots: list[int], rows: torch.Tensor, plan: Plan):
        self.engine, self.base, self.slots, self.plan, self.prompts = engine, engine.base, slots, plan, rows
        self.batch = self.base.batch(store, [Segment(slot, rows) for slot in slots], left_pad=True)
        self.end_ids = set(plan.end_ids)
        self.answers: list[list[int]] = [[] for _ in range(len(rows) * len(slots))]
        self.alive = list(range(len(self.answers)))  # the answer of each place in the step's rows
        self.owner = [slot for slot in range(len(slots)) for _ in range(len(rows))]  # of each answer
        self.over: set[int] = set()  # answers that have ended
        self.cache = KeyValues(self.batch, plan.max_new_tokens) if self.base.stream else None
        self.padded = PaddedCache()
        self.longest = int(self.batch.lengths.max())
        self.losses: torch.Tensor | None = None  # (slots, units of the chunk's responses)
        self.response_rows = torch.empty(0, dtype=torch.int64)

    @torch.no_grad()
    def run(self) -> None:
        """Read the prompts, score the given responses, write."""
        logits, most = self._read_prompts(), self.plan.max_new_tokens
        if self.plan.responses is not None:
            self._score(logits, self.plan.responses)
        for step in range(1, most + 1):
            tokens = logits.argmax(-1)
            self._take(tokens)
            if len(self.over) == len(self.answers) or step == most:
                break
            logits = self._step(self._pack_again(tokens), self.longest + step)

    def _score(self, first: torch.Tensor, responses: Responses) -> None:
        """Losses of the given responses; `first` (rows, vocabulary): the logits behind each prompt."""
        assert self.cache is not None, "a base without a stream reads responses with their prompts"
        rows, place = responses.of(self.prompts)
        store, count = responses.rows, len(self.slots)
        skipped = responses.prompts.lengths[responses.prompt[rows]]
        lengths = store.lengths[rows] - skipped  # tokens of each response, its last one among them
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(torch.cumsum(lengths, 0) - lengths, lengths)
        at = torch.repeat_interleave(store.offsets[rows] + skipped, lengths) + within
        labels = store.ids[to_device(at, store.device)]  # (units,)
        parents = torch.cat([place + slot * len(self.prompts) for slot in range(count)])
        losses = labels.new_zeros(count, len(labels), dtype=torch.float32)
        is_first = to_device(within == 0, store.device)
        told = first.index_select(0, to_device(parents, store.device))
        own = self.plan.task.unit_losses(told, labels[is_first].repeat(count))
        losses[:, is_first] = own.view(count, -1)
        longer = lengths > 1
        if bool(longer.any()):
            fed = (lengths - 1)[longer].repeat(count)
            branches = self.cache.begin_branches(parents[longer.repeat(count)], fed)
            is_last = within == torch.repeat_interleave(lengths - 1, lengths)
            ids = labels[to_device(~is_last, store.device)].repeat(count)
            size = len(ids) // count
            batch = StepBatch(
                [Segment(slot, self.prompts[:0]) for slot in self.slots],
                ids[None],
                branches.positions[None],
                bounds_of([size] * count),
                self.batch.device,
                is_stream=True,
            )
            forward = self.engine.generation(batch)
            forward.cache = self.cache
            own = self.plan.task.unit_losses(self._logits(forward), labels[~is_first].repeat(count))
            losses[:, ~is_first] = own.view(count, -1)
            self.cache.end_branches()
        self.losses, self.response_rows = losses.cpu(), rows

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

    def _logits(self, forward: Forward) -> torch.Tensor:
        with self.base.running(forward):
            logits = self.base.logits(forward.batch) if self.cache is not None else self._padded_logits(forward)
        return logits.float()

    def _read_prompts(self) -> torch.Tensor:
        batch = self.batch
        batch.supervised = to_device(batch.starts + batch.lengths - 1, batch.device)  # each prompt's last token
        forward = self.engine.generation(batch)
        forward.cache = self.cache
        return self._logits(forward)

    def _step(self, tokens: torch.Tensor, width: int) -> torch.Tensor:
        """Logits (rows, vocabulary) after one more token of each row, `tokens` (rows,); `width`: tokens of the longest
        row with it."""
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
            return self._logits(self.engine.generation(batch))
        positions = self.cache.lengths[None]
        batch = StepBatch(segments, tokens[None], positions, bounds, self.batch.device, is_stream=True)
        forward = self.engine.generation(batch)
        forward.cache = self.cache
        self.cache.begin_step(width)
        found = self._logits(forward)
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
            **({"logits_to_keep": 1} if "logits_to_keep" in takes else {}),
        )
        self.padded.theirs = out.past_key_values
        return out.logits[:, -1]
