"""Position encodings as pure functions: sinusoids, T5 buckets, XLNet distances and rotary embeddings.

Learned positions are a table in the model's parameters. Angles and results are float32. Shape letters: see `zoo.batch`.
"""

import bisect
import functools

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from zoo.ops import rotary_frequencies

BASE = 10_000.0
"""Approximate ratio of the longest to the shortest wavelength (Vaswani et al. 2017, section 3.5)."""


def sinusoids(length: int, width: int) -> Float[Array, "{length} {width}"]:
    """Return the fixed encodings of the positions 0 .. length-1 (Vaswani et al. 2017, section 3.5).

    Column 2i holds sin(position / 10000^(2i / width)), column 2i + 1 its cosine.

    Raises:
        ValueError: an odd width.
    """
    return sinusoids_at(jnp.arange(length), width)


def sinusoids_at(positions: Int[Array, "*B"], width: int, *, halves: bool = False) -> Float[Array, "*B {width}"]:
    """Return the same encodings of any positions; `halves` puts all sines first and then all cosines.

    Raises:
        ValueError: an odd width.
    """
    angles = _angles(positions, width)
    if halves:
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, width)


def relative_sinusoids(first: int, count: int, width: int) -> Float[Array, "{count} {width}"]:
    """Return encodings of the distances first, ..., first - count + 1 (Dai et al. 2019, section 3.3; Yang et al. 2019).

    The sines fill the first half of a row and the cosines the second, as in both papers' code. A distance is the query's
    position minus the key's: `first` = S and `count` = S + T cover every pair of T queries at the end of S keys.

    Raises:
        ValueError: an odd width.
    """
    angles = _angles(first - jnp.arange(count), width)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def relative_shift(
    by_distance: Float[Array, "*B T D"], query_positions: Int[Array, "*#B T"] | None, *, first: int, keys: int
) -> Float[Array, "*B T {keys}"]:
    """Reorder scores by distance into scores by key: the shift of Dai et al. 2019, appendix B.

    `by_distance[..., t, j]` is the score of query t at distance first - j. Entry (t, s) of the result is its score at distance
    `query_positions[t] - s`, where the key's index is its position, or NaN if `by_distance` does not have that distance. Without
    `query_positions` query t has position t, and neither a gather nor, in the gradient, a scatter is needed.

    Raises:
        ValueError: no `query_positions`, and distances that do not cover all pairs.
    """
    *leading, t, count = by_distance.shape
    if query_positions is not None:
        column = first - query_positions[..., None] + jnp.arange(keys)
        # A negative index would wrap around to the other end; any index past the end is filled with NaN.
        column = jnp.where(column < 0, count, column)
        return jnp.take_along_axis(by_distance, column, axis=-1, mode="fill")
    if first < t - 1 or count < first + keys:
        raise ValueError(f"distances {first} .. {first - count + 1} do not reach all pairs of {t} queries and {keys} keys")
    # Row t of the result starts at column first - t of `by_distance`. Reshaping rows of `width` to rows of `width` - 1 starts
    # each row one column further left than the row before.
    start = first - (t - 1)
    width = t + keys
    rows = by_distance[..., start : start + width]
    rows = jnp.pad(rows, [*[(0, 0)] * (rows.ndim - 1), (0, width - rows.shape[-1])])
    flat = rows.reshape(*leading, t * width)[..., t - 1 : t * width - 1]  # [..., T * (width - 1)]
    return flat.reshape(*leading, t, width - 1)[..., :keys]  # [..., T, S]


def t5_bucket(relative: Int[Array, "*B"], bidirectional: bool, buckets: int, max_distance: int) -> Int[Array, "*B"]:
    """Return the bucket of each relative position, key - query, in 0 .. buckets-1, int32 (Raffel et al. 2020, section 2.1).

    Half of the buckets contain one distance each; the sizes of the others grow logarithmically up to `max_distance`, and the last
    one also contains all larger distances. If `bidirectional`, keys after the query have the upper half of the buckets; otherwise
    they share bucket 0.

    Raises:
        ValueError: too few buckets, or a `max_distance` too small for the logarithmic ones.
    """
    side = buckets // 2 if bidirectional else buckets
    starts = jnp.asarray(_bucket_starts(side, max_distance), jnp.int32)
    distance = jnp.abs(relative) if bidirectional else jnp.maximum(-relative, 0)
    bucket = jnp.searchsorted(starts, distance, side="right", method="compare_all").astype(jnp.int32)
    return bucket + side * (relative > 0) if bidirectional else bucket


def rotary(x: Float[Array, "B T N H"], positions: Int[Array, "#B T"], *, base: float = BASE) -> Float[Array, "B T N H"]:
    """Rotate queries or keys by their positions (Su et al. 2021, section 3.2), so that q . k depends on the distance alone.

    Half-split form: dimensions i and i + H/2 rotate together, by the angle position / base^(2i / H). The result has x's dtype.

    Raises:
        ValueError: an odd head size.
    """
    return rotate(x, rotation(positions, x.shape[-1], base=base))


def rotation(
    positions: Int[Array, "#B T"], width: int, *, base: float = BASE
) -> tuple[Float[Array, "#B T 1 half"], Float[Array, "#B T 1 half"]]:
    """Return the cosines and sines by which `rotary` rotates heads of size `width`; layers that share a base share them.

    Raises:
        ValueError: an odd head size.
    """
    return scaled_rotation(positions, rotary_frequencies.plain(width, base))


def scaled_rotation(
    positions: Int[Array, "#B T"], frequencies: rotary_frequencies.Frequencies | rotary_frequencies.TokenFrequencies
) -> tuple[Float[Array, "#B T 1 half"], Float[Array, "#B T 1 half"]]:
    """Return the cosines and sines of rotations by `zoo.ops.rotary_frequencies`, times their attention factor."""
    inverse, factor = frequencies
    angles = positions[:, :, None, None].astype(jnp.float32) * jnp.asarray(inverse, jnp.float32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Float[Array, "B T N H"], rotation: tuple[Array, Array]) -> Float[Array, "B T N H"]:
    """Rotate queries or keys by the cosines and sines of `rotation`."""
    cos, sin = rotation
    a, b = jnp.split(x, 2, axis=-1)  # the products are float32, because the angles are
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _angles(positions: Int[Array, "*B"], width: int) -> Float[Array, "*B half"]:
    """Return position / BASE^(2i / width) for i = 0 .. width/2 - 1."""
    frequencies, _ = rotary_frequencies.plain(width, BASE)
    return positions[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)


@functools.lru_cache
def _bucket_starts(buckets: int, max_distance: int) -> tuple[int, ...]:
    """Return the smallest distances of the buckets 1, 2, ..., buckets-1.

    Distance n >= exact belongs to bucket exact + floor(log(n / exact) / log(max_distance / exact) * growing). The floor is
    computed with integers: a rounded logarithm could put a distance at the edge of two buckets into either of them.
    """
    exact = buckets // 2
    growing = buckets - exact
    if exact < 1 or max_distance <= exact:
        raise ValueError(f"{buckets} buckets a side up to distance {max_distance}: take at least 2, up to more than {exact}")
    distances = range(max_distance + 1)
    logarithmic = (
        bisect.bisect_left(distances, True, key=lambda n, k=k: n**growing >= exact ** (growing - k) * max_distance**k)
        for k in range(1, growing)
    )
    return (*range(1, exact + 1), *logarithmic)
