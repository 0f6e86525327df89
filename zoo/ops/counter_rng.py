"""Counter-based random numbers: a sample depends on (key, step, example, layer, site, coordinates) and on nothing else.

Bits come from a counter hash instead of `jax.random`, so every mesh, micro-batch size and block size has the same bit at the same
coordinates. An element costs one multiply-xor-shift round.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

GOLDEN = 0x9E3779B1  # 2**32 / golden ratio, odd: spreads consecutive coordinates over all 32 bits


def mix(x: UInt32[Array, "*S"]) -> UInt32[Array, "*S"]:
    """Hash 32-bit words by a bijection with near-ideal avalanche (`lowbias32` of C. Wellons' hash-prospector)."""
    return _fold_halves(_multiply(_fold_halves(x)))


def _fold_halves(x: UInt32[Array, "*S"]) -> UInt32[Array, "*S"]:
    """Return x ^ (x >> 16), which is linear over exclusive or and its own inverse."""
    return x ^ (x >> 16)


def _multiply(x: UInt32[Array, "*S"]) -> UInt32[Array, "*S"]:
    x = x * jnp.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    return x * jnp.uint32(0x846CA68B)


def fold(seeds: UInt32[Array, "*B 2"], number: int | Int[Array, ""] | UInt32[Array, "*B"]) -> UInt32[Array, "*B 2"]:
    """Return seeds for the layer or site of that number, independent of the seeds for any other number."""
    salt = mix(jnp.asarray(number).astype(jnp.uint32) * jnp.uint32(GOLDEN) + jnp.uint32(1))
    first = mix(seeds[..., 0] ^ salt)
    return jnp.stack([first, mix(seeds[..., 1] + first)], -1)


def example_seeds(key: UInt32[Array, "2"], step: Int[Array, ""], index: UInt32[Array, " B"]) -> UInt32[Array, "B 2"]:
    """Return the seeds of each example of a step, from the run's key, the step and the examples' indices in the global stream."""
    return fold(jnp.broadcast_to(fold(key, step), (*index.shape, 2)), index)


def chunk_seeds(
    seeds: UInt32[Array, "B 2"], first_query: int | Int[Array, ""], first_key: int | Int[Array, ""]
) -> UInt32[Array, "B 4"]:
    """Return the seeds of a chunk of the scores: after both seeds, the indices of its first query and key among all."""
    start = jnp.stack([jnp.asarray(first_query), jnp.asarray(first_key)]).astype(jnp.uint32)
    return jnp.concatenate([seeds, jnp.broadcast_to(start, seeds.shape)], 1)


def dropped(x: Float[Array, "B ..."], rate: float, seeds: UInt32[Array, "B 2"]) -> Float[Array, "B ..."]:
    """Return x with a fraction `rate` of its entries zero and the rest scaled up (Srivastava et al. 2014)."""
    coordinates = (jnp.arange(size, dtype=jnp.uint32) for size in x.shape[1:])
    return jnp.where(keep(seeds, rate, *coordinates), x * jnp.asarray(1 / (1 - rate), x.dtype), 0)


def keep(seeds: UInt32[Array, "B 2"], rate: float, *coordinates: UInt32[Array, "_"]) -> Bool[Array, "B *C"]:
    """Return True for the entries that dropout at `rate` keeps, of an array with these global coordinates.

    The seeds and all coordinates but the last are mixed once per row; the last costs one mix per element.
    """
    *leading, column = coordinates
    first, second = (seeds[:, i].reshape(-1, *[1] * len(leading)) for i in (0, 1))
    row = row_hash(first, second, *(x.reshape(-1, *[1] * (len(leading) - 1 - i)) for i, x in enumerate(leading)))
    return is_kept(row[..., None], column, rate)


def row_hash(
    first: UInt32[Array, "..."], second: UInt32[Array, "..."], *coordinates: UInt32[Array, "..."]
) -> UInt32[Array, "..."]:
    """Return hashes of rows for `is_kept`, from both seeds of the example and all coordinates but the last, which broadcast.

    It is the hash of the row without the last step of `mix`, which the first step of the entries' hash would undo.
    """
    row = first
    for number in coordinates:
        row = mix(row + number * jnp.uint32(GOLDEN))
    return _multiply(_fold_halves(row ^ second))


def is_kept(row: UInt32[Array, "..."], column: UInt32[Array, "..."], rate: float) -> Bool[Array, "..."]:
    """Return True for the entries that dropout at `rate` keeps, from `row_hash` and the last coordinate.

    With f = `_fold_halves` and h = f(row), this is mix(h ^ (column * GOLDEN)) >= rate * 2**32 in fewer operations per entry.
    """
    threshold = round(rate * 2**32)
    x = _entry_hash(row, column)
    # f keeps the upper half of x, which decides unless it equals that of the threshold. If it does, the lower half of f(x) is
    # that of x ^ (threshold >> 16).
    return x ^ jnp.uint32(threshold >> 16) >= jnp.uint32(threshold)


def half_words(seeds: UInt32[Array, "2"], *coordinates: UInt32[Array, "_"]) -> UInt32[Array, "*C"]:
    """Return 16 random bits, 0 to 65,535, for each entry of an array with these global coordinates; without any, for a scalar."""
    *leading, column = coordinates or (jnp.zeros(1, jnp.uint32),)
    numbers = (x.reshape(-1, *[1] * (len(leading) - 1 - i)) for i, x in enumerate(leading))
    words = _entry_hash(row_hash(seeds[0], seeds[1], *numbers)[..., None], column) >> 16
    return words if coordinates else words[0]


def _entry_hash(row: UInt32[Array, "..."], column: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """Return the hash of entries without the last step of `mix`, which does not change its upper half.

    With f = `_fold_halves` and h = f(row), mix(h ^ c) begins with f(h ^ c) = row ^ f(c), in which f(c) is computed once per
    column.
    """
    return _multiply(row ^ _fold_halves(column * jnp.uint32(GOLDEN)))
