"""A sweep from its name to its leaderboard: create or continue the study, check everything, launch, finalise.

Everything that can be wrong with config, data, base or objective is found before the study exists, so that a
mended sweep starts clean. Neighbours: `prechecks` (what is checked), `search`, `worker.here` and `launchers` (what
runs), `outcome` (what it has to say), `cli` (who calls).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import Any

from lorasweep import closing, finalists, forking, live, posts
from lorasweep.config import address, compose
from lorasweep.config.home import Folders, Home
from lorasweep.config.schema import GROUPS, TRIAL_GROUPS, Config
from lorasweep.depot import check_files
from lorasweep.errors import LorasweepError, UsageError
from lorasweep.launchers import launch
from lorasweep.outcome import Outcome, outcome_of
from lorasweep.posts import Post
from lorasweep.prechecks import (
    check_adapters,
    check_overrides,
    check_rungs,
    check_trainable,
    given_slots,
    identify,
    planned_trials,
    probe_points,
    settle_slots,
)
from lorasweep.progress import Progress, Silent
from lorasweep.search import database
from lorasweep.search.identity import SINGLE
from lorasweep.search.objectives import Goals
from lorasweep.search.space import parse_space
from lorasweep.search.study import Asked, SweepStudy
from lorasweep.workbench import Workbench
from lorasweep.worker.here import prepare

TRAIN = "train"  # the study and experiment in which `lorasweep train` collects its single trials
NEVER_A_TRIALS = set(GROUPS) - set(TRIAL_GROUPS) | {"sweep"}  # overrides that change no trial's numbers


def start(
    name: str,
    overrides: list[str],
    quiet: bool = False,
    join: bool = False,
    fork: str | None = None,
    detach: bool = False,
) -> Outcome:
    """Start sweeps/NAME.yaml, or continue it where it stopped. `join`: beside other processes that work on it. `fork`:
    go on with changes as a new sweep of this name. `detach`: return once workers train, on a cluster that outlives us.

    Raises:
        ConfigError, DataError, ModelError: before anything is stored.
        UsageError: a sweep of this name exists and is another one.
        Interrupted: Ctrl-C or SIGTERM; what was reported is stored.
    """
    home, overrides = Home.find(), address.without_logins(overrides)
    home.find_sweep(name)
    config = compose.compose(overrides, sweep=name, home=home)
    if fork is not None:
        overrides = forking.overrides_of(fork, config, overrides, _identity_of(name, config, overrides, home), home)
        config = compose.compose(overrides, sweep=name, home=home)
    return _run(name, config, overrides, home, quiet, join, detach)


def _identity_of(name: str, config: Config, overrides: list[str], home: Home) -> dict[str, Any]:
    workbench = Workbench(home.folders(config.tracking), config.sweep.objective, 1)
    space = parse_space(config.sweep.space, config)
    trials = [compose.compose_trial(overrides, name, point, home) for point in probe_points(space, config)]
    return identify(config, space, workbench, trials)


def resume(name: str, overrides: list[str], quiet: bool = False, join: bool = False, detach: bool = False) -> Outcome:
    """Continue a sweep with the overrides it was started with, then `overrides`. `join`, `detach`: as `start`. Where
    detached workers train, watch them.

    Raises:
        UsageError: there is nothing of this name to resume.
    """
    home, overrides = Home.find(), address.without_logins(overrides)
    study = SweepStudy.load(compose.tracking_place(overrides, home), name)
    folders = study.folders
    if study.sweep_file is None:
        if not study.closed:
            check_server(folders)
        with posts.enter(folders, study.name) as post:
            waiting = study.interrupted()
            workbench = Workbench(folders, study.config.sweep.objective, 1)
            if not waiting:
                closing.close_what_is_open(study, post)
                return outcome_of(study, 1, 0.0, nothing_to_do=True)
            return _train(study, waiting, overrides, workbench, home, post, quiet)
    given = compose.parse_overrides(overrides)
    kept = [word for word in study.overrides if not compose.parse_overrides([word]).keys() & given.keys()]
    merged = [*kept, *overrides]
    config = compose.compose(merged, sweep=study.sweep_file, home=home)
    if config.sweep.name != study.name:
        raise UsageError(
            f"these overrides name another sweep, {config.sweep.name!r}, and resume goes on with {study.name!r}; leave "
            f"that out, or start the other one with `lorasweep sweep {study.sweep_file}`"
        )
    return _run(study.sweep_file, config, merged, home, quiet, join, detach)


def _run(name: str, config: Config, overrides: list[str], home: Home, quiet: bool, join: bool, detach: bool) -> Outcome:
    started = time.monotonic()
    folders = home.folders(config.tracking)
    exists = config.sweep.name in SweepStudy.names(folders)
    before = SweepStudy.load(folders, config.sweep.name) if exists else None
    closed = before is not None and before.closed
    if not closed:
        check_server(folders)
    space = parse_space(config.sweep.space, config)
    check_overrides(space, overrides)
    trials = [compose.compose_trial(overrides, name, point, home) for point in probe_points(space, config)]
    prepare(config.launcher)  # packs count threads as they are made
    workbench = Workbench(folders, config.sweep.objective, given_slots(config) or 1)
    check_rungs(trials, workbench)
    identity = identify(config, space, workbench, trials)
    with ExitStack() as stack:
        door = stack.enter_context(ExitStack())  # held by this process until workers of their own stand there
        place = None if closed else stack.enter_context(launch.place_of(config, folders, home, detach))
        watched = _watch(folders, place, config, quiet) if exists else None
        if watched is not None and launch.is_over(watched):
            return outcome_of(watched, watched.slots or 1, time.monotonic() - started)
        if exists:
            beside = join or watched is not None  # a post of those that were lost may still count as held
            post = door.enter_context(posts.enter(folders, config.sweep.name, beside))
            study = SweepStudy.open(folders, config, space, identity, overrides, sweep_file=name)
            if given_slots(config) is None and study.slots is not None:
                workbench.set_slots(study.slots)
            if launch.is_over(study):
                post.checkpoints.clear()  # a kill may have come before its worker could
                closing.close_what_is_open(study, post)
                return outcome_of(study, workbench.slots, 0.0, nothing_to_do=True)
        if closed:  # its budget has grown
            place = stack.enter_context(launch.place_of(config, folders, home, detach))
        progress, tally = stack.enter_context(_view(config, quiet, planned_trials(config, space)))
        progress.note(f"loading {config.model.name or config.model.path} and {workbench.data(config).source}")
        point = {**probe_points(space, config)[0], **(config.sweep.enqueue or [{}])[0]}
        first = compose.compose_trial(overrides, name, point, home)
        known = exists and study.slots is not None
        slots = _check_by_loading(config, probe_points(space, config), trials, first, workbench, known)
        if not exists:
            post = door.enter_context(posts.enter(folders, config.sweep.name, join))
            study = SweepStudy.open(folders, config, space, identity, overrides, sweep_file=name)
        else:
            _count_done(study, tally, progress, before)
        if slots is not None:
            study.keep_slots(slots)
        _note_seeds(study, progress)
        if place is None:
            _launch(study, config, overrides, workbench, home, progress, post)
        else:
            workbench.release()
            launch.launch(study, workbench.folders, place, slots, progress, door, detach)
    detached = detach and not study.closed  # a short sweep may have ended by now
    return outcome_of(study, workbench.slots, time.monotonic() - started, detached=detached)


def _check_by_loading(
    config: Config,
    points: list[dict[str, Any]],
    trials: list[Config],
    first: Config,
    workbench: Workbench,
    slots_known: bool,
) -> int | None:
    """What shows once bases are loaded; returns the slots of each worker, None where each finds its own."""
    on_cluster = config.launcher.kind == "ray"
    for trial in (first, *trials) if on_cluster else ():
        trial.launcher.device = "auto"  # what is checked here trains elsewhere
    check_adapters(points, trials, first, workbench)
    check_trainable(first, workbench)
    if on_cluster:
        return given_slots(config)
    if given_slots(config) is None and not slots_known:
        settle_slots(workbench, first, [first, *trials])
    return workbench.slots


def _watch(
    folders: Folders, place: launch.OnThisMachine | launch.OnRay | None, config: Config, quiet: bool
) -> SweepStudy | None:
    """Watch the workers that an earlier command left to their end; the sweep as they leave it, with its budget as it is
    now. None where there are none."""
    study = None
    while (crew := launch.there(place, config.sweep.name)) is not None:  # again where the cluster still names lost ones
        study = SweepStudy.load(folders, config.sweep.name)
        with _view(config, quiet, study.budget()) as (progress, tally):
            _count_done(study, tally, progress)
            launch.watch(study, crew, progress)
            study.config = config
            if launch.is_over(study):
                break
            progress.note("its workers are gone and have left trials to train; these go on with new workers")
    return study


def _note_seeds(study: SweepStudy, progress: Progress) -> None:
    for earlier, count in study.seeded_from.items():
        progress.note(f"the sampler starts from {count} trials of sweep {earlier}")


def _count_done(study: SweepStudy, tally: live.Tally, progress: Progress, before: SweepStudy | None = None) -> None:
    done = [record for record in study.records() if record.state != "running"]
    for record in done:
        tally.end(record)
    tally.ended_before = tally.ended
    progress.note(f"continuing {study.name}: {len(done)} of {tally.total} trials are done")
    if before is not None and before.code != study.code:
        progress.note(f"with other code than before ({before.code or 'not noted'} -> {study.code})")


def train(overrides: list[str], quiet: bool = False) -> Outcome:
    """Train one trial; it joins the study and experiment `train`, so that single runs can be compared too.

    Raises:
        ConfigError, DataError, ModelError: before anything is stored.
    """
    home, overrides = Home.find(), address.without_logins(overrides)
    config = compose.compose(overrides, home=home)
    if config.launcher.kind == "ray":
        raise UsageError("`launcher=ray` is for sweeps: one trial trains in this process; use launcher=local")
    config.sweep.name = config.sweep.name or TRAIN
    config.sweep.space, config.sweep.enqueue = {}, []
    settings = [word for word in overrides if _group_of(word) in NEVER_A_TRIALS]
    params = compose.parse_overrides(word for word in overrides if word not in settings)
    prepare(config.launcher)
    workbench = Workbench(home.folders(config.tracking), config.sweep.objective, 1)
    check_server(workbench.folders)
    check_trainable(config, workbench)
    identity = {"kind": SINGLE, "objective": asdict(config.sweep.objective)}
    with posts.enter(workbench.folders, config.sweep.name) as post:
        study = SweepStudy.open(workbench.folders, config, None, identity, [], sweep_file=None)
        return _train(study, [study.ask_fixed(params)], settings, workbench, home, post, quiet)


def _train(
    study: SweepStudy,
    asked: list[Asked],
    settings: list[str],
    workbench: Workbench,
    home: Home,
    post: Post,
    quiet: bool,
) -> Outcome:
    """Train these single trials and no other that waits; the outcome is that of the last."""
    started = time.monotonic()
    config = study.config
    with _view(config, quiet, len(asked)) as (progress, _):
        for one in asked:
            _launch(study, config, settings, workbench, home, progress, post, one)
    outcome = outcome_of(study, workbench.slots, time.monotonic() - started)
    row = next(row for row in outcome.board.rows if row["trial"] == asked[-1].number)
    outcome.best = row if row["state"] == "complete" else None  # this trial's row, not the best of all single runs
    outcome.reason = None if outcome.best else row["reason"]
    outcome.uses = finalists.uses(study, outcome.best)
    return outcome


def check_server(folders: Folders) -> None:
    """Before anything is stored, see that the server of `tracking.uri` is one, that the database of `tracking.studies`
    can be written, and that `tracking.files` takes files.

    Raises:
        StorageError: they do not, or do not let us in.
    """
    database.check(folders)
    check_files(folders)
    if folders.server is not None:
        from lorasweep.tracking import store as tracking_store

        tracking_store.check_server(folders)


def _group_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0].partition(".")[0]


def _launch(
    study: SweepStudy,
    config: Config,
    overrides: list[str],
    workbench: Workbench,
    home: Home,
    progress: Progress,
    post: Post,
    only: Asked | None = None,
) -> None:
    from lorasweep.tracking.tracker import Tracker
    from lorasweep.worker import here
    from lorasweep.worker.loop import Worker

    def composer(params: dict[str, Any]) -> Config:
        return compose.compose_trial(overrides, study.sweep_file, params, home)

    tracker = Tracker(workbench.folders, study.name)
    try:
        closing.begin(study, tracker)
        worker = Worker(study, tracker, workbench, composer, progress, post, only)
        here.launch(worker, config.launcher)
        if only is None and study.counts()["running"]:
            progress.note("other processes train on; the last one writes the summary and the report")
        else:
            if only is None:
                finalists.run(study, tracker, workbench, composer, progress, post)
            closing.close(study, tracker, post)
    except Exception:  # not where Ctrl-C came twice: that stops at once, and what waits in the spool is kept there
        with suppress(LorasweepError, OSError):  # what happened first is what is told
            tracker.close()
        raise
    tracker.close()


@contextmanager
def _view(config: Config, quiet: bool, total: int) -> Iterator[tuple[Progress, live.Tally]]:
    """The progress view and its tally for one run of `total` trials, clones aside, on standard error; nothing is shown
    where `quiet`."""
    objective = config.sweep.objective
    tally = live.Tally(total=total, maximize=objective.direction == "maximize", broken=Goals(config).broken)
    if quiet:
        yield Silent(), tally
        return
    with live.show(tally, live.screen(), f"sweep {config.sweep.name}", objective.metric) as progress:
        yield progress, tally
