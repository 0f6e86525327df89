"""Pairs of texts for next-sentence prediction, as Google's `create_pretraining_data.py` makes them (Devlin et al. 2019, 3.1).

The second text follows the first one, or is from another document. It is from another document with probability one half, and
always if nothing follows the first text: so more than half of the pairs are random ones.
"""

import itertools
from array import array
from bisect import bisect_left
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from train.rows.sentences import Sentences

NEXT, RANDOM = 0, 1
"""Labels: the second text follows the first one, or is from another document."""
EVEN = 0.5
"""Probability of a random second text where both are possible, and of cutting an excess token at the beginning of its text."""


class Pairs(NamedTuple):
    """Pairs of nonempty ranges of ids, the first and the second text of each pair."""

    document: Int64[np.ndarray, "pairs 2"]
    start: Int64[np.ndarray, "pairs 2"]
    """Index of the first id of each range in its document."""
    size: Int64[np.ndarray, "pairs 2"]
    label: Int64[np.ndarray, " pairs"]


def sentence_pairs(sentences: Sentences, capacity: int, rng: np.random.Generator, *, short: float, single: bool) -> Pairs:
    """Return pairs of at most `capacity` ids in all, document after document.

    1. The target of a document is `capacity` ids, or in a share `short` of the documents a random number from 2 to `capacity`.
    2. Consecutive sentences of the document are taken until they reach the target, and cut between two of them at random. The
       sentences before the cut are the first text.
    3. The second text is the sentences after the cut, or, with probability one half and always if there are none, sentences of
       another document: from a random one of them on, until both texts reach the target. In the second case, the sentences after
       the cut are used again for the next pair.
    4. As long as a pair has more than `capacity` ids, its longer text loses one, at its beginning or at its end with equal
       probability.

    Google's code samples the other document among all documents, up to ten times, and then accepts its own: with two documents,
    one random label in 1,024 is wrong there. Here none is.

    Args:
        sentences: the sentences of at least two documents.
        capacity: at least 2.
        single: whether each text is one sentence instead (Liu et al. 2019, section 4.2: SENTENCE-PAIR); `short` is then unused.
    """
    bounds = np.concatenate([[0], np.cumsum(sentences.size)])
    firsts = [*np.flatnonzero(np.diff(sentences.document, prepend=-1)).tolist(), len(sentences.size)]
    last_other = len(firsts) - 2
    # Ids before each sentence. Reading single elements of a memoryview is several times faster than of an array.
    before, uniform, records = np.ascontiguousarray(bounds).data, rng.random, array("q")
    for document, (begin, end) in enumerate(itertools.pairwise(firsts)):
        target = 2 + int(uniform() * (capacity - 1)) if uniform() < short else capacity
        while begin < end:
            stop = min(begin + 2, end) if single else bisect_left(before, before[begin] + target, begin + 1, end)
            cut = begin + 1 + int(uniform() * (stop - begin - 1))
            if cut == stop or uniform() < EVEN:
                other = int(uniform() * last_other)
                other += other >= document
                second = firsts[other] + int(uniform() * (firsts[other + 1] - firsts[other]))
                end_ids = before[second] + target - (before[cut] - before[begin])
                last = second + 1 if single else bisect_left(before, end_ids, second + 1, firsts[other + 1])
                records.extend((begin, cut, second, last, RANDOM))
                begin = cut
            else:
                records.extend((begin, cut, cut, stop, NEXT))
                begin = stop
    ranges = np.frombuffer(records, np.int64).reshape(-1, 5)  # [pairs, 5]
    first, last = ranges[:, (0, 2)], ranges[:, (1, 3)]  # [pairs, 2] each
    size = bounds[last] - bounds[first]
    num_cut = tokens_to_cut(size, capacity)
    return Pairs(sentences.document[first], sentences.start[first] + rng.binomial(num_cut, EVEN), size - num_cut, ranges[:, 4])


def tokens_to_cut(size: Int64[np.ndarray, "pairs 2"], capacity: int) -> Int64[np.ndarray, "pairs 2"]:
    """Return the tokens to cut from each text: one at a time from the longer one, or the second of equals, until both fit."""
    excess = np.maximum(size.sum(1) - capacity, 0)
    a, b = size[:, 0], size[:, 1]
    longer = np.minimum(excess, abs(a - b))
    alternating = excess - longer
    return np.stack([longer * (a > b) + alternating // 2, longer * (a < b) + (alternating + 1) // 2], 1)  # [pairs, 2]
