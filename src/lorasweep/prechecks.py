"""What is looked at before a sweep exists: everything that can be wrong shows while nothing is stored yet.

Also what makes a sweep itself (`identify`), since the same workbench knows it. Neighbours: `sweeping` and `planning`
(who call), `workbench` (loads what is checked), `search.space` (the points that touch every bound).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from lorasweep.config import compose
from lorasweep.config.schema import TRANSFORMER, TRIAL_GROUPS, Config
from lorasweep.errors import ConfigError
from lorasweep.provenance import holds_a_login
from lorasweep.search.budget import trials_in_all
from lorasweep.search.identity import BASES, SWEPT_DATA
from lorasweep.search.objectives import Goals
from lorasweep.search.pruners import GEOMETRIC, rungs_of
from lorasweep.search.space import Space
from lorasweep.workbench import Workbench


def given_slots(config: Config) -> int | None:
    """`launcher.slots` where it is a number, None where it is auto.

    Raises:
        ConfigError: it is neither auto nor an integer > 0.
    """
    slots = config.launcher.slots
    if slots == "auto":
        return None
    if isinstance(slots, int) and not isinstance(slots, bool) and slots > 0:
        return slots
    raise ConfigError(f"`launcher.slots` must be `auto` or an integer > 0, got {slots!r}")


def settle_slots(workbench: Workbench, first: Config, trials: list[Config]) -> None:
    """Give the workbench as many slots as the planner finds for the sweep's heaviest trial, measured on the base of the
    first one that shares its base; `trials` touch every bound of the space."""
    from lorasweep.training.pack import Pack
    from lorasweep.training.planner import automatic_slots

    sharing = next((trial for trial in [first, *trials] if shares_its_base(trial)), None)
    if sharing is None:
        workbench.set_slots(1)
        return
    heaviest = copy.deepcopy(sharing)
    heaviest.adapter.r = max(trial.adapter.r for trial in trials)
    heaviest.train.batch_size = max(trial.train.batch_size for trial in trials)
    pack = workbench.pack(heaviest)
    assert isinstance(pack, Pack)
    workbench.set_slots(automatic_slots(pack, heaviest))


def shares_its_base(trial: Config) -> bool:
    """Whether a trial trains over a base that other trials use at the same time."""
    return trial.model.kind == TRANSFORMER and trial.adapter.kind not in ("full", "none")


def probe_points(space: Space, config: Config) -> list[dict[str, Any]]:
    """Points that touch every bound of the space; with sampler=list those that will run, which are no others."""
    listed = config.sweep.enqueue if config.sampler.kind == "list" else []
    return listed or space.probe_points()


def planned_trials(config: Config, space: Space) -> int:
    """Trials of a sweep that ends by their number.

    Raises:
        ConfigError: an enqueued point outside the space, a sampler that cannot draw from it.
    """
    from lorasweep.search.samplers import Proposals

    return trials_in_all(config, Proposals(config, space).points)


def check_overrides(space: Space, overrides: list[str]) -> None:
    """A swept key is drawn for each trial, so that an override of it would change nothing.

    Raises:
        ConfigError: there is one.
    """
    swept = {dimension.key for dimension in space.dimensions}
    for key in compose.parse_overrides(overrides):
        if key in swept:
            raise ConfigError(
                f"`{key}` is swept by `sweep.space`, so its override would change nothing; leave it out, or take the "
                "key out of the space of a copy of the sweep file"
            )


def check_rungs(trials: list[Config], workbench: Workbench) -> None:
    """A pruner whose first rung no trial reaches would do nothing, and say nothing. `trials` touch every bound.

    Raises:
        ConfigError: it is so.
    """
    from lorasweep.training.schedule import trial_steps

    pruner = trials[0].pruner
    if pruner.kind == "none":
        return
    # no trial has more, because points touch one bound at a time
    steps = max(trial_steps(trial, len(workbench.data(trial).train)) for trial in trials)
    most = steps * max(trial.train.batch_size for trial in trials) * max(trial.train.accumulation for trial in trials)
    if not rungs_of(pruner, most):
        key = "min_samples" if pruner.kind in GEOMETRIC else "interval_samples and warmup_samples"
        raise ConfigError(
            f"`pruner={pruner.kind}` would never stop a trial: none trains on over {most:,} samples, and the first "
            f"rung comes later; lower pruner.{key}, train longer, or take pruner=none"
        )


def identify(config: Config, space: Space, workbench: Workbench, trials: Sequence[Config] = ()) -> dict[str, Any]:
    """What makes this sweep itself: continuing with anything else is refused. Budget and launcher may change. `trials`
    have every base and all data that are swept; of bases whose files are here it holds fingerprints."""
    from lorasweep.models.unchanged import base_here

    models = {one.model.path: one.model for one in (config, *trials) if one.model.kind == TRANSFORMER}
    others = [trial for trial in trials if trial.data != config.data]
    bases = {path: found for path, model in models.items() if (found := base_here(model)) is not None}
    fixed = {group: asdict(getattr(config, group)) for group in TRIAL_GROUPS}
    for key in ("checkpoint_every_seconds", "checkpoints_kept"):
        del fixed["train"][key]  # changes no number
    return {
        "space": space.to_json(),
        "enqueue": config.sweep.enqueue,
        "objective": asdict(config.sweep.objective),
        "sampler": asdict(config.sampler),
        "pruner": asdict(config.pruner),
        **Goals(config).to_json(),
        **({"warm_start": config.sweep.warm_start} if config.sweep.warm_start else {}),
        "data_fingerprint": workbench.data(config).fingerprint,
        **({BASES: bases} if bases else {}),
        **({SWEPT_DATA: sorted({workbench.data(trial).fingerprint for trial in others})} if others else {}),
        **fixed,
    }


def check_adapters(points: list[dict[str, Any]], trials: list[Config], first: Config, workbench: Workbench) -> None:
    """Load every base that is swept and find the modules that each swept adapter names: a wrong choice would cost a
    failed trial each time it is drawn. `trials` are those of `points`; `first` is checked by `check_trainable`.

    Raises:
        ConfigError: with the point; what loading a base or finding its modules raises.
    """
    from lorasweep.models.packed_lora import counts_of

    def layout(trial: Config) -> str:
        adapter = trial.adapter
        return repr((trial.model, trial.quantization, adapter.kind, adapter.targets, adapter.layers, adapter.bias))

    seen = {layout(first)}
    for point, trial in zip(points, trials, strict=True):
        if layout(trial) in seen:
            continue
        seen.add(layout(trial))
        try:
            if trial.model.kind != TRANSFORMER:
                workbench.pack(trial)
                continue
            base = workbench.base(trial)
            if trial.adapter.kind != "full":
                counts_of(base, trial)
        except ConfigError as error:
            words = ", ".join(f"{key}={value}" for key, value in point.items())
            raise type(error)(f"{error} (at {words}; check `sweep.space`)") from None


def check_secrets(config: Config) -> None:
    """What a sweep was started with is stored, and shown to whoever sees its runs; `tracking` has rules of its own.

    Raises:
        ConfigError: a setting holds an access token or an address with a password.
    """

    def texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from texts(str(name), key)
                yield from texts(inner, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list):
            for inner in value:
                yield from texts(inner, key)
        elif isinstance(value, str):
            yield key, value

    for key, text in texts({**asdict(config), "tracking": None}, ""):
        if holds_a_login(text):
            raise ConfigError(
                f"`{key}` holds an access token or a login, and a sweep stores its settings; leave it out and give it "
                "in the environment (HF_TOKEN, AWS_SECRET_ACCESS_KEY, …)"
            )


def check_trainable(config: Config, workbench: Workbench) -> None:
    """Load rows and base and lay out one adapter: whatever is wrong shows before a study exists.

    Raises:
        DataError, ModelError, ConfigError: with the repair.
    """
    import numpy as np

    check_secrets(config)
    data, task = workbench.data(config), workbench.task(config)
    references = task.references(data.validation)
    logged = task.metrics(task.blank(references), references, np.zeros(1, dtype=np.float32))
    metric = workbench.objective.metric
    if metric not in logged:
        raise ConfigError(
            f"`sweep.objective.metric` is {metric!r}, which is never logged with task.kind={config.task.kind}; choose "
            f"another with sweep.objective.metric=NAME (and sweep.objective.direction): {', '.join(sorted(logged))}"
        )
    Goals(config).check_logged(list(logged))
    pack = workbench.pack(config)
    pack.admit(-1, config)
    pack.evict(-1)
