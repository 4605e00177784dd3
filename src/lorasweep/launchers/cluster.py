"""A Ray cluster as we see it, without Ray: nodes and what they have, whether workers fit, and what to say if not.

Neighbours: `ray` (reaches one and runs workers there), `launch`.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorasweep.errors import LorasweepError, UsageError

if TYPE_CHECKING:
    from lorasweep.config.home import Folders
    from lorasweep.config.schema import LauncherConfig

NAMESPACE = "lorasweep"
STARTED_HERE = Path("/tmp/ray/ray_current_cluster")  # where `ray start` notes the cluster of this machine
CONNECT_SECONDS = 5.0
SLACK = 1e-6  # fractions add up to a little more than a whole
SHOWN = 8  # nodes in a message
OF_RAY = ("node:", "object_store_memory", "memory", "accelerator_type:")  # that nobody asks for here


@dataclass(frozen=True)
class Node:
    """A living node. `resources`: all that it has, taken or not."""

    id: str
    host: str
    resources: dict[str, float]


def wants(launcher: LauncherConfig) -> dict[str, float]:
    """What one worker asks for, by Ray's names."""
    asked = {"CPU": launcher.cpus, "GPU": launcher.gpus, **(launcher.resources or {})}
    return {name: amount for name, amount in asked.items() if amount > 0}


def fits(launcher: LauncherConfig, node: Node) -> bool:
    """Whether an empty node of this kind could take a worker."""
    return all(node.resources.get(name, 0.0) + SLACK >= amount for name, amount in wants(launcher).items())


def asks_of(launcher: LauncherConfig) -> str:
    """What one worker asks for, in words."""
    return ", ".join(f"{name}: {amount:g}" for name, amount in wants(launcher).items()) or "nothing"


def describe(nodes: list[Node]) -> str:
    """What there is, node by node."""
    if not nodes:
        return "no nodes"
    shown = []
    for node in nodes[:SHOWN]:
        own = {name: amount for name, amount in node.resources.items() if not name.startswith(OF_RAY)}
        shown.append(f"{node.host} ({', '.join(f'{name}: {amount:g}' for name, amount in sorted(own.items()))})")
    more = f", and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
    return "; ".join(shown) + more


def guard_a_cluster_of_our_own(address: str) -> None:
    """Where no cluster is named or was started on this machine, one will be: let nobody in without a token of this
    process, because Ray listens on the machine's address and runs whatever it is sent. Call it before Ray is imported,
    which reads these variables once."""
    named = address != "auto" or os.environ.get("RAY_ADDRESS") or STARTED_HERE.exists()
    if not named and not any(name.startswith("RAY_AUTH_") for name in os.environ):
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)


def check_address(address: str) -> None:
    """See that something listens at `launcher.address`.

    Raises:
        UsageError: it is no host:port.
        LorasweepError: nothing answers.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(
            "`launcher.address` must be auto or host:port, such as 10.0.0.5:6379 (a cluster's own port, not ray://), "
            f"got {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise LorasweepError(
            f"nothing answers at {address} ({error}); is this the address that `ray start --head` printed? "
            "launcher.address=auto takes the cluster of this machine, or starts one"
        ) from None


def check_storage(folders: Folders, nodes: list[Node], host: str) -> None:
    """Workers on several machines must reach one study and one MLflow. `host`: this machine's name.

    Raises:
        UsageError: they lie in files of this machine.
    """
    if folders.shared and folders.server is not None:
        return
    here_alone = len(nodes) == 1 and nodes[0].host == host
    if folders.shared:
        raise UsageError(
            "`tracking.studies` is set and `tracking.uri` is not: each node would write runs to a file of its own; use "
            "tracking=server, which names an MLflow server too (docs/scale.md)"
        )
    if not here_alone:
        raise UsageError(
            f"the study would be a file in {folders.tracking} and the cluster has {len(nodes)} nodes, which do not "
            "reach it; use tracking=server: PostgreSQL in tracking.studies, an MLflow server in tracking.uri "
            "(docs/scale.md)"
        )
