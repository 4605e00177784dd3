"""The command `export`: a registered model, or any trial's kept checkpoint, as files for the hub, and to the hub.

Neighbours: `registry.export` and `registry.trial` (write), `registry.hub` (uploads), `cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorasweep import finalists, results
from lorasweep.config import compose
from lorasweep.config.home import Home
from lorasweep.errors import UsageError
from lorasweep.registry import export as registry_export
from lorasweep.registry import hub as registry_hub
from lorasweep.registry import trial as registry_trial
from lorasweep.search.study import SweepStudy
from lorasweep.search.whereabouts import kept_where
from lorasweep.tracking.recorded import Recorded

BEST = "best"


def export(
    address: str,
    target: str,
    overrides: list[str],
    merged: bool = False,
    repo: str | None = None,
    private: bool = False,
    base: str | None = None,
    trial: int | str | None = None,
) -> dict[str, Any]:
    """Write the model at an address (NAME: its champion) into a new folder, and push it to `repo` where that is given.
    `trial`: instead of a model this trial of the sweep `address`, or `BEST`, the leaderboard's first.

    Returns what `export --json` prints: folder, kind, files; model and version, or sweep, trial and run_id; and
    `commit` where it was pushed.

    Raises:
        UsageError: no such model or trial, a folder that is not empty, a repository that cannot be written to.
        StorageError: files that cannot be read or were changed; the hub did not take it.
    """
    home = Home.find()
    place = compose.tracking_place(overrides, home)
    if repo is not None:
        registry_hub.check(repo)
    elif private:
        raise UsageError("--private goes with --push-to-hub REPO")
    if trial is not None:
        source = _source(SweepStudy.load(place, address), trial, overrides, base)
        done = registry_trial.export(source, Path(target), merged, repo)
    else:
        name = address.removeprefix("models:/").partition("@")[0].partition("/")[0]
        done = registry_export.export(kept_where(place, name), address, Path(target), merged, repo, base)
    document = done.to_json()
    if repo is not None:
        if done.base_here_alone:
            raise UsageError(
                f"{done.folder} was written and not pushed: its base {done.facts.base} is a folder of this machine, so "
                "nobody else could use the adapter. Push the merged checkpoint: --merged"
            )
        message = f"{done}, exported by lorasweep ({done.kind})"
        document["commit"] = registry_hub.push(done.folder, repo, message, private)
    return document


def open_trial(sweep: str, trial: int | str, overrides: list[str], base: str | None = None) -> registry_trial.Source:
    """A trial of a stored sweep with what its run recorded; `trial`: its number, or `BEST`.

    Raises:
        UsageError: no such sweep or trial.
    """
    place = compose.tracking_place(overrides, Home.find())
    return _source(SweepStudy.load(place, sweep), trial, overrides, base)


def _source(study: SweepStudy, trial: int | str, overrides: list[str], base: str | None) -> registry_trial.Source:
    """The trial as its run recorded it; overrides may say where files lie now.

    Raises:
        UsageError: there is no trial of this number, or none is ranked; an override that would make it another trial.
    """
    if trial == BEST:
        found = finalists.best(study)
        if found is None:
            raise UsageError(f"sweep {study.name} has no ranked trial to export. `lorasweep leaderboard` says why")
        record = found.record
    else:
        record = registry_trial.choose(study.records(), int(trial))
    recorded = Recorded.read(study.folders, record.run_id)
    moved = {} if base is None else {"model.path": base}
    config = recorded.config_with(compose.parse_overrides(overrides) | moved)
    return registry_trial.Source(record, recorded, config, results.read(study.folders, study.name, record.trial))


def describe(document: dict[str, Any]) -> str:
    """What to tell a person."""
    what = "merged checkpoint" if document["kind"] == "merged" else "PEFT adapter"
    named = (
        f"trial {document['trial']} of sweep {document['sweep']}"
        if "trial" in document
        else f"version {document['version']} of {document['model']}"
    )
    lines = [f"Wrote {named} as a {what} to {document['folder']}."]
    lines += [f"Pushed: {document['commit']}"] if "commit" in document else []
    lines.append(f"  {document['folder']}/README.md says how to load it")
    return "\n".join(lines)
