"""Masking: selection and replacement of the tokens to predict, as pure functions of a generator and a sequence, on the host."""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64

Rule = Literal["bert", "roberta", "distilbert"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Masks:
    """The choice of the tokens of a sequence that are predicted, and of the ids that replace them."""

    rate: float
    """Share of the tokens of a sequence, special tokens included, that is predicted."""
    masked: float
    """Share of the predicted tokens that is replaced by the mask."""
    random: float
    """Share that is replaced by an id sampled uniformly from `entries`; the rest is left as it is."""
    max_predictions: int
    """Largest number of predictions of a sequence."""
    rule: Rule
    """Number of predictions in a sequence of n tokens. bert: round(rate n). roberta: rate n, rounded up with a probability equal
    to its fraction (fairseq, `mask_tokens_dataset.py`). distilbert: rate n, rounded up (`distiller.py`, there over a batch). At
    least 1 in each; fairseq allows 0 in short sequences."""
    mask: int
    """The id of the mask."""
    entries: Int32[np.ndarray, " entries"]
    """Ids that random tokens are sampled from. Google's code and the distiller sample from the whole vocabulary, fairseq from the
    entries that are not special."""
    starts: Bool[np.ndarray, " V"] | None = None
    """For masking whole words: True for each entry that begins a word. None = single tokens are masked."""
    weights: Float64[np.ndarray, " V"] | None = None
    """Relative probability of choosing an entry for prediction; 0 = never. None: uniform."""

    def max_predictions_for(self, length: int) -> int:
        """Return the largest number of predictions in a sequence of `length` tokens, two of which are special tokens."""
        share = self.rate * length
        rounded = round(share) if self.rule == "bert" else math.ceil(share)
        return min(self.max_predictions, max(1, rounded), length - 2)


def max_predictions_for_packed_row(masks: Masks, capacity: int, shortest: int) -> int:
    """Return the largest number of predictions in a row of `capacity` tokens packed with sequences of `shortest` or more."""
    best = np.zeros(capacity + 1, np.int64)
    alone = np.array([masks.max_predictions_for(length) for length in range(shortest, capacity + 1)])
    for total in range(shortest, capacity + 1):
        # The last sequence has `shortest` tokens or more, the others are the worst case of the rest of the row.
        best[total] = (alone[: total - shortest + 1] + best[total - shortest :: -1]).max()
    return int(best[capacity])


def choose_masks(
    rng: np.random.Generator, tokens: Int32[np.ndarray, " n"], text: Bool[np.ndarray, " n"], masks: Masks
) -> tuple[Int64[np.ndarray, " k"], Int32[np.ndarray, " k"]]:
    """Return (positions to predict, ascending; ids that replace the tokens there) of a sequence.

    Each predicted token is independently replaced by the mask, by a random id, or left as it is (Devlin et al. 2019, 3.1).

    Args:
        tokens: ids of the sequence, special tokens included.
        text: whether a token is not special: only those are predicted.
    """
    candidates = np.flatnonzero(text)
    count = min(_number(rng, len(tokens), masks), len(candidates))
    if masks.starts is not None:
        chosen = _words(rng, tokens, text, masks.starts, count)
    elif masks.weights is not None:
        chosen = _weighted(rng, candidates, masks.weights[tokens[candidates]], count)
    else:
        chosen = rng.permutation(candidates)[:count]
    positions = np.sort(chosen)
    return positions, apply_masking(rng, tokens[positions], masks.masked, masks.random, masks.mask, masks.entries)


def apply_masking(
    rng: np.random.Generator,
    ids: Int32[np.ndarray, " k"],
    masked: float,
    random: float,
    mask: int,
    entries: Int32[np.ndarray, " entries"],
) -> Int32[np.ndarray, " k"]:
    """Return the replacements of tokens to predict: a share `masked` is the mask, a share `random` is sampled from `entries`."""
    draws = rng.random(len(ids))
    replaced = np.where(draws < masked + random, entries[rng.integers(len(entries), size=len(ids))], ids)
    return np.where(draws < masked, mask, replaced).astype(np.int32)


def _number(rng: np.random.Generator, length: int, masks: Masks) -> int:
    if masks.rule != "roberta":
        return masks.max_predictions_for(length)
    # The sum may be rounded up to an integer above the largest number.
    return min(max(1, int(masks.rate * length + rng.random())), masks.max_predictions_for(length))


def _weighted(
    rng: np.random.Generator, candidates: Int[np.ndarray, " m"], weights: Float64[np.ndarray, " m"], number: int
) -> Int[np.ndarray, " k"]:
    """Sample candidates without replacement, each time in proportion to the weights of the remaining ones.

    It is the order of independent exponential random variables with these rates (Efraimidis and Spirakis 2006).
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
    """Return the positions of words in random order; a word that would exceed `number` is skipped, so there may be fewer.

    A word begins at an entry that begins words and after a special token, because a text may be cut inside a word.
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
