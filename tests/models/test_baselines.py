"""Baselines of words: cleaning, equality with scikit-learn, files without code, what cannot be fitted."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, roc_auc_score

from lorasweep.config import compose
from lorasweep.config.schema import BagConfig, ModelConfig
from lorasweep.data.sources import Split
from lorasweep.errors import StorageError, TrialFailed
from lorasweep.models.baselines import WORD, Baseline, cleaned

SST2 = Path(os.environ.get("LORASWEEP_SHARED", Path(__file__).parents[2].parent / "shared")) / "data/sst2"
TEXTS = ["a good film", "a bad film", "fine plot", "awful plot", "good plot", "bad , awful film"]
ROWS = Split(TEXTS, None, [1, 0, 1, 0, 1, 0])


def bag(**settings: object) -> ModelConfig:
    return ModelConfig(kind="bag_of_words", bag=BagConfig(**settings))  # type: ignore[arg-type]


def test_cleaning_leaves_words() -> None:
    assert cleaned("It's <br /><b>GREAT</b>: 10/10 &amp; über_all!\n") == "it s great über all"
    assert cleaned("1 < 2 and 3") == "and"
    assert cleaned("!!! 42") == ""


def test_logistic_regression_is_scikit_learns() -> None:
    found = Baseline.fit(bag(clean=False, c=3.0, ngrams=2), 0, ROWS, 2).probabilities(ROWS)
    vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=WORD).fit(TEXTS)
    model = LogisticRegression(C=3.0, max_iter=1000).fit(vectors.transform(TEXTS), ROWS.labels)
    np.testing.assert_allclose(found, model.predict_proba(vectors.transform(TEXTS)), rtol=1e-5)


def test_a_forest_is_scikit_learns_whatever_the_threads() -> None:
    settings = bag(classifier="forest", weighting="counts", clean=False, trees=10)
    found = [Baseline.fit(settings, 3, ROWS, 2, threads).probabilities(ROWS) for threads in (1, 2)]
    vectors = CountVectorizer(token_pattern=WORD).fit(TEXTS)
    model = RandomForestClassifier(10, random_state=3).fit(vectors.transform(TEXTS), ROWS.labels)
    for one in found:
        np.testing.assert_allclose(one, model.predict_proba(vectors.transform(TEXTS)), rtol=1e-6)
    other = Baseline.fit(settings, 4, ROWS, 2).probabilities(ROWS)
    assert not np.array_equal(other, found[0])  # the seed counts


def test_the_majority_is_the_share_of_each_class() -> None:
    rows = Split(["x"] * 4, None, [2, 2, 2, 0])
    found = Baseline.fit(ModelConfig(kind="majority"), 0, rows, 3).probabilities(rows)
    np.testing.assert_allclose(found, [[0.25, 0.0, 0.75]] * 4)


def test_second_texts_are_read_too() -> None:
    rows = Split(["same"] * 4, ["left", "right", "left", "right"], [0, 1, 0, 1])
    found = Baseline.fit(bag(c=100.0), 0, rows, 2).probabilities(rows)
    assert found.argmax(-1).tolist() == rows.labels


@pytest.mark.parametrize("settings", [bag(), bag(classifier="forest", trees=5), ModelConfig(kind="majority")])
@pytest.mark.slow
def test_files_hold_no_code_and_give_the_same_back(settings: ModelConfig, tmp_path: Path) -> None:
    fitted = Baseline.fit(settings, 0, ROWS, 2)
    fitted.save(tmp_path)
    assert np.array_equal(Baseline.load(tmp_path).probabilities(ROWS), fitted.probabilities(ROWS))
    assert b"\x80\x04" not in (tmp_path / "baseline.skops").read_bytes()[:2]  # a pickle's first bytes


def test_files_that_are_not_a_baseline_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no baseline"):
        Baseline.load(tmp_path)
    (tmp_path / "baseline.json").write_text(json.dumps({"clean": True, "classes": 2}))
    (tmp_path / "baseline.skops").write_bytes(b"not a zip")
    with pytest.raises(StorageError, match="no baseline"):
        Baseline.load(tmp_path)


def test_a_file_with_another_type_is_refused(tmp_path: Path) -> None:
    from skops import io

    Baseline.fit(bag(), 0, ROWS, 2).save(tmp_path)
    io.dump(Split(["a"], None, [0]), tmp_path / "baseline.skops")  # a type of ours is no type of scikit-learn's
    with pytest.raises(StorageError, match="no baseline"):
        Baseline.load(tmp_path)


@pytest.mark.parametrize("rows", [Split(["1 2", "!"], None, [0, 1]), Split(["", " "], None, [0, 1])])
def test_no_words_fail_the_trial_with_the_repair(rows: Split) -> None:
    with pytest.raises(TrialFailed, match=r"no words to count.*min_rows"):
        Baseline.fit(bag(), 0, rows, 2)


def test_too_rare_words_fail_the_trial_too() -> None:
    with pytest.raises(TrialFailed, match="min_rows"):
        Baseline.fit(bag(min_rows=50), 0, ROWS, 2)


@pytest.mark.slow
@pytest.mark.skipif(not SST2.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(("option", "accuracy", "area"), [("tfidf_logistic", 0.81, 0.896), ("bow_forest", 0.74, 0.837)])
def test_published_figures_on_the_test_split_of_sst2(option: str, accuracy: float, area: float) -> None:
    def read(name: str) -> Split:
        table = pd.read_csv(SST2 / f"{name}.tsv", sep="\t", quoting=csv.QUOTE_NONE)
        return Split(table["sentence"].tolist(), None, table["label"].tolist())

    train, test = read("train"), read("test")
    model = compose.compose([f"model={option}"]).model
    found = Baseline.fit(model, 0, train, 2).probabilities(test)
    assert accuracy_score(test.labels, found.argmax(-1)) == pytest.approx(accuracy, abs=0.0125)
    assert roc_auc_score(test.labels, found[:, 1]) == pytest.approx(area, abs=0.003)
