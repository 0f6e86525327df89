"""The plan of the rows: which ranges of which documents each row predicts."""

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from train.config.run_config import Data
from train.rows.token_cache import Tokens
from zoo.errors import BadInput


class Piece(NamedTuple):
    """A range of targets within one document."""

    document: int
    start: int
    """Of the document's targets, the first one."""
    before: int
    """The id before the first target: the document's previous one, end-of-text at its start."""
    ids: np.ndarray
    """The targets."""


class Row(NamedTuple):
    """What one row predicts."""

    pieces: tuple[Piece, ...]
    context: int
    """How many of the first targets are there only to be seen: another row counts them."""
    isolated: bool
    """Whether the pieces do not see each other."""


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """The plan of the rows of a corpus. Over all rows every target of every document is counted exactly once."""

    tokens: Tokens
    length: int
    """Targets a row has room for, T."""
    isolated: bool
    first: Int64[np.ndarray, " rows_and_one"]
    """The first piece of each row; the last entry is the number of pieces."""
    document: Int64[np.ndarray, " pieces"]
    start: Int64[np.ndarray, " pieces"]
    size: Int64[np.ndarray, " pieces"]
    context: Int64[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.context)

    def row(self, number: int) -> Row:
        """A row, its ids mapped rather than copied."""
        pieces = range(self.first[number], self.first[number + 1])
        return Row(tuple(self._piece(piece) for piece in pieces), int(self.context[number]), self.isolated)

    @property
    def text_size(self) -> int:
        """Tokens of the text that is planned, the end-of-text of each document included."""
        return len(self.tokens.ids)

    @property
    def targets(self) -> int:
        """Targets counted over all rows, the end-of-text of each document included."""
        return int(self.size.sum() - self.context.sum())

    def spread(self, count: int) -> "Rows":
        """At most `count` of the rows, evenly spaced: a sample that is the same each time."""
        chosen = np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))
        pieces = self.first[chosen + 1] - self.first[chosen]
        row, nth = expand(pieces)
        piece = self.first[chosen][row] + nth
        return dataclasses.replace(
            self,
            first=ends(pieces),
            document=self.document[piece],
            start=self.start[piece],
            size=self.size[piece],
            context=self.context[chosen],
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the tokens and the plan: equal if and only if every row is."""
        digest = hashlib.sha256(f"{self.tokens.fingerprint} {self.length} {self.isolated}".encode())
        for part in (self.first, self.document, self.start, self.size, self.context):
            digest.update(hashlib.sha256(part.tobytes()).digest())
        return digest.hexdigest()

    def _piece(self, number: int) -> Piece:
        document, start = int(self.document[number]), int(self.start[number])
        first = int(self.tokens.offsets[document]) + start
        before = int(self.tokens.ids[first - 1]) if start else self.tokens.end_of_text
        return Piece(document, start, before, self.tokens.ids[first : first + int(self.size[number])])


def training_rows(tokens: Tokens, data: Data) -> Rows:
    """The rows a run trains on.

    Raises:
        BadInput: fewer tokens than one row.
    """
    if len(tokens.ids) < data.length:
        raise BadInput(
            f"--data.length {data.length}: the training text has {len(tokens.ids)} tokens, fewer than one row; "
            f"choose at most {len(tokens.ids)} or give --data.paths more text"
        )
    return windows(tokens, data.length) if data.rows == "windows" else packed(tokens, data.length)


def windows(tokens: Tokens, length: int, stride: int | None = None, *, with_ends: bool = True, least: int = 1) -> Rows:
    """Windows of `length` targets over the stream of all documents; documents in a window see each other.

    A window begins `stride` targets after the one before (None: `length`, none overlap). Those it shares with the one before are
    its context. The last one may be short, and is left out if it has fewer than `least`.

    Args:
        with_ends: whether the end-of-text of each document is one of its targets.
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
    row, nth = expand(pieces)
    document = first_document[row] + nth
    start = np.maximum(begin[row], offsets[document])
    size = np.minimum(end[row], offsets[document + 1]) - start
    return Rows(tokens, length, False, ends(pieces), document, start - offsets[document], size, context)


def packed(tokens: Tokens, length: int) -> Rows:
    """Whole documents packed first-fit, isolated from each other; one longer than `length` is split into pieces first."""
    sizes = np.diff(tokens.offsets)
    document, nth = expand(-(-sizes // length))
    start = nth * length
    size = np.minimum(sizes[document] - start, length)
    row = np.array(first_fit(size.tolist(), length), np.int64)
    order = np.argsort(row, kind="stable")
    pieces = np.bincount(row)
    return Rows(tokens, length, True, ends(pieces), document[order], start[order], size[order], np.zeros(len(pieces), np.int64))


def first_fit(sizes: list[int], capacity: int) -> list[int]:
    """The row of each piece: the first one with room for it. A tree of the most room below each node finds it in log time."""
    leaves = 1 << (len(sizes) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    rows = []
    for size in sizes:
        node = 1
        while node < leaves:
            node *= 2
            node += room[node] < size
        rows.append(node - leaves)
        room[node] -= size
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return rows


def expand(counts: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """For counts (2, 1): the owners (0, 0, 1) and the numbers within each (0, 1, 0)."""
    before = np.cumsum(counts) - counts
    return np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum()) - np.repeat(before, counts)


def ends(counts: Int[np.ndarray, " n"]) -> Int64[np.ndarray, " n_and_one"]:
    """For counts (2, 1): where each owner's begin and the last one's end, (0, 2, 3)."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
