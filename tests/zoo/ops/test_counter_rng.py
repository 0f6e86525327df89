"""Counter-hash dropout: its rate, its independence, and that it depends on coordinates alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoo import seeds


def mask(key=7, step=3, examples=4, rate=0.1, heads=6, t=128, s=128):
    seed = seeds.example_seeds(jnp.array([key, 1], jnp.uint32), jnp.int32(step), jnp.arange(examples, dtype=jnp.uint32))
    axes = (jnp.arange(n, dtype=jnp.uint32) for n in (heads, t, s))
    return ~np.asarray(seeds.keep(seed, rate, *axes))


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_rate(rate):
    dropped = mask(rate=rate)
    sigma = np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(dropped.mean() - rate) < 4 * sigma


def test_entries_are_independent():
    """Neighbours along every axis, and other steps, keys and examples, are uncorrelated (|r| < 4 sigma)."""
    d = mask().astype(np.float32)
    bound = 4 / np.sqrt(d.size / 2)
    for axis in range(4):
        for lag in (1, 2, 3):
            a, b = np.delete(d, range(lag), axis), np.delete(d, range(d.shape[axis] - lag, d.shape[axis]), axis)
            assert abs(correlation(a, b)) < bound * 2, (axis, lag)
    for other in (mask(step=4), mask(key=8), mask()[::-1]):
        assert abs(correlation(d, other.astype(np.float32))) < bound
    upper = np.triu_indices(d.shape[-1], 1)
    assert abs(correlation(d[..., *upper], d.swapaxes(-1, -2)[..., *upper])) < bound


def test_row_counts_are_binomial():
    """Dropped entries per row and per column have the variance of independent draws: no row is favoured."""
    d = mask(examples=8)
    for axis in (-1, -2):
        counts = d.sum(axis)
        expected = d.shape[axis] * 0.1 * 0.9
        assert 0.9 < counts.var() / expected < 1.1


def test_a_draw_depends_on_its_coordinates_alone():
    """A slice of examples, heads, rows and columns draws what the whole draws there."""
    key, step = jnp.array([7, 1], jnp.uint32), jnp.int32(3)
    seed = seeds.example_seeds(key, step, jnp.array([2, 3], jnp.uint32))
    axes = [jnp.arange(*r, dtype=jnp.uint32) for r in ((2, 5), (32, 64), (10, 100))]
    part = ~np.asarray(seeds.keep(seed, 0.1, *axes))
    np.testing.assert_array_equal(part, mask()[2:4, 2:5, 32:64, 10:100])


def test_fold_separates_layers_and_sites():
    seed = jnp.array([[1, 2]], jnp.uint32)
    folded = np.concatenate([np.asarray(seeds.fold(seed, i)) for i in range(4096)])
    assert len(np.unique(folded[:, 0])) > 4090
    assert len(np.unique(folded[:, 1])) > 4090
    assert jax.eval_shape(lambda: seeds.fold(seed, jnp.int32(3))).dtype == jnp.uint32
