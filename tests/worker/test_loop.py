"""The worker on real sweeps in this process: pruning at rungs, stop and pause, and that nothing stays open."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from lorasweep import sweeping
from lorasweep.config.home import Folders
from lorasweep.search.study import SweepStudy
from lorasweep.tracking.histories import points_of
from lorasweep.worker.loop import Interrupted
from test_main_job import SWEEP
from trackkit import new_folders

pytestmark = pytest.mark.slow
WORDS = ["launcher.slots=2", "launcher.threads=1", "train.eval_every_steps=0"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    new_folders(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mini.yaml").write_text(SWEEP)
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    monkeypatch.setattr("lorasweep.worker.loop.LOOK_SECONDS", 0.0)
    return tmp_path


def run_tags(home: Path) -> dict[int, dict[str, str]]:
    from test_main_job import trial_runs

    return {
        int(run.data.tags["lorasweep.trial"]): {"status": run.info.status, **run.data.tags} for run in trial_runs(home)
    }


def test_a_loser_leaves_at_its_rung_and_says_why_everywhere(home: Path) -> None:
    outcome = sweeping.start("mini", [*WORDS, "pruner=asha", "pruner.min_samples=24", "sweep.trials=6"], quiet=True)
    rows = {row["trial"]: row for row in outcome.board.rows}
    pruned = [row for row in rows.values() if row["state"] == "pruned"]
    assert outcome.counts["pruned"] == len(pruned) > 0
    assert outcome.counts["complete"] + len(pruned) == 6
    tags = run_tags(home)
    for row in pruned:
        size, samples = row["params"]["train.batch_size"], row["samples"]
        assert samples in (24, 32) and samples - size < 24 <= samples  # the first step at or past the rung
        assert row["reason"].startswith("rung 24 samples: eval/accuracy ")
        assert row["value"] == row["metrics"]["eval/accuracy"]
        assert tags[row["trial"]]["lorasweep.state"] == "pruned" and tags[row["trial"]]["status"] == "FINISHED"
        assert tags[row["trial"]]["lorasweep.reason"] == row["reason"]
    for row in rows.values():
        if row["state"] == "complete":
            assert row["samples"] == row["params"]["train.max_steps"] * row["params"]["train.batch_size"]


def test_rungs_may_be_judged_by_a_part_of_the_rows_under_a_name_of_their_own(home: Path) -> None:
    words = [*WORDS, "pruner=asha", "pruner.min_samples=24", "pruner.eval_rows=11", "sweep.trials=6"]
    outcome = sweeping.start("mini", words, quiet=True)
    pruned = [row for row in outcome.board.rows if row["state"] == "pruned"]
    complete = [row for row in outcome.board.rows if row["state"] == "complete"]
    assert pruned and len(complete) + len(pruned) == 6
    for row in pruned:
        assert row["reason"].startswith("rung 24 samples: eval/accuracy over at most 11 rows ")
        assert row["value"] == row["metrics"]["rung/accuracy"] and round(row["value"] * 11, 6).is_integer()
        assert not any(name.startswith("eval/") for name in row["metrics"])
    assert all("eval/accuracy" in row["metrics"] and row["value"] is not None for row in complete)
    runs = {row["trial"]: row["run_id"] for row in complete}
    last = {row["trial"]: row["params"]["train.max_steps"] for row in complete}
    for trial, points in points_of(Folders(home), "mini", runs):  # over all rows at the end alone
        seen = list(points)
        assert len([point for point in seen if "rung/accuracy" in point.metrics]) == 1
        assert [point.step for point in seen if "eval/accuracy" in point.metrics] == [last[trial]]


def test_wilcoxon_gets_its_rows(home: Path) -> None:
    words = ["pruner=wilcoxon", "pruner.interval_samples=24", "pruner.p_threshold=0.9", "sweep.trials=5"]
    for objective in (
        [],
        ["sweep.name=loss", "sweep.objective.metric=eval/loss", "sweep.objective.direction=minimize"],
    ):
        outcome = sweeping.start("mini", ["launcher.slots=1", "launcher.threads=1", *words, *objective], quiet=True)
        reasons = [row["reason"] for row in outcome.board.rows if row["state"] == "pruned"]
        assert reasons and all("validation rows" in reason for reason in reasons)


def test_a_sweep_leaves_no_handle_and_no_thread(home: Path) -> None:
    open_now = []
    for name in ("first", "second", "third"):
        sweeping.start("mini", [*WORDS, "sweep.trials=2", f"sweep.name={name}"], quiet=True)
        gc.collect()  # Optuna's engines close with the last that refers to them
        process = psutil.Process()
        open_now.append((process.num_fds(), process.num_threads()))
    (_, (handles, threads), (handles_then, threads_then)) = open_now  # what comes with the first one stays
    assert handles_then <= handles and threads_then <= threads


class Asker:
    """Asks for something once, at the first evaluation after the start: another terminal."""

    def __init__(self, home: Path, kind: str, trial: int | None = None, at_step: int = 4):
        self.folders, self.kind, self.trial, self.at_step, self.asked = Folders(home), kind, trial, at_step, False

    def stepped(self, number: int, step: int, loss: float) -> None:
        if not self.asked and step >= self.at_step and self.trial in (None, number):
            self.asked = True
            SweepStudy.load(self.folders, "mini").request(self.kind, self.trial)

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def with_progress(monkeypatch: pytest.MonkeyPatch, progress: Any) -> None:
    monkeypatch.setattr("lorasweep.sweeping.Silent", lambda: progress)


def test_a_stopped_trial_ends_as_pruned_with_what_it_has(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_progress(monkeypatch, Asker(home, "stop", 1, at_step=5))
    outcome = sweeping.start("mini", ["launcher.slots=2", "launcher.threads=1", "sweep.trials=3"], quiet=True)
    row = next(row for row in outcome.board.rows if row["trial"] == 1)
    assert (row["state"], row["samples"]) == ("pruned", 5 * row["params"]["train.batch_size"])
    assert row["reason"] == f"stopped by hand after {row['samples']} samples"
    assert outcome.counts == {"running": 0, "complete": 2, "pruned": 1, "failed": 0}
    assert row["value"] == row["metrics"]["eval/accuracy"]  # evaluated at step 4
    (adapter,) = home.glob(f"mlruns/*/{row['run_id']}/artifacts/adapter/adapter_config.json")
    assert json.loads(adapter.read_text())["peft_type"] == "LORA"
    assert SweepStudy.load(Folders(home), "mini").requests() == []


def test_a_pause_saves_and_resume_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_progress(monkeypatch, Asker(home, "pause", at_step=5))
    with pytest.raises(Interrupted, match=r"mini is paused and saved; trials 0, 1 go on with `lorasweep resume mini`"):
        sweeping.start("mini", ["launcher.slots=2", "launcher.threads=1", "sweep.trials=3"], quiet=True)
    with_progress(monkeypatch, Asker(home, "pause", at_step=5))
    with pytest.raises(Interrupted, match=r"trials 0, 1 go on with"):  # one of them waits for the slot
        sweeping.resume("mini", ["launcher.slots=1"], quiet=True)
    with_progress(monkeypatch, Asker(home, "none"))
    outcome = sweeping.resume("mini", [], quiet=True)
    assert outcome.counts == {"running": 0, "complete": 3, "pruned": 0, "failed": 0}
