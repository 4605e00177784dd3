"""lorasweep for notebooks and scripts: the commands as a dozen functions, which `import lorasweep` offers by name.

A function does what the command of its name does, returns values instead of printing them, raises `LorasweepError`
instead of leaving, and takes the same overrides: words (`["optimizer.lr=1e-3"]`) or a mapping (`{"optimizer.lr":
1e-3}`). `folder` stands in the place of LORASWEEP_HOME: the folder of conf/, sweeps/, mlflow.db and mlruns/. Heavy
libraries are imported by the first call that needs them. Neighbours: `given` (arguments), the commands' modules
(called), `cli` (the other face); docs/api.md shows each in use.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from lorasweep import environment
from lorasweep.errors import LorasweepError, UsageError
from lorasweep.given import Overrides, number_of, text_of, texts_of, trial_of, words

if TYPE_CHECKING:
    import pandas as pd
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from lorasweep.config.schema import Config
    from lorasweep.outcome import Outcome
    from lorasweep.planning import Plan
    from lorasweep.registry.result import PromotionResult
    from lorasweep.registry.trial import Source

__all__ = [
    "LorasweepError",
    "SweepResult",
    "compose",
    "export",
    "leaderboard",
    "load_tokenizer",
    "load_trial",
    "plan",
    "predict",
    "promote",
    "report",
    "resume",
    "sweep",
    "train",
]

Folder: TypeAlias = str | os.PathLike[str] | None


@dataclass(frozen=True)
class SweepResult:
    """How a sweep, or a single trial, ended. `counts`: state -> number of trials; `best`: a row of `lorasweep
    leaderboard --json`, None where no trial is complete; `stopped`: which budget ended the search; `detached`: its
    workers train on."""

    sweep: str
    counts: dict[str, int]
    best: dict[str, Any] | None
    wall_seconds: float
    train_samples: int
    slots: int
    stopped: str | None = None
    detached: bool = False


def sweep(
    name: str, overrides: Overrides = None, *, folder: Folder = None, join: bool = False, quiet: bool = False
) -> SweepResult:
    """Start sweeps/NAME.yaml, or continue it where it stopped. `join`: work on it beside other processes; `quiet`: show
    no progress.

    Raises:
        LorasweepError: as `lorasweep sweep`; interrupted, everything that was reported is stored.
    """
    with _at(folder):
        from lorasweep import sweeping

        return _result(sweeping.start(text_of("name", name), words(overrides), quiet=quiet, join=join))


def resume(
    name: str, overrides: Overrides = None, *, folder: Folder = None, join: bool = False, quiet: bool = False
) -> SweepResult:
    """Continue a sweep with the overrides it was started with, then `overrides`.

    Raises:
        LorasweepError: as `lorasweep resume`; there is nothing of this name to resume.
    """
    with _at(folder):
        from lorasweep import sweeping

        return _result(sweeping.resume(_stored(name, overrides), words(overrides), quiet=quiet, join=join))


def train(overrides: Overrides = None, *, folder: Folder = None, quiet: bool = False) -> SweepResult:
    """Train one trial; it joins the sweep `train`.

    Raises:
        LorasweepError: as `lorasweep train`.
    """
    with _at(folder):
        from lorasweep import sweeping

        return _result(sweeping.train(words(overrides), quiet=quiet))


def plan(name: str, overrides: Overrides = None, *, folder: Folder = None) -> Plan:
    """What a sweep would run: space, slots, memory in bytes, time in seconds; trains nothing that is kept.

    Raises:
        LorasweepError: as `lorasweep plan`.
    """
    with _at(folder):
        from lorasweep import planning

        return planning.plan(text_of("name", name), words(overrides))


def compose(overrides: Overrides = None, sweep: str | None = None, *, folder: Folder = None) -> Config:
    """The typed, checked config of these overrides, on top of sweeps/`sweep`.yaml where one is named.

    Raises:
        LorasweepError: an unknown key or option, a wrong type, a broken rule.
    """
    with _at(folder):
        from lorasweep.config import address
        from lorasweep.config.compose import compose as composed

        return composed(address.without_logins(words(overrides)), None if sweep is None else text_of("sweep", sweep))


def leaderboard(
    name: str,
    overrides: Overrides = None,
    *,
    where: str | Sequence[str] = (),
    sort: str | None = None,
    top: int | None = None,
    folder: Folder = None,
) -> pd.DataFrame:
    """The ranked trials of a stored sweep, one row each, best first; the columns are those of `lorasweep leaderboard
    --csv` (docs/leaderboard.md). `where` ("adapter.r>=8,tied=true"), `sort` ("train_seconds"): as its options.

    Raises:
        LorasweepError: no such sweep, or an unknown key.
    """
    with _at(folder):
        import pandas as pd

        from lorasweep.ranking import board as ranking
        from lorasweep.ranking.table import flat

        asked = texts_of("where", where)
        key = None if sort is None else text_of("sort", sort)
        most = None if top is None else number_of("top", top)
        board = ranking.load(_stored(name, overrides), words(overrides), asked, key)
        columns, rows = flat(board, most)
        return pd.DataFrame(rows, columns=columns)


def report(name: str, overrides: Overrides = None, *, out: Folder = None, folder: Folder = None) -> Path:
    """Write the HTML report of a sweep, and its pictures beside it; returns the page's path. `out`: where to; None:
    with the sweep's files.

    Raises:
        LorasweepError: no such sweep; a place that cannot be written.
    """
    with _at(folder):
        from lorasweep import reporting

        return reporting.write(_stored(name, overrides), words(overrides), None if out is None else Path(out))


def promote(
    name: str,
    overrides: Overrides = None,
    *,
    trial: int | None = None,
    model: str | None = None,
    force: str | None = None,
    folder: Folder = None,
) -> PromotionResult:
    """Score the best trial (or `trial`) on the sealed test split, register it as `model` (None: the sweep's name), and
    make it champion if it is better. `force`: the reason to do so even if it is not.

    Raises:
        PromotionRefused: the gate said no; the registry is as it was.
        LorasweepError: as `lorasweep promote`.
    """
    with _at(folder):
        from lorasweep import promotion

        if force is not None and not text_of("force", force).strip():
            raise UsageError("`force` is the reason, which is kept with the version; it must not be empty")
        number = None if trial is None else number_of("trial", trial)
        return promotion.promote(_stored(name, overrides), words(overrides), model, number, force)


def predict(
    model: str,
    texts: str | Sequence[str],
    pairs: str | Sequence[str] | None = None,
    *,
    base: str | None = None,
    folder: Folder = None,
) -> pd.DataFrame:
    """Answers of a registered model (`models:/NAME@champion`, or NAME for that), one row a text: text, pair where there
    are `pairs` (the second texts), label, score, and one probability_LABEL for each class. `base`: where its base lies
    now.

    Raises:
        LorasweepError: no such model; `pairs` are missing or too much.
    """
    with _at(folder):
        import pandas as pd

        from lorasweep import prediction

        asked, second = texts_of("texts", texts), None if pairs is None else texts_of("pairs", pairs)
        if second is not None and len(second) != len(asked):
            raise UsageError(f"each text needs one of `pairs`, got {len(asked)} texts and {len(second)} pairs")
        uri = model if set(text_of("model", model)) & set(":/") or Path(model).is_dir() else f"models:/{model}@champion"
        served = prediction.load(uri, [], base)
        table = prediction.Asked(asked, second)
        rows = [
            {"label": one["label"], "score": one["score"]}
            | {f"probability_{label}": value for label, value in one["probabilities"].items()}
            for _, block in prediction.answer(served, table)
            for one in block
        ]
        given = pd.DataFrame({"text": asked} | ({} if second is None else {"pair": second}))
        return given.join(pd.DataFrame(rows, index=given.index))


def export(
    name: str,
    target: str | os.PathLike[str],
    overrides: Overrides = None,
    *,
    trial: int | Literal["best"] | None = None,
    merged: bool = False,
    base: str | None = None,
    folder: Folder = None,
) -> Path:
    """Write a registered model (NAME: its champion, NAME@ALIAS, NAME/VERSION), or a trial of the sweep NAME, as Hugging
    Face files into the new folder `target`, which is returned. `merged`: one checkpoint instead of an adapter.

    Raises:
        LorasweepError: as `lorasweep export`.
    """
    with _at(folder):
        from lorasweep import exporting

        named, which = (name, None) if trial is None else (_stored(name, overrides), trial_of(trial))
        written = exporting.export(named, os.fspath(target), words(overrides), merged, base=base, trial=which)
        return Path(written["folder"])


def load_trial(
    name: str,
    trial: int | Literal["best"] = "best",
    overrides: Overrides = None,
    *,
    base: str | None = None,
    folder: Folder = None,
) -> PeftModel:
    """A trial of a stored sweep as PEFT's own model over its base, in evaluation mode and float32; of adapter=full the
    transformers model itself. Any task, registered or not. `base`: where the base lies now.

    Raises:
        LorasweepError: no such trial, or one that kept no checkpoint; files that were changed since.
    """
    with _trial(name, trial, overrides, base, folder) as source:
        from lorasweep.registry import trial as registry_trial

        model: PeftModel = registry_trial.load(source)
        return model


def load_tokenizer(
    name: str,
    trial: int | Literal["best"] = "best",
    overrides: Overrides = None,
    *,
    base: str | None = None,
    folder: Folder = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer that goes with `load_trial`.

    Raises:
        LorasweepError: as `load_trial`.
    """
    with _trial(name, trial, overrides, base, folder) as source:
        from lorasweep.registry import trial as registry_trial

        tokenizer: PreTrainedTokenizerBase = registry_trial.tokenizer_of(source)
        return tokenizer


# -- what they share ------------------------------------------------------------------------------------------------


@contextmanager
def _at(folder: Folder) -> Iterator[None]:
    """Libraries quiet, and `folder` as the home."""
    from lorasweep.config.home import project

    environment.settle(own_process=False)
    with project(folder):
        yield


@contextmanager
def _trial(name: str, trial: int | str, overrides: Overrides, base: str | None, folder: Folder) -> Iterator[Source]:
    with _at(folder):
        from lorasweep import exporting

        yield exporting.open_trial(_stored(name, overrides), trial_of(trial), words(overrides), base)


def _stored(name: str, overrides: Overrides) -> str:
    from lorasweep.search.whereabouts import stored_name

    return stored_name(text_of("name", name), words(overrides))


def _result(outcome: Outcome) -> SweepResult:
    return SweepResult(
        sweep=outcome.board.sweep,
        counts=outcome.counts,
        best=outcome.best,
        wall_seconds=outcome.wall_seconds,
        train_samples=outcome.train_samples,
        slots=outcome.slots,
        stopped=outcome.stopped,
        detached=outcome.detached,
    )
