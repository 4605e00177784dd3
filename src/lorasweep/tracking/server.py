"""An MLflow server in place of the database in the tracking folder: how it is reached without stalling training.

MLflow's own patience with a server that does not answer is minutes. Here a request is given seconds and one more try,
and making a run none: a server may have made it and died before it could say so, and the next try finds it by its tags.
A user's own MLFLOW_HTTP_REQUEST_… in the environment wins. Neighbours: `tracking.store` (opens one or the other).
"""

from __future__ import annotations

import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient

TIMEOUT, RETRIES = "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
LIMITS = {TIMEOUT: "5", RETRIES: "1"}  # seconds for one answer; further tries
QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
UPLOAD_SECONDS = 60  # for the server to store a file
PROBE_SECONDS = 1.0


def tame_client() -> None:
    """Bound every request of this process's MLflow client, and keep it from printing addresses and progress bars."""
    for name, value in {**LIMITS, **QUIET}.items():
        os.environ.setdefault(name, value)


@contextmanager
def asked_once() -> Iterator[None]:
    """Requests in here are not sent a second time."""
    with _set(RETRIES, "0"):
        yield


@contextmanager
def patient() -> Iterator[None]:
    """Requests in here carry files: they may take longer, once."""
    with _set(TIMEOUT, str(max(UPLOAD_SECONDS, int(os.environ.get(TIMEOUT, "0"))))), asked_once():
        yield


def answers(server: str) -> bool:
    """Whether something answers at this address, within a second."""
    try:
        urllib.request.urlopen(f"{server}/health", timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # also one that asks for a login first
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # MLflow's client may have been told to trust it
    except (OSError, ValueError):
        return False
    return True


def in_short(text: str) -> str:
    """What MLflow says of a server that cannot be reached, without its thread of retries."""
    for words, short in (
        ("Connection refused", "the server does not answer (connection refused)"),
        ("Name or service not known", "there is no host of this name"),
        ("nodename nor servname", "there is no host of this name"),
        ("Temporary failure in name resolution", "there is no host of this name"),
        ("timed out", "the server does not answer in time"),
        ("timeout exception", "the server does not answer in time"),
        ("Connection aborted", "the server broke off the connection"),
        ("Connection reset", "the server broke off the connection"),
        ("too many 5", "the server cannot answer (error 5xx)"),
    ):
        if words in text:
            return short
    return text


@contextmanager
def _set(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before


def open_experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment `name`, made where there is none; the server chooses where its artifacts lie."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # also where another process was quicker
            raise
    found = client.get_experiment_by_name(name)
    assert found is not None
    return str(found.experiment_id)
