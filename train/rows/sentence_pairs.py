"""Pairs of texts for next-sentence prediction, as Google's `create_pretraining_data.py` makes them (Devlin et al. 2019, 3.1).

The second text is what follows the first one, or comes from another document. It comes from another document with probability
one half, and always where nothing follows: so more than half of the pairs are random ones.
"""

import itertools
from array import array
from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from train.rows.sentences import Sentences

NEXT, RANDOM = 0, 1
"""Labels: the second text follows the first one, or is of another document."""
EVEN = 0.5
"""Probability of a random second text where both are possible, and of a token too many being cut in front."""


class Pairs(NamedTuple):
    """Two ranges of ids each, first and second text, never empty."""

    document: Int64[np.ndarray, "pairs 2"]
    start: Int64[np.ndarray, "pairs 2"]
    """Of the document's ids, the first one."""
    size: Int64[np.ndarray, "pairs 2"]
    label: Int64[np.ndarray, " pairs"]


def pairs(sentences: Sentences, room: int, rng: np.random.Generator, *, short: float, single: bool) -> Pairs:
    """Pairs of at most `room` ids in all, document after document.

    Sentences of a document are gathered until they have the target's number of ids: `room`, or in a share `short` of the
    documents a random number from 2 to `room`. They are cut at a random sentence: the first text is what comes before. A random
    second text begins at any sentence of any other document, takes as many as fill the target, and the sentences after the cut
    are gathered again. (The code looks for another document among all, ten times, and then takes what it has: of two documents,
    one random label in 1,024 is wrong. None is here.) What is too long loses tokens of its longer text, each in front or at the
    end.

    Args:
        sentences: of at least two documents.
        room: at least 2.
        single: each text is one sentence instead (Liu et al. 2019, section 4.2: SENTENCE-PAIR); `short` is not used.
    """
    bounds = np.concatenate([[0], np.cumsum(sentences.size)])
    firsts = [*np.flatnonzero(np.diff(sentences.document, prepend=-1)).tolist(), len(sentences.size)]
    others = len(firsts) - 2
    # Ids before each sentence; read one by one, a view of memory is several times faster than an array.
    before, draw, found = np.ascontiguousarray(bounds).data, rng.random, array("q")
    for document, (begin, end) in enumerate(itertools.pairwise(firsts)):
        target = 2 + int(draw() * (room - 1)) if draw() < short else room
        while begin < end:
            stop = min(begin + 2, end) if single else bisect_left(before, before[begin] + target, begin + 1, end)
            cut = begin + 1 + int(draw() * (stop - begin - 1))
            if cut == stop or draw() < EVEN:
                other = int(draw() * others)
                other += other >= document
                second = firsts[other] + int(draw() * (firsts[other + 1] - firsts[other]))
                wanted = before[second] + target - (before[cut] - before[begin])
                last = second + 1 if single else bisect_left(before, wanted, second + 1, firsts[other + 1])
                found.extend((begin, cut, second, last, RANDOM))
                begin = cut
            else:
                found.extend((begin, cut, cut, stop, NEXT))
                begin = stop
    ranges = np.frombuffer(found, np.int64).reshape(-1, 5)
    first, last = ranges[:, (0, 2)], ranges[:, (1, 3)]
    size = bounds[last] - bounds[first]
    lost = cuts(size, room)
    return Pairs(sentences.document[first], sentences.start[first] + rng.binomial(lost, EVEN), size - lost, ranges[:, 4])


def cuts(size: Int64[np.ndarray, "pairs 2"], room: int) -> Int64[np.ndarray, "pairs 2"]:
    """Tokens that each text loses when the longer one loses one at a time, the second where they are equal, until both fit."""
    excess = np.maximum(size.sum(1) - room, 0)
    a, b = size[:, 0], size[:, 1]
    longer = np.minimum(excess, abs(a - b))
    rest = excess - longer
    return np.stack([longer * (a > b) + rest // 2, longer * (a < b) + (rest + 1) // 2], 1)
