"""The product of consecutive groups of rows with a kernel (a weight matrix) for each group, with its gradients.

`grouped_product_tpu` and `grouped_product_gpu` compute both on their platforms; here is what they share. Groups begin and end at
tiles of rows, so that no tile has rows of two groups.
"""

import functools
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

MIN_TILE_ROWS = 16
"""Minimum number of rows in a tile: a register of bfloat16 numbers of a TPU has 16 rows, as have the matrix units of a GPU."""


@runtime_checkable
class Platform(Protocol):
    """A module with the kernels of a platform."""

    def multiply_rows(
        self,
        x: Float[Array, "R D"],
        kernels: Float[Array, "E _ _"],
        biases: Float[Array, "E F"] | None,
        sizes: Int[Array, " E"],
        *,
        tile: int,
        transposed: bool = False,
        interpret: Any = False,
    ) -> Float[Array, "R F"]:
        """Return x[r] . kernels[e] + biases[e] for each row r of group e, or x[r] . kernels[e]^T if `transposed`."""
        ...

    def weight_gradients(
        self,
        x: Float[Array, "R D"],
        d_y: Float[Array, "R F"],
        sizes: Int[Array, " E"],
        *,
        tile: int,
        dtype: Any,
        interpret: Any = False,
    ) -> tuple[Float[Array, "E D F"], Float[Array, "E F"]]:
        """Return the sums over the rows of each group of x[r]^T d_y[r] and of d_y[r], zeros for an empty group."""
        ...


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5, 6))
def grouped_product(
    platform: Platform,
    x: Float[Array, "R D"],
    kernels: Float[Array, "E D F"],
    biases: Float[Array, "E F"],
    sizes: Int[Array, " E"],
    tile: int,
    interpret: Any,
) -> Float[Array, "R F"]:
    """Return x[r] . kernels[e] + biases[e] for each row r of group e, in the dtype of the rows, with sums in float32.

    Args:
        sizes: the number of rows of each group, multiples of `tile`. Results of rows after all groups are undefined, and so are
            their gradients.
        tile: a power of two, from `choose_tile_rows` of the platform.
        interpret: True, or the options of Pallas's interpreter of TPUs: compute without a device of the platform.
    """
    return platform.multiply_rows(x, kernels, biases, sizes, tile=tile, interpret=interpret)


def _forward(
    platform: Platform, x: Array, kernels: Array, biases: Array, sizes: Array, tile: int, interpret: Any
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    return grouped_product(platform, x, kernels, biases, sizes, tile, interpret), (x, kernels, biases, sizes)


def _backward(platform: Platform, tile: int, interpret: Any, residuals: Any, d_y: Array) -> tuple[Array, Array, Array, None]:
    x, kernels, biases, sizes = residuals
    d_x = platform.multiply_rows(d_y, kernels, None, sizes, tile=tile, transposed=True, interpret=interpret)
    d_kernels, d_biases = platform.weight_gradients(x, d_y, sizes, tile=tile, dtype=kernels.dtype, interpret=interpret)
    return d_x.astype(x.dtype), d_kernels, d_biases.astype(biases.dtype), None


grouped_product.defvjp(_forward, _backward)


def choose_tile_rows(rows_per_group: int, largest: int) -> int:
    """Return the number of rows in a tile of groups of an average size: a power of two and at most an eighth of that size.

    The last tile of a group is half empty on average, so that on average at most a sixteenth of the products are of empty rows,
    unless the groups are smaller than eight of the smallest tiles. One group alone can have more: up to a tile less one row.

    Args:
        largest: the maximum number of rows in a tile.
    """
    return min(largest, max(MIN_TILE_ROWS, 1 << max(rows_per_group // 8, 1).bit_length() - 1))


def group_of(ends: Int[Array, " E"], count: int) -> Int[Array, " count"]:
    """Return the group of each of `count` tiles or steps, given the end of each group; the last group after all ends."""
    passed = (ends <= jnp.arange(count)[:, None]).sum(1)
    return jnp.minimum(passed, ends.shape[0] - 1).astype(jnp.int32)
