"""Folders of published weights by name: a folder as it is, or a hub id from the local cache or the network."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from zoo.errors import BadInput

T = TypeVar("T")

PREFIX = "hub:"
WANTED = [
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*.json", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json"),
]
PATIENCE = 5.0
"""Seconds to wait for the hub's first answer."""


def fetch(name: str) -> Path:
    """The folder of `hub:ID` or `hub:ID@REVISION`: from the local cache if it is there, else downloaded into it.

    Only safetensors, JSON, vocabularies and SentencePiece models are fetched.

    Raises:
        BadInput: not in the cache and no network (at once: one attempt), or the hub has no such model or refuses it.
    """
    import huggingface_hub
    from huggingface_hub import errors

    wanted, _, revision = name.removeprefix(PREFIX).partition("@")
    revision = revision or None
    try:
        cached = huggingface_hub.snapshot_download(wanted, revision=revision, allow_patterns=WANTED, local_files_only=True)
        if _is_whole(Path(cached)):
            return Path(cached)
    except errors.HFValidationError as error:
        raise BadInput(f"{name}: no hub id ({error})") from None
    except errors.LocalEntryNotFoundError:
        pass

    def download() -> str:
        # A question without retries, before a download with many.
        huggingface_hub.HfApi().model_info(wanted, revision=revision, timeout=PATIENCE)
        return huggingface_hub.snapshot_download(wanted, revision=revision, allow_patterns=WANTED)

    return Path(ask(download, name, "model or revision", instead="a folder"))


def ask(question: Callable[[], T], name: str, what: str, *, instead: str, missing: str = "not in the local cache") -> T:
    """The answer of the hub to a question about `name`, which is `missing` here.

    Raises:
        BadInput: the network is forbidden or does not answer, or the hub has no such `what`, or refuses it.
    """
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        raise BadInput(f"{name}: {missing}, and HF_HUB_OFFLINE forbids to fetch it; unset it, or give {instead}")
    try:
        return question()
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError):
        raise BadInput(f"{name}: the hub has no such {what}, or it needs a login; check the name") from None
    except Exception as error:
        # The library's transport has exceptions of its own, under another name in each version.
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
            raise
        why = " ".join(str(error).split())[:120]
        raise BadInput(f"{name}: {missing}, and the hub does not answer ({why}); go online once, or give {instead}") from None


def _is_whole(folder: Path) -> bool:
    """Whether a cached model has all its files: another program may have fetched some, or been interrupted."""
    # Here, for it imports JAX, and data sets come from the hub before JAX starts.
    from zoo.hf import safetensors_dir

    index = folder / safetensors_dir.INDEX
    try:
        shards = (
            set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if index.exists()
            else {safetensors_dir.SINGLE}
        )
    except (ValueError, KeyError, AttributeError, OSError):
        return False
    tokenizer = any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model"))
    return tokenizer and (folder / "config.json").exists() and all((folder / str(shard)).exists() for shard in shards)


def folder_of(where: str) -> Path:
    """The folder that a name given on the command line means.

    Raises:
        BadInput: no such folder; see also `fetch`.
    """
    if where.startswith(PREFIX):
        return fetch(where)
    path = Path(where)
    if path.is_dir():
        return path
    what = "not a folder" if os.path.lexists(path) else "no such folder"
    raise BadInput(f"{where}: {what}; name a run, a folder of published weights, or {PREFIX}ID for a model of the hub")
