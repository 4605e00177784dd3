"""The hub, by its real loading code on local folders, and what is said when it cannot be reached."""

import http.server
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import pytest

from lorasweep.config.schema import DataConfig
from lorasweep.data.hub import cache_alone
from lorasweep.data.sources import load_search_data, load_test_split
from lorasweep.errors import DataError

pytestmark = pytest.mark.slow  # processes of their own


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def data_set(folder: Path, splits: dict[str, int], features: datasets.Features | None = None, **columns: list) -> str:
    """A folder with one parquet file a split, of the given number of rows."""
    (folder / "set").mkdir()
    for name, rows in splits.items():
        cut = {column: cells[:rows] for column, cells in columns.items()}
        datasets.Dataset.from_dict(cut, features=features).to_parquet(folder / "set" / f"{name}.parquet")
    return str(folder / "set")


IMDB = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})


def reviews(folder: Path, **splits: int) -> str:
    return data_set(
        folder, splits, IMDB, text=[f"row {number}" for number in range(100)], label=[n % 2 for n in range(100)]
    )


def test_class_names_come_along(tmp_path: Path) -> None:
    data = DataConfig(kind="hub", hub_id=reviews(tmp_path, train=100, test=10), test="test")
    loaded = load_search_data(data)
    assert loaded.label_names == ["neg", "pos"] and "(train)" in loaded.source
    assert (len(loaded.train), len(loaded.validation)) == (90, 10)
    assert loaded.train.labels == [int(text.split()[1]) % 2 for text in loaded.train.texts]
    assert load_test_split(data, loaded.label_names).labels == [0, 1] * 5


def test_own_names_go_by_id(tmp_path: Path) -> None:
    data = DataConfig(
        kind="hub", hub_id=reviews(tmp_path, train=100), train="train", label_names=["negative", "positive"]
    )
    loaded = load_search_data(data)
    assert loaded.label_names == ["negative", "positive"]
    assert loaded.train.labels == [int(text.split()[1]) % 2 for text in loaded.train.texts]


def test_class_names_that_are_numbers_are_not_ids(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["1", "0"])})
    hub_id = data_set(tmp_path, {"train": 40}, features, text=["a"] * 40, label=[0, 1] * 20)
    loaded = load_search_data(DataConfig(kind="hub", hub_id=hub_id, validation="train"))
    assert loaded.label_names == ["1", "0"] and loaded.train.labels == [0, 1] * 20


def test_squad_v2_rows_map_to_answerable_pairs(tmp_path: Path) -> None:
    answers = [{"text": ["x"] * (n % 2), "answer_start": [0] * (n % 2)} for n in range(40)]
    hub_id = data_set(
        tmp_path,
        {"train": 40, "validation": 10},
        question=[f"q{n}" for n in range(40)],
        context=[f"c{n}" for n in range(40)],
        answers=answers,
    )
    data = DataConfig(
        kind="hub",
        hub_id=hub_id,
        train="train",
        test="validation",
        text_column="question",
        pair_column="context",
        label_column="answers",
        label_names=["unanswerable", "answerable"],
    )
    loaded = load_search_data(data)
    assert loaded.train.pairs == [text.replace("q", "c") for text in loaded.train.texts]
    assert loaded.train.labels == [int(text[1:]) % 2 for text in loaded.train.texts]
    assert load_test_split(data, loaded.label_names).labels == [0, 1] * 5


def test_withheld_labels_are_refused(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])})
    hub_id = data_set(tmp_path, {"train": 40, "test": 4}, features, text=["t"] * 40, label=[-1, 0, 1, 1] * 10)
    with pytest.raises(DataError, match=r"row 1 has the label `-1` .*withheld"):
        load_test_split(DataConfig(kind="hub", hub_id=hub_id, test="test"), ["a", "b"])


def test_unknown_split(tmp_path: Path) -> None:
    hub_id = reviews(tmp_path, train=100)
    with pytest.raises(DataError, match=r"data\.validation=dev: .* has no such split.*train"):
        load_search_data(DataConfig(kind="hub", hub_id=hub_id, validation="dev"))


def test_unknown_configuration(tmp_path: Path) -> None:
    hub_id = reviews(tmp_path, train=100)
    with pytest.raises(DataError, match=r"data\.hub_config=plain: .* has no such configuration.*default"):
        load_search_data(DataConfig(kind="hub", hub_id=hub_id, hub_config="plain"))


def test_unknown_column_shows_those_there_are(tmp_path: Path) -> None:
    data = DataConfig(kind="hub", hub_id=reviews(tmp_path, train=100), text_column="sentence")
    with pytest.raises(DataError, match=r"no column `sentence` .*its columns are: text, label"):
        load_search_data(data)


def test_offline_is_one_clear_error_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(
        DataError,
        match=r"`nobody/nothing` is neither a local folder nor in the cache, and HF_HUB_OFFLINE is set.*data=file",
    ):
        load_search_data(DataConfig(kind="hub", hub_id="nobody/nothing"))
    assert time.monotonic() - start < 5


def online(code: str, endpoint: str) -> str:
    """Run code in a fresh process that may use the network, which ends at `endpoint`; its output."""
    settings = {
        name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**settings, "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


LOAD = """
import time
from lorasweep.config.schema import DataConfig
from lorasweep.data.hub import read_split
from lorasweep.errors import DataError
import datasets
start = time.monotonic()
try:
    read_split("train", "data.train", DataConfig(kind="hub", hub_id="nobody/nothing"))
except DataError as error:
    print(error, "| seconds under 6:", time.monotonic() - start < 6)
"""


def test_unreachable_hub_is_one_clear_error_within_seconds() -> None:
    said = online(LOAD, "http://127.0.0.1:9")  # nothing listens there
    assert "neither a local folder nor in the cache, and the hub cannot be reached (ConnectError)" in said
    assert "seconds under 6: True" in said and "Retrying" not in said


def test_hub_that_has_no_such_set() -> None:
    class NotFound(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        said = online(LOAD, f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert "data.hub_id=nobody/nothing: the hub has no such data set for you (HTTP 404)" in said


def test_cached_set_is_read_when_the_hub_is_away(tmp_path: Path) -> None:
    with cache_alone():
        import huggingface_hub

        assert huggingface_hub.constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
        assert len(load_search_data(DataConfig(kind="hub", hub_id=reviews(tmp_path, train=100))).train) == 80


def test_no_id() -> None:
    with pytest.raises(DataError, match=r"data\.kind=hub needs data\.hub_id"):
        load_search_data(DataConfig(kind="hub"))
