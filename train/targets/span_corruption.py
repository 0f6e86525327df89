"""Span corruption: the tokens left out of a text and their replacements (Raffel et al. 2020, section 3.3), on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from train.config.option_groups import Denoising


class RowSizes(NamedTuple):
    """Sizes of a row in tokens, the end token of each side included."""

    raw: int
    """Number of tokens of the text that the row is made of."""
    source: int
    target: int
    """Largest number of tokens of the target; with spans and dropped tokens the exact number, also of `source`."""
    sentinels: int
    """Largest number of different sentinels."""


def row_sizes(options: Denoising, length: int) -> RowSizes:
    """Return the sizes for the longest text whose source never has more than `length` tokens.

    Spans and dropped tokens fill the source exactly, because the number of tokens left out depends on the length alone. T5's code
    chooses its lengths in the same way.
    """
    if options.kind in ("spans", "drop"):
        raw = 2
        while _sizes(raw + 1, options)[0] <= length:
            raw += 1
        return RowSizes(raw, *_sizes(raw, options))
    if options.kind == "iid":
        # In the worst case no two of them are adjacent.
        noise = noise_tokens(length - 1, options.density)
        return RowSizes(length - 1, length, 2 * noise + 2, noise + 1)
    if options.kind == "prefix":
        return RowSizes(length, length, length, 0)
    return RowSizes(length - 1, 1 if options.kind == "lm" else length, length, int(options.kind in ("bert", "mass")))


def noise_tokens(length: int, density: float) -> int:
    """Return how many tokens of a text are left out: at least 1, and not all."""
    return min(max(round(length * density), 1), length - 1)


def noise_spans(length: int, options: Denoising) -> int:
    """Return the number of spans left out of a text, no two of which are adjacent."""
    noise = noise_tokens(length, options.density)
    return min(max(round(noise / options.mean_span), 1), noise, length - noise)


def choose_spans(rng: np.random.Generator, length: int, options: Denoising) -> Bool[np.ndarray, " n"]:
    """Choose spans to leave out, with text before each span and the last span at the end; all placements are equally likely."""
    noise, number = noise_tokens(length, options.density), noise_spans(length, options)
    sizes = np.stack([_parts(rng, length - noise, number), _parts(rng, noise, number)], axis=1)  # [spans, 2]
    return np.repeat(np.tile([False, True], number), sizes.ravel())  # [length]


def choose_tokens(rng: np.random.Generator, length: int, density: float) -> Bool[np.ndarray, " n"]:
    """Choose single tokens to leave out; all choices are equally likely.

    T5's code samples each token independently; here the number is fixed, so that the sizes of rows are bounded.
    """
    chosen = np.zeros(length, bool)
    chosen[rng.permutation(length)[: noise_tokens(length, density)]] = True
    return chosen


def source_and_target(
    ids: Integer[np.ndarray, " n"], noise: Bool[np.ndarray, " n"], sentinels: tuple[int, ...]
) -> tuple[Int32[np.ndarray, " a"], Int32[np.ndarray, " b"]]:
    """Return (source, target): the text with a sentinel in place of each run of noise, and each run after its sentinel.

    If the text continues after the last run, one more sentinel ends the target (the paper's figure 2). Both sides together are
    the whole text. (T5's code omits the first sentinel from a target whose text begins with noise.)
    """
    first = noise & ~np.append(False, noise[:-1])
    at = np.flatnonzero(first)
    sentinel_ids = np.array(sentinels[: len(at) + 1], np.int32)
    source = ids.astype(np.int32)
    source[at] = sentinel_ids[: len(at)]
    target = np.insert(ids.astype(np.int32), at, sentinel_ids[: len(at)])[np.insert(noise, at, True)]
    return source[first | ~noise], target if noise[-1] else np.append(target, sentinel_ids[-1:])


def drop_noise(
    ids: Integer[np.ndarray, " n"], noise: Bool[np.ndarray, " n"]
) -> tuple[Int32[np.ndarray, " a"], Int32[np.ndarray, " b"]]:
    """Return (source, target): the text without its noise tokens, and the noise tokens alone (the paper's Table 3)."""
    return ids[~noise].astype(np.int32), ids[noise].astype(np.int32)


def replace_noise(
    rng: np.random.Generator,
    ids: Integer[np.ndarray, " n"],
    noise: Bool[np.ndarray, " n"],
    sentinel: int,
    entries: Int32[np.ndarray, " entries"],
) -> Int32[np.ndarray, " n"]:
    """Return the text with noise tokens replaced by the same sentinel, or with probability `RANDOM` by any of `entries`."""
    is_random = rng.random(len(ids)) < RANDOM
    random_ids = entries[rng.integers(len(entries), size=len(ids))]
    return np.where(noise & is_random, random_ids, mask_noise(ids, noise, sentinel)).astype(np.int32)


def mask_noise(ids: Integer[np.ndarray, " n"], noise: Bool[np.ndarray, " n"], sentinel: int) -> Int32[np.ndarray, " n"]:
    """Return the text with every noise token replaced by the same sentinel, as in MASS (Song et al. 2019)."""
    return np.where(noise, sentinel, ids).astype(np.int32)


RANDOM = 0.1
"""Share of BERT-style noise that is replaced by a random token."""


def _sizes(length: int, options: Denoising) -> tuple[int, int, int]:
    """Return (tokens of the source, of the target, sentinels) of a text with spans or dropped tokens, the end tokens included."""
    noise = noise_tokens(length, options.density)
    number = noise_spans(length, options) if options.kind == "spans" else 0
    return length - noise + number + 1, noise + number + 1, number


def _parts(rng: np.random.Generator, total: int, number: int) -> Int64[np.ndarray, " parts"]:
    """Return the sizes of `number` nonempty parts of `total`; all ways to cut it are equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: number - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
