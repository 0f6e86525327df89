"""Tokenizers of encoders and streams of token ids, small enough to read."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from train.rows.token_cache import Tokens
from train.tokenizers import wordpiece
from train.tokenizers.special_tokens import BERT
from train.tokenizers.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def uncased(words: Iterable[str] = ()) -> Tokenizer:
    """Return a tokenizer of BERT's kind: these words, letters, digits and punctuation."""
    entries = [*BERT.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS), *".!?,;'\"()\u2019\u201c\u201d", *words]
    return Tokenizer(wordpiece.bert_tokenizer_json({entry: number for number, entry in enumerate(entries)}, lowercase=True))


def roberta(texts: Iterable[str] = (), vocab: int = 261) -> Tokenizer:
    """Return a tokenizer of RoBERTa's kind; without texts its entries are the bytes."""
    return Tokenizer.train(texts, vocab, "roberta")


def modernbert(texts: Iterable[str] = (), vocab: int = 261) -> Tokenizer:
    """Return a tokenizer of ModernBERT's kind; without texts its entries are the bytes."""
    return Tokenizer.train(texts, vocab, "modernbert")


def stream(documents: Sequence[str | Sequence[int]], tokenizer: Tokenizer) -> Tokens:
    """Return the tokens of documents, each a text or its ids, as preparation makes them."""
    parts = [tokenizer.encode(each) if isinstance(each, str) else np.array(each, np.int32) for each in documents]
    ids = np.concatenate([np.append(part, tokenizer.end_of_text) for part in parts]).astype(np.uint16)
    sizes = np.array([len(part) for part in parts])
    return Tokens(ids, np.cumsum(np.append(0, sizes + 1)), sizes, tokenizer.end_of_text, "stream")


def sentences_of(sizes: Iterable[Iterable[int]], tokenizer: Tokenizer) -> Tokens:
    """Return the tokens of documents with sentences of so many ids (where bytes are tokens, one more: a space)."""
    letters, between = itertools.cycle(LETTERS), " " if tokenizer.kind == "wordpiece" else ""
    texts = ["".join(between.join(itertools.islice(letters, size - 1)) + "! " for size in document) for document in sizes]
    return stream(texts, tokenizer)
