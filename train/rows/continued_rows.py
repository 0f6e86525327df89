"""Contiguous rows: row b of a batch continues row b of the batch before it (Yang et al. 2019, section 2.5).

The text, read as one sequence of ids, is cut into B streams of equal length, one for each row of a batch. A row begins with the
ids that its model stores in its memory for the next row, the reused part, and continues with two texts A and B, which are sampled
anew in each epoch. The next row of the stream begins where the reused part ends.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Integer

from train.config.option_groups import NUM_SPECIAL_TOKENS
from train.rows.row_source import TextRows
from train.rows.sentence_pairs import EVEN, tokens_to_cut
from train.rows.sentences import find_sentences
from train.rows.token_cache import Tokens
from train.tokenizers.tokenizer import Tokenizer
from zoo.errors import BadInput


@dataclasses.dataclass(frozen=True, eq=False)
class DirectedIds:
    """The ids of all documents, concatenated, in one of the two reading directions."""

    ids: Integer[np.ndarray, " tokens"]
    breaks: Int64[np.ndarray, " breaks"]
    """Positions at which sentences begin, ascending, without 0."""
    offsets: Int64[np.ndarray, " documents_and_one"]
    """Positions at which documents begin in forward reading; the last entry is the end."""
    backward: bool
    """True if the ids are read from the last to the first."""


class Window(NamedTuple):
    """The place of one row in the text: its reused part, which the model stores for the next row, and the ids after it."""

    reading: DirectedIds
    begin: int
    """Index in `reading.ids` of the first id of the reused part."""
    reuse: int
    """Number of ids of the reused part."""

    @property
    def origin(self) -> tuple[int, int]:
        """The first id of the row, as (number of its document, index in the document)."""
        at, offsets = self.begin, self.reading.offsets
        if self.reading.backward:
            at = len(self.reading.ids) - 1 - at
        document = int(np.searchsorted(offsets, at, side="right")) - 1
        return document, at - int(offsets[document])


@dataclasses.dataclass(frozen=True, eq=False)
class ContiguousRows(TextRows):
    """The rows of a text that is cut into `batch` streams, which are read in parallel."""

    tokens: Tokens
    readings: tuple[DirectedIds, ...]
    """One reading, or two: forward for the first half of the streams, backward for the second half."""
    length: int
    """Number of tokens per row, T."""
    reuse: int
    """Number of tokens of the reused part, after which the next row of the stream begins; 0 = there is no reused part, and the
    next row begins after as many tokens as a row has without its special tokens."""
    batch: int
    """Streams, B: row b of step n is row n B + b."""
    steps: int
    ordered: bool
    """True if rows must be used in this order, for a model that carries state from row to row."""
    predictions: int
    """Targets per row."""

    def __len__(self) -> int:
        return self.steps * self.batch

    def row(self, number: int) -> Window:
        """Return a row, whose ids are views of the memory-mapped tokens."""
        step, stream = divmod(number, self.batch)
        reading, nth = divmod(stream, self.batch // len(self.readings))
        begin = nth * self._share + step * _advance(self.length, self.reuse)
        return Window(self.readings[reading], begin, self.reuse)

    @property
    def targets(self) -> int:
        """Number of tokens that are predicted in all rows."""
        return len(self) * self.predictions

    @property
    def first_documents(self) -> Int64[np.ndarray, " rows"]:
        """Number of the document of the first id of each row."""
        return np.array([self.row(number).origin[0] for number in range(len(self))], np.int64)

    def subsample(self, count: int) -> "ContiguousRows":
        """Return about `count` rows, the first ones of every stream, so that each still continues the one before it."""
        return dataclasses.replace(self, steps=max(1, min(self.steps, count // self.batch)))

    def fingerprint_parts(self) -> tuple[str, list[bytes]]:
        """Return what determines the rows apart from the tokens; see `TextRows.fingerprint_parts`."""
        numbers = (self.length, self.reuse, self.batch, self.steps, len(self.readings), self.ordered)
        return f"{numbers}", [self.readings[0].breaks.tobytes()]

    @property
    def _share(self) -> int:
        """Number of ids of one stream."""
        return len(self.tokens.ids) // (self.batch // len(self.readings))


def plan_streams(
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
) -> ContiguousRows:
    """Return all complete rows of a text; the ids of a stream after its last complete row are not used.

    Args:
        bidirectional: whether half of the streams are read from the last token to the first (the authors' `bi_data`).
        where: the option and name of the text, for error messages.

    Raises:
        BadInput: the text has less than one row for each stream.
    """
    all_sentences = find_sentences(tokens, tokenizer, max(1, len(tokens.ids)))
    begins = np.unique(tokens.offsets[all_sentences.document] + all_sentences.start)
    forward = DirectedIds(tokens.ids, begins[begins > 0], tokens.offsets, False)
    readings = (forward,)
    if bidirectional:
        breaks = np.ascontiguousarray(len(tokens.ids) - forward.breaks[::-1])
        readings = (forward, DirectedIds(tokens.ids[::-1], breaks, tokens.offsets, True))
    per_stream = len(tokens.ids) // (batch // len(readings))
    surplus = per_stream - (length - NUM_SPECIAL_TOKENS)
    if surplus < 0:
        raise BadInput(
            f"{where} has {len(tokens.ids):,} tokens, {per_stream:,} for each of {batch // len(readings)} streams, fewer than a "
            f"row of {length}; choose a smaller --data.batch or --data.length, or add text"
        )
    steps = 1 + surplus // _advance(length, reuse)
    return ContiguousRows(tokens, readings, length, reuse, batch, steps, ordered, predictions)


def sample_texts(
    rng: np.random.Generator, window: Window, size: int
) -> tuple[Integer[np.ndarray, " a"], Integer[np.ndarray, " b"], bool]:
    """Sample the two texts of a row, and return (ids of A, ids of B, whether B follows A); they have `size` ids together.

    The rule is that of `_split_a_and_b` in XLNet's `data_utils.py`, for the ids after the reused part of the window:

    1. A ends with a sentence. Each sentence that ends within the next `size` ids is equally likely to be its last one. If none
       ends there, A continues to the end of the current sentence.
    2. With probability one half, B is the sentences that follow A, as many as are needed for `size` ids together. Otherwise, and
       always if no sentence ended within `size` ids, B is the sentences around a position of the reading that is sampled
       uniformly, again as many as are needed.
    3. As long as A and B have more than `size` ids, the longer of them loses its last id, or B if they are equally long.

    Args:
        size: at least 2.
    """
    ids, breaks = window.reading.ids, window.reading.breaks
    begin = window.begin + window.reuse
    first, last = np.searchsorted(breaks, [begin + 1, begin + size])
    end = int(breaks[last]) if last < len(breaks) else len(ids)
    cut = int(breaks[rng.integers(first, last)]) if last > first else end
    follows = last > first and rng.random() < EVEN
    start, stop = cut, end
    if not follows:
        missing = max(1, size - (cut - begin))
        at = int(rng.integers(len(ids) - missing))
        before, after = np.searchsorted(breaks, at, "right") - 1, np.searchsorted(breaks, at + missing)
        start = int(breaks[before]) if before >= 0 else 0
        stop = int(breaks[after]) if after < len(breaks) else len(ids)
    sizes = np.array([[cut - begin, stop - start]])
    a, b = (sizes - tokens_to_cut(sizes, size))[0].tolist()
    return ids[begin : begin + a], ids[start : start + b], bool(follows)


def _advance(length: int, reuse: int) -> int:
    """Return the number of ids from the beginning of a row to that of the next one in its stream."""
    return reuse or length - NUM_SPECIAL_TOKENS
