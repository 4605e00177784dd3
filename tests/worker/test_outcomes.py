"""A value that cannot be ranked ends its own trial; the sweep goes on to its budget."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorasweep import sweeping
from test_main_job import SWEEP
from trackkit import new_folders

pytestmark = pytest.mark.slow


def test_a_trial_whose_objective_is_nan_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss is finite at the one step that it trains; what that step left is not."""
    new_folders(tmp_path)
    (tmp_path / "sweeps").mkdir()
    text = SWEEP.replace("tag(log, interval(1e-4, 1e-2))", "choice(1e30, 1e-3)").replace("range(8, 12, 4)", "choice(1)")
    (tmp_path / "sweeps" / "mini.yaml").write_text(text)
    monkeypatch.setenv("LORASWEEP_HOME", str(tmp_path))
    objective = ["sweep.objective.metric=eval/loss", "sweep.objective.direction=minimize"]
    words = [*objective, "data.demo_rows=40", "launcher.slots=2", "launcher.threads=1"]
    outcome = sweeping.start("mini", words, quiet=True)
    failed = [row for row in outcome.board.rows if row["state"] == "failed"]
    assert failed and all(row["params"]["optimizer.lr"] == 1e30 for row in failed)
    assert {row["reason"] for row in failed} == {"objective: the objective eval/loss is nan at step 1"}
    assert outcome.counts["complete"] == 5 - len(failed) > 0
    assert outcome.best is not None
