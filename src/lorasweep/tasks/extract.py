"""Questions on contexts, answered by an encoder that marks where the answer starts and ends.

As Devlin et al. 2018 do it for SQuAD v2: start and end logits over the tokens, the first token standing for no answer,
long contexts read in windows that overlap by `task.stride` tokens, and of all windows the best pair of a start and an
end. Every window is a row, for training as for evaluation. Neighbours: `answering` (the same questions for decoders),
`spans` (windows and their tokens), `scoring` (numbers).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.config.schema import Config, DataConfig
from lorasweep.data.encode import Encoded
from lorasweep.data.sources import Split
from lorasweep.errors import DataError
from lorasweep.tasks.answering import Questions, answers_in, outside_notes
from lorasweep.tasks.base import Answers, Exam, Sitting
from lorasweep.tasks.causal import encode_cached
from lorasweep.tasks.spans import windows

if TYPE_CHECKING:
    import numpy as np
    import torch

NO_SPAN = float("-inf")  # score of a pair that cannot be an answer


class Extract(Questions):
    """A unit is a window. Labels (windows, 5): the answer's first and last token (those of no answer: the first of the
    row), the context's first token and the one past its last, the token that stands for no answer."""

    head = "question_answering"
    answers = "texts"

    def __init__(self, config: Config, label_names: list[str]):
        self.task, self.label_names = config.task, list(label_names)

    def encode(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = "windows"
    ) -> Encoded:
        """Windows to train on. Questions whose answer is not in their context are left out."""

        def build() -> Encoded:
            found = self._windows(split, tokenizer, data_cfg, "training")
            known = found.extras["is_known"].bool()
            if not bool(known.any()):
                raise DataError(
                    f"none of {len(split)} training rows has its answer in its context; check data.answers_column and "
                    "data.pair_column"
                )
            return found if bool(known.all()) else found.select(known.nonzero().squeeze(1))

        return self._cached(split, tokenizer, data_cfg, cache, key, build)

    def exam(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = "window-exam"
    ) -> Exam:
        """All windows of all questions."""
        rows = self._cached(
            split,
            tokenizer,
            data_cfg,
            cache,
            key,
            lambda: self._windows(split, tokenizer, data_cfg, "validation"),
        )
        return Exam(rows, self.references(split), contexts=split.pairs)

    def _windows(self, split: Split, tokenizer: Any, data_cfg: DataConfig, what: str) -> Encoded:
        answers_in(split)
        return windows(split, tokenizer, data_cfg.max_length, self.task.stride, what, outside_notes(split, what))

    def _cached(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str, build: Any
    ) -> Encoded:
        return encode_cached(split, tokenizer, data_cfg.max_length, task=self.task, cache=cache, key=key, build=build)

    def unit_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean of the start's and the end's cross-entropy over a window's tokens: logits (windows, longest, 2), labels
        (windows, 5) -> (windows,) float32."""
        from torch.nn.functional import cross_entropy

        start, end = (cross_entropy(logits[:, :, side].float(), labels[:, side], reduction="none") for side in (0, 1))
        return (start + end) / 2

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The best spans of each window: logits (windows, longest, 2) -> (windows, 1 + 3 * n_best) float32, the score
        of no answer, then score, first and last token of each, best first; -inf where there is no further one."""
        import torch

        scores, best = logits.detach().float(), self.task.n_best
        windows, longest = scores.shape[:2]
        place = torch.arange(longest, device=scores.device)[None]
        in_context = (place >= labels[:, 2:3]) & (place < labels[:, 3:4])
        held = scores.masked_fill(~in_context[:, :, None], NO_SPAN)
        count = min(best, longest)
        (start_scores, starts), (end_scores, ends) = (held[:, :, side].topk(count, 1) for side in (0, 1))
        pairs = start_scores[:, :, None] + end_scores[:, None]  # (windows, starts, ends)
        length = ends[:, None] - starts[:, :, None] + 1
        pairs = pairs.masked_fill((length < 1) | (length > self.task.max_answer_tokens), NO_SPAN)
        top, at = pairs.flatten(1).topk(min(best, count * count), 1)
        spans = torch.stack([top, starts.gather(1, at // count).float(), ends.gather(1, at % count).float()], -1)
        out = scores.new_full((windows, best, 3), NO_SPAN)
        out[:, : spans.shape[1]] = spans
        none = scores.gather(1, labels[:, 4, None, None].expand(-1, 1, 2)).sum((1, 2))
        return torch.cat([none[:, None], out.flatten(1)], 1)

    def read(self, exam: Exam, sitting: Sitting) -> tuple[Answers, np.ndarray]:
        """The best span over a question's windows, whether or not an answer is likelier than none; the probability of
        none is that of two, 1 / (1 + exp(best - none)), none's score being the least over the windows. Losses are those
        of windows whose answer is known."""
        import numpy as np

        assert sitting.outputs is not None and exam.contexts is not None
        extras = {name: tensor.numpy() for name, tensor in exam.rows.extras.items()}
        offsets, owner = exam.rows.offsets.numpy(), extras["row"]
        texts = [""] * len(exam.contexts)
        best, none = np.full(len(texts), -np.inf), np.full(len(texts), np.inf)
        np.minimum.at(none, owner, sitting.outputs[:, 0])
        for window, (row, span) in enumerate(zip(owner, sitting.outputs[:, 1:4], strict=True)):
            if span[0] > best[row]:
                best[row] = span[0]
                first, last = (int(offsets[window] + token) for token in span[1:])
                start, end = extras["characters"][first, 0], extras["characters"][last, 1]
                texts[row] = exam.contexts[row][start:end].strip()
        with np.errstate(over="ignore"):
            no_answer = 1 / (1 + np.exp(best - none))
        known = extras["is_known"].astype(bool)
        return Answers(texts, no_answer.astype(np.float32)), sitting.losses[known]
