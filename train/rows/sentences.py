"""Where sentences end in a prepared stream of ids: told by what the vocabulary's entries look like, without the text.

A sentence ends after a run of . ! ? and the closing quotes and brackets that follow, with the white space after them. It does not
end after an abbreviation or an initial (`ABBREVIATIONS`), nor inside a number. A vocabulary that keeps spaces, byte-level BPE or
a unigram model, also tells "3.14", "example.com" and "Well...then" from an end: no space follows. WordPiece drops them; there a
full stop between digits is a number's.
"""

import dataclasses
import re
import string
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int64, Integer, UInt8

from train.rows.lm_rows import expand
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer

ABBREVIATIONS = (
    *("Mr", "Mrs", "Ms", "Messrs", "Mme", "Mlle", "Dr", "Prof", "Rev", "Hon", "St", "Mt", "Esq", "Jr", "Sr"),
    *("Capt", "Col", "Gen", "Lt", "Sgt", "Gov", "Sen", "Rep", "vs", "cf", "viz", "vol", "Vol", "pp", "Inc", "Ltd"),
    # Initials, "e.g." and "a.m."; "I" ends sentences.
    *(letter for letter in string.ascii_letters if letter not in "iI"),
)
"""A full stop after one of these ends no sentence. As written: an uncased vocabulary knows them in lower case by itself."""

OTHER, SPACE, CLOSER, STOP, FULL_STOP = range(5)
"""What an entry of the vocabulary is: white space; closing quotes and brackets; a run that ends a sentence; "." alone."""
# A character that is split over several entries reads U+FFFD. At the end of a run that is nearly always a closing quote; where it
# is a dash, no space follows.
CLOSERS = "\"'\u201d\u2019\u00bb)\\]}\ufffd"
CHUNK = 1 << 22
"""Ids looked at at a time."""


class Sentences(NamedTuple):
    """Ranges of ids, in order. Together they are the text of every document, without the marks that end them."""

    document: Int64[np.ndarray, " sentences"]
    start: Int64[np.ndarray, " sentences"]
    """Of the document's ids, the first one."""
    size: Int64[np.ndarray, " sentences"]
    """At least 1."""


def sentences(tokens: Tokens, tokenizer: Tokenizer, longest: int) -> Sentences:
    """The sentences of all documents; one of more than `longest` ids is cut into pieces of that many and a rest."""
    first, last = tokens.offsets[:-1], tokens.offsets[1:] - 1
    starts = np.union1d(first, _ends(tokens.ids, _Vocabulary.of(tokenizer)) + 1)
    document = np.searchsorted(tokens.offsets, starts, side="right") - 1
    # What begins with the end of its document is empty: it is cut into no pieces.
    size = np.minimum(np.append(starts[1:], len(tokens.ids)), last[document]) - starts
    return cut(Sentences(document, starts - first[document], size), longest)


def cut(whole: Sentences, longest: int) -> Sentences:
    """Ranges of at most `longest` ids: a longer one in pieces of that many and a rest."""
    owner, nth = expand(-(-whole.size // longest))
    size = np.minimum(whole.size[owner] - nth * longest, longest)
    return Sentences(whole.document[owner], whole.start[owner] + nth * longest, size)


@dataclasses.dataclass(frozen=True, eq=False)
class _Vocabulary:
    """What of a vocabulary's entries tells where sentences end, each a table over the ids."""

    spaced: bool
    """Whether entries begin with the space before them."""
    kind: UInt8[np.ndarray, " V"]
    apart: Bool[np.ndarray, " V"]
    """Begins with white space."""
    digit_first: Bool[np.ndarray, " V"]
    digit_last: Bool[np.ndarray, " V"]
    within: Bool[np.ndarray, " V"]
    """What follows without a space is the rest of a word: not an abbreviation of its own."""
    abbreviations: tuple[tuple[int, ...], ...]
    """The ids of each."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "_Vocabulary":
        entries = [tokenizer.spell(number) for number in range(tokenizer.vocab_size)]
        marks = set() if tokenizer.marks is None else set(tokenizer.marks.special)
        spaced = tokenizer.kind != "wordpiece"

        def table(pattern: str) -> np.ndarray:
            found = re.compile(pattern)
            return np.array([number not in marks and found.search(text) is not None for number, text in enumerate(entries)])

        kind = np.full(len(entries), OTHER, np.uint8)
        kind[table(rf"^[{CLOSERS}]+$")] = CLOSER
        kind[table(rf"^\s*[^\w\s]*[.!?][{CLOSERS}]*$")] = STOP
        kind[table(r"^\.$")] = FULL_STOP
        # A unigram model's only entry of white space belongs to the word after it.
        if tokenizer.kind in ("gpt", "roberta"):
            kind[table(r"^\s+$")] = SPACE
        spellings = [spelled for word in ABBREVIATIONS for spelled in ((f" {word}", word) if spaced else (word,))]
        words = {tuple(ids.tolist()) for ids in tokenizer.encode_many(spellings)}
        return cls(
            spaced=spaced,
            kind=kind,
            apart=table(r"^\s"),
            digit_first=table(r"^\d"),
            digit_last=table(r"\d$"),
            within=table("[\\w'\u2019\ufffd]$" if spaced else "['\u2019]$"),
            # A word of unknown letters looks like any other one.
            abbreviations=tuple(sorted(word for word in words if not marks.intersection(word))),
        )


def _ends(ids: Integer[np.ndarray, " tokens"], vocabulary: _Vocabulary) -> Int64[np.ndarray, " ends"]:
    """The last id of each sentence, save those that end only because their document does."""
    chunks = range(0, len(ids), CHUNK)
    # Few ids are of a kind that matters: everything after this is done with those alone.
    at = np.concatenate([first + np.flatnonzero(vocabulary.kind[ids[first : first + CHUNK]]) for first in chunks])
    kind = vocabulary.kind[ids[at]]
    if not (kind >= STOP).any():
        return np.zeros(0, np.int64)
    # Runs of them. White space ends a run: a quote after it opens what comes next. The mark after each document is of no kind.
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
        inside = ~vocabulary.apart[after] & (kind[last] != SPACE)
    else:
        inside = alone & vocabulary.digit_last[ids[np.maximum(head - 1, 0)]] & vocabulary.digit_first[after]
    inside[alone] |= _abbreviated(ids, head[alone], vocabulary)
    return tail[~inside]


def _abbreviated(
    ids: Integer[np.ndarray, " tokens"], at: Int[np.ndarray, " stops"], vocabulary: _Vocabulary
) -> Bool[np.ndarray, " stops"]:
    """Whether an abbreviation stands before each of these full stops."""
    found = np.zeros(len(at), bool)
    before = ids[np.maximum(at - 1, 0)]
    for word in vocabulary.abbreviations:
        which = np.flatnonzero((before == word[-1]) & (at >= len(word)))
        start = at[which] - len(word)
        same = np.ones(len(which), bool)
        for nth, number in enumerate(word):
            same &= ids[start + nth] == number
        if not vocabulary.apart[word[0]]:
            same &= (start == 0) | ~vocabulary.within[ids[np.maximum(start - 1, 0)]]
        found[which[same]] = True
    return found
