"""What of a text is left out and what stands in its place (Raffel et al. 2020, section 3.3): pure functions, on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int32, Int64, Integer

from train.config.objective_options import Denoising


class Room(NamedTuple):
    """Tokens of a row, the end that each side has included."""

    raw: int
    """Of the text that it is made of."""
    source: int
    target: int
    """At most; of spans exactly."""
    sentinels: int
    """How many different ones it may take."""


def room(options: Denoising, length: int) -> Room:
    """The longest text whose source never has more than `length` tokens, and what its two sides have.

    Spans fill the source exactly: as many are left out of every text of a length. T5's code chooses its lengths so too.
    """
    if options.kind == "spans":
        raw = 2
        while _sizes(raw + 1, options)[0] <= length:
            raw += 1
        source, target, spans = _sizes(raw, options)
        return Room(raw, source, target, spans)
    if options.kind == "iid":
        # At worst no two of them are neighbours.
        noise = noise_tokens(length - 1, options.density)
        return Room(length - 1, length, 2 * noise + 2, noise + 1)
    if options.kind == "prefix":
        return Room(length, length, length, 0)
    return Room(length - 1, 1 if options.kind == "lm" else length, length, int(options.kind == "bert"))


def noise_tokens(length: int, density: float) -> int:
    """How many tokens of a text are left out: never none, nor all."""
    return min(max(round(length * density), 1), length - 1)


def noise_spans(length: int, options: Denoising) -> int:
    """How many spans they are, no two of them neighbours."""
    noise = noise_tokens(length, options.density)
    return min(max(round(noise / options.mean_span), 1), noise, length - noise)


def spans(rng: np.random.Generator, length: int, options: Denoising) -> Bool[np.ndarray, " n"]:
    """Which tokens are left out: spans with text before each, the last at the end; all ways to place them are equally likely."""
    noise, number = noise_tokens(length, options.density), noise_spans(length, options)
    sizes = np.stack([_parts(rng, length - noise, number), _parts(rng, noise, number)], axis=1)
    return np.repeat(np.tile([False, True], number), sizes.ravel())


def scattered(rng: np.random.Generator, length: int, density: float) -> Bool[np.ndarray, " n"]:
    """Which tokens are left out, all choices being equally likely.

    T5's code draws for each token alone; here the number is always the share, so that rows have bounds.
    """
    chosen = np.zeros(length, bool)
    chosen[rng.permutation(length)[: noise_tokens(length, density)]] = True
    return chosen


def sides(
    ids: Integer[np.ndarray, " n"], noise: Bool[np.ndarray, " n"], sentinels: tuple[int, ...]
) -> tuple[Int32[np.ndarray, " a"], Int32[np.ndarray, " b"]]:
    """(source, target): the text with a sentinel for each run of noise, and each run after its sentinel.

    Where the text goes on after the last run, one more sentinel ends the target (the paper's figure 2). Each side together with
    the other is the whole text. (T5's code leaves the first sentinel out of a target whose text begins with noise.)
    """
    first = noise & ~np.append(False, noise[:-1])
    at = np.flatnonzero(first)
    marks = np.array(sentinels[: len(at) + 1], np.int32)
    source = ids.astype(np.int32)
    source[at] = marks[: len(at)]
    target = np.insert(ids.astype(np.int32), at, marks[: len(at)])[np.insert(noise, at, True)]
    return source[first | ~noise], target if noise[-1] else np.append(target, marks[-1:])


def replaced(
    rng: np.random.Generator,
    ids: Integer[np.ndarray, " n"],
    noise: Bool[np.ndarray, " n"],
    sentinel: int,
    entries: Int32[np.ndarray, " entries"],
) -> Int32[np.ndarray, " n"]:
    """The text with a sentinel, the same one, for each token of noise, or for one in ten of them any of `entries`."""
    other = rng.random(len(ids)) < RANDOM
    drawn = entries[rng.integers(len(entries), size=len(ids))]
    return np.where(noise, np.where(other, drawn, sentinel), ids).astype(np.int32)


RANDOM = 0.1
"""Share of BERT-style noise that another token stands for."""


def _sizes(length: int, options: Denoising) -> tuple[int, int, int]:
    """Of a text: (tokens of its source, of its target, spans), the ends included."""
    noise, number = noise_tokens(length, options.density), noise_spans(length, options)
    return length - noise + number + 1, noise + number + 1, number


def _parts(rng: np.random.Generator, total: int, number: int) -> Int64[np.ndarray, " parts"]:
    """Sizes of so many parts of a whole, none empty; all ways to cut it are equally likely."""
    cuts = np.sort(rng.permutation(total - 1)[: number - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(np.int64)
