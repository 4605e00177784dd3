"""BLEU, ROUGE and METEOR of written answers, each by the library that defines it, without network.

BLEU: sacrebleu (Post 2018), 0 to 100. ROUGE: rouge-score (Lin 2004), 0 to 1. METEOR: nltk (Banerjee and Lavie 2005),
0 to 1, with synonyms from WordNet where its files are installed; without them words match by form and stem alone, and
`wordnet_folder` and a warning say so. Neighbours: `modules`, `tasks` (who calls `text_metrics`).
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
SYSTEM_WORDNET = Path("/usr/share/wordnet")  # of Debian's package wordnet-base
LEXICOGRAPHER_FILES = 45  # of WordNet 3.0; Debian leaves out the list of their names, which METEOR does not use


def text_metrics(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """bleu, rouge1, rouge2, rougeL, rougeLsum and meteor over the rows that have a reference with words; none of them
    where no row has."""
    rows = [
        (prediction, [reference for reference in accepted if reference.strip()])
        for prediction, accepted in zip(predictions, references, strict=True)
    ]
    rows = [row for row in rows if row[1]]
    if not rows:
        return {}
    texts, wanted = [row[0] for row in rows], [row[1] for row in rows]
    return {"bleu": bleu(texts, wanted), **rouge(texts, wanted), "meteor": meteor(texts, wanted)}


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU, 0 to 100, with sacrebleu's defaults (13a tokens, exponential smoothing); rows may have unlike
    numbers of references."""
    from sacrebleu.metrics import BLEU

    most = max(len(accepted) for accepted in references)
    streams: list[Any] = [
        [accepted[at] if at < len(accepted) else None for accepted in references] for at in range(most)
    ]
    return float(BLEU().corpus_score(list(predictions), streams).score)


def rouge(
    predictions: Sequence[str], references: Sequence[Sequence[str]], types: Sequence[str] = ROUGE_TYPES
) -> dict[str, float]:
    """Mean over rows of each ROUGE's F-measure, 0 to 1; of several references the best counts. No stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    handlers = list(logging.root.handlers)
    scorer = RougeScorer(list(types), use_stemmer=False)
    logging.root.handlers[:] = handlers  # it logs through absl, which would print everybody's messages from then on
    rows = [scorer.score_multi(list(accepted), text) for text, accepted in zip(predictions, references, strict=True)]
    return {name: sum(row[name].fmeasure for row in rows) / len(rows) for name in types}


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Mean over rows of METEOR, 0 to 1; of several references the best counts. Words as nltk's `word_tokenize` finds
    them within a sentence."""
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import meteor_score

    words, synonyms = NLTKWordTokenizer().tokenize, wordnet()
    scores = [
        meteor_score([words(reference) for reference in accepted], words(text), wordnet=synonyms)
        for text, accepted in zip(predictions, references, strict=True)
    ]
    return float(sum(scores) / len(scores))


class NoSynonyms:
    """Stands in for WordNet where it is not installed: no word has a synonym."""

    def synsets(self, _word: str) -> list[Any]:
        """None."""
        return []


@functools.cache
def wordnet_folder() -> str | None:
    """Where WordNet's files are: nltk's own data, else the system's; None where METEOR runs without synonyms."""
    import nltk

    with contextlib.suppress(LookupError):
        return str(nltk.data.find("corpora/wordnet"))
    return str(SYSTEM_WORDNET) if (SYSTEM_WORDNET / "data.noun").is_file() else None


@functools.cache
def wordnet() -> Any:
    """WordNet, opened once; `NoSynonyms` with a warning where it is not installed."""
    found = wordnet_folder()
    if found is None:
        log.warning(
            "METEOR runs without synonyms, which lowers it a little: WordNet is not installed. Get it with `python -m "
            "nltk.downloader wordnet` or Debian's package wordnet-base"
        )
        return NoSynonyms()
    return open_wordnet(found)


def open_wordnet(folder: str) -> Any:
    """A reader of the WordNet files in a folder."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        """nltk's, also for installations without the file `lexnames`."""

        def open(self, file: str) -> Any:
            try:
                return super().open(file)
            except OSError:
                if file != "lexnames":
                    raise
                return io.StringIO("".join(f"{number} unnamed 1\n" for number in range(LEXICOGRAPHER_FILES)))

        def map_wn(self, version: str = "wordnet") -> None:
            """No map to another version of WordNet: it serves other languages."""

    if folder not in nltk.data.path:
        nltk.data.path.append(folder)  # nltk reads nothing outside of these
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other languages are not asked for
        return Reader(folder, None)
