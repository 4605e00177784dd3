"""Prompt templates: what a causal language model reads before it responds.

A template is a text with slots in braces. {input} stands for the row: its text, or both texts of a pair, or a context
with its question; {text} and {pair}, or {question} and {context}, are its parts. {instruction} says what to do with it,
{labels} names the responses of the classes. Spaces at a template's end go to the response, for most tokenizers join a
space with the word that follows it. Neighbours: `prompts` (tokens), `instruct` and `answering` (which fill them).
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Formatter

from lorasweep.errors import ConfigError, nearest

# The prompts of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca, train.py), word for word
ALPACA = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
TEMPLATES = {
    "alpaca": (ALPACA, ALPACA_WITHOUT_INPUT),
    "plain": ("{instruction}\n{input}\nAnswer: ", "{instruction}\nAnswer: "),
    "question": ("Context: {context}\nQuestion: {question}\nAnswer: ", ""),
}
PARTS = {"text": "text", "question": "text", "pair": "pair", "context": "pair"}
SLOTS = ("input", *PARTS, "instruction", "labels")


@dataclass(frozen=True)
class Row:
    """What fills a template. `pair` is None where rows are single texts; `is_question` where it is the context of the
    question `text`."""

    text: str
    pair: str | None
    instruction: str
    is_question: bool = False

    @property
    def input(self) -> str:
        """The row as one text."""
        if self.pair is None:
            return self.text
        if self.is_question:
            return f"Context: {self.pair}\nQuestion: {self.text}"
        return f"{self.text}\n{self.pair}"


class Template:
    """A prompt for every row. ConfigError where a slot is not known, or what it should show is nowhere in it."""

    def __init__(self, template: str, without_input: str, *, paired: bool, labels: list[str], instructed: bool):
        """`template`: a name or a text; `paired`: rows have two texts; `instructed`: there is an instruction that must
        be in the prompt; `labels`: the responses of the classes."""
        if template not in TEMPLATES and "{" not in template:
            raise ConfigError(
                f"task.template={template!r} is neither the name of a template nor a text with slots "
                f"({nearest(template, TEMPLATES)}). Write a text with {{input}} where the row belongs"
            )
        # in override grammar a backslash and an n stay two characters
        own = template.replace("\\n", "\n"), without_input.replace("\\n", "\n")
        whole, short = TEMPLATES.get(template, own)
        self.labels = ", ".join(labels)
        self.slots = _slots(whole, "task.template")
        if not self.slots & {"input", *PARTS}:
            raise ConfigError(
                f"task.template={template!r} has no slot for the row, so that every prompt would read the same; put "
                "{input} where the text belongs"
            )
        shown = {PARTS[slot] for slot in self.slots & PARTS.keys()}
        lacking = {"text", "pair"} - shown if paired else {"text"} - shown
        if "input" not in self.slots and lacking:
            raise ConfigError(
                f"task.template={template!r} shows {' and '.join(sorted(shown))} and never the row's "
                f"{' and '.join(sorted(lacking))}; add the slot {{{min(lacking)}}}, or use {{input}} for the whole row"
            )
        if not paired and "pair" in shown:
            raise ConfigError(
                f"task.template={template!r} asks for a second text, and rows have one: set data.pair_column, or use "
                "{input}"
            )
        if instructed and "instruction" not in self.slots:
            raise ConfigError(
                f"task.template={template!r} has no {{instruction}} and there is one to be shown (task.instruction or "
                "data.instruction_column); add the slot, or leave the instruction out"
            )
        if short:
            _slots(short, "task.template_without_input")
        trimmed = whole.rstrip(" ")
        self.lead = whole[len(trimmed) :]  # what responses begin with
        self.whole, self.short = trimmed, short.rstrip(" ")

    def render(self, row: Row) -> str:
        """The prompt of a row."""
        template = self.short if self.short and not row.input.strip() else self.whole
        return template.format(
            input=row.input,
            text=row.text,
            question=row.text,
            pair=row.pair,
            context=row.pair,
            instruction=row.instruction,
            labels=self.labels,
        )


def _slots(template: str, setting: str) -> set[str]:
    """Names of a template's slots. ConfigError for one that is not known, and for braces that do not close."""
    try:
        found = [field for _, field, _, _ in Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError(f"{setting}={template!r}: {error}. Write {{{{ and }}}} for braces that are no slot") from None
    for name in found:
        if name not in SLOTS:
            raise ConfigError(
                f"{setting}={template!r} has the slot {{{name}}}, which is not known; slots are "
                f"{', '.join(f'{{{slot}}}' for slot in SLOTS)} ({nearest(name, SLOTS)}). Write {{{{ and }}}} for "
                "braces that are no slot"
            )
    return set(found)
