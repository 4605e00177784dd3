"""Is a trial's base still the one that it was trained over?

Neighbours: `hub` (fingerprints); `prechecks`, `promotion` and `reproduction` ask.
"""

from __future__ import annotations

from pathlib import Path

from lorasweep.config.home import exists, given_path
from lorasweep.config.schema import ModelConfig
from lorasweep.errors import ModelError
from lorasweep.models.builtin import resolve
from lorasweep.models.hub import Source, fingerprint, is_hub_id, locate


def hub_commit(hub_id: str, revision: str | None) -> str | None:
    """The commit of the hub base that this machine's cache holds, so that a moved branch changes nothing; else
    `revision` as it was given."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json", revision=revision or "main")
    return Path(found).parent.name if isinstance(found, str) else revision


def base_here(model: ModelConfig) -> str | None:
    """The fingerprint of a base's files on this machine, without asking the hub; None where they are not here.

    Raises:
        ModelError: a builtin base that does not exist.
    """
    path = resolve(model.path)
    folder = given_path(path)
    if exists(folder / "config.json", Path.is_file):
        return fingerprint(Source(str(folder), None, local=True, offline=True), None)
    commit = hub_commit(path, model.revision) if is_hub_id(path) else None
    return (
        None if commit in (None, model.revision) else fingerprint(Source(path, None, local=False, offline=True), commit)
    )


def unchanged_base(model: ModelConfig, noted: str | None, trial: int) -> str:
    """The base's folder or hub id; `noted` is its fingerprint when trial number `trial` ran, None: not known.

    Raises:
        ModelError: it cannot be found, or its files are others.
    """
    source = locate(model)
    commit = None if source.local else hub_commit(source.path, source.revision)
    if noted is not None and fingerprint(source, commit) != noted:
        raise ModelError(changed_base(model.path, trial))
    return source.path


def changed_base(path: str, trial: int) -> str:
    """What to say of a base that is not the trial's."""
    return (
        f"the base {path} is not the one that trial {trial} was trained over: its files were changed since (or the "
        "hub's branch moved on), and an adapter fits no other base. Restore it, or give its place with model.path=PATH"
    )
