"""Folders of published weights by name: a local folder, or a hub id from the local cache or the network."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from zoo import trust
from zoo.errors import BadInput, without_secrets
from zoo.file_access import read_regular_text
from zoo.json_shapes import read_shaped_json
from zoo.runtime import caches

T = TypeVar("T")

PREFIX = "hub:"
PATTERNS = [
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer*.json", "vocab.*", "merges.txt", "*.model", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json", "[0-9]*/config.json"),
    # The settings of a model of ColBERT's own code.
    "artifact.metadata",
]
IGNORED = ["[!0-9]*/*"]
"""The same weights in other formats, for other programs, in folders of their own: gpt-oss has `original` and `metal`. A folder
of sentence-transformers' modules begins with a digit."""
FLAX_PATTERNS = ["flax_model.msgpack", "flax_model.msgpack.index.json", "flax_model-*.msgpack"]
"""Weights that are fetched if a model has no safetensors."""
ORIGIN = "hub_origin.json"
"""File of an imported model that names the model on the hub that it is a copy of: {"id": "ORG/NAME", "revision": "COMMIT"}."""
PATIENCE = 5.0
"""Seconds to wait for the hub's first answer."""


def fetch_model(name: str) -> Path:
    """Return the folder of `hub:ID` or `hub:ID@REVISION`, which is downloaded unless the local cache has it.

    Only safetensors (or else Flax's msgpack), JSON, vocabularies, SentencePiece models and chat templates are fetched.

    Raises:
        BadInput: not in the cache and no network (after a single attempt), or the hub has no such model or refuses access; or
            other users can write to the cache, see `zoo.runtime.caches.private_folder`.
    """
    import huggingface_hub

    if (cached := find_cached(name)) is not None:
        return cached
    repo_id, _, revision = name.removeprefix(PREFIX).partition("@")
    revision = revision or None
    patterns: dict[str, Any] = {"ignore_patterns": IGNORED}

    def download() -> str:
        # One request without retries, before a download that has many.
        info = huggingface_hub.HfApi().model_info(repo_id, revision=revision, timeout=PATIENCE)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        patterns["allow_patterns"] = patterns_for(files)
        return huggingface_hub.snapshot_download(repo_id, revision=revision, **patterns)

    return Path(request_from_hub(download, name, "model or revision", instead="a folder"))


def find_cached(name: str) -> Path | None:
    """Return the folder of a model that `fetch_model` would not download; None if the local cache does not have it.

    Raises:
        BadInput: the name is no id of the hub; or other users can write to the cache.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors

    caches.private_folder(Path(constants.HF_HUB_CACHE), "HF_HUB_CACHE")
    repo_id, _, revision = name.removeprefix(PREFIX).partition("@")
    patterns: Any = {"allow_patterns": [*PATTERNS, *FLAX_PATTERNS], "ignore_patterns": IGNORED}
    try:
        cached = huggingface_hub.snapshot_download(repo_id, revision=revision or None, local_files_only=True, **patterns)
    except errors.HFValidationError as error:
        raise BadInput(f"{name}: not a hub id ({error})") from None
    except errors.LocalEntryNotFoundError:
        return None
    return Path(cached) if _is_complete(Path(cached)) else None


def patterns_for(files: Sequence[str]) -> list[str]:
    """Return the patterns of the files to fetch of a model that has these files: its weights in one format only."""
    has_safetensors = any(name.endswith(".safetensors") and "/" not in name for name in files)
    return PATTERNS if has_safetensors else [*PATTERNS, *FLAX_PATTERNS]


def request_from_hub(
    question: Callable[[], T], name: str, what: str, *, instead: str, missing: str = "not in the local cache"
) -> T:
    """Return the result of a request to the hub about `name`, which is `missing` here.

    Raises:
        BadInput: only a file of an unconfirmed folder names it (see `zoo.trust`); the network is forbidden or does not answer; or
            the hub has no such `what`, or refuses access.
    """
    from huggingface_hub import constants, errors

    trust.check_trusted([name])
    if constants.HF_HUB_OFFLINE:
        raise BadInput(f"{name}: {missing}, and HF_HUB_OFFLINE forbids the download; unset it, or give {instead}")
    try:
        return question()
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError):
        raise BadInput(f"{name}: the hub has no such {what}, or it needs a login; check the name") from None
    except Exception as error:
        # The exceptions of the library's HTTP client have another module in each version.
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
            raise
        why = " ".join(without_secrets(str(error)).split())[:120]
        raise BadInput(f"{name}: {missing}, and the hub does not answer ({why}); go online once, or give {instead}") from None


def write_origin(folder: Path, name: str, source: Path) -> None:
    """Write the id and the commit of a model of the hub into a copy of it.

    Args:
        name: ID or ID@REVISION, with or without "hub:".
        source: the folder in the local cache, which is named by the commit.
    """
    content = {"id": name.removeprefix(PREFIX).partition("@")[0], "revision": source.name}
    (folder / ORIGIN).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_origin(folder: Path, name: str = "") -> str:
    """Return the model of the hub that a folder of published weights is, or is a copy of, as ORG/NAME@COMMIT; "" if unknown.

    Args:
        name: the name by which the folder was found, which may be hub:ID.

    Raises:
        BadInput: the file that names it is damaged.
    """
    if name.startswith(PREFIX):
        return f"{name.removeprefix(PREFIX).partition('@')[0]}@{folder.name}"
    content = read_shaped_json(folder / ORIGIN, {"id": str, "revision": str}, "remove it")
    return f"{content['id']}@{content['revision']}" if content and is_hub_id(content["id"]) else ""


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form of an id of the hub: NAME or ORG/NAME."""
    from huggingface_hub import errors, utils

    try:
        utils.validate_repo_id(name)
    except errors.HFValidationError:
        return False
    return True


def _is_complete(folder: Path) -> bool:
    """Return True if a cached model has all its files; an interrupted download or another program may have left only some."""
    # Imported here because they import JAX, and data sets are downloaded before JAX starts.
    from zoo.hf import flax_msgpack, safetensors_dir

    formats = ((safetensors_dir.INDEX, safetensors_dir.SINGLE), (flax_msgpack.INDEX, flax_msgpack.SINGLE))
    present = [names for names in formats if any((folder / name).exists() for name in names)]
    index, single = (folder / name for name in (present or formats)[0])
    try:
        shards = set(json.loads(read_regular_text(index))["weight_map"].values()) if index.exists() else {single.name}
        has_shards = all((folder / str(shard)).exists() for shard in shards)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError):
        return False
    # ByT5 has a tokenizer without a vocabulary.
    files = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer_config.json")
    tokenizer = any((folder / name).exists() for name in files)
    return tokenizer and (folder / "config.json").exists() and has_shards and _has_modules(folder)


def _has_modules(folder: Path) -> bool:
    """Return False if modules.json names modules whose settings are absent, as after an interrupted download."""
    modules = folder / "modules.json"
    try:
        rows = json.loads(read_regular_text(modules)) if modules.exists() else []
        paths = [row["path"] for row in rows if row["type"].endswith((".Pooling", ".Dense"))]
        return all((folder / path / "config.json").exists() for path in paths)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError):
        return False


def folder_of(name: str) -> Path:
    """Return the folder for a name on the command line: a path or hub:ID.

    Raises:
        BadInput: no such folder; see also `fetch_model`.
    """
    if name.startswith(PREFIX):
        return fetch_model(name)
    path = Path(name)
    if path.is_dir():
        return path
    check_not_file(name)
    raise BadInput(f"{name}: no such folder; name a run, a folder of published weights, or {PREFIX}ID for a model of the hub")


def check_not_file(name: str) -> None:
    """Refuse a file where the folder of a model is to be named.

    Raises:
        BadInput: names the folder of the file if that has the files of a model.
    """
    path = Path(name)
    if os.path.lexists(path) and not path.is_dir():
        fix = f"name a run, a folder of published weights, or {PREFIX}ID for a model of the hub"
        if (path.parent / "config.json").is_file():
            fix = f"name the folder that it is in: {path.parent if path.name != str(path) else path.parent.resolve()}"
        raise BadInput(f"{name}: not a folder; {fix}")
