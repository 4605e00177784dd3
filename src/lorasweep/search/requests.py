"""What people ask of a sweep while it runs, as attributes of its study: any process may ask, every worker sees it.

Each request is an attribute of its own, written once and once more when it was acted on, so two writers never meet in
one value. Neighbours: `study` (hands on), `control` (asks), `worker` (acts).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REQUEST = "request."  # attribute of the study: request.ID
PAUSE, STOP = "pause", "stop"


@dataclass(frozen=True)
class Request:
    """`kind` is stop (of one `trial`) or pause (of the sweep; `trial` is None)."""

    id: str
    kind: str
    trial: int | None = None


def new_request(kind: str, trial: int | None = None) -> Request:
    """A request with an id of its own."""
    return Request(secrets.token_hex(6), kind, trial)


def stored(request: Request, acted: bool = False) -> tuple[str, dict[str, Any]]:
    """The attribute (key, value) of a request."""
    return REQUEST + request.id, {"kind": request.kind, "trial": request.trial, "acted": acted}


def waiting(attributes: Mapping[str, Any]) -> list[Request]:
    """Requests among a study's attributes that nobody acted on yet, in the order of their ids."""
    found = []
    for key, text in sorted(attributes.items()):
        if key.startswith(REQUEST):
            fields = json.loads(text)
            if not fields["acted"]:
                found.append(Request(key.removeprefix(REQUEST), fields["kind"], fields["trial"]))
    return found
