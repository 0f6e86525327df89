"""Rows of an encoder: the texts that each row has, alone or in pairs, between the special tokens of its template."""

import dataclasses
from bisect import bisect_right
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64

from train.config.data_options import PAIRED, EncoderData
from train.rows import lm_rows
from train.rows.lm_rows import csr_offsets, expand_counts, first_fit
from train.rows.row_source import SampledRows, TextRows, array_digests
from train.rows.sentence_pairs import Pairs, sentence_pairs
from train.rows.sentences import Sentences, cut_long_ranges, find_sentences
from train.rows.token_cache import Tokens
from train.tokenizers.special_tokens import SpecialTokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput, require

UNLABELLED = -1
"""Label of a sequence that is not a pair."""


class Range(NamedTuple):
    """A range of consecutive ids of one document."""

    document: int
    start: int
    """Index of the first id among those of the document."""
    ids: np.ndarray


class Sequence(NamedTuple):
    """Texts that attend to each other."""

    parts: tuple[Range, ...]
    """Two parts in a pair; otherwise one or several, each of another document, with a separator between them."""
    pair: bool
    label: int | None
    """Label of a pair: 0 = its second text follows the first one, 1 = it is of another document."""


EncoderRow = tuple[Sequence, ...]
"""Sequences that do not attend to each other: one, or several where rows are packed."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncoderRows(TextRows, SampledRows):
    """The rows of a text for an encoder.

    A row is a list of sequences, a sequence a list of parts, and a part a range of one document. The sequences of all rows are
    stored one after the other, and so are the parts of all sequences, as in the CSR format of sparse matrices: row r has the
    sequences `first[r]` to `first[r + 1] - 1`, and sequence s has the parts `part[s]` to `part[s + 1] - 1`. `label` has one entry
    per sequence; `document`, `start` and `count` have one per part. Three documents of 5, 5 and 4 ids in two rows:

        first    = [0, 1, 3]      row 0 has sequence 0, row 1 has sequences 1 and 2
        part     = [0, 2, 3, 4]   sequence 0 has parts 0 and 1, sequence 1 has part 2, sequence 2 has part 3
        label    = [-1, -1, -1]   no sequence is a pair (`UNLABELLED`)
        document = [0, 1, 1, 2]   the document of each part
        start    = [0, 0, 2, 0]   index in its document of the first id of each part
        count    = [5, 2, 3, 4]   ids of each part

    Sequence 0 is document 0, a separator, and ids 0 and 1 of document 1, whose ids 2 to 4 are sequence 1.
    """

    tokens: Tokens
    length: int
    """Number of tokens per row, special tokens included, T."""
    first: Int64[np.ndarray, " rows_and_one"]
    """Index of the first sequence of each row; the last entry is the number of sequences."""
    part: Int64[np.ndarray, " sequences_and_one"]
    """Index of the first part of each sequence; the last entry is the number of parts."""
    label: Int64[np.ndarray, " sequences"]
    """Label of each pair as in `Sequence`, else `UNLABELLED`."""
    document: Int64[np.ndarray, " parts"]
    start: Int64[np.ndarray, " parts"]
    """Index of the first id of each part in its document."""
    count: Int64[np.ndarray, " parts"]
    """Ids of each part, at least 1."""

    def __len__(self) -> int:
        return len(self.first) - 1

    def row(self, number: int) -> EncoderRow:
        """Return a row, whose ids are views of the memory-mapped tokens."""
        return tuple(self._sequence(sequence) for sequence in range(self.first[number], self.first[number + 1]))

    @property
    def targets(self) -> int:
        """Number of text tokens in all rows; tokens of randomly chosen second texts are counted each time that they occur."""
        return int(self.count.sum())

    @property
    def first_documents(self) -> Int64[np.ndarray, " rows"]:
        """Number of the document of the first part of each row."""
        return self.document[self.part[self.first[:-1]]]

    def select_rows(self, chosen: Int64[np.ndarray, " n"]) -> "EncoderRows":
        """Return the rows with the numbers `chosen`, in this order."""
        sequences = np.diff(self.first)[chosen]
        owner, nth = expand_counts(sequences)
        return dataclasses.replace(self._select_sequences(self.first[chosen][owner] + nth), first=csr_offsets(sequences))

    def fingerprint_parts(self) -> tuple[str, list[bytes]]:
        """Return what determines the rows apart from the tokens; see `TextRows.fingerprint_parts`."""
        return f"{self.length}", array_digests(self.first, self.part, self.label, self.document, self.start, self.count)

    def _sequence(self, number: int) -> Sequence:
        parts = tuple(self._range(part) for part in range(self.part[number], self.part[number + 1]))
        label = int(self.label[number])
        return Sequence(parts, label != UNLABELLED, None if label == UNLABELLED else label)

    def _range(self, number: int) -> Range:
        document, start = int(self.document[number]), int(self.start[number])
        first = int(self.tokens.offsets[document]) + start
        return Range(document, start, self.tokens.ids[first : first + int(self.count[number])])

    def _select_sequences(self, chosen: Int64[np.ndarray, " n"]) -> "EncoderRows":
        """Return rows of the sequences `chosen`, one sequence per row."""
        parts = np.diff(self.part)[chosen]
        owner, nth = expand_counts(parts)
        part = self.part[chosen][owner] + nth
        return dataclasses.replace(
            self,
            first=np.arange(len(chosen) + 1),
            part=csr_offsets(parts),
            label=self.label[chosen],
            document=self.document[part],
            start=self.start[part],
            count=self.count[part],
        )


def plan_rows(
    tokens: Tokens, data: EncoderData, tokenizer: Tokenizer, seed: int, half: Literal["training", "held-out"] = "training"
) -> EncoderRows:
    """Plan the rows of a text as `data.rows` says; random pairs depend on `seed` and the text alone.

    segment_pairs: `train.rows.sentence_pairs.sentence_pairs`. sentence_pairs: the same, of single sentences. full_sentences: as
    many consecutive sentences as a row holds, across documents. doc_sentences: the same, each row of one document. windows: as
    full_sentences, but every row is filled up, wherever its last sentence ends. packed: whole documents, cut only where they are
    longer than a row. In the last four every token is in exactly one row. `data.pack` packs sequences first-fit into rows; the
    value packed of `data.rows` implies it.

    Args:
        half: the half that the text belongs to; training text must have at least the tokens of one row.

    Raises:
        BadInput: a tokenizer without special tokens, a row too short for its template, text shorter than a row or without
            tokens, or a single document where pairs need another.
    """
    paired = data.rows in PAIRED
    special = _special_tokens(tokenizer, data)
    num_special = special.between + 2 if paired else 2
    shortest = num_special + (2 if paired else 1)
    require(
        data.length >= shortest,
        "data.length",
        data.length,
        f"{num_special} tokens of a row are special; choose {shortest} or more",
    )
    _check(tokens, data, half)
    capacity = data.length - num_special
    if data.rows == "windows":
        rows = _plan_windows(tokens, data.length, capacity)
    elif data.rows == "packed":
        rows = _plan_documents(tokens, data.length, capacity)
    elif paired:
        # No row has this number, so masking never uses the same generator.
        rng = np.random.Generator(np.random.Philox(key=np.array([seed, (1 << 64) - 1], np.uint64)))
        single = data.rows == "sentence_pairs"
        paired_texts = sentence_pairs(find_sentences(tokens, tokenizer, capacity), capacity, rng, short=data.short, single=single)
        rows = _plan_pairs(tokens, data.length, paired_texts)
    else:
        cross = data.rows == "full_sentences"
        rows = _plan_sentences(tokens, data.length, capacity, find_sentences(tokens, tokenizer, capacity), cross=cross)
    return _pack(rows, special) if data.pack or data.rows == "packed" else rows


def _special_tokens(tokenizer: Tokenizer, data: EncoderData) -> SpecialTokens:
    if tokenizer.special_tokens is None:
        raise BadInput(
            f"--data.rows {data.rows}: rows of an encoder need a tokenizer with special tokens for text, separator and mask; "
            "set --tokenizer.path to one of BERT or RoBERTa"
        )
    return tokenizer.special_tokens


def _check(tokens: Tokens, data: EncoderData, half: str) -> None:
    if half == "training" and len(tokens.ids) < data.length:
        raise BadInput(
            f"--data.length {data.length}: the training text has {len(tokens.ids)} tokens, fewer than one row; "
            f"choose at most {len(tokens.ids)} or add text to --data.paths"
        )
    documents = np.count_nonzero(np.diff(tokens.offsets) > 1)
    where = "--data.paths" if half == "training" else "--data.valid_paths"
    if documents == 0:
        raise BadInput(f"{where}: the {half} text has no tokens, only white space; add text")
    if documents == 1 and data.rows in PAIRED:
        raise BadInput(
            f"--data.rows {data.rows}: the {half} text is one document, and random pairs take their second text from another; "
            f"give {where} several documents (a .jsonl line or a .txt file each), or choose --data.rows full_sentences"
        )


def _plan_pairs(tokens: Tokens, length: int, paired: Pairs) -> EncoderRows:
    sequences = np.arange(len(paired.label) + 1)
    document, start, count = paired.document.ravel(), paired.start.ravel(), paired.size.ravel()  # [parts] each
    return EncoderRows(tokens, length, sequences, 2 * sequences, paired.label, document, start, count)


def _plan_sentences(tokens: Tokens, length: int, capacity: int, text: Sentences, *, cross: bool) -> EncoderRows:
    """Plan rows of consecutive sentences, as many as fit. The end of a document takes one token, its separator."""
    new_document = np.diff(text.document, prepend=text.document[0]) != 0
    text_ends = np.cumsum(text.size + new_document)
    # For each sentence, the end of its document, if rows end with documents (`cross` is false), else of the text.
    bounds = np.append(np.flatnonzero(new_document), len(new_document))
    stops = np.full(len(new_document), len(new_document)) if cross else bounds[np.cumsum(new_document)]
    # Reading single elements of a memoryview is several times faster than of an array.
    ends_view, starts_view, stops_view = (np.ascontiguousarray(array).data for array in (text_ends, text_ends - text.size, stops))
    begins, begin = [], 0
    while begin < len(new_document):
        begins.append(begin)
        begin = bisect_right(ends_view, starts_view[begin] + capacity, begin + 1, stops_view[begin])
    return _plan_pieces(tokens, length, text, np.array(begins, np.int64))


def _plan_pieces(tokens: Tokens, length: int, pieces: Sentences, begins: Int64[np.ndarray, " sequences"]) -> EncoderRows:
    """Plan sequences that begin at the pieces `begins`, one per row; consecutive pieces of one document become one part."""
    new_part = np.diff(pieces.document, prepend=-1) != 0
    new_part[begins] = True
    first = np.flatnonzero(new_part)
    part = np.append(np.searchsorted(first, begins), len(first))
    count = np.add.reduceat(pieces.size, first)
    label = np.full(len(begins), UNLABELLED)
    return EncoderRows(tokens, length, np.arange(len(part)), part, label, pieces.document[first], pieces.start[first], count)


def _plan_windows(tokens: Tokens, length: int, capacity: int) -> EncoderRows:
    """Plan windows over the stream of all documents; the special token that ends one is the separator before the next."""
    stream = lm_rows.stream_windows(tokens, capacity)
    ended = stream.start + stream.size == np.diff(tokens.offsets)[stream.document]
    size, owner = stream.size - ended, expand_counts(np.diff(stream.first))[0]
    nonempty = size > 0
    pieces = Sentences(stream.document[nonempty], stream.start[nonempty], size[nonempty])
    return _plan_pieces(tokens, length, pieces, np.unique(owner[nonempty], return_index=True)[1])


def _plan_documents(tokens: Tokens, length: int, capacity: int) -> EncoderRows:
    """Plan a sequence for each document, or several for one that is longer than a row."""
    size = np.diff(tokens.offsets) - 1
    document = np.flatnonzero(size)
    pieces = cut_long_ranges(Sentences(document, np.zeros_like(document), size[document]), capacity)
    return _plan_pieces(tokens, length, pieces, np.arange(len(pieces.size)))


def _pack(unpacked: EncoderRows, special: SpecialTokens) -> EncoderRows:
    """Pack the sequences of rows that have one sequence each, first-fit."""
    parts = np.diff(unpacked.part)
    separators = np.where(unpacked.label == UNLABELLED, parts, 1 + special.between)
    sizes = 1 + separators + np.add.reduceat(unpacked.count, unpacked.part[:-1])
    row = np.array(first_fit(sizes.tolist(), unpacked.length), np.int64)
    return dataclasses.replace(unpacked._select_sequences(np.argsort(row, kind="stable")), first=csr_offsets(np.bincount(row)))
