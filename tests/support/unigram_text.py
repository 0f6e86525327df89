"""T5's kind of tokenizer and XLNet's, small enough to read, for tests of rows with two sides, and of those that end with CLS."""

from collections.abc import Iterable

from train import unigram, unigram_xlnet
from train.marks import TEXT, XLNET, sentinel
from train.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.!?"


def spelled(words: Iterable[str] = (), sentinels: int = 100) -> Tokenizer:
    """Its entries are the marks, a word's beginning, letters and digits, these words, and the sentinels."""
    entries = [unigram.SPACE, *LETTERS, *(f"{unigram.SPACE}{word}" for word in words)]
    scored = [*((name, 0.0) for name in TEXT.values()), *((entry, -1.0 - number / 100) for number, entry in enumerate(entries))]
    return Tokenizer(unigram.content([*scored, *((sentinel(n), 0.0) for n in reversed(range(sentinels)))], b""))


def xlnet(words: Iterable[str] = ()) -> Tokenizer:
    """Its entries are the nine marks, a word's beginning (id 9), letters and digits (10 to 48), and these words."""
    entries = [unigram.SPACE, *LETTERS, *(f"{unigram.SPACE}{word}" for word in words)]
    scored = [*((name, 0.0) for name in XLNET.values()), *((entry, -1.0 - number / 100) for number, entry in enumerate(entries))]
    return Tokenizer(unigram_xlnet.content(scored, b""))
