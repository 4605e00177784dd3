"""A causal language model is prompted with a row and responds: with a class's name, or freely.

The loss is on the response alone. A class is predicted as the one whose response is likeliest (task.predict=score: all
of a row's responses go through the model together), or read strictly from what greedy decoding writes (generate).
Neighbours: `templates` and `prompts` (what the model reads), `causal` (likelihoods), `metrics` (numbers).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.config.schema import Config, DataConfig
from lorasweep.data.encode import Encoded
from lorasweep.data.sources import Split
from lorasweep.errors import ConfigError, nearest
from lorasweep.tasks import scoring
from lorasweep.tasks.base import Answers, Exam, Predictions, References, Sitting
from lorasweep.tasks.causal import (
    check_end,
    cut_notes,
    decoder_of,
    encode_cached,
    log_likelihoods,
    losses_of,
    token_losses,
)
from lorasweep.tasks.prompts import Laid, Prompter, end_ids, supervised, unsupervised
from lorasweep.tasks.templates import Row, Template

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger(__name__)

NAME_A_CLASS = "Classify the text. Answer with one of: {labels}."


class Instruct:
    """Rows become prompts; `responses` are those of the classes in `label_names`, none where responses are free.

    Raises:
        ConfigError: a template, instruction or verbalizer that does not fit the data.
    """

    head = "causal_lm"

    def __init__(self, config: Config, label_names: list[str]):
        self.task, data = config.task, config.data
        self.is_free = bool(data.output_column)
        self.label_names = [] if self.is_free else list(label_names)
        self.responses = responses_of(self.task.verbalizer, self.label_names)
        self.answers = "none" if self.task.predict == "none" else "texts" if self.is_free else "classes"
        self._told_of_empty = False
        if self.is_free and not (self.task.instruction or data.instruction_column):
            raise ConfigError(
                "free responses (data.output_column) need an instruction: set task.instruction, or "
                "data.instruction_column"
            )
        if self.task.average == "binary" and len(self.label_names) != 2 and not self.is_free:
            raise ConfigError(
                f"task.average=binary needs two classes and the data has {len(self.label_names)} "
                f"({', '.join(self.label_names)}). Set task.average=macro or weighted"
            )
        self.template = Template(
            self.task.template,
            self.task.template_without_input,
            paired=data.pair_column is not None or data.kind == "demo_qa",
            labels=self.responses,
            instructed=bool(self.task.instruction or data.instruction_column),
        )
        named = ", ".join(self.responses)
        self.instruction = (self.task.instruction or ("" if self.is_free else NAME_A_CLASS)).replace("{labels}", named)

    # -- rows in --------------------------------------------------------------------------------------------------

    def _rows(self, split: Split) -> list[Row]:
        pairs: Sequence[str | None] = split.pairs or [None] * len(split)
        own = split.instructions or [self.instruction] * len(split)
        return [
            Row(text, pair, instruction or self.instruction)
            for text, pair, instruction in zip(split.texts, pairs, own, strict=True)
        ]

    def _right(self, split: Split) -> list[str]:
        return split.outputs or [self.responses[label] for label in split.labels]

    def encode(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = "prompts"
    ) -> Encoded:
        """Prompts with their right responses; labels are the response's tokens and the end token."""

        def build() -> Encoded:
            laid = self._lay(split, tokenizer, data_cfg, [[right] for right in self._right(split)], "training rows")
            notes = cut_notes(laid, "training rows", data_cfg.max_length)
            rows = [(one.prompt, one.responses[0]) for one in laid]
            return supervised(rows, sum(one.cut for one in laid), notes=notes)

        return self._cached(split, tokenizer, data_cfg, cache, key, build)

    def exam(self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str = "exam") -> Exam:
        """Every row with every class's response where classes are scored; else with its right one, and the prompts."""
        import torch

        scored, generated = self.task.predict == "score", self.task.predict == "generate"
        reserve = self.task.max_new_tokens if generated else 0
        if generated:
            check_end(tokenizer)
        right = self._right(split)
        wanted = [list(self.responses)] * len(split) if scored else [[response] for response in right]

        def build() -> Encoded:
            laid = self._lay(split, tokenizer, data_cfg, wanted, "validation rows", reserve)
            if scored:
                self._check_scores(laid, tokenizer)
            rows = [(one.prompt, response) for one in laid for response in one.responses]
            is_right = [response == right[at] for at, own in enumerate(wanted) for response in own]
            notes = cut_notes(laid, "validation rows", data_cfg.max_length)
            owner = [at for at, own in enumerate(wanted) for _ in own]
            extras = {
                "is_right": torch.tensor(is_right, dtype=torch.int64),
                "prompt": torch.tensor(owner, dtype=torch.int64),
            }
            return supervised(rows, sum(one.cut for one in laid), extras=extras, notes=notes)

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

    def _lay(
        self,
        split: Split,
        tokenizer: Any,
        data_cfg: DataConfig,
        responses: list[list[str]],
        what: str,
        reserve: int = 0,
    ) -> list[Laid]:
        prompter = Prompter(self.template, tokenizer, data_cfg.max_length)
        return prompter.lay(self._rows(split), responses, reserve=reserve, where=what)

    def _cached(
        self, split: Split, tokenizer: Any, data_cfg: DataConfig, cache: Path | None, key: str, build: Any
    ) -> Encoded:
        settings = self.responses, self.instruction
        return encode_cached(
            split, tokenizer, data_cfg.max_length, task=self.task, more=settings, cache=cache, key=key, build=build
        )

    def _check_scores(self, laid: list[Laid], tokenizer: Any) -> None:
        """ConfigError where one class's response begins another's and nothing marks its end: it would never lose."""
        if self.task.score_end and tokenizer.eos_token_id is not None:
            return
        ended = tokenizer.eos_token_id is not None
        tokens = [response[:-1] if ended else response for response in laid[0].responses]
        for name, one in zip(self.responses, tokens, strict=True):
            for other_name, other in zip(self.responses, tokens, strict=True):
                if name != other_name and other[: len(one)] == one:
                    raise ConfigError(
                        f"the response {name!r} is how {other_name!r} begins, so the longer one could never be "
                        f"likelier (task.score={self.task.score}). Set task.score_end=true, with a tokenizer that has "
                        "an end-of-text token, or give them other words in task.verbalizer"
                    )

    # -- losses and predictions out -------------------------------------------------------------------------------

    def unit_losses(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each response token: logits (tokens, vocabulary), labels (tokens,) -> (tokens,) float32."""
        return token_losses(logits, labels)

    def predictions(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Nothing: the losses say how likely each response is."""

    def read(self, exam: Exam, sitting: Sitting) -> tuple[Predictions, np.ndarray]:
        """Probabilities of the classes, from the likelihoods of their responses, or what was written; losses of the
        right responses' tokens."""
        import numpy as np

        right = exam.rows.extras["is_right"].numpy().astype(bool)
        losses = losses_of(right, sitting.losses, sitting.units)
        if sitting.generated is not None and exam.decode is not None:
            texts = [exam.decode(ids) for ids in sitting.generated]
            empty = sum(not text for text in texts)
            if empty and not self._told_of_empty:
                log.warning("%d of %d generated answers are empty, and therefore wrong", empty, len(texts))
                self._told_of_empty = True
            return (Answers(texts, empty=empty) if self.is_free else self._table(texts)), losses
        if self.task.predict == "none":
            return None, losses
        scores = log_likelihoods(
            sitting.losses, sitting.units, mean=self.task.score == "mean", with_end=self.task.score_end
        ).reshape(-1, len(self.responses))
        table = np.exp(scores - scores.max(-1, keepdims=True))
        return (table / table.sum(-1, keepdims=True)).astype(np.float32), losses

    def _table(self, texts: list[str]) -> np.ndarray:
        """(rows, classes) 1 for the class that a text names, all zeros where it names none."""
        import numpy as np

        table = np.zeros((len(texts), len(self.responses)), dtype=np.float32)
        for row, text in enumerate(texts):
            chosen = self.class_of(text)
            if chosen is not None:
                table[row, chosen] = 1
        return table

    def references(self, split: Split) -> References:
        """Class ids (rows,), or each row's right response where responses are free."""
        import numpy as np

        if not self.is_free:
            return np.asarray(split.labels, dtype=np.int64)
        return [[response] for response in self._right(split)]

    def blank(self, references: References) -> Predictions:
        """Even probabilities, or no word."""
        import numpy as np

        if self.answers == "classes":
            return np.full((len(references), len(self.responses)), 1 / len(self.responses), dtype=np.float32)
        return Answers([""] * len(references)) if self.answers == "texts" else None

    def metrics(self, predictions: Predictions, references: References, losses: np.ndarray) -> dict[str, float]:
        """`eval/loss`, the mean over response tokens, and

        - of classes what `metrics.classification` gives; of those read from texts accuracy, precision, recall and f1
          alone, and `eval/unparsed`, the count of texts that are no class's response: wrong answers all;
        - of free responses exact_match and f1 (words in common, as SQuAD counts them), bleu, rouge and meteor;
        - with task.predict=none `eval/perplexity`.
        """
        loss = float(losses.mean(dtype="float64"))
        if predictions is None:
            found = {"perplexity": scoring.perplexity(loss)}
        elif not isinstance(predictions, Answers):
            parsed = self.task.predict == "generate"
            found = scoring.of_classes(predictions, references, self.task.average, parsed=parsed)
        else:
            found = scoring.of_texts(predictions, references, 1.0, self.task.text_metrics)
        return {"eval/loss": loss, **{f"eval/{name}": value for name, value in found.items()}}

    def class_of(self, text: str) -> int | None:
        """The class whose response a text is, letter case and blanks around it aside; None where it is no class's."""
        said = text.strip().casefold()
        return next((at for at, response in enumerate(self.responses) if response.casefold() == said), None)


def responses_of(verbalizer: dict[Any, Any] | None, label_names: list[str]) -> list[str]:
    """The response of each class. ConfigError for a label that is not known or lacks one, and for two alike."""
    given = {str(name): str(words) for name, words in (verbalizer or {}).items()}  # YAML reads 0 and yes as no text
    verbalizer = given or {name: name for name in label_names}
    for name in verbalizer:
        if name not in label_names:
            raise ConfigError(
                f"task.verbalizer has the label {name!r}, which is not among the classes {', '.join(label_names)} "
                f"({nearest(name, label_names)})"
            )
    for name in label_names:
        if not verbalizer.get(name, "").strip():
            raise ConfigError(f"task.verbalizer has no response for the class {name!r}; add {name}: WORDS")
    found = [verbalizer[name].strip() for name in label_names]
    folded = [response.casefold() for response in found]
    for response in folded:
        if folded.count(response) > 1:
            raise ConfigError(f"task.verbalizer has the response {response!r} for two classes; they must differ")
    return found
