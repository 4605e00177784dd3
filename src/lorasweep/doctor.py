"""Looks at this machine the way a sweep will: versions, devices, storage; says what would not work and the repair.

Trains nothing and changes nothing but a probe file that it removes. Neighbours: `cli` prints what this finds.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from lorasweep.config.home import Folders, Home
from lorasweep.errors import StorageError
from lorasweep.worker.here import available_cores

NEEDED = ("torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "hydra-core", "optuna", "mlflow")
LOW_DISK_BYTES = 2 << 30
LOW_MEMORY_BYTES = 2 << 30


@dataclass
class Finding:
    """One look: `ok` False means that something will not work until `repair` is done."""

    name: str
    ok: bool
    detail: str
    repair: str = ""


def examine(home: Home, folders: Folders) -> list[Finding]:
    """Everything worth knowing before a sweep. `folders`: where its files and runs lie or will lie."""
    return [*_versions(), *_devices(), *_storage(folders), *_configs(home)]


def to_json(findings: list[Finding]) -> dict[str, Any]:
    """`{"ok": bool, "findings": [...]}`."""
    return {"ok": all(finding.ok for finding in findings), "findings": [asdict(finding) for finding in findings]}


def _versions() -> list[Finding]:
    version = sys.version_info
    found = [
        Finding(
            "python",
            (3, 11) <= version[:2] <= (3, 13),
            f"{platform.python_version()} on {platform.platform(terse=True)}",
            "use Python 3.11, 3.12 or 3.13",
        )
    ]
    for name in NEEDED:
        try:
            found.append(Finding(name, True, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, False, "not installed", "run `make setup`, or pip install lorasweep again"))
    bits = importlib.util.find_spec("bitsandbytes") is not None
    detail = importlib.metadata.version("bitsandbytes") if bits else "not installed: quantization=nf4 will not work"
    optional = not sys.platform.startswith("linux")
    found.append(Finding("bitsandbytes", bits or optional, detail, "pip install bitsandbytes"))
    return found


def _devices() -> list[Finding]:
    import torch

    memory = psutil.virtual_memory()
    found = [
        Finding(
            "cpu",
            memory.available > LOW_MEMORY_BYTES,
            f"{available_cores()} cores, {memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB memory free",
            f"free some memory: the quickstart needs {LOW_MEMORY_BYTES / 2**30:.0f} GiB",
        )
    ]
    if not torch.cuda.is_available():
        return [*found, Finding("gpu", True, "none that torch can use; trials train on the CPU")]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        detail = f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free, torch {torch.__version__}"
        found.append(Finding(f"gpu {index}", True, detail))
    return found


def _storage(folders: Folders) -> list[Finding]:
    folder = folders.tracking
    found = [_writable(folder)]
    free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    found.append(
        Finding("disk", free > LOW_DISK_BYTES, f"{free / 2**30:.1f} GiB free at {folder}", "free some disk space")
    )
    found.append(_server(folders) if folders.server else _database("tracking database", folders.mlflow_db))
    found.append(_studies(folders) if folders.shared else _database("study database", folders.study_db))
    return [*found, _files(folders)] if folders.files else found


def _studies(folders: Folders) -> Finding:
    from lorasweep.search.database import check

    try:
        check(folders)
    except StorageError as error:
        return Finding("study database", False, str(error), "start it, or mend `tracking.studies`")
    return Finding("study database", True, str(folders.studies))


def _files(folders: Folders) -> Finding:
    from lorasweep.depot import check_files

    try:
        check_files(folders)
    except StorageError as error:
        return Finding("files", False, str(error), "mend `tracking.files`, or the login of the store")
    return Finding("files", True, str(folders.files))


def _server(folders: Folders) -> Finding:
    from lorasweep.tracking.store import check_server

    try:
        check_server(folders)
    except StorageError as error:
        return Finding("tracking server", False, str(error), "start it, or mend `tracking.uri`")
    return Finding("tracking server", True, str(folders.server))


def _writable(folder: Path) -> Finding:
    probe = folder / f".lorasweep-doctor-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding("tracking folder", False, f"{folder}: {error}", "choose another one with tracking.dir=PATH")
    return Finding("tracking folder", True, str(folder))


def _database(name: str, path: Path) -> Finding:
    if not path.exists():
        return Finding(name, True, f"{path} will be made by the first sweep")
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5) as connection:
            verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.Error as error:
        return Finding(name, False, f"{path}: {error}", "restore it from a backup, or move it away to start anew")
    detail = f"{path}, {path.stat().st_size / 2**20:.1f} MiB"
    return Finding(name, verdict == "ok", detail, f"sqlite says {verdict!r}: restore it from a backup")


def _configs(home: Home) -> list[Finding]:
    names = home.sweep_names()
    found = [Finding("sweeps", bool(names), ", ".join(names) or "none found", f"add one to {home.root / 'sweeps'}")]
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    detail = "off (HF_HUB_OFFLINE is set): only local bases" if offline else "tried when a base asks for it"
    return [*found, Finding("hugging face hub", True, detail)]
