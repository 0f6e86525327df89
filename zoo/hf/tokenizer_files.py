"""The files of a tokenizer in a folder of published weights; importing this module imports no tokenizer library."""

import contextlib
import json
from pathlib import Path

from zoo.errors import BadInput
from zoo.file_access import read_regular_text

FILE, SETTINGS, CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
VOCABULARY, ENTRIES = "vocab.json", "vocab.txt"
PIECES, XLM_PIECES = "spiece.model", "sentencepiece.bpe.model"
WITHOUT_VOCABULARY = "ByT5Tokenizer"
"""The class that needs none of these files."""


def has_entry(folder: Path, token: str) -> bool:
    """Return whether the vocabulary of a tokenizer, in tokenizer.json, vocab.json or vocab.txt, has an entry."""
    for name in (FILE, VOCABULARY, ENTRIES):
        # What cannot be read is reported by the reader of that file.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            text = read_regular_text(folder / name)
            if name == FILE:
                content = json.loads(text)
                pieces = content["model"]["vocab"]  # entry -> id, or of a unigram model [entry, score]
                names = {*pieces} if isinstance(pieces, dict) else {piece for piece, _ in pieces}
                names |= {added["content"] for added in content["added_tokens"]}
            else:
                names = {*(json.loads(text) if name == VOCABULARY else text.splitlines())}
            if token in names:
                return True
    return False


def require_tokenizer(folder: Path) -> None:
    """Refuse a folder that has no file of a tokenizer.

    Raises:
        BadInput: it has none, and neither tokenizer_config.json nor config.json names ByT5's class.
    """
    if any((folder / name).exists() for name in (FILE, VOCABULARY, ENTRIES, PIECES, XLM_PIECES)):
        return
    for name in (SETTINGS, CONFIG):
        # What cannot be read is reported by the reader of that file.
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if f'"{WITHOUT_VOCABULARY}"' in read_regular_text(folder / name):
                return
    others = f"{VOCABULARY}, {ENTRIES}, {PIECES} or {XLM_PIECES}"
    raise BadInput(f"{folder}: holds no {FILE} and no {others}; copy the tokenizer of the model there")
