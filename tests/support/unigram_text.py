"""Tokenizers of T5's and XLNet's kinds, small enough to read."""

from collections.abc import Iterable

from train.tokenizers import unigram, xlnet_unigram
from train.tokenizers.special_tokens import TEXT, XLNET, sentinel_name
from train.tokenizers.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.!?"


def _scored(special: Iterable[str], words: Iterable[str]) -> list[tuple[str, float]]:
    """Special tokens, the beginning of a word, letters and digits, and these words."""
    entries = [unigram.SPACE, *LETTERS, *(f"{unigram.SPACE}{word}" for word in words)]
    return [*((name, 0.0) for name in special), *((entry, -1.0 - number / 100) for number, entry in enumerate(entries))]


def spelled(words: Iterable[str] = (), sentinels: int = 100) -> Tokenizer:
    """Return a tokenizer of T5's kind, whose sentinels come last."""
    scored = [*_scored(TEXT.values(), words), *((sentinel_name(n), 0.0) for n in reversed(range(sentinels)))]
    return Tokenizer(unigram.t5_tokenizer_json(scored, b""))


def xlnet(words: Iterable[str] = ()) -> Tokenizer:
    """Return one of XLNet's kind: nine special tokens, a word's beginning (id 9), letters and digits (10 to 48), words."""
    return Tokenizer(xlnet_unigram.xlnet_tokenizer_json(_scored(XLNET.values(), words), b""))
