"""Positions against slow, obvious references, and the properties that make each of them what it is."""

import cmath
import decimal
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from zoo.ops import positions


def angle(position: int, pair: int, width: int) -> float:
    return position / 10_000 ** (2 * pair / width)


def tolerance(farthest: int) -> float:
    """An angle is a rounded position times a rounded frequency: its error grows with the position."""
    return 2.0**-22 * max(farthest, 4)


def test_sinusoids():
    """Sines and cosines interleaved, and by distances that count down with all sines first."""
    table, relative = positions.sinusoids(70, 12), positions.relative_sinusoids(9, 15, 8)
    assert table.dtype == relative.dtype == jnp.float32
    angles = np.array([[angle(position, pair, 12) for pair in range(6)] for position in range(70)])
    expected = np.stack([np.sin(angles), np.cos(angles)], -1).reshape(70, 12)
    np.testing.assert_allclose(table, expected, rtol=0, atol=tolerance(70))
    angles = np.array([[angle(9 - row, pair, 8) for pair in range(4)] for row in range(15)])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    np.testing.assert_allclose(relative, expected, rtol=0, atol=tolerance(9))
    np.testing.assert_array_equal(relative[9], [0, 0, 0, 0, 1, 1, 1, 1])


def test_odd_sizes_are_refused():
    for size, call in (
        (5, lambda: positions.sinusoids(4, 5)),
        (5, lambda: positions.relative_sinusoids(2, 4, 5)),
        (7, lambda: positions.rotary(jnp.zeros((1, 2, 1, 7)), jnp.zeros((1, 2), jnp.int32))),
    ):
        with pytest.raises(ValueError, match=f"{size} is odd"):
            call()


def shifted_by_loops(by_distance, query_positions, first, keys):
    *batch, queries, _ = by_distance.shape
    query_positions = np.broadcast_to(query_positions, (*batch, queries))
    out = np.zeros((*batch, queries, keys), by_distance.dtype)
    for place in np.ndindex(*batch, queries):
        for key in range(keys):
            distance = query_positions[place] - key
            out[(*place, key)] = by_distance[(*place, first - distance)]
    return out


def test_relative_shift_moves_scores_from_distances_to_keys():
    """Queries in order, behind a memory, scattered, and scattered differently in each row of the batch."""
    for keys, queries in [(5, [[0, 1, 2, 3, 4]]), (8, [[3, 4, 5, 6, 7]]), (6, [[5, 0, 2]]), (4, [[0, 3], [2, 1]])]:
        at = np.asarray(queries)[:, None]
        scores = np.random.default_rng(0).normal(size=(2, 3, at.shape[-1], 2 * keys + 1)).astype(np.float32)
        shifted = positions.relative_shift(jnp.asarray(scores), jnp.asarray(at), first=keys, keys=keys)
        np.testing.assert_array_equal(shifted, shifted_by_loops(scores, at, keys, keys))


def test_distances_that_were_not_scored_are_nan():
    """On both sides: a negative index must not wrap around to the scores of the other end."""
    shifted = positions.relative_shift(jnp.ones((1, 3)), jnp.asarray([3]), first=1, keys=7)
    np.testing.assert_array_equal(jnp.isfinite(shifted[0]), [False, False, True, True, True, False, False])


def bucket_by_decimals(relative: int, bidirectional: bool, buckets: int, max_distance: int) -> int:
    """Raffel et al.'s rule on the real line: 50 digits, with a nudge that only an exact boundary can feel."""
    bucket = 0
    if bidirectional:
        buckets //= 2
        bucket = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    exact = buckets // 2
    if distance < exact:
        return bucket + distance
    with decimal.localcontext(prec=50):
        share = (decimal.Decimal(distance) / exact).ln() / (decimal.Decimal(max_distance) / exact).ln()
        step = int(share * (buckets - exact) + decimal.Decimal("1e-40"))
    return bucket + min(exact + step, buckets - 1)


def test_t5_buckets_of_the_published_table():
    """Those of the encoder, and those of the decoder."""
    relative = np.arange(-700, 701)
    for bidirectional in (True, False):
        buckets = positions.t5_bucket(jnp.asarray(relative), bidirectional, 32, 128)
        assert buckets.dtype == jnp.int32
        np.testing.assert_array_equal(buckets, [bucket_by_decimals(int(r), bidirectional, 32, 128) for r in relative])


def test_t5_buckets_of_any_table():
    """Small tables exhaustively, larger ones at random; farther away never means a lower bucket."""
    rng = np.random.default_rng(0)
    tables = [(half, room) for half in (2, 3) for room in (1, 2, 5)] + rng.integers((4, 1), (17, 101), (12, 2)).tolist()
    relative = np.arange(-120, 121)  # beyond the largest max_distance
    for (half, room), bidirectional in itertools.product(tables, (True, False)):
        buckets = 2 * half + room % 2
        max_distance = (half if bidirectional else buckets) // 2 + room
        got = np.asarray(positions.t5_bucket(jnp.asarray(relative), bidirectional, buckets, max_distance))
        np.testing.assert_array_equal(got, [bucket_by_decimals(int(r), bidirectional, buckets, max_distance) for r in relative])
        # An odd one is left over where half of them are for either side.
        assert (got.min(), got.max()) == (0, buckets - 1 - (bidirectional and buckets % 2))
        assert (np.diff(got[relative <= 0]) <= 0).all() and (np.diff(got[relative > 0]) >= 0).all()


def test_impossible_buckets_are_refused():
    for bidirectional, buckets, max_distance in [(True, 2, 128), (False, 1, 128), (False, 32, 16)]:
        with pytest.raises(ValueError, match="buckets a side"):
            positions.t5_bucket(jnp.arange(3), bidirectional, buckets, max_distance)


def rotated_by_loops(x, at, base=10_000.0):
    """Dimension i and i + H/2 as one complex number, turned by the position's angle."""
    rows, queries, heads, size = x.shape
    out = np.zeros(x.shape)
    for b, t, n, i in np.ndindex(rows, queries, heads, size // 2):
        turn = cmath.exp(1j * at[b, t] / base ** (2 * i / size))
        turned = complex(x[b, t, n, i], x[b, t, n, i + size // 2]) * turn
        out[b, t, n, i], out[b, t, n, i + size // 2] = turned.real, turned.imag
    return out


def test_rotary_rotates_pairs_of_dimensions():
    """Each of two products of a rotated number has the angle's error and 3 roundings, of numbers up to 4."""
    x = np.random.default_rng(3).normal(size=(2, 5, 3, 8)).astype(np.float32)
    at = np.asarray([[0, 1, 2, 3, 4], [7, 0, 40, 3, 3]])
    assert np.abs(x).max() < 4
    for base in (10_000.0, 100.0):
        got = positions.rotary(jnp.asarray(x), jnp.asarray(at), base=base)
        np.testing.assert_allclose(got, rotated_by_loops(x, at, base), rtol=0, atol=2 * 4 * (tolerance(40) + 3 * 2.0**-24))
        np.testing.assert_array_equal(got[0, 0], x[0, 0])


def test_rotary_returns_the_dtype_of_its_input():
    """The rotation itself is float32: bfloat16 rounds once, at the end."""
    x = jnp.asarray(np.random.default_rng(6).normal(size=(1, 3, 1, 8)), jnp.bfloat16)
    at = jnp.asarray([[0, 500, 1001]])
    turned = positions.rotary(x, at)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, positions.rotary(x.astype(jnp.float32), at).astype(jnp.bfloat16))
