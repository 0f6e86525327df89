"""Frequencies of rotary positions, plain and scaled to longer rows than a model was first trained on.

Each function takes static numbers and returns a `Frequencies`, which `zoo.ops.positions.scaled_rotation` takes: the angles by
which pairs of dimensions rotate per position, float64 [H/2], and the attention factor, by which cosines and sines are multiplied.
Those of `dynamic` depend on the tokens.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Frequencies = tuple[np.ndarray, float]
"""Inverse frequencies [H/2], in radians per position, and the attention factor."""
TokenFrequencies = tuple[Float[Array, "#B T 1 half"], float]
"""The same with inverse frequencies for each token, float32."""


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


def dynamic(width: int, base: float, lengths: Int[Array, "#B T"], *, factor: float, original_context: int) -> TokenFrequencies:
    """Return the frequencies of dynamic NTK scaling, and 1 (`_compute_dynamic_ntk_parameters` of `transformers`).

    In a document of more than `original_context` tokens the base is multiplied by s^(width / (width - 2)), where s is
    1 + factor (length / original_context - 1): pair i has its frequency divided by s^(2i / (width - 2)), the first one by 1 and
    the last one by s. Shorter documents have the plain frequencies, bit for bit.

    Args:
        lengths: number of tokens in the document of each token.

    Raises:
        ValueError: an odd head size, or one of 2, whose only pair does not rotate slower with another base.
    """
    frequencies, attention_factor = plain(width, base)
    if width < 4:
        raise ValueError(f"dynamic scaling divides by width - 2, so the width must be at least 4: {width}")
    stretch = 1 + factor * jnp.maximum(lengths - original_context, 0).astype(jnp.float32) / original_context  # [#B, T]
    # A power of the small number s has a smaller error than one of the scaled base: angles are multiples of it.
    exponents = jnp.asarray(np.arange(0, width, 2) / (width - 2), jnp.float32)  # [H/2]
    divisors = jnp.exp(jnp.log(stretch)[..., None] * exponents)  # [#B, T, H/2]
    return (jnp.asarray(frequencies, jnp.float32) / divisors)[:, :, None], attention_factor


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
    attention_factor: float = 0.0,
) -> Frequencies:
    """Return the frequencies of YaRN and its attention factor, 0.1 ln(factor) + 1 (Peng et al. 2023, sections 3.2 and 3.4).

    A pair that makes more than `beta_fast` turns within `original_context` positions keeps its frequency. One that makes fewer
    than `beta_slow` turns has its frequency divided by `factor`. Between them the two are interpolated linearly in the number of
    the pair, whose ends are not whole numbers unless `truncate` rounds them outwards. The ends are limited to 0 .. width - 1,
    as in `_compute_yarn_parameters` of `transformers`.

    Args:
        attention_factor: another attention factor; 0 = that of the paper.
    """
    frequencies, _ = plain(width, base)
    pairs = width // 2

    def pair_with(turns: float) -> float:
        return pairs * math.log(original_context / (2 * math.pi * turns)) / math.log(base)

    first, last = pair_with(beta_fast), pair_with(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    divided = np.clip((np.arange(pairs) - first) / (last - first or 1e-3), 0, 1)
    computed = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    return frequencies * (1 - divided + divided / factor), attention_factor or computed
