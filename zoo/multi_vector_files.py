"""The settings of models with a vector for each token: in files of sentence-transformers 6, of PyLate, and of ColBERT's own code.

The first two have `config_sentence_transformers.json`, whose `model_type` says so: "ColBERT" (PyLate), with all settings in that
file, or "MultiVectorEncoder" (sentence-transformers 6), with the lengths in `sentence_bert_config.json` and the skipped tokens in
`N_MultiVectorMask/config.json`. PyLate's form is written, which both read. ColBERT's own code, that of the papers, names the
architecture "HF_ColBERT" in `config.json`, and its settings are in `artifact.metadata`. Nothing here imports JAX.
"""

import dataclasses
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zoo.errors import BadInput
from zoo.hf.config_json import FILE, LARGEST_FILE, PublishedConfig, read_json
from zoo.hf.tokenizer_files import has_entry

PYLATE, NATIVE = "ColBERT", "MultiVectorEncoder"
"""Values of `model_type`."""
MASK = "MultiVectorMask"
SETTINGS = "config_sentence_transformers.json"
ORIGINAL, METADATA, LAYER = "HF_ColBERT", "artifact.metadata", "linear.weight"
"""Of ColBERT's own code: the architecture in config.json, the file of the settings, and the layer among the encoder's tensors."""
QUERY_LENGTH, DOCUMENT_LENGTH = 32, 180
"""Lengths of a file of PyLate that names none."""
PUNCTUATION = tuple(string.punctuation)
"""The skipped tokens of a file of PyLate that names none."""
SIMILARITIES = ("maxsim", "MaxSim", "cosine", None)
"""Values of `similarity_fn_name` that mean MaxSim of cosines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiVector:
    """Lengths, expansion and skipped tokens of texts that become vectors of tokens."""

    query_length: int | None = QUERY_LENGTH
    """Tokens of a query, special tokens included; None = the model's positions."""
    document_length: int | None = DOCUMENT_LENGTH
    """Tokens of a document; None = the model's positions."""
    query_expansion: bool = True
    """Fill queries up to that length with the mask token, whose vectors count."""
    attend_to_expansion_tokens: bool = False
    """The tokens of a query see those mask tokens."""
    skiplist_words: tuple[str, ...] = PUNCTUATION
    """Entries of the vocabulary whose vectors are left out of documents."""
    has_markers: bool = True
    """A prompt that is, or begins with, an entry of the vocabulary is that one token; False: only a special token is."""


def read_multi_vector(folder: Path) -> MultiVector | None:
    """Return the settings of a folder; None for a model with one vector for a text.

    Raises:
        BadInput: a setting that is not supported; the message names the file and the key.
    """
    if not (folder / SETTINGS).exists():
        return None
    content = read_json(folder / SETTINGS, LARGEST_FILE)
    kind = content.get("model_type")
    if kind not in (PYLATE, NATIVE):
        return None
    config = PublishedConfig(folder / SETTINGS, content)
    if (similarity := content.get("similarity_fn_name")) not in SIMILARITIES:
        raise config.wrong("similarity_fn_name", similarity, "this is not supported for vectors of tokens, only maxsim")
    return _read_pylate(config, content) if kind == PYLATE else _read_native(folder)


def _read_pylate(config: PublishedConfig, content: Mapping[str, Any]) -> MultiVector:
    expands = config.flag("do_query_expansion", True, nullable=True)
    default = QUERY_LENGTH if expands else None
    return MultiVector(
        query_length=config.integer("query_length", nullable=True) if content.get("query_length") is not None else default,
        document_length=config.integer("document_length") if content.get("document_length") is not None else None,
        query_expansion=expands,
        attend_to_expansion_tokens=config.flag("attend_to_expansion_tokens", False, nullable=True),
        skiplist_words=_words(config, content.get("skiplist_words"), PUNCTUATION),
    )


def _read_native(folder: Path) -> MultiVector:
    texts = folder / "sentence_bert_config.json"
    content = read_json(texts, LARGEST_FILE) if texts.exists() else {}
    config = PublishedConfig(texts, content)
    lengths = {
        name: config.integer(name) if content.get(name) is not None else None for name in ("query_length", "document_length")
    }
    expansion, attend = content.get("query_expansion"), False
    if expansion is not None:
        if not isinstance(expansion, dict) or expansion.get("strategy") != "fixed" or expansion.get("token") is not None:
            fix = 'only null and {"strategy": "fixed", "attend": ..., "token": null, "length": ...} are supported'
            raise config.wrong("query_expansion", expansion, fix)
        own = PublishedConfig(texts, expansion)
        lengths["query_length"] = own.integer("length")
        attend = own.flag("attend", False)
    mask_folders = sorted(folder.glob(f"*_{MASK}"))
    words: tuple[str, ...] = ()
    for mask in mask_folders:
        mask_content = read_json(mask / FILE, LARGEST_FILE)
        mask_config = PublishedConfig(mask / FILE, mask_content)
        words = _words(mask_config, mask_content.get("skiplist_words"), ())
        for key, supported in (("skiplist_tasks", ["document"]), ("keep_only_token_ids", None)):
            if (value := mask_content.get(key, supported)) != supported:
                raise mask_config.wrong(key, value, f"this is not supported, only {json.dumps(supported)}")
    return MultiVector(
        **lengths,
        query_expansion=expansion is not None,
        attend_to_expansion_tokens=attend,
        skiplist_words=words,
        has_markers=False,
    )


def is_original(folder: Path) -> bool:
    """Return whether the config.json of a folder has the architecture of ColBERT's own code.

    Raises:
        BadInput: config.json is damaged.
    """
    return (folder / FILE).exists() and PublishedConfig.load(folder).architecture() == ORIGINAL


def read_original(folder: Path) -> tuple[MultiVector, dict[str, str], int]:
    """Return the settings of such a folder, the prompts, which are its markers, and the dimensions of a vector.

    An absent key has the default of that code (`colbert/infra/config/settings.py`).

    Raises:
        BadInput: no `artifact.metadata`, or a setting that is not supported; the message names the file and the key.
    """
    if not (file := folder / METADATA).exists():
        raise BadInput(f"{file}: no such file, and {FILE} names the architecture {ORIGINAL}; copy that file of the model there")
    config = PublishedConfig(file, content := read_json(file, LARGEST_FILE))
    for key, value in (("similarity", "cosine"), ("interaction", "colbert")):
        config.choice(key, {value: 0}, value, why="this is not supported, only")
    prompts = {}
    for name, key, default in (("query", "query_token_id", "[unused0]"), ("document", "doc_token_id", "[unused1]")):
        prompts[name] = content.get(key, default)
        if not isinstance(prompts[name], str) or not has_entry(folder, prompts[name]):
            raise config.wrong(
                key, prompts[name], f"the tokenizer has no entry {json.dumps(prompts[name])[:40]}; write one that it has"
            )
    settings = MultiVector(
        query_length=config.integer("query_maxlen", QUERY_LENGTH),
        document_length=config.integer("doc_maxlen", 220),
        attend_to_expansion_tokens=config.flag("attend_to_mask_tokens", False),
        skiplist_words=PUNCTUATION if config.flag("mask_punctuation", True) else (),
    )
    return settings, prompts, config.integer("dim", 128)


def _words(config: PublishedConfig, words: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    if words is None:
        return default
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise config.wrong("skiplist_words", words, "it must be a list of texts")
    return tuple(words)


def read_prefixed_prompts(content: Mapping[str, Any], prompts: dict[str, str]) -> dict[str, str]:
    """Return prompts with PyLate's `query_prefix` and `document_prefix` before those of the two sides.

    Raises:
        BadInput: a prefix that is no text.
    """
    prompts = dict(prompts)
    for key, name in (("query_prefix", "query"), ("document_prefix", "document")):
        prefix = content.get(key) or ""
        if not isinstance(prefix, str):
            raise BadInput(f"{SETTINGS}: {key} is {json.dumps(prefix)[:40]}; write a text")
        if prefix:
            prompts[name] = prefix + prompts.get(name, "").removeprefix(prefix)
    return prompts


def multi_vector_entries(settings: MultiVector, prompts: Mapping[str, str]) -> dict[str, Any]:
    """Return the keys of `config_sentence_transformers.json` beside those of other models."""
    prefixes = {f"{name}_prefix": prompts[name] for name in ("query", "document") if settings.has_markers and prompts.get(name)}
    return {
        "model_type": PYLATE,
        **prefixes,
        "query_length": settings.query_length,
        "document_length": settings.document_length,
        "do_query_expansion": settings.query_expansion,
        "attend_to_expansion_tokens": settings.attend_to_expansion_tokens,
        "skiplist_words": list(settings.skiplist_words),
        "similarity_fn_name": "maxsim",
    }
