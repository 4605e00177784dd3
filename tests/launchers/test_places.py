"""Sharing a machine out: every worker its own GPU or its own cores, or an error that says why not."""

from __future__ import annotations

import pytest

from lorasweep.errors import ConfigError
from lorasweep.launchers.places import Place, share_out, spans


@pytest.mark.parametrize(
    ("workers", "cores", "groups"),
    [
        (2, range(8), [(0, 1, 2, 3), (4, 5, 6, 7)]),
        (3, range(8), [(0, 1), (2, 3, 4), (5, 6, 7)]),
        (2, [1, 5], [(1,), (5,)]),
        (3, [0, 1], [(0,), (0,), (1,)]),  # more workers than cores: they take turns, and none has two
    ],
)
def test_cores_are_shared_out(workers: int, cores: list[int], groups: list[tuple[int, ...]]) -> None:
    places = share_out(workers, "auto", [], cores, None)
    assert [place.cores for place in places] == groups
    assert [place.threads for place in places] == [len(group) for group in groups]
    assert all(place.gpu is None for place in places)


def test_each_worker_sees_its_own_gpu_alone() -> None:
    places = share_out(2, "auto", ["GPU-aa", "GPU-bb", "GPU-cc"], range(12), None)
    assert places == [Place("GPU-aa", (), 6), Place("GPU-bb", (), 6)]
    assert places[1].words == "GPU GPU-bb"


def test_the_threads_that_were_asked_for_win() -> None:
    assert [place.threads for place in share_out(2, "cpu", ["0"], range(8), 3)] == [3, 3]


@pytest.mark.parametrize(
    ("device", "gpus", "message"),
    [
        ("auto", ["0"], r"`launcher.workers`=2 and this machine has 1 GPUs.* use launcher.workers=1 with"),
        ("cuda", [], r"this machine has 0 GPUs"),
        ("cuda:1", ["0", "1"], r"names one GPU for `launcher.workers`=2; use launcher.device=cuda"),
    ],
)
def test_what_has_no_place_is_refused(device: str, gpus: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        share_out(2, device, gpus, range(4), None)


def test_spans_read_as_people_write_them() -> None:
    assert spans((0, 1, 2, 3, 8)) == "0-3, 8"
    assert spans((7,)) == "7"
