"""What a command says when it fails: one screen, or one JSON document, without secrets and without a traceback.

An error that none of ours stands for is of the machine (a file, a connection) or a mistake of ours; the traceback of a
mistake goes to a file. Neighbours: `cli` (calls), `errors` (what it is given), `provenance` (secrets).
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback

from lorasweep.errors import readable
from lorasweep.provenance import redact

OUR_MISTAKE = "a mistake in lorasweep itself"


def refuse(kind: str, message: str, as_json: bool, exit_code: int) -> int:
    """Print what went wrong and return the exit code. `kind`: the error's class, for scripts."""
    message = redact(message)
    if as_json:
        print(json.dumps({"error": {"type": kind, "message": message}}))
    print(f"lorasweep: {readable(message)}", file=sys.stderr)
    return exit_code


def unforeseen(error: Exception) -> tuple[str, str]:
    """(kind, message) of an error that is not a LorasweepError. A traceback's file is readable by its user alone."""
    name = type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return name, f"{error.strerror}{place}; see that it is there, that this user may use it, and try again"
    with tempfile.NamedTemporaryFile(
        "w", prefix="lorasweep-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(redact("".join(traceback.format_exception(error))))
    said = str(error).strip().splitlines()
    return name, f"{OUR_MISTAKE}: {name}: {said[0] if said else 'no message'}. Please report it with {file.name}"
