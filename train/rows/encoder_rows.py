"""The plan of an encoder's rows: which texts each row has, alone or in pairs, between the marks of its template."""

import dataclasses
import functools
import hashlib
from bisect import bisect_right
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from train.config.run_config import Data
from train.rows import lm_rows
from train.rows.lm_rows import ends, expand, first_fit
from train.rows.sentence_pairs import Pairs, pairs
from train.rows.sentences import Sentences, cut, sentences
from train.rows.token_cache import Tokens
from train.tokenizers.special_tokens import Marks
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput, require

UNLABELLED = -1
"""Label, in a plan, of a sequence that is no pair."""
PAIRED = ("segment_pairs", "sentence_pairs")
"""Values of --data.rows whose sequences are labelled pairs."""


class Range(NamedTuple):
    """Consecutive ids of one document's text."""

    document: int
    start: int
    """Of the document's ids, the first one."""
    ids: np.ndarray


class Sequence(NamedTuple):
    """Texts that see each other."""

    parts: tuple[Range, ...]
    """A pair has two. Several of a sequence that is no pair are of different documents, with a separator between them."""
    pair: bool
    label: int | None
    """Of a pair: 0 = its second text follows the first one, 1 = it is of another document."""


Row = tuple[Sequence, ...]
"""Sequences that do not see each other: one, or several where rows are packed."""


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The rows of a text for an encoder."""

    tokens: Tokens
    length: int
    """Tokens a row has room for, marks included, T."""
    first: Int64[np.ndarray, " rows_and_one"]
    """The first sequence of each row; the last entry is the number of sequences."""
    part: Int64[np.ndarray, " sequences_and_one"]
    """The first part of each sequence; the last entry is the number of parts."""
    label: Int64[np.ndarray, " sequences"]
    """Of pairs the label, else `UNLABELLED`."""
    document: Int64[np.ndarray, " parts"]
    start: Int64[np.ndarray, " parts"]
    count: Int64[np.ndarray, " parts"]
    """Ids of each part, at least 1."""

    def __len__(self) -> int:
        return len(self.first) - 1

    def row(self, number: int) -> Row:
        """A row, its ids mapped rather than copied."""
        return tuple(self._sequence(sequence) for sequence in range(self.first[number], self.first[number + 1]))

    @property
    def text_size(self) -> int:
        """Tokens of the text that is planned, the mark after each document included."""
        return len(self.tokens.ids)

    @property
    def targets(self) -> int:
        """Tokens of text in all rows; those of a random second text are there more than once."""
        return int(self.count.sum())

    def spread(self, count: int) -> "Plan":
        """At most `count` of the rows, evenly spaced: a sample that is the same each time."""
        return self._taken(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the tokens and the plan: equal if and only if every row is."""
        digest = hashlib.sha256(f"{self.tokens.fingerprint} {self.length}".encode())
        for part in (self.first, self.part, self.label, self.document, self.start, self.count):
            digest.update(hashlib.sha256(part.tobytes()).digest())
        return digest.hexdigest()

    def _sequence(self, number: int) -> Sequence:
        parts = tuple(self._range(part) for part in range(self.part[number], self.part[number + 1]))
        label = int(self.label[number])
        return Sequence(parts, label != UNLABELLED, None if label == UNLABELLED else label)

    def _range(self, number: int) -> Range:
        document, start = int(self.document[number]), int(self.start[number])
        first = int(self.tokens.offsets[document]) + start
        return Range(document, start, self.tokens.ids[first : first + int(self.count[number])])

    def _taken(self, chosen: Int64[np.ndarray, " n"]) -> "Plan":
        """The plan of some of the rows."""
        sequences = np.diff(self.first)[chosen]
        owner, nth = expand(sequences)
        return dataclasses.replace(self._ordered(self.first[chosen][owner] + nth), first=ends(sequences))

    def _ordered(self, chosen: Int64[np.ndarray, " n"]) -> "Plan":
        """The plan of some of the sequences, one a row."""
        parts = np.diff(self.part)[chosen]
        owner, nth = expand(parts)
        part = self.part[chosen][owner] + nth
        return dataclasses.replace(
            self,
            first=np.arange(len(chosen) + 1),
            part=ends(parts),
            label=self.label[chosen],
            document=self.document[part],
            start=self.start[part],
            count=self.count[part],
        )


def plan(tokens: Tokens, data: Data, tokenizer: Tokenizer, seed: int, half: Literal["training", "held-out"] = "training") -> Plan:
    """The rows of a text as `data.rows` asks for; random pairs depend on `seed` and the text alone.

    segment_pairs: `train.rows.sentence_pairs.pairs`. sentence_pairs: the same, of single sentences. full_sentences: as many
    consecutive sentences as a row holds, across documents. doc_sentences: the same, each row of one document. windows: as
    full_sentences, but every row is filled up, wherever its last sentence ends. packed: whole documents, cut only where they are
    longer than a row. In the last four every token is in one row exactly. `data.pack` packs sequences first-fit into rows; packed
    does in any case.

    Args:
        half: whose text it is. Training text is not shorter than a row.

    Raises:
        BadInput: a tokenizer without marks, a row too short for its template, text shorter than a row or without tokens, or a
            single document where pairs need another.
    """
    paired = data.rows in PAIRED
    marks = _marks(tokenizer, data)
    taken = marks.between + 2 if paired else 2
    least = taken + (2 if paired else 1)
    require(data.length >= least, "data.length", data.length, f"{taken} tokens of a row are marks; choose {least} or more")
    _check(tokens, data, half)
    room = data.length - taken
    if data.rows == "windows":
        made = _windows(tokens, data.length, room)
    elif data.rows == "packed":
        made = _documents(tokens, data.length, room)
    elif paired:
        # No row has this number, so no mask draws the same.
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, (1 << 64) - 1], np.uint64)))
        single = data.rows == "sentence_pairs"
        made = _paired(tokens, data.length, pairs(sentences(tokens, tokenizer, room), room, rng, short=data.short, single=single))
    else:
        made = _consecutive(tokens, data.length, room, sentences(tokens, tokenizer, room), cross=data.rows == "full_sentences")
    return _packed(made, marks) if data.pack or data.rows == "packed" else made


def _marks(tokenizer: Tokenizer, data: Data) -> Marks:
    if tokenizer.marks is None:
        raise BadInput(
            f"--data.rows {data.rows}: rows of an encoder need a tokenizer with marks for text, separator and mask; "
            "give --tokenizer.path one of BERT or RoBERTa"
        )
    return tokenizer.marks


def _check(tokens: Tokens, data: Data, half: str) -> None:
    if half == "training" and len(tokens.ids) < data.length:
        raise BadInput(
            f"--data.length {data.length}: the training text has {len(tokens.ids)} tokens, fewer than one row; "
            f"choose at most {len(tokens.ids)} or give --data.paths more text"
        )
    documents = np.count_nonzero(np.diff(tokens.offsets) > 1)
    where = "--data.paths" if half == "training" else "--data.valid_paths"
    if documents == 0:
        raise BadInput(f"{where}: the {half} text has no tokens, only white space; give more text")
    if documents == 1 and data.rows in PAIRED:
        raise BadInput(
            f"--data.rows {data.rows}: the {half} text is one document, and random pairs take their second text from another; "
            f"give {where} several documents (a .jsonl line or a .txt file each), or choose --data.rows full_sentences"
        )


def _paired(tokens: Tokens, length: int, made: Pairs) -> Plan:
    each = np.arange(len(made.label) + 1)
    document, start, count = made.document.ravel(), made.start.ravel(), made.size.ravel()
    return Plan(tokens, length, each, 2 * each, made.label, document, start, count)


def _consecutive(tokens: Tokens, length: int, room: int, whole: Sentences, *, cross: bool) -> Plan:
    """Consecutive sentences, as many as fit. The end of a document takes the place of one token, its separator."""
    new = np.diff(whole.document, prepend=whole.document[0]) != 0
    after = np.cumsum(whole.size + new)
    # The sentence with which the document of each ends, where that ends the row.
    bounds = np.append(np.flatnonzero(new), len(new))
    stops = np.full(len(new), len(new)) if cross else bounds[np.cumsum(new)]
    # Read one by one, a view of memory is several times faster than an array.
    until, starts, limits = (np.ascontiguousarray(each).data for each in (after, after - whole.size, stops))
    begins, begin = [], 0
    while begin < len(new):
        begins.append(begin)
        begin = bisect_right(until, starts[begin] + room, begin + 1, limits[begin])
    return _joined(tokens, length, whole, np.array(begins, np.int64))


def _joined(tokens: Tokens, length: int, pieces: Sentences, begins: Int64[np.ndarray, " sequences"]) -> Plan:
    """Sequences that begin at some of the pieces: those of one document that follow each other are one part."""
    new = np.diff(pieces.document, prepend=-1) != 0
    new[begins] = True
    first = np.flatnonzero(new)
    part = np.append(np.searchsorted(first, begins), len(first))
    count = np.add.reduceat(pieces.size, first)
    label = np.full(len(begins), UNLABELLED)
    return Plan(tokens, length, np.arange(len(part)), part, label, pieces.document[first], pieces.start[first], count)


def _windows(tokens: Tokens, length: int, room: int) -> Plan:
    """Windows over the stream of all documents: the mark after each is the separator before the next."""
    stream = lm_rows.windows(tokens, room)
    ended = stream.start + stream.size == np.diff(tokens.offsets)[stream.document]
    size, owner = stream.size - ended, expand(np.diff(stream.first))[0]
    kept = size > 0
    pieces = Sentences(stream.document[kept], stream.start[kept], size[kept])
    return _joined(tokens, length, pieces, np.unique(owner[kept], return_index=True)[1])


def _documents(tokens: Tokens, length: int, room: int) -> Plan:
    """Each document a sequence; a longer one several."""
    size = np.diff(tokens.offsets) - 1
    document = np.flatnonzero(size)
    pieces = cut(Sentences(document, np.zeros_like(document), size[document]), room)
    return _joined(tokens, length, pieces, np.arange(len(pieces.size)))


def _packed(made: Plan, marks: Marks) -> Plan:
    """The sequences of a plan with one a row, packed first-fit."""
    parts = np.diff(made.part)
    separators = np.where(made.label == UNLABELLED, parts, 1 + marks.between)
    sizes = 1 + separators + np.add.reduceat(made.count, made.part[:-1])
    row = np.array(first_fit(sizes.tolist(), made.length), np.int64)
    return dataclasses.replace(made._ordered(np.argsort(row, kind="stable")), first=ends(np.bincount(row)))
