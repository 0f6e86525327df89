"""Detection of sentence ends in a stream of ids, from the spelling of the entries of the vocabulary, without the text.

A sentence ends after a run of . ! ? and the closing quotes and brackets that follow, with the white space after them. It does not
end after an abbreviation or an initial (`ABBREVIATIONS`), nor inside a number. With a vocabulary that keeps spaces, byte-level
BPE or a unigram model, "3.14", "example.com" and "Well...then" do not end a sentence either, because no space follows the stop.
WordPiece drops spaces; there a full stop between digits is part of a number.
"""

import dataclasses
import re
import string
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int64, Integer, UInt8

from train.rows.lm_rows import expand_counts
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer

ABBREVIATIONS = (
    *("Mr", "Mrs", "Ms", "Messrs", "Mme", "Mlle", "Dr", "Prof", "Rev", "Hon", "St", "Mt", "Esq", "Jr", "Sr"),
    *("Capt", "Col", "Gen", "Lt", "Sgt", "Gov", "Sen", "Rep", "vs", "cf", "viz", "vol", "Vol", "pp", "Inc", "Ltd"),
    # Initials, "e.g." and "a.m."; "I" ends sentences.
    *(letter for letter in string.ascii_letters if letter not in "iI"),
)
"""A full stop after one of these does not end a sentence. An uncased vocabulary encodes them in lower case by itself."""

OTHER, SPACE, CLOSER, STOP, FULL_STOP = range(5)
"""Kinds of entries: any other; white space; closing quotes and brackets; a run that ends a sentence; "." alone."""
# A character that is split over several entries is spelled U+FFFD. At the end of a run that is nearly always a closing quote; if
# it is a dash, no space follows.
CLOSERS = "\"'\u201d\u2019\u00bb)\\]}\ufffd"
IDS_PER_CHUNK = 1 << 22
"""Number of ids that are examined at a time."""


class Sentences(NamedTuple):
    """Ranges of ids, in order. Together they are the text of every document, without the special tokens that end documents."""

    document: Int64[np.ndarray, " sentences"]
    start: Int64[np.ndarray, " sentences"]
    """Index of the first id of each sentence in its document."""
    size: Int64[np.ndarray, " sentences"]
    """Ids of each sentence, at least 1."""


def find_sentences(tokens: Tokens, tokenizer: Tokenizer, longest: int) -> Sentences:
    """Return the sentences of all documents; one of more than `longest` ids is cut into ranges of `longest` and a rest."""
    first, last = tokens.offsets[:-1], tokens.offsets[1:] - 1
    starts = np.union1d(first, _ends(tokens.ids, _Vocabulary.of(tokenizer)) + 1)
    document = np.searchsorted(tokens.offsets, starts, side="right") - 1
    # A sentence that begins at the end of its document is empty, and `cut_long_ranges` makes no range of it.
    size = np.minimum(np.append(starts[1:], len(tokens.ids)), last[document]) - starts
    return cut_long_ranges(Sentences(document, starts - first[document], size), longest)


def cut_long_ranges(ranges: Sentences, longest: int) -> Sentences:
    """Return ranges of at most `longest` ids: a longer one is cut into ranges of `longest` and a rest."""
    owner, nth = expand_counts(-(-ranges.size // longest))
    size = np.minimum(ranges.size[owner] - nth * longest, longest)
    return Sentences(ranges.document[owner], ranges.start[owner] + nth * longest, size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Vocabulary:
    """Properties of the entries of a vocabulary that determine sentence ends, as tables over the ids."""

    spaced: bool
    """True if entries begin with the space before them."""
    kind: UInt8[np.ndarray, " V"]
    begins_with_space: Bool[np.ndarray, " V"]
    """True if an entry begins with white space."""
    digit_first: Bool[np.ndarray, " V"]
    digit_last: Bool[np.ndarray, " V"]
    continues_word: Bool[np.ndarray, " V"]
    """True if an entry that follows without a space is the rest of a word, and so not an abbreviation."""
    abbreviations: tuple[tuple[int, ...], ...]
    """The ids of each abbreviation."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "_Vocabulary":
        entries = [tokenizer.spell(number) for number in range(tokenizer.vocab_size)]
        special = set() if tokenizer.special_tokens is None else set(tokenizer.special_tokens.special)
        spaced = tokenizer.kind != "wordpiece"

        def table(pattern: str) -> np.ndarray:
            compiled = re.compile(pattern)
            return np.array([number not in special and compiled.search(text) is not None for number, text in enumerate(entries)])

        kind = np.full(len(entries), OTHER, np.uint8)
        kind[table(rf"^[{CLOSERS}]+$")] = CLOSER
        kind[table(rf"^\s*[^\w\s]*[.!?][{CLOSERS}]*$")] = STOP
        kind[table(r"^\.$")] = FULL_STOP
        # The only white space entry of a unigram model belongs to the word after it.
        if tokenizer.kind in ("gpt", "roberta", "modernbert"):
            kind[table(r"^\s+$")] = SPACE
        spellings = [spelled for word in ABBREVIATIONS for spelled in ((f" {word}", word) if spaced else (word,))]
        words = {tuple(ids.tolist()) for ids in tokenizer.encode_many(spellings)}
        return cls(
            spaced=spaced,
            kind=kind,
            begins_with_space=table(r"^\s"),
            digit_first=table(r"^\d"),
            digit_last=table(r"\d$"),
            continues_word=table("[\\w'\u2019\ufffd]$" if spaced else "['\u2019]$"),
            # All words of unknown letters have the same ids.
            abbreviations=tuple(sorted(word for word in words if not special.intersection(word))),
        )


def _ends(ids: Integer[np.ndarray, " tokens"], vocabulary: _Vocabulary) -> Int64[np.ndarray, " ends"]:
    """Return the position of the last id of each sentence, except of those that end only because their document does."""
    chunks = range(0, len(ids), IDS_PER_CHUNK)
    # Few ids are of a kind that matters; everything below uses those alone.
    at = np.concatenate([first + np.flatnonzero(vocabulary.kind[ids[first : first + IDS_PER_CHUNK]]) for first in chunks])
    kind = vocabulary.kind[ids[at]]
    if not (kind >= STOP).any():
        return np.zeros(0, np.int64)
    # Find runs of them. White space ends a run, because a quote after it opens the next sentence. The special token after each
    # document is of kind OTHER.
    begins = np.diff(at, prepend=-2) != 1
    begins[1:] |= (kind[1:] != SPACE) & (kind[:-1] == SPACE)
    first = np.flatnonzero(begins)
    stops = np.maximum.reduceat(kind, first) >= STOP
    visible = np.add.reduceat(kind != SPACE, first)[stops]
    last = np.append(first[1:], len(at))[stops] - 1
    head, tail = at[first[stops]], at[last]
    alone = (visible == 1) & (kind[first[stops]] == FULL_STOP)
    after = ids[tail + 1]
    if vocabulary.spaced:
        inside = ~vocabulary.begins_with_space[after] & (kind[last] != SPACE)
    else:
        inside = alone & vocabulary.digit_last[ids[np.maximum(head - 1, 0)]] & vocabulary.digit_first[after]
    inside[alone] |= _abbreviated(ids, head[alone], vocabulary)
    return tail[~inside]


def _abbreviated(
    ids: Integer[np.ndarray, " tokens"], at: Int[np.ndarray, " stops"], vocabulary: _Vocabulary
) -> Bool[np.ndarray, " stops"]:
    """Return whether an abbreviation precedes each of these full stops."""
    abbreviated = np.zeros(len(at), bool)
    before = ids[np.maximum(at - 1, 0)]
    for word in vocabulary.abbreviations:
        which = np.flatnonzero((before == word[-1]) & (at >= len(word)))
        start = at[which] - len(word)
        same = np.ones(len(which), bool)
        for nth, number in enumerate(word):
            same &= ids[start + nth] == number
        if not vocabulary.begins_with_space[word[0]]:
            same &= (start == 0) | ~vocabulary.continues_word[ids[np.maximum(start - 1, 0)]]
        abbreviated[which[same]] = True
    return abbreviated
