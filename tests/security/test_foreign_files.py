"""What others wrote (models, baselines, tracking servers) is read and never run, and stays in its folder."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
import torch
from hypothesis import strategies as st

from fuzzkit import both
from lorasweep.config.schema import Config
from lorasweep.errors import LorasweepError, ModelError, StorageError
from lorasweep.models.base import load_base, load_tokenizer
from lorasweep.models.baselines import ABOUT, FILE, Baseline


class Bomb:
    """Pickled, it writes a file when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.mark, "ran"))


def copy_of(base: str, folder: Path) -> Path:
    return Path(shutil.copytree(base, folder / "model"))


def config_for(folder: Path) -> Config:
    config = Config()
    config.model.path = str(folder)
    return config


def load(folder: Path) -> None:
    config = config_for(folder)
    load_tokenizer(config.model)
    load_base(config, "classification", ["no", "yes"], "cpu")


def test_a_pickle_in_a_models_weights_does_not_run(base_path: Any, tmp_path: Path) -> None:
    folder, mark = copy_of(base_path("bert"), tmp_path), tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Bomb(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)
    assert not mark.exists()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump(Bomb(mark), file)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("where", ["config.json", "tokenizer_config.json"])
def test_code_of_a_model_does_not_run(where: str, base_path: Any, tmp_path: Path) -> None:
    """`trust_remote_code` is off: a repository that needs its own code is refused."""
    folder, mark = copy_of(base_path("bert"), tmp_path), tmp_path / "mark"
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).write_text('ran')\n")
    stored = json.loads((folder / where).read_text())
    stored["auto_map"] = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    stored["auto_map"]["AutoModelForSequenceClassification"] = "evil.Model"
    if where == "config.json":
        stored["model_type"] = "evil"
    else:
        stored["tokenizer_class"] = "EvilTokenizer"
    (folder / where).write_text(json.dumps(stored))
    try:
        load(folder)
    except ModelError as error:
        assert "cannot be loaded" in str(error)
    assert not mark.exists()


def test_remote_code_is_off_until_the_user_turns_it_on() -> None:
    assert Config().model.trust_remote_code is False
    conf = Path(__file__).parent.parent.parent / "conf"
    assert not [file for file in conf.rglob("*.yaml") if "trust_remote_code" in file.read_text()]


def hostile_settings(base: str, name: str, raw: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of(base, Path(folder))
        (copy / name).write_bytes(raw)
        try:
            load(copy)
        except LorasweepError as error:
            assert len(str(error)) < 3000


SETTINGS = [
    "model_type", "hidden_size", "vocab_size", "id2label", "num_hidden_layers", "architectures", "tokenizer_class",
    "added_tokens", "model", "pre_tokenizer", "truncation", "x",
]  # fmt: skip
json_text = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(SETTINGS), inner, max_size=5),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())  # fmt: skip


@pytest.fixture(scope="module")
def bert_folder(base_path: Any) -> str:
    return base_path("bert")


def any_file_of_a_model(bert_folder: str, name: str, raw: bytes) -> None:
    hostile_settings(bert_folder, name, raw)


test_any_file_of_a_model, test_any_file_of_a_model_at_length = both(
    25,
    1_500,
    name=st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]),
    raw=st.binary(max_size=60) | json_text,
)(any_file_of_a_model)


def test_a_baseline_with_other_types_is_not_opened(tmp_path: Path) -> None:
    from skops import io

    mark = tmp_path / "mark"
    io.dump(Bomb(mark), tmp_path / FILE)
    (tmp_path / ABOUT).write_text(json.dumps({"clean": True, "classes": ["a"]}))
    with pytest.raises(StorageError, match="holds no baseline"):
        Baseline.load(tmp_path)
    for raw in (b"", b"PK\x03\x04" + b"\0" * 60, pickle.dumps(Bomb(mark))):
        (tmp_path / FILE).write_bytes(raw)
        with pytest.raises(StorageError, match="holds no baseline"):
            Baseline.load(tmp_path)
    assert not mark.exists()


def test_mlflow_may_unpickle_nothing(tmp_path: Path) -> None:
    """Neither in our own process nor in those that we start; a user's own setting wins."""
    told = "import os; from lorasweep import environment; environment.settle(); print(os.environ[{!r}])"
    name = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"
    clean = {key: value for key, value in os.environ.items() if key != name}
    done = subprocess.run(
        [sys.executable, "-c", told.format(name)], env=clean, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "false"


# -- a tracking server that lists files out of their folder ------------------------------------------------------------

OUTSIDE = ["../../evil", "/tmp/lorasweep-evil", "%2e%2e/%2e%2e/evil", "a/../../../evil", "..\\evil"]
RUN = {
    "info": {"run_id": "0" * 32, "experiment_id": "1", "artifact_uri": "mlflow-artifacts:/1/r/artifacts",
             "status": "FINISHED", "lifecycle_stage": "active", "start_time": 1, "end_time": 2}, "data": {},
}  # fmt: skip


class Hostile(http.server.BaseHTTPRequestHandler):
    """Answers as MLflow's server does; its folder `adapter` holds one file under a name of the attacker's."""

    name = ""

    def do_GET(self) -> None:
        asked = urlparse(self.path)
        folder = parse_qs(asked.query).get("path", [""])[0]
        if asked.path.endswith("/runs/get"):
            answer: Any = {"run": RUN}
        elif asked.path.endswith("/artifacts") and not folder.endswith("adapter"):
            answer = {"files": [{"path": "adapter", "is_dir": True}]}
        elif asked.path.endswith("/artifacts"):
            answer = {"files": [{"path": self.name, "is_dir": False, "file_size": 4}]}
        else:
            answer = "evil"
        raw = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: Any) -> None:
        """Silent."""


@contextmanager
def hostile_server(name: str) -> Iterator[str]:
    handler = type("Named", (Hostile,), {"name": name})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize("name", OUTSIDE)
def test_artifacts_of_a_hostile_server_stay_in_their_folder(name: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    from lorasweep.tracking import files

    into = tmp_path / "deep" / "er" / "into"
    into.mkdir(parents=True)
    with hostile_server(name) as url:
        client = MlflowClient(tracking_uri=url)
        run = client.get_run(RUN["info"]["run_id"])
        with suppress(Exception):  # MLflow refuses most of them itself
            files.fetch(client, run, "adapter", into)
    assert not Path("/tmp/lorasweep-evil").exists()
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(into in path.parents for path in left), left
