"""Rows of a language model: the ranges of documents that each row predicts."""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from train.config.data_options import CausalData
from train.rows.row_source import SampledRows, TextRows, array_digests
from train.rows.token_cache import Tokens
from zoo.errors import BadInput


class Piece(NamedTuple):
    """A range of consecutive targets within one document."""

    document: int
    start: int
    """Index of the first target among those of the document."""
    before: int
    """The id before the first target: the previous id of the document, or at its start `Tokens.begin_of_text`."""
    ids: np.ndarray
    """The targets."""


class LmRow(NamedTuple):
    """The targets of one row."""

    pieces: tuple[Piece, ...]
    context: int
    """Number of targets at the beginning that serve as context only: they are counted in the loss of another row."""
    isolated: bool
    """True if attention between the pieces is masked."""


@dataclasses.dataclass(frozen=True, eq=False)
class LmRows(TextRows, SampledRows):
    """The rows of a corpus. Over all rows every target of every document is counted exactly once.

    A row is a sequence of pieces, and a piece a range of one document. The pieces of all rows are stored one after the other, as
    in the CSR format of sparse matrices: `document`, `start` and `size` have one entry per piece, and row r has the pieces
    `first[r]` to `first[r + 1] - 1`. Two documents of 5 and 3 targets (a b c d e and x y z) in windows of `length` 4 make the
    rows a b c d and e x y z:

        first    = [0, 1, 3]   row 0 has piece 0, row 1 has pieces 1 and 2
        document = [0, 0, 1]   the document of each piece
        start    = [0, 4, 0]   index in its document of the first target of each piece: piece 1 begins with e
        size     = [4, 1, 3]   targets of each piece
        context  = [0, 0]      targets at the beginning of each row that are context only
    """

    tokens: Tokens
    length: int
    """Targets per row, T."""
    isolated: bool
    """True if attention between the pieces of a row is masked."""
    first: Int64[np.ndarray, " rows_and_one"]
    """Index of the first piece of each row; the last entry is the number of pieces."""
    document: Int64[np.ndarray, " pieces"]
    start: Int64[np.ndarray, " pieces"]
    """Index of the first target of each piece in its document."""
    size: Int64[np.ndarray, " pieces"]
    """Targets of each piece, at least 1."""
    context: Int64[np.ndarray, " rows"]
    """Targets at the beginning of each row that are context only."""

    def __len__(self) -> int:
        return len(self.context)

    def row(self, number: int) -> LmRow:
        """Return a row, whose ids are views of the memory-mapped tokens."""
        pieces = range(self.first[number], self.first[number + 1])
        return LmRow(tuple(self._piece(piece) for piece in pieces), int(self.context[number]), self.isolated)

    @property
    def targets(self) -> int:
        """Number of targets counted in the loss over all rows, the end-of-text of each document included."""
        return int(self.size.sum() - self.context.sum())

    @property
    def first_documents(self) -> Int64[np.ndarray, " rows"]:
        """Number of the document of the first counted target of each row."""
        ends = np.cumsum(self.size)
        counted = (ends - self.size)[self.first[:-1]] + self.context
        return self.document[np.searchsorted(ends, counted, side="right")]

    def select_rows(self, chosen: Int64[np.ndarray, " n"]) -> "LmRows":
        """Return the rows with the numbers `chosen`, in this order."""
        pieces = self.first[chosen + 1] - self.first[chosen]
        row, nth = expand_counts(pieces)
        piece = self.first[chosen][row] + nth
        return dataclasses.replace(
            self,
            first=csr_offsets(pieces),
            document=self.document[piece],
            start=self.start[piece],
            size=self.size[piece],
            context=self.context[chosen],
        )

    def fingerprint_parts(self) -> tuple[str, list[bytes]]:
        """Return what determines the rows apart from the tokens; see `TextRows.fingerprint_parts`."""
        arrays = array_digests(self.first, self.document, self.start, self.size, self.context)
        begin = self.tokens.begin_of_text
        return f"{self.length} {self.isolated}" + ("" if begin == self.tokens.end_of_text else f" {begin}"), arrays

    def _piece(self, number: int) -> Piece:
        document, start = int(self.document[number]), int(self.start[number])
        first = int(self.tokens.offsets[document]) + start
        before = int(self.tokens.ids[first - 1]) if start else self.tokens.begin_of_text
        return Piece(document, start, before, self.tokens.ids[first : first + int(self.size[number])])


def training_rows(tokens: Tokens, data: CausalData) -> LmRows:
    """Return the rows a run trains on.

    Raises:
        BadInput: there are fewer tokens than one row has.
    """
    if len(tokens.ids) < data.length:
        raise BadInput(
            f"--data.length {data.length}: the training text has {len(tokens.ids)} tokens, fewer than one row; "
            f"choose at most {len(tokens.ids)} or add text to --data.paths"
        )
    return stream_windows(tokens, data.length) if data.rows == "windows" else packed_documents(tokens, data.length)


def stream_windows(tokens: Tokens, length: int, stride: int | None = None, *, with_ends: bool = True, least: int = 1) -> LmRows:
    """Return windows of `length` targets over the stream of all documents; documents in a window attend to each other.

    A window begins `stride` targets after the one before it (None: `length`, no overlap). The targets that it shares with the one
    before it are its context. The last window may be shorter, and is left out if it has fewer than `least` targets.

    Args:
        with_ends: whether the end-of-text of each document is a target.
    """
    stride = length if stride is None else stride
    if not 1 <= stride <= length:
        raise ValueError(f"stride {stride} is not between 1 and the length {length}")
    offsets = tokens.offsets if with_ends else tokens.offsets - np.arange(len(tokens.offsets))
    count = 1 + max(0, -(-(int(offsets[-1]) - length) // stride))
    count -= count > 1 and int(offsets[-1]) - (count - 1) * stride < least
    begin = np.arange(count, dtype=np.int64) * stride
    end = np.minimum(begin + length, offsets[-1])
    context = np.full(count, length - stride, np.int64)
    context[0] = 0
    first_document = np.searchsorted(offsets, begin, side="right") - 1
    pieces = np.searchsorted(offsets, end, side="left") - first_document
    row, nth = expand_counts(pieces)
    document = first_document[row] + nth
    start = np.maximum(begin[row], offsets[document])
    size = np.minimum(end[row], offsets[document + 1]) - start
    return LmRows(tokens, length, False, csr_offsets(pieces), document, start - offsets[document], size, context)


def packed_documents(tokens: Tokens, length: int) -> LmRows:
    """Return whole documents packed first-fit, which do not attend to each other.

    A document longer than `length` is first split into pieces.
    """
    sizes = np.diff(tokens.offsets)
    document, nth = expand_counts(-(-sizes // length))
    start = nth * length
    size = np.minimum(sizes[document] - start, length)
    row = np.array(first_fit(size.tolist(), length), np.int64)
    by_row = np.argsort(row, kind="stable")
    pieces = np.bincount(row)
    return LmRows(
        tokens, length, True, csr_offsets(pieces), document[by_row], start[by_row], size[by_row], np.zeros(len(pieces), np.int64)
    )


def first_fit(sizes: list[int], capacity: int) -> list[int]:
    """Return the row of each piece: the first row with enough free capacity.

    A tree in which each node has the largest free capacity below it finds that row in logarithmic time.
    """
    leaves = 1 << (len(sizes) - 1).bit_length()
    free = [capacity] * (2 * leaves)
    rows = []
    for size in sizes:
        node = 1
        while node < leaves:
            node *= 2
            node += free[node] < size
        rows.append(node - leaves)
        free[node] -= size
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    return rows


def expand_counts(counts: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Return the owner of each item and its index within the owner. For counts (2, 1) they are (0, 0, 1) and (0, 1, 0)."""
    before = np.cumsum(counts) - counts
    return np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum()) - np.repeat(before, counts)


def csr_offsets(counts: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n_and_one"]:
    """Return the CSR offsets of counts. For (2, 1) they are (0, 2, 3)."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
