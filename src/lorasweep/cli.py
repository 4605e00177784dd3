"""The `lorasweep` command: parse, call, print. What each command does lives in the module it calls.

Words with `=` are Hydra overrides. Exit codes: 0 success, 1 failure or refused promotion, 2 usage or config error,
130 Ctrl-C after a clean save. With --json standard output holds one JSON document; all else goes to standard error.
Heavy libraries are imported by the commands that need them, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lorasweep import __version__, environment
from lorasweep.errors import LorasweepError, UsageError

OVERRIDE = re.compile(r"^[~+]{0,2}[A-Za-z_][\w./@-]*=")


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; no traceback for errors that are the user's to mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    environment.settle()
    as_json = "--json" in words
    if threading.current_thread() is threading.main_thread():  # a worker answers better once it has something to save
        signal.signal(signal.SIGTERM, _leave)
    try:
        arguments, overrides = parse(words)
        if getattr(arguments, "name", None) and arguments.run not in (_sweep, _plan):
            arguments.name = _stored_name(arguments.name, overrides)
        return int(arguments.run(arguments, overrides))
    except LorasweepError as error:
        if as_json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
        print(f"lorasweep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lorasweep: stopped at once; what was reported is stored", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return 0


def _stored_name(name: str, overrides: list[str]) -> str:
    """A started sweep's name as it is stored: that of its smoke test with scale=smoke, and where there is no other."""
    from lorasweep.config.compose import tracking_place
    from lorasweep.config.home import Home
    from lorasweep.config.scale import SUFFIX
    from lorasweep.search.study import SweepStudy

    small = name if name.endswith(SUFFIX) else f"{name}{SUFFIX}"
    if "scale=smoke" in overrides:
        return small
    names = SweepStudy.names(tracking_place(overrides, Home.find()))
    return small if name not in names and small in names else name


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parse(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split overrides from options. In `predict`, texts may hold `=`: only tracking.* counts as an override there."""
    pattern = re.compile(r"^tracking\.\w+=") if words[:1] == ["predict"] else OVERRIDE
    values = {place + 1 for place, word in enumerate(words) if word in ("--where", "--sort")}  # state=failed, say
    overrides = [word for place, word in enumerate(words) if pattern.match(word) and place not in values]
    options = [word for place, word in enumerate(words) if not pattern.match(word) or place in values]
    return build_parser().parse_args(options), overrides


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="lorasweep",
        description="Hyperparameter sweeps over LoRA fine-tuning: many trials over one base, one honest leaderboard.",
        epilog="Words with `=` are Hydra overrides, such as: lorasweep sweep quickstart sweep.trials=8 model=tiny_gpt2",
    )
    parser.add_argument("--version", action="version", version=f"lorasweep {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[..., int], help_text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_text, description=help_text)
        sub.add_argument("--json", action="store_true", help="one JSON document on standard output")
        sub.set_defaults(run=run)
        return sub

    sweep = command("sweep", _sweep, "start sweeps/NAME.yaml, or continue it where it stopped")
    sweep.add_argument("name", help="a file in sweeps/, without .yaml")
    sweep.add_argument("--fork", metavar="NEWNAME", help="go on with what was changed as a new sweep of this name")
    resume = command("resume", _resume, "continue a sweep with the overrides it was started with")
    resume.add_argument("name")
    for starts in (sweep, resume):
        starts.add_argument("--join", action="store_true", help="work on it beside the processes that do already")
        starts.add_argument("--detach", action="store_true", help="with launcher=ray: leave once its workers train")
    command("train", _train, "train one trial, tracked like a sweep's")
    plan = command("plan", _plan, "show what a sweep would run: space, slots, memory, samples; trains nothing")
    plan.add_argument("name")
    board = command("leaderboard", _leaderboard, "the ranked trials of a sweep")
    board.add_argument("name")
    board.add_argument("--top", type=_count, metavar="K", help="only the first K rows")
    board.add_argument("--sort", metavar="KEY", help="by another column, KEY or KEY:desc, such as train_seconds")
    board.add_argument(
        "--where", action="append", default=[], metavar="EXPR", help="only these rows, such as adapter.r>=8,tied=true"
    )
    board.add_argument("--csv", action="store_true", help="comma-separated values on standard output")
    report = command("report", _report, "write a self-contained HTML page about a sweep")
    report.add_argument("name")
    report.add_argument("--out", type=Path, metavar="FILE", help="where to write it; default: in mlruns/lorasweep/")
    _add_registry_commands(command)
    ui = command("ui", _ui, "the MLflow UI on 127.0.0.1, opened at the sweep's leaderboard")
    ui.add_argument("name", nargs="?", help="the sweep to open; default: the newest")
    ui.add_argument("--port", type=int, default=5000)
    ui.add_argument("--view", choices=("leaderboard", "curves", "finalists", "failures"), default="leaderboard")
    stop = command("stop", _stop, "end a running trial now, with what it has")
    copy = command("clone", _clone, "train a trial's point again with some values changed, beside the budget")
    for acts in (stop, copy):
        acts.add_argument("name")
        acts.add_argument("trial", type=_number, metavar="TRIAL")
    copy.add_argument("--warm", action="store_true", help="start from that trial's adapter")
    crew = command("workers", _workers, "who works on a sweep: where, on which trials, since when, last sign of life")
    crew.add_argument("name")
    pause = command("pause", _pause, "save a running sweep and let its processes leave; resume continues it")
    pause.add_argument("name")
    command("doctor", _doctor, "versions, devices, storage: what would not work and how to mend it")
    return parser


def _add_registry_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """promote, predict, export, reproduce."""
    promote = command("promote", _promote, "score the best trial on the test split and register it as champion")
    promote.add_argument("name")
    promote.add_argument("--as", dest="model_name", metavar="MODEL", help="registered model; default: the sweep's name")
    promote.add_argument("--trial", type=int, metavar="N", help="this trial instead of the best")
    promote.add_argument("--force", action="store_true", help="promote even when it is not better than the champion")
    promote.add_argument("--reason", metavar="TEXT", help="why --force or --rollback; kept with the version")
    promote.add_argument("--rollback", action="store_true", help="move `champion` back to the version before")
    predict = command("predict", _predict, "answers from a registered model")
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
    export = command("export", _export, "write a registered model, or a trial, as Hugging Face files for the hub")
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
    again = command("reproduce", _reproduce, "train a trial again from what its run recorded, and compare the numbers")
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


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, allow_nan=False))


def _sweep(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import sweeping

    outcome = sweeping.start(
        arguments.name, overrides, arguments.json, arguments.join, arguments.fork, detach=arguments.detach
    )
    return _show_outcome(arguments, outcome)


def _resume(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import sweeping

    outcome = sweeping.resume(
        arguments.name, overrides, quiet=arguments.json, join=arguments.join, detach=arguments.detach
    )
    return _show_outcome(arguments, outcome)


def _train(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import sweeping

    return _show_outcome(arguments, sweeping.train(overrides, quiet=arguments.json))


def _show_outcome(arguments: argparse.Namespace, outcome: Any) -> int:
    from lorasweep import sweeping

    if arguments.json:
        _print_json(outcome.to_json())
    else:
        sweeping.show_outcome(outcome)
    return 0 if outcome.best is not None or outcome.detached else 1


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import planning

    plan = planning.plan(arguments.name, overrides)
    if arguments.json:
        _print_json(plan.to_json())
    else:
        planning.show(plan)
    return 0


def _leaderboard(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep.ranking import board as leaderboard

    if arguments.json and arguments.csv:
        raise UsageError("--json and --csv both write standard output; leave one of them out")
    board = leaderboard.load(arguments.name, overrides, arguments.where, arguments.sort)
    if arguments.json:
        _print_json(board.to_json(top=arguments.top))
    elif arguments.csv:
        leaderboard.write_csv(board, sys.stdout, top=arguments.top)
    else:
        leaderboard.show(board, top=arguments.top)
    return 0


def _report(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import reporting

    path = reporting.write(arguments.name, overrides, out=arguments.out)
    if arguments.json:
        _print_json({"sweep": arguments.name, "report": str(path)})
    else:
        print(f"Report: {path}")
    return 0


def _promote(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import promotion

    if arguments.rollback:
        result = promotion.rollback(arguments.name, overrides, model_name=arguments.model_name, reason=arguments.reason)
    else:
        result = promotion.promote(
            arguments.name,
            overrides,
            model_name=arguments.model_name,
            trial=arguments.trial,
            force=promotion.reason_of(arguments.force, arguments.reason),
        )
    if arguments.json:
        _print_json(result.to_json())
    else:
        print(result.describe())
    return 0


def _predict(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import prediction

    asked = prediction.read_asked(
        arguments.text, arguments.pair, arguments.csv, arguments.column, arguments.pair_column
    )
    model = prediction.load(arguments.model_uri, overrides, arguments.base)
    if arguments.json:
        answers = [one for _, block in prediction.answer(model, asked) for one in block]
        _print_json({"model": arguments.model_uri, "predictions": answers})
    elif arguments.csv or arguments.csv_out:
        prediction.write_csv(model, asked, sys.stdout)
    else:
        prediction.write_lines(model, asked, sys.stdout)
    return 0


def _export(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import exporting

    document = exporting.export(
        arguments.name,
        arguments.folder,
        overrides,
        merged=arguments.merged,
        repo=arguments.push_to_hub,
        private=arguments.private,
        base=arguments.base,
        trial=arguments.trial,
    )
    if arguments.json:
        _print_json(document)
    else:
        print(exporting.describe(document))
    return 0


def _reproduce(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import reproduction

    outcome = reproduction.reproduce(arguments.run_id, overrides, tolerance=arguments.tolerance, quiet=arguments.json)
    if arguments.json:
        _print_json(outcome.to_json())
    else:
        print(outcome.describe())
    return 0 if outcome.same else 1


def _ui(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import ui

    return ui.serve(arguments.name, overrides, arguments.port, arguments.json, arguments.view)


def _stop(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import control

    processes = control.stop(arguments.name, arguments.trial, overrides)
    if arguments.json:
        _print_json({"sweep": arguments.name, "stop": arguments.trial, "processes": processes})
    elif processes:
        print(f"Trial {arguments.trial} ends as pruned at its worker's next turn.")
    else:
        print(f"No process works on {arguments.name}; trial {arguments.trial} ends as pruned once it is resumed.")
    return 0


def _clone(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import control

    made = control.clone(arguments.name, arguments.trial, overrides, warm=arguments.warm)
    if arguments.json:
        _print_json({"sweep": arguments.name, "clone_of": arguments.trial, "trial": made.number, "params": made.params})
    else:
        print(f"Trial {made.number} waits for the next free slot; `lorasweep resume {arguments.name}` trains it where")
        print("no process works on the sweep.")
    return 0


def _pause(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import control

    processes = control.pause(arguments.name, overrides)
    if arguments.json:
        _print_json({"sweep": arguments.name, "processes": processes})
    else:
        print(f"Process {', '.join(processes)} saves its trials and leaves at its next turn;")
        print(f"`lorasweep resume {arguments.name}` goes on.")
    return 0


def _workers(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import workers

    found = workers.at_work(arguments.name, overrides)
    if arguments.json:
        _print_json({"sweep": arguments.name, "workers": [one.to_json() for one in found]})
    else:
        workers.show(arguments.name, found)
    return 0


def _doctor(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import doctor
    from lorasweep.config.compose import tracking_place
    from lorasweep.config.home import Home

    home = Home.find()
    findings = doctor.examine(home, tracking_place(overrides, home))
    if arguments.json:
        _print_json(doctor.to_json(findings))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'MEND'}  {finding.name:<18} {finding.detail}")
            if not finding.ok:
                print(f"{'':24} -> {finding.repair}")
    return 0 if all(finding.ok for finding in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
