"""What is read of a sweep: curves over samples, without the closing point; samples of what is too much; costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorasweep.config.home import Folders
from lorasweep.config.schema import TrainConfig
from lorasweep.reporting import cost, objective, tables
from lorasweep.reporting.material import Material, read_curves, some, thin
from lorasweep.reporting.plotly_page import log_marks, short
from lorasweep.tracking import spool
from made_sweep import build


def test_curves_are_over_samples_and_end_where_training_did(tmp_path: Path) -> None:
    file = spool.Spool(tmp_path, 3)
    file.append({"eval/accuracy_before": 0.4}, 0, 1)
    for step in (1, 2, 3, 4):
        file.append({"train/loss": 1 / step, **({"train/samples": step * 8.0} if step % 2 == 0 else {})}, step, step)
    file.append({"eval/accuracy": 0.6}, 2, 5)
    file.append({"eval/accuracy": 0.5, "eval/loss": float("nan")}, 5, 6)  # stopped early, between two logged steps
    file.append({"eval/accuracy": 0.6}, 6, 7)  # the closing point: the kept checkpoint's value again
    file.close()
    curves = read_curves(spool.read_points(spool.path_of(tmp_path, 3)), samples=40)
    assert (curves["eval/accuracy"].samples, curves["eval/accuracy"].values) == ([16.0, 40.0], [0.6, 0.5])
    assert curves["train/loss"].samples == [8.0, 16.0, 24.0, 32.0]
    assert set(curves) == {"eval/accuracy", "train/loss"}
    assert read_curves([]) == {}


@given(st.integers(0, 500), st.integers(2, 40))
def test_a_sample_keeps_the_first_and_the_order(count: int, most: int) -> None:
    items = list(range(count))
    found = some(items, most)
    assert found == sorted(set(found)) and len(found) == min(count, most)
    assert found[: most // 2] == items[: most // 2]
    ends = thin(items, most)
    assert len(ends) == min(count, most) and ends[:1] == items[:1] and ends[-1:] == items[-1:]


def test_pruning_saves_what_was_planned_and_not_seen(tmp_path: Path) -> None:
    material = Material.read(build(Folders(tmp_path), 60, curves=False), Folders(tmp_path))
    pruned = [record for record in material.records.values() if record.state == "pruned"]
    left = sum(16 * record.params["train.max_steps"] - record.samples for record in pruned)
    seen = sum(record.samples for record in material.records.values())
    (saving,) = [one for one in cost.savings(material) if "pruning" in one.what]
    assert saving.figure == f"{left / (left + seen):.0%}"
    assert f"{len(pruned)} pruned trials left {left:,}" in saving.rests_on
    money = next(one for one in cost.savings(material) if one.what == "cost")
    assert float(money.figure) == pytest.approx(2.5 * 60 * 0.7 / 3600, abs=0.005)


def test_finalists_stand_beside_what_the_search_had(tmp_path: Path) -> None:
    material = Material.read(build(Folders(tmp_path), 30), Folders(tmp_path))
    assert objective.repeats(material) is None and material.finalists == material.ranked[:5]
    first, _, third = material.ranked[:3]
    for trial, values in ((first, [0.9, 0.92]), (third, [])):
        row = next(row for row in material.board.rows if row["trial"] == trial)
        mean = sum(values) / len(values) if values else None
        row["finalist"] = {"mean": mean, "values": values, "interval": None, "overstated": 0.01}
    del material.finalists, material.repeated  # read again
    picture = objective.repeats(material)
    assert picture is not None and material.finalists == [first, third]
    seeds, means, looks = picture.series
    assert (seeds.x, seeds.y) == ([f"trial {first}"] * 2, [0.9, 0.92])
    assert (means.x, means.y) == ([f"trial {first}"], [pytest.approx(0.91)])
    assert looks.y == [material.records[first].value, material.records[third].value]
    assert "mean over fresh seeds" in tables.leaderboard(material)


def test_planned_samples_follow_the_point_before_the_config() -> None:
    train = TrainConfig(batch_size=8, max_steps=10, accumulation=2)
    assert cost.planned_samples(train, {}) == 160
    assert cost.planned_samples(train, {"train.batch_size": 4, "train.max_steps": 5}) == 40
    assert cost.planned_samples(TrainConfig(max_steps=0), {}) is None  # by epochs: the rows are not known here


def test_numbers_and_marks() -> None:
    assert short(0.123456789) == 0.12346 and short(float("inf")) is None and short("a") == "a"
    assert log_marks(1e-4, 1e-1) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1])
    assert log_marks(3e-4, 4e-4) == [3e-4, 4e-4]
