"""What is said of a Ray cluster before anything runs there: no Ray is needed for it."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path

import pytest

from lorasweep.config.home import Folders, Home
from lorasweep.config.schema import LauncherConfig
from lorasweep.errors import LorasweepError, UsageError
from lorasweep.launchers import cluster, launch
from lorasweep.launchers.cluster import Node, asks_of, check_address, check_storage, describe, fits
from serverkit import free_port

HEAD = Node("a" * 56, "head", {"CPU": 4.0, "memory": 1e9, "node:10.0.0.1": 1.0})
BIG = Node("b" * 56, "big", {"CPU": 32.0, "GPU": 8.0, "a100": 8.0, "accelerator_type:A100": 1.0})


def test_what_is_asked_for_is_held_against_what_there_is() -> None:
    launcher = LauncherConfig(kind="ray", cpus=2, gpus=0.5, resources={"a100": 1})
    assert asks_of(launcher) == "CPU: 2, GPU: 0.5, a100: 1"
    assert describe([HEAD, BIG]) == "head (CPU: 4); big (CPU: 32, GPU: 8, a100: 8)"
    assert [fits(launcher, node) for node in (HEAD, BIG)] == [False, True]
    assert fits(LauncherConfig(kind="ray", cpus=4), HEAD) and not fits(LauncherConfig(kind="ray", cpus=4.5), HEAD)


@pytest.mark.parametrize("address", ["ray://10.0.0.5:10001", "10.0.0.5", "10.0.0.5:port", ":6379", "head:0"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UsageError, match=r"`launcher.address` must be auto or host:port"):
        check_address(address)


def test_an_address_where_nothing_answers() -> None:
    with pytest.raises(LorasweepError, match=r"nothing answers at 127.0.0.1:\d+ .*ray start --head"):
        check_address(f"127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("folders", "nodes", "message"),
    [
        (Folders(Path("/x")), [HEAD, BIG], "the study would be a file in /x and the cluster has 2 nodes"),
        (Folders(Path("/x")), [BIG], "the study would be a file"),  # one node, and not this machine
        (Folders(Path("/x"), studies="postgresql://db/x"), [HEAD], "`tracking.uri` is not"),
    ],
)
def test_workers_on_other_machines_need_a_study_that_they_reach(
    folders: Folders, nodes: list[Node], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as told:
        check_storage(folders, nodes, host="head")
    assert "tracking=server" in str(told.value)


def test_one_machine_or_servers_are_enough() -> None:
    check_storage(Folders(Path("/x")), [Node("c", socket.gethostname(), {})], host=socket.gethostname())
    check_storage(Folders(Path("/x"), server="http://m:5000", studies="postgresql://db/x"), [HEAD, BIG], host="laptop")


def test_a_machine_without_ray_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'lorasweep\[ray\]'"):
        launch.OnRay(LauncherConfig(kind="ray"), Folders(tmp_path), Home(tmp_path, tmp_path), detach=False)


def test_a_device_that_no_worker_would_see_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install -e '.[ray]'")
    for device, message in (("cuda", "needs launcher.gpus > 0"), ("cuda:1", "Ray chooses the GPU")):
        with pytest.raises(UsageError, match=message):
            launch.OnRay(
                LauncherConfig(kind="ray", device=device), Folders(tmp_path), Home(tmp_path, tmp_path), detach=False
            )


def test_what_is_sent_holds_the_users_files_over_ours_and_no_runs(tmp_path: Path) -> None:
    for root, text in (("shipped", "ours"), ("home", "mine")):
        (tmp_path / root / "sweeps").mkdir(parents=True)
        (tmp_path / root / "sweeps" / "quick.yaml").write_text(text)
        (tmp_path / root / "sweeps" / f"{root}.yaml").write_text(text)
    (tmp_path / "home" / "mlruns").mkdir()
    with launch.shipment(Home(tmp_path / "home", tmp_path / "shipped")) as sent:
        folder = Path(sent["working_dir"])
        assert (folder / "sweeps" / "quick.yaml").read_text() == "mine"
        assert sorted(path.name for path in folder.rglob("*")) == ["home.yaml", "quick.yaml", "shipped.yaml", "sweeps"]
        (package,) = sent["py_modules"]
        assert Path(package).name == "lorasweep" and "env_vars" not in sent
    assert not folder.exists()


@pytest.mark.parametrize(
    "address, given, there, guarded",
    [
        ("auto", {}, False, True),
        ("auto", {}, True, False),  # the cluster of this machine has its own rules
        ("10.0.0.5:6379", {}, False, False),
        ("auto", {"RAY_ADDRESS": "10.0.0.5:6379"}, False, False),
        ("auto", {"RAY_AUTH_MODE": "disabled"}, False, False),
    ],
)
def test_a_cluster_that_is_started_here_asks_for_a_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str, given: dict[str, str], there: bool, guarded: bool
) -> None:
    noted = tmp_path / "noted"
    if there:
        noted.touch()
    monkeypatch.setattr(cluster, "STARTED_HERE", noted)
    for name in [*os.environ]:
        if name.startswith(("RAY_AUTH_", "RAY_ADDRESS")):
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    cluster.guard_a_cluster_of_our_own(address)
    try:
        assert (os.environ.get("RAY_AUTH_MODE") == "token") is guarded
        assert ("RAY_AUTH_TOKEN" in os.environ) is guarded
    finally:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            if guarded:
                del os.environ[name]
