"""Dropout by counter hash: its rate, its independence, and that it depends on coordinates alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import counter_rng


def mask(key=7, step=3, examples=4, rate=0.1, heads=6, t=128, s=128):
    """Return what is dropped, of [examples, heads, t, s]."""
    seed = counter_rng.example_seeds(jnp.array([key, 1], jnp.uint32), jnp.int32(step), jnp.arange(examples, dtype=jnp.uint32))
    axes = (jnp.arange(n, dtype=jnp.uint32) for n in (heads, t, s))
    return ~np.asarray(counter_rng.keep(seed, rate, *axes))


def assert_uncorrelated(a, b):
    """Assert that the correlation of independent entries is within 4 of its standard deviations, 1 / sqrt(n)."""
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)


def test_the_rate_is_within_four_standard_deviations():
    for rate in (0.01, 0.1, 0.5, 0.9):
        dropped = mask(rate=rate)
        assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / dropped.size), rate


def test_entries_are_independent():
    """Neighbours along every axis, other steps, keys and examples, and an entry and its transpose are uncorrelated."""
    d = mask()
    for axis in range(4):
        for lag in (1, 2, 3):
            assert_uncorrelated(np.delete(d, range(lag), axis), np.delete(d, range(d.shape[axis] - lag, d.shape[axis]), axis))
    for other in (mask(step=4), mask(key=8)):
        assert_uncorrelated(d, other)
    assert_uncorrelated(d[:2], d[:1:-1])
    upper = np.triu_indices(d.shape[-1], 1)
    assert_uncorrelated(d[..., *upper], d.swapaxes(-1, -2)[..., *upper])


def test_counts_of_rows_and_columns_are_binomial():
    """Their variance is that of independent entries, within 4 standard deviations of a variance of n counts, sqrt(2 / n)."""
    d = mask(examples=8)
    for axis in (-1, -2):
        counts = d.sum(axis)
        assert abs(counts.var() / (d.shape[axis] * 0.1 * 0.9) - 1) < 4 * np.sqrt(2 / counts.size)


def test_an_entry_depends_on_its_coordinates_alone():
    """A slice of examples, heads, rows and columns is that of the whole."""
    key, step = jnp.array([7, 1], jnp.uint32), jnp.int32(3)
    seed = counter_rng.example_seeds(key, step, jnp.array([2, 3], jnp.uint32))
    axes = [jnp.arange(*r, dtype=jnp.uint32) for r in ((2, 5), (32, 64), (10, 100))]
    part = ~np.asarray(counter_rng.keep(seed, 0.1, *axes))
    np.testing.assert_array_equal(part, mask()[2:4, 2:5, 32:64, 10:100])


def test_fold_separates_layers_and_sites():
    """Among 4096 random words of 32 bits, 2 are equal on average once in 512 times."""
    seed = jnp.array([[1, 2]], jnp.uint32)
    folded = np.asarray(jax.vmap(lambda number: counter_rng.fold(seed, number)[0])(jnp.arange(4096)))
    assert len(np.unique(folded[:, 0])) > 4090
    assert len(np.unique(folded[:, 1])) > 4090
    assert jax.eval_shape(lambda: counter_rng.fold(seed, jnp.int32(3))).dtype == jnp.uint32


def mix(x):
    """Return `lowbias32` of a word, step by step."""
    x = x ^ (x >> 16)
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def defined_keep(seeds, rate, heads, t, s):
    """Return the definition of `keep`, which mixes every entry in full."""
    row = seeds[:, :1, None]
    for number in (heads[:, None], t):
        row = mix(row + number * np.uint32(0x9E3779B1))
    entry = mix(row ^ seeds[:, 1:, None])[..., None] ^ (s * np.uint32(0x9E3779B1))
    return mix(entry) >= np.uint32(round(rate * 2**32))


def check_definition():
    """Compare every entry; of 2**21, about 32 have the upper half of the threshold, and then the lower half decides."""
    seeds = np.array([[1, 2], [2**32 - 1, 2**31]], np.uint32)
    axes = [np.arange(n, dtype=np.uint32) for n in (2, 512, 1024)]
    for rate in (1e-5, 0.1, 0.5, 0.9):
        entries = counter_rng.keep(jnp.asarray(seeds), rate, *map(jnp.asarray, axes))
        np.testing.assert_array_equal(np.asarray(entries), defined_keep(seeds, rate, *axes))


def test_entries_are_those_of_the_definition():
    check_definition()


def with_the_upper_half(row, column, rate):
    """Compare the upper halves alone."""
    x = counter_rng._multiply(row ^ counter_rng._fold_halves(column * jnp.uint32(counter_rng.GOLDEN)))
    return x >= jnp.uint32(round(rate * 2**32) & 0xFFFF0000)


@pytest.mark.planted
@pytest.mark.parametrize(("name", "wrong"), [("is_kept", with_the_upper_half), ("_fold_halves", lambda x: x)])
def test_other_bits_are_noticed(name, wrong, monkeypatch):
    monkeypatch.setattr(counter_rng, name, wrong)
    with pytest.raises(AssertionError):
        check_definition()
