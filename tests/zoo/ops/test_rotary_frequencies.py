"""Frequencies of rotary positions against the published rules, written for one pair of dimensions at a time."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from zoo.batch import Batch
from zoo.nn import layers
from zoo.ops import positions, rotary_frequencies

LLAMA3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}
"""Numbers of Llama 3.2."""


def llama3_by_wavelength(frequency: float) -> float:
    """Return the scaled frequency by the three cases of wavelengths that the released code distinguishes."""
    wavelength = 2 * math.pi / frequency
    if wavelength < LLAMA3["original_context"] / LLAMA3["high_freq_factor"]:
        return frequency
    if wavelength > LLAMA3["original_context"] / LLAMA3["low_freq_factor"]:
        return frequency / LLAMA3["factor"]
    smooth = LLAMA3["original_context"] / wavelength - LLAMA3["low_freq_factor"]
    smooth /= LLAMA3["high_freq_factor"] - LLAMA3["low_freq_factor"]
    return (1 - smooth) * frequency / LLAMA3["factor"] + smooth * frequency


def test_plain_and_linear() -> None:
    frequencies, factor = rotary_frequencies.plain(6, 500.0)
    np.testing.assert_allclose(frequencies, [1, 500 ** (-1 / 3), 500 ** (-2 / 3)], rtol=1e-12)
    scaled, scaled_factor = rotary_frequencies.linear(6, 500.0, factor=4.0)
    np.testing.assert_array_equal(scaled, frequencies / 4)
    assert factor == scaled_factor == 1


def test_llama3() -> None:
    """The frequencies of Llama 3.2 1B include all three cases: 15 pairs, 3 and 14."""
    frequencies, factor = rotary_frequencies.llama3(64, 500_000.0, **LLAMA3)
    plain, _ = rotary_frequencies.plain(64, 500_000.0)
    np.testing.assert_allclose(frequencies, [llama3_by_wavelength(frequency) for frequency in plain], rtol=1e-12)
    ratios = plain / frequencies
    counts = [(ratios == 1).sum(), ((ratios > 1) & (ratios < 31.999)).sum(), (ratios > 31.999).sum()]
    assert factor == 1 and counts == [15, 3, 14]


@pytest.mark.planted
@pytest.mark.parametrize(
    "change", [{"factor": 8.0}, {"low_freq_factor": 2.0}, {"high_freq_factor": 2.0}, {"original_context": 4096}]
)
def test_llama3_depends_on_each_number(change: dict[str, float]) -> None:
    scaled, _ = rotary_frequencies.llama3(64, 500_000.0, **{**LLAMA3, **change})  # pyright: ignore[reportArgumentType]
    plain, _ = rotary_frequencies.plain(64, 500_000.0)
    assert np.abs(scaled / [llama3_by_wavelength(frequency) for frequency in plain] - 1).max() > 0.01


YARN = {"factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_context": 4096}
"""Numbers of gpt-oss, whose base is 150,000."""


def yarn_by_turns(pair: int) -> float:
    """Return the scaled frequency of a pair of a head of 64: the ramp runs from the pair with 32 turns to that with 1."""
    frequency = 150_000.0 ** (-pair / 32)
    low, high = 8.0928, 17.3980
    share = min(max((pair - low) / (high - low), 0), 1)
    return share * frequency / 32 + (1 - share) * frequency


def test_yarn() -> None:
    """The ramp of gpt-oss is not truncated: it runs from 8.0928 to 17.3980, and the attention factor is 1.34657."""
    frequencies, factor = rotary_frequencies.yarn(64, 150_000.0, **YARN)  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(frequencies, [yarn_by_turns(pair) for pair in range(32)], rtol=1e-4)
    assert factor == pytest.approx(1.34657, abs=1e-5)
    assert rotary_frequencies.yarn(64, 150_000.0, **{**YARN, "factor": 1.0})[1] == 1  # pyright: ignore[reportArgumentType]


@pytest.mark.planted
@pytest.mark.parametrize(
    "change", [{"factor": 16.0}, {"beta_fast": 16.0}, {"beta_slow": 2.0}, {"original_context": 8192}, {"truncate": True}]
)
def test_yarn_depends_on_each_number(change: dict[str, float]) -> None:
    scaled, _ = rotary_frequencies.yarn(64, 150_000.0, **{**YARN, **change})  # pyright: ignore[reportArgumentType]
    assert np.abs(scaled / [yarn_by_turns(pair) for pair in range(32)] - 1).max() > 0.01


def test_yarn_takes_another_attention_factor() -> None:
    """It changes no frequency."""
    frequencies, factor = rotary_frequencies.yarn(64, 150_000.0, **YARN, attention_factor=0.9)  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(frequencies, rotary_frequencies.yarn(64, 150_000.0, **YARN)[0])  # pyright: ignore[reportArgumentType]
    assert factor == 0.9


def dynamic_by_base(length: int) -> np.ndarray:
    """Return the frequencies of a head of 128 with factor 4 beyond 4,096 tokens, as powers of the scaled base."""
    base = 10_000.0 * (4.0 * length / 4096 - 3.0) ** (128 / 126)
    return base ** -(np.arange(64) / 64)


def test_dynamic() -> None:
    """Each token has the frequencies of its document's length; up to 4,096 tokens they are the plain ones, bit for bit."""
    lengths = np.array([[1, 4096, 4097], [5000, 8192, 16_384]])
    frequencies, factor = rotary_frequencies.dynamic(128, 1e4, jnp.asarray(lengths), factor=4.0, original_context=4096)
    plain, _ = rotary_frequencies.plain(128, 1e4)
    assert frequencies.shape == (2, 3, 1, 64) and factor == 1
    np.testing.assert_array_equal(frequencies[0, :2, 0], np.array([plain, plain], np.float32))
    for computed, length in zip(frequencies.reshape(6, 64)[2:], lengths.ravel()[2:], strict=True):
        np.testing.assert_allclose(computed, dynamic_by_base(length), rtol=1e-6)
        assert computed[0] == 1


@pytest.mark.planted
@pytest.mark.parametrize("change", [{"factor": 3.9}, {"original_context": 4095}])
def test_dynamic_depends_on_each_number(change: dict[str, float]) -> None:
    numbers: dict[str, Any] = {"factor": 4.0, "original_context": 4096, **change}
    scaled, _ = rotary_frequencies.dynamic(128, 1e4, jnp.asarray([[8192]]), **numbers)
    assert np.abs(scaled[0, 0, 0] / dynamic_by_base(8192) - 1).max() > 1e-4


def test_document_lengths() -> None:
    tokens = jnp.zeros((2, 6), jnp.int32)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]])
    restarted = jnp.asarray([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]])
    packed = layers.document_lengths(Batch(tokens=tokens, segments=segments, positions=restarted))
    assert packed[segments > 0].tolist() == [3, 3, 3, 2, 2, 4, 4, 4, 4]
    assert layers.document_lengths(Batch(tokens=tokens)).tolist() == [[6] * 6]
    decoded = layers.document_lengths(Batch(tokens=tokens[:, :1], segments=tokens[:, :1] + 1, positions=jnp.asarray([[7], [4]])))
    assert decoded.tolist() == [[8], [5]]


def test_rotations_have_the_frequencies_and_the_factor() -> None:
    cos, sin = positions.scaled_rotation(jnp.asarray([[0, 3, 100]]), (np.array([1.0, 0.25]), 1.5))
    angles = np.array([[0, 0], [3, 0.75], [100, 25]])
    assert cos.shape == sin.shape == (1, 3, 1, 2)
    np.testing.assert_allclose(cos[0, :, 0], 1.5 * np.cos(angles), rtol=0, atol=1e-5)
    np.testing.assert_allclose(sin[0, :, 0], 1.5 * np.sin(angles), rtol=0, atol=1e-5)


def test_heads_that_cannot_rotate_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4: 2"):
        rotary_frequencies.dynamic(2, 1e4, jnp.asarray([[3]]), factor=2.0, original_context=2)
    with pytest.raises(ValueError, match="7 is odd"):
        rotary_frequencies.linear(7, 1e4, factor=2.0)
