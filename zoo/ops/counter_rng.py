"""Counter-based random numbers: a sample depends on (key, step, example, layer, site, coordinates) and on nothing else.

Bits come from a counter hash instead of `jax.random`, so every mesh, micro-batch size and block size has the same bit at the same
coordinates. An element costs one multiply-xor-shift round.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

GOLDEN = 0x9E3779B1  # 2**32 / golden ratio, odd: spreads consecutive coordinates over all 32 bits


def mix(x: UInt32[Array, "*S"]) -> UInt32[Array, "*S"]:
    """Hash 32-bit words by a bijection with near-ideal avalanche (`lowbias32` of C. Wellons' hash-prospector)."""
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def fold(seeds: UInt32[Array, "*B 2"], number: int | Int[Array, ""] | UInt32[Array, "*B"]) -> UInt32[Array, "*B 2"]:
    """Return seeds for the layer or site of that number, independent of the seeds for any other number."""
    salt = mix(jnp.asarray(number).astype(jnp.uint32) * jnp.uint32(GOLDEN) + jnp.uint32(1))
    first = mix(seeds[..., 0] ^ salt)
    return jnp.stack([first, mix(seeds[..., 1] + first)], -1)


def example_seeds(key: UInt32[Array, "2"], step: Int[Array, ""], index: UInt32[Array, " B"]) -> UInt32[Array, "B 2"]:
    """Return the seeds of each example of a step, from the run's key, the step and the examples' indices in the global stream."""
    return fold(jnp.broadcast_to(fold(key, step), (*index.shape, 2)), index)


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
    """Return the hash of rows, from both seeds of the example and all coordinates but the last, which broadcast."""
    row = first
    for number in coordinates:
        row = mix(row + number * jnp.uint32(GOLDEN))
    return mix(row ^ second)


def is_kept(row: UInt32[Array, "..."], column: UInt32[Array, "..."], rate: float) -> Bool[Array, "..."]:
    """Return True for the entries that dropout at `rate` keeps, from the hash of the row and the last coordinate."""
    return mix(row ^ (column * jnp.uint32(GOLDEN))) >= jnp.uint32(round(rate * 2**32))
