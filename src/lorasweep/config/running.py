"""Settings of where and how trials run and are recorded, which change no trial's numbers: launcher, tracking, scale.

Neighbours: `schema` (everything else, and what holds these), `option`.
"""

# ruff: noqa: RUF009  (`option` is dataclasses.field with a doc)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorasweep.config.option import option


@dataclass
class LauncherConfig:
    """Where and how many trials train at once. Group `launcher`."""

    kind: str = option("local", "local: on this machine; ray: on the nodes of a Ray cluster", choices=("local", "ray"))
    workers: int = option(
        1, "processes that train at the same time, each with packs of its own, over one study", above=0
    )
    slots: Any = option("auto", "trials that share one resident base at a time: an integer, or auto")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    heartbeat_seconds: float = option(
        15.0,
        "seconds between a worker's signs of life; after four times as long without one, others take its trials over",
        at_least=1,
    )
    threads: int | None = option(
        None, "CPU threads of a worker; null: its share of the cores, with ray `cpus`", above=0, at_most=4096
    )
    address: str = option(
        "auto", "ray: host:port of the cluster; auto: the one of this machine or of RAY_ADDRESS, else one started here"
    )
    cpus: float = option(1.0, "ray: cores that a worker reserves, fractions too", at_least=0)
    gpus: float = option(0.0, "ray: GPUs that a worker reserves, fractions too", at_least=0)
    resources: Any = option(
        None, "ray: custom resources that a worker reserves, by name: launcher.resources={a100: 1, ssd: 0.5}"
    )
    ship: bool = option(
        True, "ray: send lorasweep's code, conf/ and sweeps/ to the nodes; false: they are installed there"
    )
    placement_seconds: float = option(
        60.0, "ray: after so many seconds in which no node could take a worker, say so and give up", above=0
    )
    prefix_cache_gib: float = option(
        1.0,
        "memory, in GiB, for what frozen lower layers make of each row where `adapter.layers` or adapter=head leaves "
        "some: computed once for all trials and epochs. In training only where they draw no dropout "
        "(`train.base_dropout=0`). 0: never",
        at_least=0,
    )
    prefix_disk_gib: float = option(
        4.0, "disk, in GiB, for the same where memory is full and for the next process; 0: memory alone", at_least=0
    )


@dataclass
class TrackingConfig:
    """Where runs are recorded. Group `tracking`."""

    dir: str | None = option(None, "folder of mlflow.db and mlruns/; null: LORASWEEP_HOME, else the current folder")
    uri: str | None = option(
        None,
        "address of an MLflow server, http or https, that keeps runs, artifacts and models; null: mlflow.db and "
        "mlruns/ in `dir`. Spool and cache stay in `dir`, and so does what `studies` and `files` leave there",
    )
    studies: str | None = option(
        None,
        "address of a PostgreSQL database for the studies, postgresql://user@host:port/name; its password comes from "
        "PGPASSWORD or ~/.pgpass. null: a file in `dir`",
    )
    files: str | None = option(
        None,
        "where checkpoints and per-row results lie: a folder that every worker reaches, or s3://bucket/prefix; null: "
        "in `dir`",
    )
    price_per_hour: float | None = option(None, "money an hour of this machine costs; shown as cost", at_least=0)


@dataclass
class ScaleConfig:
    """As written, or all of it small: a try of the whole path in a minute, without network. Group `scale`.

    smoke: a base from the hub or a folder becomes a small random one of the same family, data that are not here become
    generated rows with the same class names, and what follows is cut; the sweep's name ends in -smoke.
    """

    kind: str = option("full", "full: as written; smoke: small", choices=("full", "smoke"))
    trials: int = option(4, "smoke: trials at most, unless more are in sweep.enqueue", above=0)
    max_steps: int = option(6, "smoke: optimizer steps of a trial at most", above=0)
    train_rows: int = option(64, "smoke: training rows at most", at_least=8)
    eval_rows: int = option(24, "smoke: validation and test rows at most, each", at_least=4)
    max_new_tokens: int = option(8, "smoke: tokens of a generated answer at most", above=0)
