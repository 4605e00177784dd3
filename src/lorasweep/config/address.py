"""The address of an MLflow server, and its login kept apart: what is stored or shown never holds one.

MLflow's client takes the login from its own variables of the environment; a login that stands in an address moves there
for as long as this process lives. Neighbours: `compose` and `sweep` (every address passes here), `checks`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit, urlunsplit

KEY = "tracking.uri"
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"  # MLflow's own


def problem(uri: str) -> str | None:
    """Why this cannot be the address of an MLflow server, with the repair; None where it can."""
    try:
        parts = urlsplit(uri)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        usable = False
    if usable and not parts.query and not parts.fragment:
        return None
    return (
        f"`{KEY}` must be the address of an MLflow server, such as http://127.0.0.1:5000, got {bare(uri)!r}; leave it "
        "out for mlflow.db in the folder `tracking.dir`"
    )


def bare(uri: str) -> str:
    """The address without its login."""
    head, at, tail = uri.rpartition("@")
    scheme, slashes, _ = head.partition("://")
    return f"{scheme}{slashes}{tail}" if at and slashes else tail if at else uri


def keep_login_apart(uri: str) -> str:
    """The address without its login, which MLflow's client finds in the environment from now on."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return bare(uri)
    if "@" not in parts.netloc:
        return uri.rstrip("/")
    os.environ[USERNAME] = unquote(parts.username or "")
    os.environ[PASSWORD] = unquote(parts.password or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def without_logins(overrides: Iterable[str]) -> list[str]:
    """Overrides that may be stored: the login of a server's address is kept apart."""
    found = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if equals and key.lstrip("+") == KEY:
            quote = value[:1] if value[:1] in ("'", '"') else ""
            found.append(f"{key}={quote}{keep_login_apart(value.strip(quote) if quote else value)}{quote}")
        else:
            found.append(word)
    return found
