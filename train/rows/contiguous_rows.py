"""The plan of rows that read on: row b of a batch continues row b of the batch before it (Yang et al. 2019, section 2.5)."""

import dataclasses
import functools
import hashlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from train.rows.sentence_pairs import EVEN, cuts
from train.rows.sentences import sentences
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput

MARKS = 3
"""Of a window's template: A <sep> B <sep> <cls>."""


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """The ids of all documents in the order in which they are read."""

    ids: Integer[np.ndarray, " tokens"]
    breaks: Int64[np.ndarray, " breaks"]
    """Where a sentence begins, ascending; never 0."""
    offsets: Int64[np.ndarray, " documents_and_one"]
    """Where each document begins, read forward; the last entry is the end."""
    backward: bool
    """Whether that is from the last to the first."""


class Window(NamedTuple):
    """What one row reads: a stretch that the next row's memory will hold, and texts from there on."""

    reading: Reading
    begin: int
    """Of the stretch, in `reading.ids`."""
    reuse: int
    """Ids of the stretch."""

    @property
    def origin(self) -> tuple[int, int]:
        """(document, which of its ids) where the row begins."""
        at, offsets = self.begin, self.reading.offsets
        if self.reading.backward:
            at = len(self.reading.ids) - 1 - at
        document = int(np.searchsorted(offsets, at, side="right")) - 1
        return document, at - int(offsets[document])


@dataclasses.dataclass(frozen=True, eq=False)
class Streams:
    """The rows of a text that is read in `batch` streams at once."""

    tokens: Tokens
    readings: tuple[Reading, ...]
    """One, or one in each direction: they share the streams, the first half is read forward."""
    length: int
    """Tokens a row has room for, T."""
    reuse: int
    """Tokens at the beginning of a row that only the row after it continues; 0 = it continues the whole row."""
    batch: int
    """Streams, B: row b of step n is row n B + b."""
    steps: int
    ordered: bool
    """Whether rows are used in this order, for a model that carries something from row to row, or in any."""
    predictions: int
    """Targets of a row."""

    def __len__(self) -> int:
        return self.steps * self.batch

    def row(self, number: int) -> Window:
        """A row, its ids mapped rather than copied."""
        step, stream = divmod(number, self.batch)
        reading, nth = divmod(stream, self.batch // len(self.readings))
        begin = nth * self._share + step * _advance(self.length, self.reuse)
        return Window(self.readings[reading], begin, self.reuse)

    @property
    def text_size(self) -> int:
        """Tokens of the text that is planned, the mark after each document included."""
        return len(self.tokens.ids)

    @property
    def targets(self) -> int:
        """Tokens that are predicted in all rows."""
        return len(self) * self.predictions

    def spread(self, count: int) -> "Streams":
        """About `count` rows, the first ones of every stream: each is read after the one before it."""
        return dataclasses.replace(self, steps=max(1, min(self.steps, count // self.batch)))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the tokens and the plan: equal if and only if every row is."""
        plan = (self.length, self.reuse, self.batch, self.steps, len(self.readings), self.ordered)
        digest = hashlib.sha256(f"{self.tokens.fingerprint} {plan}".encode())
        digest.update(self.readings[0].breaks.tobytes())
        return digest.hexdigest()

    @property
    def _share(self) -> int:
        """Ids of one stream."""
        return len(self.tokens.ids) // (self.batch // len(self.readings))


def streams(
    tokens: Tokens,
    tokenizer: Tokenizer,
    *,
    length: int,
    reuse: int,
    batch: int,
    bidirectional: bool,
    ordered: bool,
    predictions: int,
    where: str = "--data.paths: the training text",
) -> Streams:
    """All rows of a text. What is left of a stream after its last whole row is not read.

    Args:
        bidirectional: read by half of the streams from the last token to the first (the authors' `bi_data`).
        where: the text's option and name, for an error.

    Raises:
        BadInput: the text has not one row for each stream.
    """
    whole = sentences(tokens, tokenizer, max(1, len(tokens.ids)))
    begins = np.unique(tokens.offsets[whole.document] + whole.start)
    forward = Reading(tokens.ids, begins[begins > 0], tokens.offsets, False)
    readings = (forward,)
    if bidirectional:
        breaks = np.ascontiguousarray(len(tokens.ids) - forward.breaks[::-1])
        readings = (forward, Reading(tokens.ids[::-1], breaks, tokens.offsets, True))
    each = len(tokens.ids) // (batch // len(readings))
    left = each - (length - MARKS)
    if left < 0:
        raise BadInput(
            f"{where} has {len(tokens.ids):,} tokens, {each:,} for each of {batch // len(readings)} streams, fewer than a row of "
            f"{length}; choose a smaller --data.batch or --data.length, or give more text"
        )
    steps = 1 + left // _advance(length, reuse)
    return Streams(tokens, readings, length, reuse, batch, steps, ordered, predictions)


def texts(
    rng: np.random.Generator, window: Window, room: int
) -> tuple[Integer[np.ndarray, " a"], Integer[np.ndarray, " b"], bool]:
    """(A, B, whether B follows A) of `room` ids in all, as XLNet's data code makes them behind the reused stretch.

    A is cut at the end of a sentence, drawn evenly among those before A and B are full. B follows with probability one half;
    otherwise, and where no sentence ends, it is whole sentences around a place drawn from all of the reading. What is too long
    loses tokens at the end of the longer text, of B where they are equal.

    Args:
        room: at least 2.
    """
    ids, breaks = window.reading.ids, window.reading.breaks
    begin = window.begin + window.reuse
    first, last = np.searchsorted(breaks, [begin + 1, begin + room])
    end = int(breaks[last]) if last < len(breaks) else len(ids)
    cut = int(breaks[rng.integers(first, last)]) if last > first else end
    follows = last > first and rng.random() < EVEN
    start, stop = cut, end
    if not follows:
        wanted = max(1, room - (cut - begin))
        at = int(rng.integers(len(ids) - wanted))
        before, after = np.searchsorted(breaks, at, "right") - 1, np.searchsorted(breaks, at + wanted)
        start = int(breaks[before]) if before >= 0 else 0
        stop = int(breaks[after]) if after < len(breaks) else len(ids)
    sizes = np.array([[cut - begin, stop - start]])
    a, b = (sizes - cuts(sizes, room))[0].tolist()
    return ids[begin : begin + a], ids[start : start + b], bool(follows)


def _advance(length: int, reuse: int) -> int:
    """Ids by which a row begins after the one before it in its stream."""
    return reuse or length - MARKS
