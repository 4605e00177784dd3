"""Addresses of an MLflow server, of a database and of a place of files, without what is secret in them: that is never
stored or shown.

MLflow's client takes the login from its own variables of the environment, PostgreSQL's the password: what of them
stands in an address moves there for as long as this process lives. The database's user stays: it is no secret, and no
two are the same database. A store of files is given no login in its address at all. Neighbours: `compose`,
`sweeping` (every address passes here), `checks`, `depot` (opens the place of files).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from lorasweep.config.home import expanded

KEY, STUDIES, FILES = "tracking.uri", "tracking.studies", "tracking.files"
STORE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
NAMED_BY_AT = ("abfs", "abfss")  # Azure's addresses: container@account
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
    if usable and "sslpassword=" in parts.query:
        return f"`{STUDIES}` must hold no sslpassword, which would be stored; take a key without one"
    if usable:
        return None
    return (
        f"`{STUDIES}` must be the address of a PostgreSQL database, such as postgresql://lorasweep@db.example:5432/"
        f"lorasweep, got {bare(uri)!r}; leave it out for a file in `tracking.dir`"
    )


def keep_password_apart(uri: str) -> str:
    """A database's address without its password, which PostgreSQL's client finds in the environment from now on. It may
    stand in the login and among the parameters behind `?`, where libpq lets it win."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return bare(uri)
    words = [word for word in parts.query.split("&") if word.partition("=")[0] == "password"]
    if parts.password is None and not words:
        return uri
    os.environ[DATABASE_PASSWORD] = unquote(words[-1].partition("=")[2] if words else parts.password or "")
    user, at, host = parts.netloc.rpartition("@")
    query = "&".join(word for word in parts.query.split("&") if word not in words)
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}{at}{host}", query=query))


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


def is_store(files: str) -> bool:
    """Whether `tracking.files` is an address, and no folder."""
    return STORE.match(files) is not None


def files_problem(files: str) -> str | None:
    """Why this cannot be the place of files, with the repair; None where it can."""
    if not files.strip():
        return f"`{FILES}` is empty; write a folder or s3://bucket/prefix, or null for the folder `tracking.dir`"
    if not is_store(files):
        return None
    scheme, _, rest = files.partition("://")
    host = rest.partition("/")[0]
    if ("@" in rest and scheme not in NAMED_BY_AT) or (":" in host and not host.rpartition(":")[2].isdigit()):
        return (
            f"`{FILES}` must hold no login, and this {scheme}:// address does; write {scheme}://bucket/prefix and "
            "give the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws"
        )
    if not host or re.search(r"[?#\s]|::|/\.\.?(/|$)", rest):
        return f"`{FILES}` must be a folder or an address such as s3://bucket/prefix, got {scheme}://…"
    return None


def settled_files(files: str) -> str:
    """The place of files as every process may read it, from wherever it was started: a folder's path is absolute."""
    if files.startswith("file://"):
        files = unquote(files.removeprefix("file://"))
    if "${" in files:  # an override that names a variable of the environment is read when it is composed
        return files
    if is_store(files):  # s3:// alone stays an address, and is refused as one
        scheme, _, rest = files.partition("://")
        return f"{scheme}://{rest.rstrip('/')}"
    if files.strip() in ("", "null"):
        return files
    return str(expanded(Path(files)).absolute())


def without_logins(overrides: Iterable[str]) -> list[str]:
    """Overrides that may be stored: what is secret in an address is kept apart, a folder of files is absolute."""
    keep = {KEY: keep_login_apart, STUDIES: keep_password_apart, FILES: settled_files}
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
