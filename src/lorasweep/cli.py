"""The `lorasweep` command: parse, call, print. What each command does lives in the module it calls.

Words with `=` are Hydra overrides. Exit codes: 0 success, 1 failure or refused promotion, 2 usage or config error,
130 Ctrl-C after a clean save. With --json standard output holds one JSON document; all else goes to standard error.
Heavy libraries are imported by the commands that need them, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from lorasweep import completion, environment, refusal
from lorasweep.arguments import parse
from lorasweep.errors import LorasweepError, UsageError

BY_FILE = ("sweep", "plan")  # their NAME is a file's; that of others a stored sweep's


def main(argv: list[str] | None = None) -> int:  # noqa: PLR0911  (each kind of end has its code)
    """Run one command and return its exit code; no traceback for errors that are the user's to mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == [completion.ASK]:
        return completion.answer(words[1:])
    environment.settle()
    as_json = "--json" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what this terminal's encoding lacks is shown by its number
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():  # a worker answers better once it has something to save
        signal.signal(signal.SIGTERM, _leave)
    try:
        arguments, overrides = parse(words)
        if any(getattr(arguments, option, None) for option in ("cfg", "info", "package", "resolve")):
            return _show_config(arguments, overrides)
        if getattr(arguments, "name", None) and arguments.command not in BY_FILE:
            from lorasweep.search.whereabouts import stored_name

            arguments.name = stored_name(arguments.name, overrides)
        return COMMANDS[arguments.command](arguments, overrides)
    except LorasweepError as error:
        return refusal.refuse(type(error).__name__, str(error), as_json, error.exit_code)
    except KeyboardInterrupt:
        print("lorasweep: stopped at once; what was reported is stored", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        return 0
    except Exception as error:
        return refusal.refuse(*refusal.unforeseen(error), as_json, LorasweepError.exit_code)


def _leave(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, allow_nan=False))


def _show_config(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep.config import shown

    sweep = getattr(arguments, "name", None)
    if arguments.cfg == "hydra":
        raise UsageError("--cfg hydra: lorasweep composes its config itself and keeps no part of Hydra's; --cfg job")
    if arguments.info is not None:
        if arguments.cfg is not None:
            raise UsageError("--cfg and --info both print; leave one of them out")
        if arguments.json:
            _print_json(shown.info(arguments.info, overrides, sweep))
        else:
            print(shown.info_text(arguments.info, overrides, sweep))
        return 0
    if arguments.cfg is None:
        raise UsageError("--package and --resolve go with --cfg job, which prints the config and runs nothing")
    found = shown.config(overrides, sweep, arguments.package, arguments.resolve)
    if arguments.json:
        _print_json({"package": arguments.package or shown.GLOBAL, "config": found})
    else:
        print(shown.to_text(found, arguments.package))
    return 0


def _init(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from lorasweep import starting

    if overrides:
        raise UsageError(f"init takes no overrides such as {overrides[0]}; they go with `lorasweep sweep`")
    started = starting.init(
        arguments.folder,
        arguments.data,
        arguments.text_column,
        arguments.label_column,
        arguments.model,
        arguments.sweep_name,
        arguments.force,
    )
    if arguments.json:
        _print_json(started.to_json())
    else:
        print(started.describe())
    return 0


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
    from lorasweep.outcome import show

    if arguments.json:
        _print_json(outcome.to_json())
    else:
        show(outcome)
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


def _completion(arguments: argparse.Namespace, overrides: list[str]) -> int:
    text = completion.script(arguments.shell)
    if arguments.json:
        _print_json({"shell": arguments.shell, "script": text})
    else:
        print(text, end="")
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


COMMANDS: dict[str, Callable[[argparse.Namespace, list[str]], int]] = {
    "init": _init,
    "sweep": _sweep,
    "resume": _resume,
    "train": _train,
    "plan": _plan,
    "leaderboard": _leaderboard,
    "report": _report,
    "promote": _promote,
    "predict": _predict,
    "export": _export,
    "reproduce": _reproduce,
    "ui": _ui,
    "stop": _stop,
    "clone": _clone,
    "workers": _workers,
    "pause": _pause,
    "completion": _completion,
    "doctor": _doctor,
}


if __name__ == "__main__":
    sys.exit(main())
