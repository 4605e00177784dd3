"""Promotion against a real `mlflow server` on sqlite that keeps the artifacts too: promote, refuse, force, roll back, a
tampered checkpoint, a broken registry, two at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorasweep.data.sources import Split
from lorasweep.errors import PromotionRefused, StorageError
from lorasweep.registry import alias as registry_alias
from lorasweep.registry import probe as registry_probe
from lorasweep.registry import promote as registry
from lorasweep.registry.promote import rollback
from lorasweep.stats import Results
from mlflowserver import Server
from registrykit import LABELS, Folders, ServerShop, accuracy, promote
from serverkit import free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server") / "mlflow") as server:
        yield server


@pytest.fixture
def store(server: Server) -> Path:
    return server.folder


@pytest.fixture
def shop(tmp_path: Path, bert: Any, server: Server, request: pytest.FixtureRequest) -> ServerShop:
    return ServerShop(tmp_path, bert[0], server.url, request.node.name.removeprefix("test_")[:60])


def weights_in(store: Path, under: str) -> list[Path]:
    return sorted(path for path in (store / "artifacts").rglob("adapter_model.safetensors") if under in str(path))


def flip_a_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def test_promote_refuse_force_roll_back(shop: ServerShop, bert: Any) -> None:
    _, adapters, answers, test = bert
    worse, better, equal = shop.trial(0, adapters[0]), shop.trial(1, adapters[1]), shop.trial(2, adapters[1])
    truth = np.array(test.labels)
    kept = {"expected": None, "validation": Split(test.texts, None, test.labels)}
    found = shop.candidate(worse, test, **kept)
    found.record.metrics["eval/accuracy"] = float(np.mean([a == b for a, b in zip(*answers, strict=True)]))
    first = registry.promote(shop.folders, found, "demo")  # by a real fresh process
    assert (first.action, first.version, first.previous_version) == ("promoted", "1", None)
    assert first.reproduced is not None and first.reproduced["metric_differences"] == {"eval/accuracy": 0.0}
    assert first.interval is not None and first.interval[0] < first.value < first.interval[1]

    second = promote(shop.folders, shop.candidate(better, test), "demo")
    assert (second.version, second.previous_version, second.value) == ("2", "1", 1.0)
    aliases = shop.client.get_registered_model("demo").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"champion": "2", "challenger": "1"}
    tags = shop.client.get_model_version("demo", "2").tags
    said = json.loads(tags["lorasweep.comparison"])
    assert said["champion_version"] == "1" and said["better"] and said["rows"] == len(truth)
    assert said["p_value"] <= said["level"] and said["value"] - said["other"] == pytest.approx(said["difference"])
    assert tags["lorasweep.decision"].startswith("promoted: test/accuracy 1.0; accuracy 1.0000 is better than")
    assert tags["lorasweep.decided"] and tags["lorasweep.previous_champion"] == "1"
    assert json.loads(tags["lorasweep.reproduced"])["test_difference"] == 0
    assert shop.client.get_model_version("demo", "1").tags["lorasweep.replaced_by"] == "2"

    with pytest.raises(PromotionRefused, match=r"is not shown to beat 1\.0000 .* p = 1, needed 0\.05"):
        promote(shop.folders, shop.candidate(equal, test), "demo")
    refused = shop.client.get_model_version_by_alias("demo", "challenger")
    assert str(refused.version) == "3" and refused.tags["lorasweep.decision"].startswith("refused: test/accuracy 1.0")
    assert "lorasweep.previous_champion" not in refused.tags

    forced = promote(shop.folders, shop.candidate(equal, test), "demo", force="the old one is slow")
    assert (forced.version, forced.forced, forced.reason) == ("4", True, "the old one is slow")
    tags = shop.client.get_model_version("demo", "4").tags
    assert tags["lorasweep.reason"] == "the old one is slow" and tags["lorasweep.forced"] == "true"
    assert tags["lorasweep.decision"].startswith("promoted by force")

    back = rollback(shop.folders, "demo", "it was too slow")
    assert (back.version, back.previous_version) == ("2", "4")
    assert "it was too slow" in shop.client.get_model_version("demo", "4").tags["lorasweep.rolled_back"]
    aliases = shop.client.get_registered_model("demo").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"champion": "2", "challenger": "4"}
    shop.client.delete_model_version("demo", "1")
    with pytest.raises(PromotionRefused, match="version 1 of demo, the champion before version 2, was deleted"):
        rollback(shop.folders, "demo")
    assert registry.champion(shop.folders, "demo")["version"] == "2"  # type: ignore[index]


def test_a_tampered_checkpoint_is_refused_before_anything_is_registered(
    shop: ServerShop, bert: Any, store: Path
) -> None:
    _, adapters, _, test = bert
    candidate = shop.candidate(shop.trial(0, adapters[0]), test)
    [weights] = weights_in(store, candidate.record.run_id)
    flip_a_byte(weights)
    for force in (None, "I insist"):
        with pytest.raises(StorageError, match=r"was changed after the trial ended: its files have sha256"):
            promote(shop.folders, candidate, "tampered", force=force)
    assert registry.champion(shop.folders, "tampered") is None
    assert not [model for model in shop.client.search_registered_models() if model.name == "tampered"]


def test_a_champion_that_was_tampered_with_is_no_measure(shop: ServerShop, bert: Any, store: Path) -> None:
    _, adapters, _, test = bert
    before = set(weights_in(store, "/models/"))
    promote(shop.folders, shop.candidate(shop.trial(0, adapters[0]), test), "broken")
    [weights] = set(weights_in(store, "/models/")) - before
    flip_a_byte(weights)
    better = shop.candidate(shop.trial(1, adapters[1]), test)
    with pytest.raises(PromotionRefused, match=r"version 1, cannot be loaded: .*were changed after the model"):
        promote(shop.folders, better, "broken")
    with pytest.raises(StorageError, match="were changed after the model was saved"):
        registry.predict(shop.folders, "models:/broken@champion", ["word1"])
    assert promote(shop.folders, better, "broken", force="the champion is damaged").version == "3"


def test_what_does_not_reproduce_the_trial_gets_no_alias(shop: ServerShop, bert: Any) -> None:
    _, adapters, answers, test = bert
    record = shop.trial(0, adapters[0])
    right = float(np.mean([a == b for a, b in zip(*answers, strict=True)]))
    record.metrics["eval/accuracy"] = right - 0.1
    rows = Split(test.texts, None, test.labels)
    with pytest.raises(PromotionRefused, match=r"does not reproduce the validation values of trial 0: eval/accuracy"):
        promote(shop.folders, shop.candidate(record, test, validation=rows), "odd", force="whatever")
    record.metrics["eval/accuracy"] = right
    table = np.full((len(rows), 3), 1 / 3, dtype=np.float32)
    kept = Results(np.array(rows.labels), table, label_names=LABELS)
    with pytest.raises(PromotionRefused, match="does not repeat the validation predictions of trial 0"):
        promote(shop.folders, shop.candidate(record, test, validation=rows, expected=kept), "odd")
    assert shop.client.get_registered_model("odd").aliases == {}
    assert shop.client.get_model_version("odd", "2").tags["lorasweep.reproduced"] == "no"


def test_a_server_that_is_down_or_dies_midway_leaves_the_champion(
    shop: ServerShop, bert: Any, server: Server, tmp_path: Path
) -> None:
    _, adapters, _, test = bert
    with pytest.raises(StorageError, match=r"MLflow could not"):
        registry.champion(Folders(tmp_path, f"http://127.0.0.1:{free_port()}"), "demo")
    first, second = shop.trial(0, adapters[0]), shop.trial(1, adapters[1])
    promote(shop.folders, shop.candidate(first, test), "dying")
    candidate = shop.candidate(second, test)

    def ask_and_kill(request: dict[str, Any]) -> dict[str, Any]:
        answer = registry_probe.ask(request)
        server.stop()
        return answer

    with pytest.raises(StorageError, match="MLflow could not"):
        registry.promote(shop.folders, candidate, "dying", ask=ask_and_kill)
    server.start()
    assert registry.champion(shop.folders, "dying")["version"] == "1"  # type: ignore[index]
    again = promote(shop.folders, shop.candidate(second, test), "dying")
    assert (again.version, again.previous_version) == ("3", "1")


def test_another_host_that_promotes_meanwhile_is_compared_with_too(shop: ServerShop, bert: Any, tmp_path: Path) -> None:
    """No lock reaches another host: its promotion comes between our comparison and the move of the alias."""
    _, adapters, _, test = bert
    first, ours, theirs = shop.trial(0, adapters[0]), shop.trial(1, adapters[1]), shop.trial(2, adapters[1])
    promote(shop.folders, shop.candidate(first, test), "busy")
    assert shop.folders.server is not None
    elsewhere = Folders(tmp_path / "elsewhere", shop.folders.server.replace("127.0.0.1", "localhost"))
    assert registry_alias._lock_file(elsewhere) != registry_alias._lock_file(shop.folders)
    others = iter([shop.candidate(theirs, test)])

    def ask_while_they_promote(request: dict[str, Any]) -> dict[str, Any]:
        answer = registry_probe.ask(request)
        for candidate in others:
            assert promote(elsewhere, candidate, "busy").action == "promoted"
        return answer

    with pytest.raises(PromotionRefused, match=r"the champion \(version 3, trial 2\) has 1\.0000 on the same 40 rows"):
        registry.promote(shop.folders, shop.candidate(ours, test), "busy", ask=ask_while_they_promote)
    aliases = shop.client.get_registered_model("busy").aliases
    assert {name: str(version) for name, version in aliases.items()} == {"champion": "3", "challenger": "2"}


PROMOTE = """
import json, sys
from pathlib import Path
from lorasweep import environment
environment.settle()
from lorasweep.registry import promote as registry
from lorasweep.registry import probe as registry_probe
from lorasweep.data.sources import Split
from lorasweep.errors import PromotionRefused
from lorasweep.records import TrialRecord, TrialState
from lorasweep.registry.promote import Candidate
from lorasweep.tracking.recorded import Recorded
from mlflowserver import Server
from registrykit import Folders, LABELS, accuracy, sweep_config
asked = json.loads(sys.argv[1])
folders = Folders(Path(asked["root"]), asked["server"])
config = sweep_config()
config.model.path, config.data.max_length = asked["base"], 16
record = TrialRecord(asked["trial"], TrialState.COMPLETE, 0.5, {}, run_id=asked["run"])
test = Split(asked["texts"], None, asked["labels"])
candidate = Candidate(record, Recorded.read(folders, record.run_id), config, asked["base"], LABELS, test, accuracy)
print("ready", flush=True)
sys.stdin.readline()
try:
    print(registry.promote(folders, candidate, "race", ask=registry_probe.ask).action)
except PromotionRefused as error:
    print("refused", error)
"""


def start_promotion(shop: ServerShop, root: Path, trial: int, run_id: str, test: Split) -> subprocess.Popen:
    asked = {"root": str(root), "server": shop.folders.server, "base": str(shop.base), "trial": trial, "run": run_id}
    words = [sys.executable, "-c", PROMOTE, json.dumps({**asked, "texts": test.texts, "labels": test.labels})]
    path = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


@pytest.mark.torture  # its short twin: test_another_host_that_promotes_meanwhile_is_compared_with_too
def test_of_two_promotions_at_once_one_wins(shop: ServerShop, bert: Any, tmp_path: Path) -> None:
    """Two processes, each with a tracking folder of its own, promote two trials that are the same adapter."""
    _, adapters, _, test = bert
    runs = [shop.trial(number, adapters[1]).run_id for number in (0, 1)]
    for number in (0, 1):
        (tmp_path / str(number)).mkdir()
    racers = [start_promotion(shop, tmp_path / str(number), number, runs[number], test) for number in (0, 1)]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    results = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        results.append(racer.communicate(timeout=300)[0].split()[0])
    assert sorted(results) == ["promoted", "refused"]
    winner = results.index("promoted")
    champion = registry.champion(shop.folders, "race")
    assert champion is not None and champion["run_id"] == runs[winner]
    challenger = shop.client.get_model_version_by_alias("race", "challenger")
    assert challenger.run_id == runs[1 - winner]


HOLD = """
import sys
from pathlib import Path
from lorasweep.config.home import Folders
from lorasweep.registry.alias import one_promotion_at_a_time
with one_promotion_at_a_time(Folders(Path(sys.argv[1]), sys.argv[2] or None)):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("server_address", ["", "http://127.0.0.1:1"])
def test_a_dead_holder_of_the_lock_blocks_nobody(tmp_path: Path, server_address: str) -> None:
    import fcntl

    folders = Folders(tmp_path, server_address or None)
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), server_address], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with registry_alias._lock_file(folders).open("r+") as handle, pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    holder.wait()
    with registry_alias.one_promotion_at_a_time(folders):
        pass


def test_the_score_of_the_kit_is_accuracy() -> None:
    assert accuracy(np.eye(2), np.array([0, 0])) == {"eval/accuracy": 0.5}
