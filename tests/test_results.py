"""Per-example results on disk: what was written is read, and every metric of a real trial comes out of them again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lorasweep import results, sweeping
from lorasweep.config.home import Folders
from lorasweep.depot import FolderDepot, files_of
from lorasweep.errors import StorageError
from lorasweep.stats import Results, interval, value_of
from lorasweep.tasks.base import Answers
from lorasweep.training.sheet import Sheet
from statslab import drawn


def test_what_was_written_is_read(tmp_path: Path) -> None:
    given = drawn(1, rows=40, classes=3)
    given = Results(given.labels, given.probabilities, np.arange(40, dtype=np.float32), ["a", "b", "ü"], {}, "rows")
    place = results.place_of(files_of(Folders(tmp_path), "s"))
    results.write(place, 7, given)
    path = Folders(tmp_path).sweep("s") / "results" / "trial-00007.safetensors"
    assert path.stat().st_size < 2000
    found = results.read(Folders(tmp_path), "s", 7)
    assert found is not None and found.same_rows(given)
    assert (found.probabilities == given.probabilities).all() and (found.unit_losses == given.unit_losses).all()
    assert found.label_names == ["a", "b", "ü"] and found.rows_id == "rows"
    assert results.read(Folders(tmp_path), "s", 8) is None
    results.write(place, 7, drawn(2, rows=40, classes=3))
    again = results.read(Folders(tmp_path), "s", 7)
    assert again is not None and not (again.probabilities == given.probabilities).all()
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, path = FolderDepot(tmp_path), tmp_path / results.name_of(3)
    results.write(place, 3, drawn(1))
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lorasweep.depot.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        results.write(place, 3, drawn(2))
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("harm", [b"", b"x" * 30, None])
def test_a_damaged_file_is_named(tmp_path: Path, harm: bytes | None) -> None:
    place, path = FolderDepot(tmp_path), tmp_path / results.name_of(3)
    results.write(place, 3, drawn(1))
    path.write_bytes(path.read_bytes()[:-5] if harm is None else harm)
    with pytest.raises(StorageError, match="trial-00003"):
        results.read_in(place, 3)


def test_other_rows_are_told_by_their_fingerprint() -> None:
    one, other = drawn(1), drawn(1)
    assert one.same_rows(other)
    named = [Results(one.labels, one.probabilities, rows_id=name) for name in ("x", "y")]
    assert not named[0].same_rows(named[1]) and named[0].same_rows(one)


class Matching:
    """A task of texts whose metric is, or is not, the mean of its rows."""

    label_names = ()

    def metrics(self, answers: Answers, references: list[list[str]], losses: np.ndarray) -> dict[str, float]:
        right = [text in wanted for text, wanted in zip(answers.texts, references, strict=True)]
        shares = {"eval/exact_match": float(np.mean(right)), "eval/corpus": float(np.mean(right)) ** 2}
        return {"eval/loss": float(losses.mean()), **shares}


def test_texts_leave_a_score_a_row_where_their_metric_is_a_mean() -> None:
    sheet = Sheet(Answers(["a", "b", "c", "d"]), np.ones(9, np.float32))
    references = [["a"], ["x"], ["c", "y"], []]
    found = sheet.results(Matching(), references, "eval/exact_match", "rows")  # type: ignore[arg-type]
    assert list(found.scores["exact_match"]) == [1, 0, 1, 0] and value_of(found, "eval/exact_match") == 0.5
    assert interval(found, "eval/exact_match") is not None and len(found) == 4
    assert not sheet.results(Matching(), references, "eval/corpus", "rows").scores  # type: ignore[arg-type]


def test_the_loss_of_texts_is_as_sure_as_its_tokens_make_it() -> None:
    losses = np.linspace(0, 8, 9, dtype=np.float32)
    sheet = Sheet(Answers(["a", "b", "c", "d"]), losses)
    found = sheet.results(Matching(), [["a"], ["x"], ["c"], []], "eval/loss", "rows")  # type: ignore[arg-type]
    bounds = interval(found, "eval/loss")
    assert not found.scores and value_of(found, "eval/loss") == 4
    assert bounds is not None and bounds[0] < 3 and bounds[1] > 5


def test_a_sheet_is_saved_and_loaded_whole() -> None:
    table = Sheet(drawn(1).probabilities, np.ones(120, np.float32))
    back = Sheet.load({**table.tensors(), "now.A": table.tensors()["answers.losses"]}, table.texts)
    assert back is not None and (back.predictions == table.predictions).all() and (back.losses == table.losses).all()
    texts = Sheet(Answers(["x", ""], np.array([0.1, 0.9], np.float32)), np.ones(3, np.float32))
    back = Sheet.load(texts.tensors(), texts.texts)
    assert back is not None and back.texts == ["x", ""] and (back.predictions.no_answer > 0).all()
    assert Sheet.load({}, None) is None


def test_reading_them_needs_no_torch() -> None:
    code = "import sys, lorasweep.results, lorasweep.stats; print({'torch', 'mlflow', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["eval/f1"])
def test_every_metric_of_a_trial_comes_out_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    from test_main_job import SWEEP

    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mini.yaml").write_text(SWEEP)
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    words = ["launcher.slots=2", "launcher.threads=1", "sweep.trials=2", f"sweep.objective.metric={metric}"]
    outcome = sweeping.start("mini", words, quiet=True)
    for row in outcome.board.rows:
        found = results.read(Folders(tmp_path), "mini", row["trial"])
        assert found is not None and row["eval_rows"] == len(found)
        for name, value in row["metrics"].items():
            if found.knows(name):
                assert value_of(found, name) == pytest.approx(value, abs=1e-6), name
        assert row["interval"] == list(interval(found, metric) or ())
        assert row["interval"][0] < row["value"] < row["interval"][1]
        assert row["peak_memory_bytes"] > 2**20
