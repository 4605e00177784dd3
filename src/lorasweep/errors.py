"""Every error that lorasweep raises on purpose, in one picklable hierarchy.

A message states the rule, the values that broke it and the repair. `cli` prints it on one screen and exits
with `exit_code`; anything that is not a `LorasweepError` is a bug, whose traceback `refusal` puts into a file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# characters that act on a terminal: escapes, direction marks, halves of characters; not tab and newline
ACTING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


class LorasweepError(Exception):
    """Root of all errors for users. `exit_code` is what the command line leaves with."""

    exit_code = 1


class ConfigError(LorasweepError):
    """A config, override or sweep file that cannot work; found before anything heavy loads."""

    exit_code = 2


class UsageError(LorasweepError):
    """A command that cannot be carried out as it was given (no such sweep, nothing to resume)."""

    exit_code = 2


class DataError(ConfigError):
    """A data file or column that is missing, empty or does not fit its labels."""


class ModelError(ConfigError):
    """A base that cannot be found or loaded, or that lacks a module the adapter names."""


class StorageError(LorasweepError):
    """The study, tracker or a checkpoint is unreadable, locked or does not agree with the others."""


class DiskFull(StorageError):
    """Nothing more can be written; what was written before is whole."""


class TooManyFailures(LorasweepError):
    """`sweep.max_failures` trials in a row failed of one cause; those that were running are saved."""


class PromotionRefused(LorasweepError):
    """The gate said no; the registry is as it was."""


class TrialFailed(LorasweepError):
    """One trial cannot go on; the sweep does. `cause` is one of the words in `CAUSES`."""

    CAUSES = ("diverged", "out_of_memory", "objective", "config", "data", "exception")

    def __init__(self, cause: str, message: str):
        super().__init__(cause, message)  # both, so that pickling rebuilds it
        self.cause, self.message = cause, message

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


def shortened(text: str, most: int = 60) -> str:
    """The text, cut to so many characters: what stands in a file may be a megabyte."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def readable(text: str, most: int = 4000) -> str:
    """A message as a terminal may show it: characters that would act on it (escapes, direction marks), as `repr` has
    them, line ends aside; cut in the middle where it is longer than a screen."""
    if len(text) > most:
        text = f"{text[: most // 2]} … {text[-most // 2 :]}"
    return ACTING.sub(lambda found: ascii(found.group())[1:-1], text)


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint that ends an error message: the nearest known word, else the list of them (sorted, at most 20)."""
    known, word = sorted({shortened(one) for one in known}), shortened(word)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean `{close[0]}`?"
    shown = ", ".join(known[:20]) + (f", … ({len(known)} in all)" if len(known) > 20 else "")
    return f"known: {shown}" if known else "none are known"
