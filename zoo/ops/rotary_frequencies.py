"""Frequencies of rotary positions, plain and scaled to longer rows than a model was first trained on.

Each function takes static numbers and returns a `Frequencies`, which `zoo.ops.positions.scaled_rotation` takes: the angles by
which pairs of dimensions rotate per position, float64 [H/2], and the attention factor, by which cosines and sines are multiplied.
"""

import math

import numpy as np

Frequencies = tuple[np.ndarray, float]
"""Inverse frequencies [H/2], in radians per position, and the attention factor."""


def plain(width: int, base: float) -> Frequencies:
    """Return base^(-2i / width) for i = 0 .. width/2 - 1 (Su et al. 2021, section 3.2.2), and 1.

    Raises:
        ValueError: an odd head size.
    """
    if width % 2:
        raise ValueError(f"sines and cosines come in pairs, so the width must be even: {width} is odd")
    return base ** -(np.arange(0, width, 2) / width), 1.0


def linear(width: int, base: float, *, factor: float) -> Frequencies:
    """Return the plain frequencies divided by `factor`: position interpolation (Chen et al. 2023, section 2.3), and 1."""
    frequencies, attention_factor = plain(width, base)
    return frequencies / factor, attention_factor


def llama3(
    width: int, base: float, *, factor: float, low_freq_factor: float, high_freq_factor: float, original_context: int
) -> Frequencies:
    """Return the frequencies of Llama 3.1, and 1 (Llama Team 2024; `_compute_llama3_parameters` of `transformers`).

    A pair that makes more than `high_freq_factor` turns within `original_context` positions keeps its frequency. One that makes
    fewer than `low_freq_factor` turns has its frequency divided by `factor`. Between them the two are interpolated linearly in
    the number of turns.
    """
    frequencies, attention_factor = plain(width, base)
    turns = original_context * frequencies / (2 * math.pi)
    share = np.clip((turns - low_freq_factor) / (high_freq_factor - low_freq_factor), 0, 1)
    return frequencies * (share + (1 - share) / factor), attention_factor


def yarn(
    width: int,
    base: float,
    *,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    original_context: int,
    truncate: bool = False,
) -> Frequencies:
    """Return the frequencies of YaRN and its attention factor, 0.1 ln(factor) + 1 (Peng et al. 2023, sections 3.2 and 3.4).

    A pair that makes more than `beta_fast` turns within `original_context` positions keeps its frequency. One that makes fewer
    than `beta_slow` turns has its frequency divided by `factor`. Between them the two are interpolated linearly in the number of
    the pair, whose ends are not whole numbers unless `truncate` rounds them outwards.
    """
    frequencies, _ = plain(width, base)
    pairs = width // 2

    def pair_with(turns: float) -> float:
        return pairs * math.log(original_context / (2 * math.pi * turns)) / math.log(base)

    first, last = pair_with(beta_fast), pair_with(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    divided = np.clip((np.arange(pairs) - first) / max(last - first, 1e-3), 0, 1)
    return frequencies * (1 - divided + divided / factor), 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
