"""Prompts and responses as tokens: a response follows its prompt as if both had been written in one piece.

A row that is too long loses the end of its longest text, never a part of the template or of the response.
Neighbours: `templates` (words), `instruct` and `answering` (which responses), `data.encode` (what comes out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorasweep.data.encode import Encoded, filler_id
from lorasweep.errors import DataError
from lorasweep.tasks.templates import PARTS, Row, Template

if TYPE_CHECKING:
    import torch

IGNORED = -100  # label of a token that the loss does not ask for
END_TOKENS = ("<end_of_turn>", "<|eot_id|>", "<|im_end|>")  # end a turn in chat models, beside the end-of-text token


@dataclass
class Laid:
    """One row as tokens: its prompt, and each of its responses with the end token. kept: the row as it was shown."""

    prompt: list[int]
    responses: list[list[int]]
    kept: Row
    cut: bool = False
    cut_responses: bool = False


class Prompter:
    """Lays rows out for one tokenizer within `max_length` tokens."""

    def __init__(self, template: Template, tokenizer: Any, max_length: int):
        self.template, self.tokenizer, self.max_length = template, tokenizer, max_length
        self.end: int | None = tokenizer.eos_token_id

    def lay(
        self, rows: Sequence[Row], responses: Sequence[Sequence[str]], *, reserve: int = 0, where: str = "the data"
    ) -> list[Laid]:
        """Tokens of every row; prompts leave room for the longest of their responses and for `reserve` tokens.

        A response of more than half the window is cut to that, without its end token.

        Raises:
            DataError: the template and a row's instruction alone leave no room for its response.
        """
        texts = [self.template.render(row) for row in rows]
        prompts = self._prompt_ids(texts)
        endings = self._response_ids(texts, prompts, responses)
        laid = []
        for number, (row, prompt, own) in enumerate(zip(rows, prompts, endings, strict=True), start=1):
            one = Laid(prompt, own, row)
            self._shorten_responses(one)
            if len(one.prompt) + max(reserve, *map(len, one.responses), 0) > self.max_length:
                self._cut(one, list(responses[number - 1]), reserve, f"{where}, row {number}")
            laid.append(one)
        return laid

    def _prompt_ids(self, texts: list[str]) -> list[list[int]]:
        found = self.tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        ends = {self.tokenizer.eos_token_id, self.tokenizer.sep_token_id} - {None}
        out = []
        for ids in found:
            own = list(ids)
            while len(own) > 1 and own[-1] in ends:  # added by a tokenizer that closes every text
                own.pop()
            out.append(own or [filler_id(self.tokenizer)])
        return out

    def _response_ids(
        self, texts: list[str], prompts: list[list[int]], responses: Sequence[Sequence[str]]
    ) -> list[list[list[int]]]:
        """Tokens of each row's responses as they stand behind its prompt; where a token would span the border, those of
        the response by itself."""
        pairs = [(row, self.template.lead + response) for row, own in enumerate(responses) for response in own]
        if not pairs:
            return [[] for _ in texts]
        joined = self._prompt_ids([texts[row] + response for row, response in pairs])
        apart = self.tokenizer([response for _, response in pairs], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        end = [] if self.end is None else [self.end]
        out: list[list[list[int]]] = [[] for _ in texts]
        for (row, _), whole, alone in zip(pairs, joined, apart, strict=True):
            prompt = prompts[row]
            clean = whole[: len(prompt)] == prompt and len(whole) > len(prompt)
            out[row].append([*(whole[len(prompt) :] if clean else alone), *end] or [filler_id(self.tokenizer)])
        return out

    def _shorten_responses(self, one: Laid) -> None:
        most = max(1, self.max_length // 2)
        one.cut_responses = any(len(own) > most for own in one.responses)
        one.responses = [own[:most] for own in one.responses]

    def _cut(self, one: Laid, responses: list[str], reserve: int, where: str) -> None:
        """Shorten the row's longest text until its prompt fits."""
        room = self.max_length - max(reserve, *map(len, one.responses), 0)
        row = one.kept
        part = "pair" if row.pair is not None and len(row.pair) > len(row.text) and self._shows("pair") else "text"
        text = row.pair if part == "pair" else row.text
        assert text is not None
        rendered = ""
        while len(one.prompt) > room and text:
            share = max(0.0, 1 - (len(one.prompt) - room) / max(1, len(one.prompt)))
            text = text[: min(len(text) - 1, int(len(text) * share))].rstrip()
            one.kept = replace(row, pair=text) if part == "pair" else replace(row, text=text)
            rendered = self.template.render(one.kept)
            one.prompt = self._prompt_ids([rendered])[0]
            one.cut = True
        if len(one.prompt) > room:
            raise DataError(
                f"{where}: the template and the instruction take {len(one.prompt)} tokens and the response up to "
                f"{self.max_length - room}, which leaves no room for the text in data.max_length={self.max_length}; "
                "raise it, or use a shorter task.template" + (" or task.max_new_tokens" if reserve else "")
            )
        if responses:
            one.responses = self._response_ids([rendered], [one.prompt], [responses])[0]
            self._shorten_responses(one)

    def _shows(self, part: str) -> bool:
        return "input" in self.template.slots or any(PARTS.get(slot) == part for slot in self.template.slots)


def supervised(rows: Sequence[tuple[list[int], list[int]]], truncated: int, **more: Any) -> Encoded:
    """Prompts with one response each, (prompt, response), as rows whose labels are the response's tokens alone."""
    import torch

    ids = [prompt + response for prompt, response in rows]
    labels = [[IGNORED] * len(prompt) + response for prompt, response in rows]
    return (
        Encoded(_flat(ids), _offsets(ids), _flat(labels), None, truncated, **more)
        if ids
        else Encoded(
            torch.zeros(0, dtype=torch.int64),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(0, dtype=torch.int64),
            None,
            0,
        )
    )


def unsupervised(prompts: Sequence[list[int]], truncated: int, **more: Any) -> Encoded:
    """Prompts to be continued."""
    import torch

    ids = _flat(list(prompts))
    return Encoded(ids, _offsets(prompts), torch.full_like(ids, IGNORED), None, truncated, **more)


def _flat(rows: Sequence[list[int]]) -> torch.Tensor:
    import torch

    return torch.tensor([token for row in rows for token in row], dtype=torch.int64)


def _offsets(rows: Sequence[list[int]]) -> torch.Tensor:
    import torch

    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor([len(row) for row in rows], dtype=torch.int64), 0, out=offsets[1:])
    return offsets


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a generated response."""
    known = tokenizer.get_vocab()
    found = [tokenizer.eos_token_id, *(known.get(token) for token in END_TOKENS)]
    return tuple(dict.fromkeys(token for token in found if token is not None))
