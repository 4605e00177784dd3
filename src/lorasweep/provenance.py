"""Where a trial's numbers come from: code, settings, data, base, packages, device, seed; and never a secret.

`gather` runs once per trial and reads git and the packages once per process. `redact` is what every text passes on
its way into params, tags or artifacts. Neighbours: `tracking` (logs it), `worker` (calls), `config.compose`
(the settings' fingerprint).
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from urllib.parse import quote

from lorasweep import __version__
from lorasweep.config.schema import Config

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "tokenizers",
    "bitsandbytes",
    "datasets",
    "optuna",
    "mlflow",
    "scikit-learn",
)
REDACTED = "[redacted]"

_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{10,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[A-Z0-9]{16}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
# a login as far as the last @, where it has a colon: passwords hold / and @ too; but host:port/path@branch is none. A
# database's user alone is no secret, a web address's may be a token
_URL_LOGIN = re.compile(r"(?<=://)(?:[^\s/:@'\"]*:(?!\d+/)[^\s'\"]*|(?<!postgresql://)[^\s/:@'\"]+)(?=@)")
_SECRET_WORD = r"(?:token|password|passwd|secret|credentials?|(?:api|access|secret|private)[_-]?key)"
_ASSIGNED = re.compile(
    rf"(?i)(?<![A-Za-z])((?:[\w.-]{{0,60}}[._-])?{_SECRET_WORD}[\"']?\s*[=:]\s*)"
    r"(?!\[redacted\])([^\s,;&'\"}\]]+|'[^']*'|\"[^\"]*\")"
)
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?!\[redacted\])[\w.~+/=-]{8,}")
_SECRET_NAME = re.compile(r"(?i)(token|secret|passw(or)?d|passphrase|apikey|accesskey|credential|(^|_)keys?(_|$))")
_FILE_NAME = re.compile(r"(?i)(path|file|dir|home)$")
SHORTEST_SECRET = 8  # characters; shorter values of variables ("true", "1234") would blot out ordinary words


def redact(text: str) -> str:
    """The text without access tokens, logins in URLs, assigned secrets and values of secret environment variables."""
    if len(text) < SHORTEST_SECRET:
        return text
    for value in _environment_secrets():
        text = text.replace(value, REDACTED)
    text = _TOKENS.sub(REDACTED, text)
    text = _URL_LOGIN.sub(REDACTED, text)
    text = _BEARER.sub(rf"\1{REDACTED}", text)
    return _ASSIGNED.sub(rf"\1{REDACTED}", text)


def holds_a_login(text: str) -> bool:
    """Whether a setting's value holds an access token, or the password of an address."""
    login = _URL_LOGIN.search(text)
    return _TOKENS.search(text) is not None or (login is not None and ":" in login.group())


def _environment_secrets() -> list[str]:
    found: set[str] = set()
    for name, value in os.environ.items():
        if _names_a_secret(name) and len(value) >= SHORTEST_SECRET and not _is_a_place(value):
            found |= {value, json.dumps(value)[1:-1], quote(value, safe="")}  # as JSON and addresses write it
    return sorted(found, key=len, reverse=True)


@functools.cache
def _names_a_secret(variable: str) -> bool:
    """Whether a variable's value is secret by its name; HF_TOKEN_PATH and the like name a file."""
    return _SECRET_NAME.search(variable) is not None and _FILE_NAME.search(variable) is None


@functools.cache
def _is_a_place(value: str) -> bool:
    """Whether a value is a file's name, as in GOOGLE_APPLICATION_CREDENTIALS; a key may start with a slash too."""
    return value.startswith(("/", "~/", "./", "../")) and os.path.exists(os.path.expanduser(value))  # noqa: PTH110, PTH111


def gather(config: Config, data_fingerprint: str, base_fingerprint: str) -> dict[str, str]:
    """What a run's tags say about where its numbers come from, by tag key.

    `lorasweep.git.dirty` says whether tracked files differ from the commit; without git both tags are "none".
    Fingerprints are sha256 in hex. Raises nothing: what cannot be found out is "none".
    """
    from lorasweep.config.compose import trial_fingerprint

    commit, dirty = git_state(Path.cwd())
    return {
        "lorasweep.version": __version__,
        "lorasweep.git.commit": commit,
        "lorasweep.git.dirty": dirty,
        "lorasweep.fingerprint.config": trial_fingerprint(config),
        "lorasweep.fingerprint.data": data_fingerprint,
        "lorasweep.fingerprint.base": base_fingerprint,
        "lorasweep.python": platform.python_version(),
        "lorasweep.packages": package_versions(),
        "lorasweep.device": device_name(config.launcher.device),
        "lorasweep.seed": str(config.train.seed),
    }


def code_here() -> str:
    """The code that runs, in words: our version, and the commit of the checkout that this is called in."""
    commit, _ = git_state(Path.cwd())
    return f"lorasweep {__version__}" + ("" if commit == "none" else f" at commit {commit[:10]}")


@functools.cache
def git_state(folder: Path) -> tuple[str, str]:
    """(commit, "true" | "false" for changed tracked files), or ("none", "none") where git or a checkout is missing."""
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return "none", "none"
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return commit, "none" if changes is None else str(bool(changes)).lower()


def _git(folder: Path, *words: str) -> str | None:
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def package_versions() -> str:
    """A JSON object of the installed versions of the packages that numbers depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return json.dumps(versions)


@functools.cache
def device_name(device: str) -> str:
    """The device a trial runs on in words: the GPU's name, or the CPU's and its number of cores."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        index = int(device.partition(":")[2] or 0)
        return f"cuda: {torch.cuda.get_device_name(index)}"
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.MULTILINE)
        model = named.group(1).strip() if named else model
    return f"cpu: {model}, {os.cpu_count()} cores"
