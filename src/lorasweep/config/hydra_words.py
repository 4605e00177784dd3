"""What Hydra's own flags and settings are called here, so that a Hydra user's habit ends in the name of ours.

The one account of it: refusals quote it, and docs/hydra.md is checked against it. Knows no Hydra.
Neighbours: `words` and `explain` (refuse overrides and files), `arguments` (refuses flags).
"""

from __future__ import annotations

from dataclasses import dataclass

from lorasweep.config.address import bare

PAGE = "docs/hydra.md"


@dataclass(frozen=True)
class Ours:
    """What stands in the place of one of Hydra's settings. `key`: a setting that takes the same value, where there is
    one; `text`: how it is said here."""

    text: str
    key: str = ""


IN_A_FILE = "the space is `sweep.space` of a file in sweeps/, in the same grammar"
NOT_KEPT = (
    "lorasweep has no jobs with folders of their own: everything lies below `tracking.dir`, a run's files in MLflow"
)

KEYS = {  # of hydra-core and its Optuna sweeper; the longest that fits is quoted
    "hydra.sweeper.n_trials": Ours("the budget is `sweep.trials`", "sweep.trials"),
    "hydra.sweeper.n_jobs": Ours(
        "`launcher.slots` trials share one base at a time, in each of `launcher.workers` processes", "launcher.slots"
    ),
    "hydra.sweeper.direction": Ours(
        "it goes with the metric: `sweep.objective.direction`; several are `sweep.objectives`",
        "sweep.objective.direction",
    ),
    "hydra.sweeper.study_name": Ours("the study's name is `sweep.name`", "sweep.name"),
    "hydra.sweeper.storage": Ours(
        "the study lies below `tracking.dir`, or in the PostgreSQL database of `tracking.studies`"
    ),
    "hydra.sweeper.max_failure_rate": Ours(
        "`sweep.max_failures` stops after so many failures in a row of one cause; a failed trial fails no sweep"
    ),
    "hydra.sweeper.params": Ours(IN_A_FILE),
    "hydra.sweeper.search_space": Ours(IN_A_FILE),
    "hydra.sweeper.custom_search_space": Ours(
        "a dimension that exists at times is {when: …, values: …} in `sweep.space`; what must hold is "
        "`sweep.constraints`"
    ),
    "hydra.sweeper.max_batch_size": Ours("nothing waits for a batch; `launcher.slots` trials train at once"),
    "hydra.sweeper.sampler.seed": Ours("the sampler's seed is `sampler.seed`", "sampler.seed"),
    "hydra.sweeper.sampler.n_startup_trials": Ours(
        "random points before the model are `sampler.startup_trials`", "sampler.startup_trials"
    ),
    "hydra.sweeper.sampler": Ours("the sampler is the group `sampler`, such as sampler=tpe", "sampler"),
    "hydra.sweeper": Ours("what varies and how much of it stands under `sweep:` of a file in sweeps/"),
    "hydra.sweep.dir": Ours("everything that runs leave lies below `tracking.dir`", "tracking.dir"),
    "hydra.run.dir": Ours("everything that runs leave lies below `tracking.dir`", "tracking.dir"),
    "hydra.sweep": Ours(NOT_KEPT),
    "hydra.run": Ours(NOT_KEPT),
    "hydra.launcher.n_jobs": Ours("processes at a time are `launcher.workers`", "launcher.workers"),
    "hydra.launcher": Ours("the launcher is the group `launcher`: launcher=local or launcher=ray"),
    "hydra.mode": Ours("the command says it: `lorasweep train` is one run, `lorasweep sweep` many"),
    "hydra.searchpath": Ours(
        "a conf/ and sweeps/ in the current folder, or in that of LORASWEEP_HOME, come before the shipped ones"
    ),
    "hydra.job": Ours("the folder never changes, and nothing is named by its overrides; there is nothing to set"),
    "hydra.verbose": Ours("there is nothing to set: warnings and errors go to standard error"),
    "hydra.job_logging": Ours("there is nothing to set: warnings and errors go to standard error"),
    "hydra.hydra_logging": Ours("there is nothing to set: warnings and errors go to standard error"),
    "hydra.callbacks": Ours("what a run leaves is in MLflow; there are no callbacks"),
}

SAMPLERS = {  # the groups of hydra/sweeper/sampler -> ours
    "tpe": "tpe",
    "random": "random",
    "grid": "grid",
    "cmaes": "cmaes",
    "gp": "gp",
    "qmc": "qmc",
    "bruteforce": "grid",
    "motpe": "tpe",
    "nsgaii": "tpe",
}

LAUNCHERS = {  # the groups of hydra/launcher -> what to write
    "basic": "launcher=local",
    "joblib": "launcher=local launcher.workers=N",
    "ray": "launcher=ray",
    "submitit_local": "launcher=local launcher.workers=N",
    "submitit_slurm": "launcher=ray on the nodes of one allocation, as deploy/slurm.sh starts them",
}

FLAGS = {  # of a Hydra application -> what to write
    "-m": "a sweep is a file: `lorasweep sweep NAME` runs sweeps/NAME.yaml; `lorasweep train` is one trial",
    "-sc": "`lorasweep completion bash` prints the script (also zsh, fish)",
    "-cn": "`lorasweep sweep NAME` names the file of sweeps/; conf/config.yaml is the one of all trials",
    "-cp": "LORASWEEP_HOME=FOLDER names the folder that holds conf/ and sweeps/",
    "-cd": "LORASWEEP_HOME=FOLDER names the folder that holds conf/ and sweeps/",
    "-r": "leave it out: `lorasweep train` and `lorasweep sweep NAME` run",
    "--hydra-help": f"`lorasweep --help`; what Hydra's settings are called here stands in {PAGE}",
    "--experimental-rerun": "`lorasweep reproduce RUN_ID` trains a trial again from what its run recorded",
}
LONG = {  # the long forms of flags
    "--multirun": "-m",
    "--shell-completion": "-sc",
    "--config-name": "-cn",
    "--config-path": "-cp",
    "--config-dir": "-cd",
    "--run": "-r",
}


def is_hydras(key: str) -> bool:
    """Whether a key of an override or a file is one of Hydra's own."""
    return key.replace("/", ".").partition(".")[0] == "hydra"


def ours(key: str, value: str = "") -> str:
    """What to write instead of one of Hydra's own settings; `value`: what it was given, empty where nothing is known.

    Returns a whole refusal: the setting, ours, and the page that has all of them.
    """
    dotted = key.replace("/", ".")
    said = f"`{key}={bare(value)}`" if value else f"`{key}`"
    found = _choice(dotted, value) or _setting(dotted, value)
    return f"{said} is Hydra's own, and not used here: {found} ({PAGE})"


def _choice(dotted: str, value: str) -> str | None:
    """Where one of Hydra's groups was chosen: `hydra/sweeper=optuna`."""
    if dotted == "hydra.sweeper.sampler" and value in SAMPLERS:
        return f"write sampler={SAMPLERS[value]}"
    if dotted == "hydra.launcher" and value in LAUNCHERS:
        return f"write {LAUNCHERS[value]}"
    if dotted == "hydra.sweeper" and value:
        return f"the search is Optuna's already; {KEYS['hydra.sweeper'].text}"
    return None


def _setting(dotted: str, value: str) -> str:
    nearest = max((key for key in KEYS if f"{dotted}.".startswith(f"{key}.")), key=len, default=None)
    if nearest is None:
        return "lorasweep composes its config itself, and keeps nothing of Hydra's"
    ours = KEYS[nearest]
    write = f"; write {ours.key}={value}" if ours.key and value and nearest == dotted else ""
    return f"{ours.text}{write}"


def flag(words: list[str]) -> str | None:
    """The refusal of the first of Hydra's own flags among the words of a command line; None where there is none."""
    for word in words:
        name = word.partition("=")[0]
        short = LONG.get(name, name)
        if short in FLAGS:
            return f"`{name}` is a flag of Hydra's applications. Here: {FLAGS[short]}"
    return None
