"""What can be written on the command line: the commands with their options, and which words are Hydra overrides.

Nothing heavy is imported, so that `--help` and completion answer at once. Neighbours: `cli` (carries the commands out),
`completion` (offers their words).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lorasweep import __version__
from lorasweep.config import hydra_words
from lorasweep.errors import UsageError

OVERRIDE = re.compile(r"^[~+]{0,2}[A-Za-z_][\w./@-]*=")
SHOWS = ("sweep", "train", "plan")  # commands that print the composed config instead, with Hydra's own options
INFO = ("all", "config", "defaults", "defaults-tree", "searchpath")


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split overrides from options. In `predict`, texts may hold `=`: only tracking.* counts as an override there.

    Raises:
        UsageError: no command line of ours; a flag of Hydra's own, with what it is called here.
    """
    before = words[: words.index("--")] if "--" in words else words
    if (refusal := hydra_words.flag(before)) is not None:
        raise UsageError(refusal)
    pattern = re.compile(r"^tracking\.\w+=") if words[:1] == ["predict"] else OVERRIDE
    values = {place + 1 for place, word in enumerate(words) if word in ("--where", "--sort")}  # state=failed, say
    overrides = [word for place, word in enumerate(words) if pattern.match(word) and place not in values]
    options = [word for place, word in enumerate(words) if not pattern.match(word) or place in values]
    return build_parser().parse_args(options), overrides


class _Parser(argparse.ArgumentParser):
    """Refuses like everything else, so that --json gets its document."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = _Parser(
        prog="lorasweep",
        description="Hyperparameter sweeps over LoRA fine-tuning: many trials over one base, one honest leaderboard.",
        epilog="Words with `=` are Hydra overrides, such as: lorasweep sweep quickstart sweep.trials=8 model=tiny_gpt2",
    )
    parser.add_argument("--version", action="version", version=f"lorasweep {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.add_argument("--json", action="store_true", help="one JSON document on standard output")
        if name in SHOWS:
            _add_showing(sub)
        sub.set_defaults(command=name)
        return sub

    _add_init(command)
    sweep = command("sweep", "start sweeps/NAME.yaml, or continue it where it stopped")
    sweep.add_argument("name", help="a file in sweeps/, without .yaml")
    sweep.add_argument("--fork", metavar="NEWNAME", help="go on with what was changed as a new sweep of this name")
    resume = command("resume", "continue a sweep with the overrides it was started with")
    resume.add_argument("name")
    for starts in (sweep, resume):
        starts.add_argument("--join", action="store_true", help="work on it beside the processes that do already")
        starts.add_argument("--detach", action="store_true", help="with launcher=ray: leave once its workers train")
    command("train", "train one trial, tracked like a sweep's")
    plan = command("plan", "show what a sweep would run: space, slots, memory, samples; trains nothing")
    plan.add_argument("name")
    board = command("leaderboard", "the ranked trials of a sweep")
    board.add_argument("name")
    board.add_argument("--top", type=_count, metavar="K", help="only the first K rows")
    board.add_argument("--sort", metavar="KEY", help="by another column, KEY or KEY:desc, such as train_seconds")
    board.add_argument(
        "--where", action="append", default=[], metavar="EXPR", help="only these rows, such as adapter.r>=8,tied=true"
    )
    board.add_argument("--csv", action="store_true", help="comma-separated values on standard output")
    report = command("report", "write a self-contained HTML page about a sweep")
    report.add_argument("name")
    report.add_argument("--out", type=Path, metavar="FILE", help="where to write it; default: in mlruns/lorasweep/")
    _add_registry_commands(command)
    ui = command("ui", "the MLflow UI on 127.0.0.1, opened at the sweep's leaderboard")
    ui.add_argument("name", nargs="?", help="the sweep to open; default: the newest")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--view", choices=("leaderboard", "curves", "finalists", "failures"), default="leaderboard")
    stop = command("stop", "end a running trial now, with what it has")
    copy = command("clone", "train a trial's point again with some values changed, beside the budget")
    for acts in (stop, copy):
        acts.add_argument("name")
        acts.add_argument("trial", type=_number, metavar="TRIAL")
    copy.add_argument("--warm", action="store_true", help="start from that trial's adapter")
    crew = command("workers", "who works on a sweep: where, on which trials, since when, last sign of life")
    crew.add_argument("name")
    pause = command("pause", "save a running sweep and let its processes leave; resume continues it")
    pause.add_argument("name")
    shell = command(
        "completion", "print the completion script of a shell; source it: source <(lorasweep completion bash)"
    )
    shell.add_argument("shell", choices=("bash", "zsh", "fish"))
    command("doctor", "versions, devices, storage: what would not work and how to mend it")
    return parser


def _add_init(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """init."""
    start = command("init", "lay out a project of your own: a sweep, a data config for your table, a Makefile")
    start.add_argument("folder", help="a new folder, or one that is there")
    start.add_argument(
        "--data", metavar="FILE", help="your table: csv, tsv, json, jsonl or parquet; default: an example"
    )
    start.add_argument("--text-column", metavar="NAME", help="its column of texts; guessed where it is left out")
    start.add_argument("--label-column", metavar="NAME", help="its column of labels; guessed where it is left out")
    start.add_argument("--model", metavar="PATH", help="your model: a folder or a hub id; default: a tiny one of ours")
    start.add_argument("--name", dest="sweep_name", metavar="NAME", help="the sweep's name; default: the folder's")
    start.add_argument("--force", action="store_true", help="write over files that are there")


def _add_showing(command: argparse.ArgumentParser) -> None:
    """Hydra's own options, which show the composed config instead of running it."""
    shows = command.add_argument_group("show the composed config, run nothing (as Hydra's applications do)")
    shows.add_argument(
        "--cfg", "-c", choices=("job", "hydra", "all"), help="print the composed config as YAML: --cfg job"
    )
    shows.add_argument("--package", "-p", metavar="KEY", help="with --cfg: only this part of it, such as optimizer")
    shows.add_argument(
        "--resolve", action="store_true", help="with --cfg: as trials take it: checked, interpolations resolved"
    )
    shows.add_argument(
        "--info", "-i", nargs="?", const="all", choices=INFO, help="print where the config comes from: --info defaults"
    )


def _add_registry_commands(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """promote, predict, export, reproduce."""
    promote = command("promote", "score the best trial on the test split and register it as champion")
    promote.add_argument("name")
    promote.add_argument("--as", dest="model_name", metavar="MODEL", help="registered model; default: the sweep's name")
    promote.add_argument("--trial", type=int, metavar="N", help="this trial instead of the best")
    promote.add_argument("--force", action="store_true", help="promote even when it is not better than the champion")
    promote.add_argument("--reason", metavar="TEXT", help="why --force or --rollback; kept with the version")
    promote.add_argument("--rollback", action="store_true", help="move `champion` back to the version before")
    predict = command("predict", "answers from a registered model")
    predict.add_argument("model_uri", help="for example models:/quickstart@champion")
    predict.add_argument("text", nargs="*", help="texts to answer; `-`: the lines of standard input")
    predict.add_argument(
        "--pair",
        action="append",
        metavar="TEXT",
        help="the second text of a pair, such as a context; once for each text",
    )
    predict.add_argument(
        "--csv", metavar="FILE", help="answer the rows of a table (csv, tsv, jsonl, parquet; `-`: csv)"
    )
    predict.add_argument("--column", default="text", metavar="NAME", help="its column of texts; default: text")
    predict.add_argument("--pair-column", metavar="NAME", help="its column of second texts, for models of pairs")
    predict.add_argument("--csv-out", action="store_true", help="print csv with all probabilities; so does --csv")
    predict.add_argument("--base", metavar="PATH", help="where the model's base lies, if it was moved")
    export = command("export", "write a registered model, or a trial, as Hugging Face files for the hub")
    export.add_argument(
        "name", help="a registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION; with --trial: a sweep"
    )
    export.add_argument("folder", help="a folder that does not exist yet")
    which = export.add_mutually_exclusive_group()
    which.add_argument(
        "--trial", type=_trial, metavar="N", help="this trial of the sweep NAME, of any task, registered or not"
    )
    which.add_argument("--best", dest="trial", action="store_const", const="best", help="the leaderboard's first trial")
    export.add_argument("--merged", action="store_true", help="one checkpoint instead of an adapter beside its base")
    export.add_argument("--push-to-hub", metavar="REPO", help="upload it to this repository of the Hugging Face hub")
    export.add_argument("--private", action="store_true", help="make that repository private, if it is new")
    export.add_argument("--base", metavar="PATH", help="where the model's base lies, if it was moved")
    again = command("reproduce", "train a trial again from what its run recorded, and compare the numbers")
    again.add_argument("run_id", help="the MLflow run of the trial")
    again.add_argument("--tolerance", type=float, metavar="X", help="largest difference that counts as the same")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"an integer > 0 is needed, got {text!r}")
    return int(text)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"a trial's number is needed, got {text!r}")
    return int(text)


def _trial(text: str) -> int | str:
    return text if text == "best" else _number(text)
