"""The command `export`: a registered model as files for the hub, and to the hub.

Neighbours: `registry.export` (writes), `registry.hub` (uploads), `cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.errors import UsageError
from lorasweep.registry import export as registry_export
from lorasweep.registry import hub as registry_hub
from lorasweep.search.whereabouts import kept_where


def export(
    address: str,
    target: str,
    overrides: list[str],
    merged: bool = False,
    repo: str | None = None,
    private: bool = False,
    base: str | None = None,
) -> dict[str, Any]:
    """Write the model at an address (NAME: its champion) into a new folder, and push it to `repo` where that is given.

    Returns what `export --json` prints: folder, model, version, kind, files, and `commit` where it was pushed.

    Raises:
        UsageError: no such model, a folder that is not empty, a repository that cannot be written to.
        StorageError: files that cannot be read or were changed; the hub did not take it.
    """
    home = Home.find()
    name = address.removeprefix("models:/").partition("@")[0].partition("/")[0]
    folders = kept_where(compose.tracking_place(overrides, home), name)
    if repo is not None:
        registry_hub.check(repo)
    elif private:
        raise UsageError("--private goes with --push-to-hub REPO")
    done = registry_export.export(folders, address, Path(target), merged, repo, base)
    document = done.to_json()
    if repo is not None:
        if done.base_here_alone:
            raise UsageError(
                f"{done.folder} was written and not pushed: its base {done.facts.base} is a folder of this machine, so "
                "nobody else could use the adapter. Push the merged checkpoint: --merged"
            )
        message = f"{done.model} version {done.version}, exported by lorasweep ({done.kind})"
        document["commit"] = registry_hub.push(done.folder, repo, message, private)
    return document


def describe(document: dict[str, Any]) -> str:
    """What to tell a person."""
    what = "merged checkpoint" if document["kind"] == "merged" else "PEFT adapter"
    lines = [f"Wrote version {document['version']} of {document['model']} as a {what} to {document['folder']}."]
    lines += [f"Pushed: {document['commit']}"] if "commit" in document else []
    lines.append(f"  {document['folder']}/README.md says how to load it")
    return "\n".join(lines)
