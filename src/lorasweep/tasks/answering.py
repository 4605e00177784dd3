"""Questions on contexts, answered by a causal language model that writes the answer, or that there is none.

The answer is what greedy decoding writes after the prompt. How likely the model finds `task.no_answer` as the response
is the probability of no answer, over which SQuAD v2's threshold goes (Rajpurkar et al. 2018). Neighbours: `templates`
and `prompts` (what the model reads), `extract` (the same questions for encoders), `scoring` (numbers).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.config.schema import Config, DataConfig, TaskConfig
from lorasweep.data.answers import locate
from lorasweep.data.encode import Encoded
from lorasweep.data.sources import Split
from lorasweep.errors import DataError
from lorasweep.tasks import scoring
from lorasweep.tasks.base import Answers, Exam, Sitting
from lorasweep.tasks.causal import (
    check_end,
    cut_notes,
    decoder_of,
    encode_cached,
    log_likelihoods,
    losses_of,
    token_losses,
)
from lorasweep.tasks.prompts import Prompter, end_ids, supervised, unsupervised
from lorasweep.tasks.templates import Row, Template

if TYPE_CHECKING:
    import numpy as np
    import torch

ANSWER = 'Answer the question from the context. If the context has no answer, write "{no_answer}".'


class Questions:
    """What tasks of questions on contexts share: accepted answers, and the numbers that compare with them."""

    task: TaskConfig

    def references(self, split: Split) -> list[list[str]]:
        """Accepted answers of each question."""
        return [[answer.text for answer in own] for own in answers_in(split)]

    def blank(self, references: list[list[str]]) -> Answers:
        """No word, and no idea whether there is an answer."""
        return blank_answers(references)

    def metrics(self, predictions: Answers, references: list[list[str]], losses: np.ndarray) -> dict[str, float]:
        """`eval/loss`, the mean over losses' units, and what `scoring.of_texts` says of the answers."""
        found = scoring.of_texts(predictions, references, self.task.no_answer_threshold, self.task.text_metrics)
        return {"eval/loss": float(losses.mean(dtype="float64")), **{f"eval/{name}": it for name, it in found.items()}}


class Answering(Questions):
    """Prompts hold a context and a question; the response is the first accepted answer, or `task.no_answer`.

    Raises:
        ConfigError: a template that does not show both.
    """

    head = "causal_lm"
    answers = "texts"

    def __init__(self, config: Config, label_names: list[str]):
        self.task, self.label_names = config.task, list(label_names)
        self.instruction = self.task.instruction or ANSWER.format(no_answer=self.task.no_answer)
        self.template = Template(self.task.template, "", paired=True, labels=[], instructed=bool(self.task.instruction))

    def encode(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = "questions"
    ) -> Encoded:
        """Prompts with their right responses. Where the answer is not in what a cut context still shows, the row is
        left out: it would teach to make answers up."""

        def build() -> Encoded:
            known, right = answers_in(split), self._right(split)
            laid = self._lay(split, tokenizer, data_cfg, [[response] for response in right], "training rows")
            lost = [
                bool(own) and one.cut and locate(own[0], one.kept.pair or "") is None
                for own, one in zip(known, laid, strict=True)
            ]
            if all(lost):
                raise DataError(
                    f"none of {len(split)} training rows shows its answer within data.max_length={data_cfg.max_length} "
                    "tokens; raise it"
                )
            notes = [*outside_notes(split, "training"), *cut_notes(laid, "training rows", data_cfg.max_length)]
            if any(lost):
                notes.append(f"training rows: {sum(lost)} were left out, for the part that was cut held their answer")
            rows = [(one.prompt, one.responses[0]) for one, gone in zip(laid, lost, strict=True) if not gone]
            return supervised(rows, sum(one.cut for one in laid), notes=tuple(notes))

        return self._cached(split, tokenizer, data_cfg, cache, key, build)

    def exam(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = "question-exam"
    ) -> Exam:
        """Each question with its right response and with the one that says that there is none, and its prompt."""
        import torch

        check_end(tokenizer)
        right = self._right(split)
        wanted = [list(dict.fromkeys([response, self.task.no_answer])) for response in right]
        reserve = self.task.max_new_tokens

        def build() -> Encoded:
            laid = self._lay(split, tokenizer, data_cfg, wanted, "validation rows", reserve)
            rows = [(one.prompt, response) for one in laid for response in one.responses]
            extras = {
                "is_right": [response == right[at] for at, own in enumerate(wanted) for response in own],
                "is_none": [response == self.task.no_answer for own in wanted for response in own],
                "prompt": [at for at, own in enumerate(wanted) for _ in own],
            }
            return supervised(
                rows,
                sum(one.cut for one in laid),
                extras={name: torch.tensor(flags, dtype=torch.int64) for name, flags in extras.items()},
                notes=(*outside_notes(split, "validation"), *cut_notes(laid, "validation rows", data_cfg.max_length)),
            )

        def build_prompts() -> Encoded:
            laid = self._lay(split, tokenizer, data_cfg, wanted, "validation rows", reserve)
            return unsupervised([one.prompt for one in laid], sum(one.cut for one in laid))

        return Exam(
            rows=self._cached(split, tokenizer, data_cfg, cache, key, build),
            references=self.references(split),
            prompts=self._cached(split, tokenizer, data_cfg, cache, f"{key}-prompts", build_prompts),
            max_new_tokens=reserve,
            end_ids=end_ids(tokenizer),
            decode=decoder_of(tokenizer),
        )

    def _right(self, split: Split) -> list[str]:
        return [own[0].text if own else self.task.no_answer for own in answers_in(split)]

    def _lay(
        self,
        split: Split,
        tokenizer: Any,
        data_cfg: DataConfig,
        responses: list[list[str]],
        what: str,
        reserve: int = 0,
    ) -> Any:
        assert split.pairs is not None, "questions come with contexts"
        rows = [
            Row(text, pair, self.instruction, is_question=True)
            for text, pair in zip(split.texts, split.pairs, strict=True)
        ]
        prompter = Prompter(self.template, tokenizer, data_cfg.max_length)
        return prompter.lay(rows, responses, reserve=reserve, where=what)

    def _cached(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str, build: Any
    ) -> Encoded:
        return encode_cached(split, tokenizer, data_cfg.max_length, task=self.task, cache=cache, key=key, build=build)

    # -- losses and predictions out -------------------------------------------------------------------------------

    def unit_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each response token: logits (tokens, vocabulary), labels (tokens,) -> (tokens,) float32."""
        return token_losses(logits, labels)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Nothing: the losses say how likely each response is."""

    def read(self, exam: Exam, sitting: Sitting) -> tuple[Answers, np.ndarray]:
        """What was written, "" for `task.no_answer`, and the probability of that response; losses of right ones."""
        import numpy as np

        assert sitting.generated is not None and exam.decode is not None
        flags = {name: exam.rows.extras[name].numpy().astype(bool) for name in ("is_right", "is_none")}
        likelihood = log_likelihoods(sitting.losses, sitting.units, mean=False, with_end=True)
        written = [exam.decode(ids) for ids in sitting.generated]
        refused = self.task.no_answer.casefold().strip(" .")
        texts = ["" if text.casefold().strip(" .") == refused else text for text in written]
        no_answer = np.exp(likelihood[flags["is_none"]]).astype(np.float32)
        losses = losses_of(flags["is_right"], sitting.losses, sitting.units)
        return Answers(texts, no_answer, empty=sum(not text for text in written)), losses


def blank_answers(references: list[list[str]]) -> Answers:
    """Answers of a model that knows nothing."""
    import numpy as np

    return Answers([""] * len(references), np.full(len(references), 0.5, dtype=np.float32))


def answers_in(split: Split) -> list[Any]:
    """The answers of each row. DataError where the data have none."""
    if split.answers is None or split.pairs is None:
        raise DataError(
            "task=qa needs questions with contexts and answers: set data.text_column, data.pair_column and "
            "data.answers_column, or use data=squad_v2 or data=demo_qa"
        )
    return split.answers


def outside_notes(split: Split, what: str) -> tuple[str, ...]:
    """What to tell people of answers that their context does not hold."""
    answers, contexts = answers_in(split), split.pairs or []
    outside = sum(
        any(locate(answer, context) is None for answer in own) for own, context in zip(answers, contexts, strict=True)
    )
    if not outside:
        return ()
    return (f"{what} rows: {outside} of {len(split)} questions have an answer that is not in their context",)
