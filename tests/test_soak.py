"""A sweep in one process keeps nothing open: benchmarks/soak.py in short. Memory, which settles late, is its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_scale_benchmark import load


@pytest.mark.torture  # its short twin: worker/test_loop.py::test_a_sweep_leaves_no_handle_and_no_thread
def test_no_handle_or_thread_is_left_over(tmp_path: Path) -> None:
    soak = load("soak")
    samples = soak.watch(tmp_path, 18, every_seconds=0.05)
    first, last = soak.around(samples, 6), soak.around(samples, 17)
    assert first["trials"] < 11 and last["trials"] > 12
    assert not soak.leaked(first, last), (first, last)
    sizes = soak.sizes(tmp_path, 18)
    assert sizes["study.db"] < 20 and sizes["mlflow.db"] < 150  # KiB a trial; a new mlflow.db has 900 KiB


def test_a_leak_is_told() -> None:
    soak = load("soak")
    steady = {"handles": 16, "threads": 5}
    assert not soak.leaked(steady, {"handles": 18, "threads": 5})
    assert soak.leaked(steady, {"handles": 60, "threads": 5})
    assert soak.leaked(steady, {"handles": 16, "threads": 6})
