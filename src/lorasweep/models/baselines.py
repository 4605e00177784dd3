"""Baselines without a pretrained base: a bag of words under logistic regression or a random forest, the majority class.

What has to be beaten, in seconds and without a GPU. All of scikit-learn; this module adds the cleaning of texts and
files that are safe to open: skops writes arrays and names of known types, where joblib's pickles would run code.
Neighbours: `config.schema.BagConfig` (settings), `training.baseline` (trains one as a trial).
"""

from __future__ import annotations

import html
import json
import logging
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lorasweep.config.schema import BagConfig, ModelConfig
from lorasweep.data.sources import Split
from lorasweep.errors import StorageError, TrialFailed

log = logging.getLogger(__name__)

FILE, ABOUT = "baseline.skops", "baseline.json"
TRUSTED = ["sklearn.tree._tree.Tree"]  # a forest's trees: scikit-learn's own type, rebuilt from arrays
MOST_ITERATIONS = 1000  # of the logistic regression; the default of 100 is too few for tens of thousands of words
WORD = r"(?u)\b\w+\b"  # single letters too: "i", and what is left of "it 's"
_TAG = re.compile(r"<[^<>]*>")
_NO_LETTER = re.compile(r"[\W\d_]+")


def cleaned(text: str) -> str:
    """Lower case, without HTML tags and entities, digits and punctuation; words apart by single spaces."""
    return _NO_LETTER.sub(" ", html.unescape(_TAG.sub(" ", text)).lower()).strip()


class Baseline:
    """A fitted baseline of `classes` classes."""

    def __init__(self, pipeline: Any, clean: bool, classes: int):
        self.pipeline, self.clean, self.classes = pipeline, clean, classes

    @classmethod
    def fit(cls, model: ModelConfig, seed: int, rows: Split, classes: int, threads: int = 1) -> Baseline:
        """Fit to labelled rows; the same rows and seed give the same baseline, whatever the number of threads.

        Raises:
            TrialFailed: no word is left to count.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.pipeline import make_pipeline

        parts = [_vectorizer(model.bag), _classifier(model.bag, seed, threads)]
        made = cls(make_pipeline(*parts) if model.kind == "bag_of_words" else _majority(), model.bag.clean, classes)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", ConvergenceWarning)
                made.pipeline.fit(made._texts(rows), rows.labels)
        except ConvergenceWarning:
            log.warning("the logistic regression stopped after %d iterations; lower model.bag.c", MOST_ITERATIONS)
        except ValueError as error:  # of the vectorizer, which alone looks at the words
            repair = "lower model.bag.min_rows, or set model.bag.stop_words=false"
            raise TrialFailed("config", f"no words to count ({error}); {repair}") from None
        return made

    def probabilities(self, rows: Split) -> np.ndarray:
        """(rows, classes) float32; a class without a training row has 0."""
        found = np.zeros((len(rows), self.classes), dtype=np.float32)
        found[:, self.pipeline.classes_] = self.pipeline.predict_proba(self._texts(rows))
        return found

    def _texts(self, rows: Split) -> list[str]:
        pairs = rows.pairs or [""] * len(rows)
        texts = [f"{text} {pair}" if pair else text for text, pair in zip(rows.texts, pairs, strict=True)]
        return [cleaned(text) for text in texts] if self.clean else texts

    def save(self, folder: Path) -> None:
        """Write the baseline into a folder; `load` reads it."""
        from skops import io

        folder.mkdir(parents=True, exist_ok=True)
        io.dump(self.pipeline, folder / FILE)
        (folder / ABOUT).write_text(json.dumps({"clean": self.clean, "classes": self.classes}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Baseline:
        """Read what `save` wrote; no code in the files is ever run.

        Raises:
            StorageError: the files are not there, damaged, or hold other types than scikit-learn's.
        """
        from skops import io

        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            return cls(io.load(folder / FILE, trusted=TRUSTED), about["clean"], about["classes"])
        except Exception as error:  # what its readers stumble over in a damaged or hostile file
            raise StorageError(f"{folder} holds no baseline that can be read: {error}") from error


def describe(model: ModelConfig) -> str:
    """A fingerprint's text: what a baseline is made of, apart from its rows."""
    return json.dumps({"kind": model.kind, **asdict(model.bag)}, sort_keys=True)


def _majority() -> Any:
    from sklearn.dummy import DummyClassifier

    return DummyClassifier(strategy="prior")


def _vectorizer(bag: BagConfig) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    common: dict[str, Any] = {
        "token_pattern": WORD,
        "ngram_range": (1, bag.ngrams),
        "min_df": bag.min_rows,
        "max_features": bag.max_features,
        "stop_words": "english" if bag.stop_words else None,
    }
    if bag.weighting == "tfidf":
        return TfidfVectorizer(**common)
    return CountVectorizer(binary=bag.weighting == "binary", **common)


def _classifier(bag: BagConfig, seed: int, threads: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    if bag.classifier == "logistic":
        return LogisticRegression(C=bag.c, max_iter=MOST_ITERATIONS, random_state=seed)
    return RandomForestClassifier(
        n_estimators=bag.trees,
        max_depth=bag.depth,
        min_samples_leaf=bag.min_leaf_rows,
        random_state=seed,
        n_jobs=threads,
    )
