"""Targets and factorization orders of XLNet, as pure functions of a generator and a row, on the host."""

import numpy as np
from jaxtyping import Bool, Int32

from train.config.option_groups import Permutation


def choose_targets(
    rng: np.random.Generator, starts: Bool[np.ndarray, " n"], text: Bool[np.ndarray, " n"], number: int, options: Permutation
) -> Bool[np.ndarray, " n"]:
    """Choose exactly `number` targets of a text (Yang et al. 2019, section 2.3 and appendix A.2; the authors' `data_utils.py`).

    Targets are spans of consecutive tokens, chosen from left to right. A span has n tokens, from 1 to `options.longest`, with a
    probability proportional to 1/n. It is surrounded by n times `options.context` tokens that are not predicted; a random number
    of these comes before it, and it begins with the first word after them. If the text ends before there are `number` targets,
    the missing ones are sampled uniformly from the other tokens. Without `options.spans`, all targets are sampled in that way.

    Args:
        starts: whether a token begins a word.
        text: whether a token is not special: only those are predicted; there are at least `number`.
    """
    targets, size = np.zeros(len(text), bool), len(text)
    lengths = np.arange(1, options.longest + 1)
    odds = (1 / lengths) / (1 / lengths).sum()
    at = 0
    while options.spans and at < size and targets.sum() < number:
        n = min(int(rng.choice(lengths, p=odds)), number - int(targets.sum()))
        context = round(n * options.context)
        before = int(rng.integers(max(1, context)))
        words = np.flatnonzero(starts[at + before :])
        if not len(words):
            break
        begin = at + before + int(words[0])
        if begin + n >= size:
            break
        targets[begin : begin + n] = text[begin : begin + n]
        at = begin + n + context - before
    rest = np.flatnonzero(text & ~targets)
    targets[rng.permutation(rest)[: number - int(targets.sum())]] = True
    return targets


def factorization_ranks(
    rng: np.random.Generator, later: Bool[np.ndarray, " n"], window: int, base: int
) -> Int32[np.ndarray, " n"]:
    """Return the rank of each token in the factorization order, int32 [n]: a token attends to equal and lower ranks.

    The tokens that are not `later`, which are the text that is not predicted, have rank `base`. Targets and special tokens have
    higher ranks, all different, in a random order. The order is a permutation of `window` places, the same one in every window of
    `window` tokens, and all ranks of a window are lower than those of the next one; 0 = all tokens are one window.
    """
    size = window or max(1, len(later))
    places = rng.permutation(size)[np.arange(len(later)) % size] + np.arange(len(later)) // size * size
    return np.where(later, base + 1 + places, base).astype(np.int32)
