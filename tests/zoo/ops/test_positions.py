"""Positions against slow, obvious references, and the properties that make each of them what it is."""

import cmath
import decimal
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import positions


def angle(position: int, pair: int, width: int) -> float:
    return position / 10_000 ** (2 * pair / width)


def tolerance(farthest: int) -> float:
    """An angle is a rounded position times a rounded frequency: its error grows with the position."""
    return 2.0**-22 * max(farthest, 4)


def test_sinusoids_interleave_sine_and_cosine():
    table = positions.sinusoids(70, 12)
    expected = np.zeros((70, 12))
    for position in range(70):
        for pair in range(6):
            expected[position, 2 * pair] = math.sin(angle(position, pair, 12))
            expected[position, 2 * pair + 1] = math.cos(angle(position, pair, 12))
    assert table.dtype == jnp.float32
    np.testing.assert_allclose(table, expected, rtol=0, atol=tolerance(70))


def test_relative_sinusoids_count_down_with_sines_first():
    first, count, width = 9, 15, 8
    table = positions.relative_sinusoids(first, count, width)
    expected = np.zeros((count, width))
    for row in range(count):
        for pair in range(width // 2):
            expected[row, pair] = math.sin(angle(first - row, pair, width))
            expected[row, width // 2 + pair] = math.cos(angle(first - row, pair, width))
    assert table.dtype == jnp.float32
    np.testing.assert_allclose(table, expected, rtol=0, atol=tolerance(9))
    np.testing.assert_allclose(table[first], [0, 0, 0, 0, 1, 1, 1, 1])


@pytest.mark.parametrize("make", [lambda: positions.sinusoids(4, 5), lambda: positions.relative_sinusoids(2, 4, 5)])
def test_odd_widths_are_refused(make):
    with pytest.raises(ValueError, match="5 is odd"):
        make()


def shifted_by_loops(by_distance, query_positions, first, keys):
    *batch, queries, _ = by_distance.shape
    query_positions = np.broadcast_to(query_positions, (*batch, queries))
    out = np.zeros((*batch, queries, keys), by_distance.dtype)
    for place in np.ndindex(*batch, queries):
        for key in range(keys):
            distance = query_positions[place] - key
            out[(*place, key)] = by_distance[(*place, first - distance)]
    return out


@pytest.mark.parametrize(
    ("keys", "queries"),
    [(5, [0, 1, 2, 3, 4]), (8, [3, 4, 5, 6, 7]), (6, [5, 0, 2])],
    ids=["square", "memory in front", "scattered"],
)
def test_relative_shift_moves_scores_from_distances_to_keys(keys, queries):
    first = keys
    scores = np.random.default_rng(0).normal(size=(2, 3, len(queries), 2 * keys)).astype(np.float32)
    at = np.asarray(queries)[None, None]
    shifted = positions.relative_shift(jnp.asarray(scores), jnp.asarray(at), first=first, keys=keys)
    np.testing.assert_array_equal(shifted, shifted_by_loops(scores, at, first, keys))


def test_relative_shift_takes_each_row_of_the_batch_at_its_own_positions():
    scores = np.random.default_rng(1).normal(size=(2, 3, 2, 9)).astype(np.float32)
    at = np.asarray([[0, 3], [2, 1]])[:, None]
    shifted = positions.relative_shift(jnp.asarray(scores), jnp.asarray(at), first=4, keys=4)
    np.testing.assert_array_equal(shifted, shifted_by_loops(scores, at, 4, 4))


def test_relative_shift_hands_gradients_back_to_the_distances():
    scores = jnp.zeros((2, 6))
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3)), jnp.float32)
    at = jnp.asarray([0, 2])
    grad = jax.grad(lambda scores: (weights * positions.relative_shift(scores, at, first=3, keys=3)).sum())(scores)
    expected = np.zeros((2, 6), np.float32)
    for t, position in enumerate([0, 2]):
        for key in range(3):
            expected[t, 3 - (position - key)] += weights[t, key]
    np.testing.assert_array_equal(grad, expected)


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


def bucket_by_float32(relative: np.ndarray, bidirectional: bool, buckets: int, max_distance: int) -> np.ndarray:
    """The same rule in the arithmetic T5 was trained with."""
    side = buckets // 2 if bidirectional else buckets
    exact = side // 2
    distance = np.abs(relative) if bidirectional else np.maximum(-relative, 0)
    ratio = np.maximum(distance, exact).astype(np.float32) / np.float32(exact)
    scaled = np.log(ratio) / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    far = np.minimum(exact + scaled.astype(np.int32), side - 1)
    near_or_far = np.where(distance < exact, distance, far)
    return near_or_far + (side * (relative > 0) if bidirectional else 0)


@pytest.mark.parametrize("bidirectional", [True, False], ids=["encoder", "decoder"])
def test_t5_buckets_are_those_t5_was_trained_with(bidirectional):
    relative = np.arange(-700, 701)
    buckets = positions.t5_bucket(jnp.asarray(relative), bidirectional, 32, 128)
    assert buckets.dtype == jnp.int32
    np.testing.assert_array_equal(buckets, bucket_by_float32(relative, bidirectional, 32, 128))
    np.testing.assert_array_equal(buckets, [bucket_by_decimals(int(r), bidirectional, 32, 128) for r in relative])


def test_t5_encoder_buckets_by_hand():
    """8 * 16^(k/8), rounded up: buckets 9 to 15 begin at 12, 16, 23, 32, 46, 64 and 91."""
    starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    before = positions.t5_bucket(-jnp.asarray(starts), True, 32, 128)
    np.testing.assert_array_equal(before, range(16))
    just_nearer = positions.t5_bucket(1 - jnp.asarray(starts[1:]), True, 32, 128)
    np.testing.assert_array_equal(just_nearer, range(15))
    after = positions.t5_bucket(jnp.asarray(starts[1:]), True, 32, 128)
    np.testing.assert_array_equal(after, range(17, 32))


@settings(max_examples=25, deadline=None)
@given(bidirectional=st.booleans(), half=st.integers(2, 16), room=st.integers(1, 100))
def test_t5_buckets_of_any_table(bidirectional, half, room):
    buckets = 2 * half
    side = half if bidirectional else buckets
    max_distance = side // 2 + room
    relative = np.arange(-120, 121)  # One shape for all examples: it reaches beyond the farthest max_distance.
    got = np.asarray(positions.t5_bucket(jnp.asarray(relative), bidirectional, buckets, max_distance))
    np.testing.assert_array_equal(got, [bucket_by_decimals(int(r), bidirectional, buckets, max_distance) for r in relative])
    assert got.min() == 0
    assert got.max() == buckets - 1
    before = got[relative <= 0][::-1]
    assert (np.diff(before) >= 0).all(), "farther back never means a lower bucket"
    assert (np.diff(got[relative > 0]) >= 0).all(), "farther ahead never means a lower bucket"


@pytest.mark.parametrize(("bidirectional", "buckets", "max_distance"), [(True, 2, 128), (False, 1, 128), (False, 32, 16)])
def test_impossible_buckets_are_refused(bidirectional, buckets, max_distance):
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


@pytest.mark.parametrize("base", [10_000.0, 100.0])
def test_rotary_turns_pairs(base):
    x = np.random.default_rng(3).normal(size=(2, 5, 3, 8)).astype(np.float32)
    at = np.asarray([[0, 1, 2, 3, 4], [7, 0, 40, 3, 3]])
    got = jax.jit(positions.rotary, static_argnames="base")(jnp.asarray(x), jnp.asarray(at), base=base)
    np.testing.assert_allclose(got, rotated_by_loops(x, at, base), rtol=0, atol=10 * tolerance(40))


def test_rotary_keeps_norms_and_position_zero():
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1, 6, 2, 16)), jnp.float32)
    turned = positions.rotary(x, jnp.arange(6)[None])
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    assert not np.allclose(turned[:, 1], x[:, 1])


@settings(max_examples=20, deadline=None)
@given(shift=st.integers(1, 200))
def test_rotary_scores_depend_on_the_distance_alone(shift):
    rng = np.random.default_rng(5)
    q, k = (jnp.asarray(rng.normal(size=(1, 4, 1, 16)), jnp.float32) for _ in "qk")
    at = jnp.asarray([[0, 3, 5, 11]])

    def scores(by):
        return jnp.einsum("btnh,bsnh->bts", positions.rotary(q, at + by), positions.rotary(k, at + by))

    np.testing.assert_allclose(scores(shift), scores(0), rtol=0, atol=100 * tolerance(shift))
    moved = jnp.einsum("btnh,bsnh->bts", positions.rotary(q, at + shift), positions.rotary(k, at))
    assert np.abs(moved - scores(0)).max() > 0.1


def test_rotary_returns_the_dtype_it_was_given():
    """The turn itself is float32: bfloat16 rounds once, at the end."""
    x = jnp.asarray(np.random.default_rng(6).normal(size=(1, 3, 1, 8)), jnp.bfloat16)
    at = jnp.asarray([[0, 500, 1001]])
    turned = positions.rotary(x, at)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, positions.rotary(x.astype(jnp.float32), at).astype(jnp.bfloat16))


def test_odd_heads_are_refused():
    with pytest.raises(ValueError, match="7 is odd"):
        positions.rotary(jnp.zeros((1, 2, 1, 7)), jnp.zeros((1, 2), jnp.int32))
