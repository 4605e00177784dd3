"""Addresses of an MLflow server and of a database, without what is secret in them: that is never stored or shown.

MLflow's client takes the login from its own variables of the environment, PostgreSQL's the password: what of them
stands in an address moves there for as long as this process lives. The database's user stays: it is no secret, and no
two are the same database. Neighbours: `compose` and `sweep` (every address passes here), `checks`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit, urlunsplit

KEY, STUDIES = "tracking.uri", "tracking.studies"
USERNAME, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"  # MLflow's own
DATABASE_PASSWORD = "PGPASSWORD"  # libpq's own


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


def studies_problem(uri: str) -> str | None:
    """Why this cannot be the address of a PostgreSQL database, with the repair; None where it can."""
    try:
        parts = urlsplit(uri)
        usable = parts.scheme in ("postgresql", "postgres") and len(parts.path) > 1 and not parts.fragment
        usable = usable and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        usable = False
    if usable:
        return None
    return (
        f"`{STUDIES}` must be the address of a PostgreSQL database, such as postgresql://lorasweep@db.example:5432/"
        f"lorasweep, got {bare(uri)!r}; leave it out for a file in `tracking.dir`"
    )


def keep_password_apart(uri: str) -> str:
    """A database's address without its password, which PostgreSQL's client finds in the environment from now on."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return bare(uri)
    if parts.password is None:
        return uri
    os.environ[DATABASE_PASSWORD] = unquote(parts.password)
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}@{host}"))


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
    """Overrides that may be stored: what is secret in an address is kept apart."""
    keep = {KEY: keep_login_apart, STUDIES: keep_password_apart}
    found = []
    for word in overrides:
        key, equals, value = word.partition("=")
        if equals and key.lstrip("+") in keep:
            quote = value[:1] if value[:1] in ("'", '"') else ""
            stored = keep[key.lstrip("+")](value.strip(quote) if quote else value)
            found.append(f"{key}={quote}{stored}{quote}")
        else:
            found.append(word)
    return found
