"""T5's kind of tokenizer, small enough to read, for tests of rows with two sides."""

from collections.abc import Iterable

from train import unigram
from train.marks import TEXT, sentinel
from train.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.!?"


def spelled(words: Iterable[str] = (), sentinels: int = 100) -> Tokenizer:
    """Its entries are the marks, a word's beginning, letters and digits, these words, and the sentinels."""
    entries = [unigram.SPACE, *LETTERS, *(f"{unigram.SPACE}{word}" for word in words)]
    scored = [*((name, 0.0) for name in TEXT.values()), *((entry, -1.0 - number / 100) for number, entry in enumerate(entries))]
    return Tokenizer(unigram.content([*scored, *((sentinel(n), 0.0) for n in reversed(range(sentinels)))], b""))
