"""Randomness as a function: a draw depends on (key, step, example, layer, site, coordinates) and on nothing else.

Bits come from a counter hash instead of `jax.random`: the same bit for the same coordinates on every mesh, micro-batch and
block size, at the cost of one multiply-xor-shift round per element.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

GOLDEN = 0x9E3779B1  # 2**32 / golden ratio, odd: spreads consecutive coordinates over all 32 bits


def mix(x: UInt32[Array, "*S"]) -> UInt32[Array, "*S"]:
    """A bijection of 32-bit words with near-ideal avalanche (`lowbias32`, found by search: C. Wellons, hash-prospector)."""
    x = x ^ (x >> 16)
    x = x * jnp.uint32(0x7FEB352D)
    x = x ^ (x >> 15)
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def fold(seeds: UInt32[Array, "*B 2"], number: int | Int[Array, ""] | UInt32[Array, "*B"]) -> UInt32[Array, "*B 2"]:
    """Seeds for the `number`-th of something (layer, site), independent of the seeds for any other number."""
    salt = mix(jnp.asarray(number).astype(jnp.uint32) * jnp.uint32(GOLDEN) + jnp.uint32(1))
    first = mix(seeds[..., 0] ^ salt)
    return jnp.stack([first, mix(seeds[..., 1] + first)], -1)


def example_seeds(key: UInt32[Array, "2"], step: Int[Array, ""], index: UInt32[Array, " B"]) -> UInt32[Array, "B 2"]:
    """Seeds of each example of a step, from the run's key, the step and the examples' numbers in the global stream."""
    return fold(jnp.broadcast_to(fold(key, step), (*index.shape, 2)), index)


def keep(seeds: UInt32[Array, "B 2"], rate: float, *coordinates: UInt32[Array, "_"]) -> Bool[Array, "B *C"]:
    """Which entries of an array with the given global coordinates survive dropout at `rate`.

    The seeds and all coordinates but the last are mixed per row; the last costs one mix per element.
    """
    row = seeds[:, 0]
    for number in coordinates[:-1]:
        row = mix(row[..., None] + number * jnp.uint32(GOLDEN))
    row = mix(row ^ seeds[:, 1].reshape(-1, *[1] * (row.ndim - 1)))
    bits = mix(row[..., None] ^ (coordinates[-1] * jnp.uint32(GOLDEN)))
    return bits >= jnp.uint32(round(rate * 2**32))
