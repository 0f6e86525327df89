"""Uploads of a folder to the Hugging Face hub, as one commit of a model repository."""

import fnmatch
import re
import sys
from pathlib import Path
from typing import Any

from zoo.errors import BadInput, require, without_secrets
from zoo.hf.hub import PATIENCE, is_hub_id

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
"""Files of an earlier commit that would be read in place of new ones, or beside them."""
LICENCES = "apache-2.0, mit, cc-by-4.0, llama3.1, other, ...: https://huggingface.co/docs/hub/repositories-licenses"


def check_licence(licence: str) -> None:
    """Refuse what is not the id of a licence; the hub alone has the list of all ids.

    Raises:
        BadInput: it has other characters than ids.
    """
    fix = f"write the id of a licence on the hub, in lower case: {LICENCES}"
    require(not licence or re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,60}", licence) is not None, "license", licence, fix)


def check_upload(repo_id: str, licence: str) -> None:
    """Refuse an upload that will fail, before the work on it: one or two short requests.

    Raises:
        BadInput: no licence, no such form of a name, no token, no network, or no permission to write to the repository.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors, utils

    require(repo_id.count("/") == 1 and is_hub_id(repo_id), "push", repo_id, "name a repository of the hub, ORG/NAME")
    if not licence:
        raise BadInput(f"--push {repo_id}: the hub asks for a licence; add --license ID ({LICENCES})")
    if constants.HF_HUB_OFFLINE:
        raise BadInput(f"--push {repo_id}: HF_HUB_OFFLINE forbids the upload; unset it, or leave the option out")
    if huggingface_hub.get_token() is None:
        raise BadInput(f"--push {repo_id}: no token for the hub; run `hf auth login`, or set HF_TOKEN to one that may write")
    try:
        huggingface_hub.HfApi().model_info(repo_id, timeout=PATIENCE)
        # What HfApi.auth_check(write=True) does, which version 1.0 of the library does not have.
        address = f"{constants.ENDPOINT}/api/models/{repo_id}/auth-check/write"
        utils.hf_raise_for_status(utils.get_session().get(address, headers=utils.build_hf_headers(), timeout=PATIENCE))
    except errors.RepositoryNotFoundError as error:
        # With a token that it accepts, the hub answers 404 for a name that is free.
        if error.response.status_code != 404:
            raise _refused(repo_id, error) from None
    except Exception as error:
        raise _refused(repo_id, error) from None


def upload_folder(folder: Path, repo_id: str, *, private: bool, message: str) -> str:
    """Upload all files of a folder as one commit, and return its address; a repository that does not exist is created.

    Files of the repository that the folder does not have stay, except weights (`WEIGHTS`).

    Args:
        private: a new repository is visible to its owner only.
        message: the first line of the commit.

    Raises:
        BadInput: the hub refuses the upload, or does not answer.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, utils

    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    api = HfApi()
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    try:
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        stale = [name for name in api.list_repo_files(repo_id) if name not in names and _is_weights(name)]
        operations = [
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names),
            *(CommitOperationDelete(path_in_repo=name) for name in stale),
        ]
        return api.create_commit(repo_id, operations, commit_message=message).commit_url
    except Exception as error:
        done = f"; {folder} is complete, and `hf upload {repo_id} {folder}` uploads it"
        raise _refused(repo_id, error, done) from None


def _is_weights(name: str) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in WEIGHTS)


def _refused(repo_id: str, error: Exception, done: str = "") -> BadInput:
    """Return the error for a request that failed; any other exception than one of a request is raised again.

    Args:
        done: added to the message.
    """
    # Errors of a thread that uploads a file are the cause of a general one.
    causes: list[Any] = [cause for cause in (error, error.__cause__) if cause is not None]
    status = next((cause.response.status_code for cause in causes if hasattr(cause, "response")), None)
    if status == 401:
        fix = "the hub does not accept the token; run `hf auth login --force`, or set HF_TOKEN to a valid one"
    elif status == 403:
        fix = "the token may not write there; choose a name of yours, or a token with the permission to write"
    elif isinstance(error, OSError | ValueError | RuntimeError) or _is_of_client(error):
        reason = next((cause.server_message for cause in causes if getattr(cause, "server_message", None)), causes[-1])
        text = " ".join(without_secrets(str(reason)).split())[:200]
        if status:
            fix = f"the hub refuses it ({status}: {text})"
        elif any(map(_is_of_network, causes)):
            fix = f"the hub does not answer ({text}); go online, or check HF_ENDPOINT"
        else:
            fix = f"it failed: {text}"
    else:
        raise error
    return BadInput(f"--push {repo_id}: {fix}{done}")


def _is_of_network(error: Any) -> bool:
    return isinstance(error, OSError) or _is_of_client(error)


def _is_of_client(error: Any) -> bool:
    """Return whether an exception is one of the library's HTTP client, whose module differs between versions."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "requests", "hf_xet")
