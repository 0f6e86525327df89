"""Which tokens are predicted and what is shown in their place: pure functions of a generator and a sequence, on the host."""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64

Rule = Literal["bert", "roberta", "distilbert"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Masks:
    """How a sequence is masked."""

    rate: float
    """Share of a sequence's tokens predicted, its marks counted."""
    masked: float
    """Of the predicted tokens, the share shown as the mask."""
    random: float
    """The share shown as an entry drawn evenly from `entries`; the rest is shown as it is."""
    most: int
    """Predictions of a sequence at most."""
    rule: Rule
    """How the share becomes a number, n being the sequence's tokens. bert: round(rate n). roberta: rate n, its fraction rounded
    up as often as it is large (fairseq, `mask_tokens_dataset.py`). distilbert: rate n rounded up (`distiller.py`, there over a
    batch). At least 1 in each; fairseq has none where a short sequence's number is 0."""
    mask: int
    """The id of the mask."""
    entries: Int32[np.ndarray, " entries"]
    """Ids that a random token is drawn from. Google's code and the distiller draw from the whole vocabulary, fairseq from what is
    not special."""
    starts: Bool[np.ndarray, " V"] | None = None
    """Whether an entry begins a word, where whole words are masked."""
    weights: Float64[np.ndarray, " V"] | None = None
    """How likely an entry is chosen against the others; 0 = never. None: all alike."""

    def largest(self, length: int) -> int:
        """The most predictions that a sequence of `length` tokens, two of them marks, can have."""
        number = self.rate * length
        whole = round(number) if self.rule == "bert" else math.ceil(number)
        return min(self.most, max(1, whole), length - 2)


def largest_of_packed(masks: Masks, room: int, shortest: int) -> int:
    """The most predictions that a row of `room` tokens can have with sequences of `shortest` tokens or more packed into it."""
    best = np.zeros(room + 1, np.int64)
    alone = np.array([masks.largest(length) for length in range(shortest, room + 1)])
    for total in range(shortest, room + 1):
        # The last sequence is of `shortest` tokens or more, the rest packed as badly as can be.
        best[total] = (alone[: total - shortest + 1] + best[total - shortest :: -1]).max()
    return int(best[room])


def mask(
    rng: np.random.Generator, tokens: Int32[np.ndarray, " n"], text: Bool[np.ndarray, " n"], masks: Masks
) -> tuple[Int64[np.ndarray, " k"], Int32[np.ndarray, " k"]]:
    """(positions to predict, in order; ids shown there) of a sequence.

    Each predicted token is shown as the mask, as a random entry or as it is, whatever the others are (Devlin et al. 2019, 3.1).

    Args:
        tokens: ids of the sequence, its marks among them.
        text: which of them are no marks: only those are predicted.
    """
    candidates = np.flatnonzero(text)
    number = min(_number(rng, len(tokens), masks), len(candidates))
    if masks.starts is not None:
        chosen = _words(rng, tokens, text, masks.starts, number)
    elif masks.weights is not None:
        chosen = _weighted(rng, candidates, masks.weights[tokens[candidates]], number)
    else:
        chosen = rng.permutation(candidates)[:number]
    at = np.sort(chosen)
    return at, disguised(rng, tokens[at], masks.masked, masks.random, masks.mask, masks.entries)


def disguised(
    rng: np.random.Generator,
    ids: Int32[np.ndarray, " k"],
    masked: float,
    random: float,
    mask: int,
    entries: Int32[np.ndarray, " entries"],
) -> Int32[np.ndarray, " k"]:
    """What is shown for tokens to predict: a share `masked` as the mask, a share `random` as some entry, the rest as it is."""
    what = rng.random(len(ids))
    shown = np.where(what < masked + random, entries[rng.integers(len(entries), size=len(ids))], ids)
    return np.where(what < masked, mask, shown).astype(np.int32)


def _number(rng: np.random.Generator, length: int, masks: Masks) -> int:
    if masks.rule != "roberta":
        return masks.largest(length)
    # The sum may be rounded up to a whole number that is more than the largest.
    return min(max(1, int(masks.rate * length + rng.random())), masks.largest(length))


def _weighted(
    rng: np.random.Generator, candidates: Int[np.ndarray, " m"], weights: Float64[np.ndarray, " m"], number: int
) -> Int[np.ndarray, " k"]:
    """Candidates drawn one after the other, each time in proportion to the weights of those that are left.

    That is the order in which independent exponential clocks of these rates ring (Efraimidis and Spirakis 2006).
    """
    able = weights > 0
    rings = rng.exponential(size=len(candidates))[able] / weights[able]
    return candidates[able][np.argsort(rings)[:number]]


def _words(
    rng: np.random.Generator,
    tokens: Int32[np.ndarray, " n"],
    text: Bool[np.ndarray, " n"],
    starts: Bool[np.ndarray, " V"],
    number: int,
) -> Int64[np.ndarray, " k"]:
    """Words in random order until there are enough tokens; one that would be too many is skipped, so there may be fewer.

    A word begins where its entry says so, and after a mark: a text may be cut inside a word.
    """
    begins = text & (starts[tokens] | ~np.append(False, text[:-1]))
    first = np.flatnonzero(begins).tolist()
    sizes = np.diff(np.append(np.flatnonzero(begins[text]), text.sum())).tolist()
    chosen = []
    for word in rng.permutation(len(first)).tolist():
        if len(chosen) + sizes[word] <= number:
            chosen += range(first[word], first[word] + sizes[word])
        if len(chosen) == number:
            break
    return np.array(chosen, np.int64)
