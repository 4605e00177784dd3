"""Uploads an exported model to the Hugging Face hub. Tokens are the hub library's business and never shown.

Neighbours: `registry.export` (writes the folder), `exporting` (the command).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorasweep.errors import StorageError, UsageError
from lorasweep.provenance import redact


def check(repo: str) -> None:
    """What can be known before anything is written or sent.

    Raises:
        UsageError: no name of a repository, no token, or the hub is switched off.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--push-to-hub {repo}: {error}; write OWNER/NAME") from None
    if constants.HF_HUB_OFFLINE:
        raise UsageError("--push-to-hub needs the hub, and HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise UsageError("--push-to-hub needs a token that may write: `hf auth login`, or HF_TOKEN in the environment")


def push(folder: Path, repo: str, message: str, private: bool) -> str:
    """Create the repository where there is none, upload the folder as one commit, and return the commit's address.

    Raises:
        StorageError: the hub refused or could not be reached.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi(library_name="lorasweep")
        api.create_repo(repo, private=private or None, exist_ok=True)
        commit: Any = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as error:  # the library's own, its transport's, its validation's: all mean that it is not there
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = " The token must be allowed to write there: `hf auth whoami`." if status in (401, 403, 404) else ""
        raise StorageError(
            f"the hub did not take {folder} as {repo}: {redact(str(error)).strip()}.{hint} The folder is whole; "
            f"push it again with `hf upload {repo} {folder}`"
        ) from None
    return str(commit.commit_url)
