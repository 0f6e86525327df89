"""Targets and factorization orders of XLNet, as pure functions of a generator and a row, on the host."""

import numpy as np
from jaxtyping import Bool, Int32

from train.config.objective_options import Permutation


def choose_targets(
    rng: np.random.Generator, starts: Bool[np.ndarray, " n"], text: Bool[np.ndarray, " n"], number: int, options: Permutation
) -> Bool[np.ndarray, " n"]:
    """Choose exactly `number` targets of a text (Yang et al. 2019, section 2.3 and appendix A.2; the authors' `data_utils.py`).

    A span has 1 to `options.longest` tokens, n with a probability proportional to 1/n, and `options.context` n tokens around it,
    a random part of them before it; it begins with the first word after that part. If the text ends before there are enough
    targets, the others are sampled uniformly from the rest, as all targets are without spans.

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


def ranks(rng: np.random.Generator, later: Bool[np.ndarray, " n"], window: int, base: int) -> Int32[np.ndarray, " n"]:
    """Return the ranks of a stretch in the factorization order, int32 [n]: a token attends to equal and lower ranks.

    Tokens that are not `later`, the text that is not predicted, have rank `base`; targets and special tokens have higher ranks,
    all different. Every window of `window` tokens uses the same permutation, and windows follow each other from left to right; 0
    = the stretch is one window.
    """
    size = window or max(1, len(later))
    places = rng.permutation(size)[np.arange(len(later)) % size] + np.arange(len(later)) // size * size
    return np.where(later, base + 1 + places, base).astype(np.int32)
