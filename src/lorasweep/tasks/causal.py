"""What tasks of causal language models share: losses of response tokens, likelihoods of whole responses, cached rows.

Neighbours: `instruct` and `answering` (the tasks), `prompts` (tokens), `data.encode` (the cache).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorasweep.config.schema import TaskConfig
from lorasweep.data.encode import Encoded, cached, tokenizer_fingerprint
from lorasweep.data.sources import Split
from lorasweep.errors import ModelError
from lorasweep.tasks.prompts import Laid

if TYPE_CHECKING:
    import numpy as np
    import torch

log = logging.getLogger(__name__)

FORMAT = "2"  # of prompts and exams; a change makes cached ones stale


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each response token: logits (tokens, vocabulary) of any precision -> (tokens,) float32."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits.float(), labels, reduction="none")


def log_likelihoods(losses: np.ndarray, units: np.ndarray, *, mean: bool, with_end: bool) -> np.ndarray:
    """Log-likelihood of each row's response, (rows,) float64: the sum of its tokens', or their mean. losses (tokens,),
    units (rows,) how many of them each row has; `with_end` False leaves each row's last token out."""
    import numpy as np

    ends = np.cumsum(units)
    total = np.concatenate([[0.0], np.cumsum(losses, dtype=np.float64)])
    last = ends if with_end else ends - 1
    starts = ends - units
    found = -(total[last] - total[starts])
    return found / np.maximum(last - starts, 1) if mean else found


def losses_of(chosen: np.ndarray, losses: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Losses (tokens,) of the chosen rows, (rows,) bool."""
    import numpy as np

    return losses[np.repeat(chosen, units)]


def encode_cached(
    split: Split,
    tokenizer: Any,
    max_length: int,
    *,
    task: TaskConfig,
    more: Any = None,
    cache: Path | None,
    key: str,
    build: Callable[[], Encoded],
) -> Encoded:
    """Rows of a task, from the cache where it has them; what is to be said of them goes to the log. `more`: what else
    decides the tokens, as JSON types."""
    settings = json.dumps([asdict(task), more], sort_keys=True)
    parts = [FORMAT, key, split.fingerprint(), tokenizer_fingerprint(tokenizer), str(max_length), settings]
    encoded = cached(parts, cache, key, build)
    for note in encoded.notes:
        log.warning("%s", note)
    return encoded


def cut_notes(laid: Sequence[Laid], what: str, max_length: int) -> tuple[str, ...]:
    """What to tell people of rows that did not fit."""
    cut, shortened = sum(one.cut for one in laid), sum(one.cut_responses for one in laid)
    notes = []
    if cut:
        notes.append(f"{what}: {cut} of {len(laid)} texts were cut to fit data.max_length={max_length} tokens")
    if shortened:
        notes.append(
            f"{what}: {shortened} of {len(laid)} responses were cut to half of data.max_length={max_length} tokens"
        )
    return tuple(notes)


def decoder_of(tokenizer: Any) -> Callable[[list[int]], str]:
    """Tokens to the text that they stand for, without blanks around it."""

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()

    return decode


def check_end(tokenizer: Any) -> None:
    """ModelError where a tokenizer has no end-of-text token, so that no response would ever end."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"task.predict=generate needs a tokenizer with an end-of-text token, and that of "
            f"{tokenizer.name_or_path or 'this base'} has none; set its eos_token, or use task.predict=score"
        )
