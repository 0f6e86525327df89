"""Pallas kernels for TPU of products of consecutive groups of rows with a kernel (a weight matrix) for each group.

XLA:TPU computes `jax.lax.ragged_dot` and the gradient of its rows with grouped kernels too, but emits the gradient of the weights
as a convolution over all rows for each group, E times the products that are needed (read in the compiled program at JAX 0.10.2
with libtpu 0.0.42.1). It also keeps the rows' products and their cotangents in float32, and transposes the weights in memory.
The kernels of `jax.experimental.pallas.ops.tpu.megablox` do not, but must divide the contracted axis, so that they read a group's
weights once for each tile of rows, have no bias, and take no limit of vector memory.

Here groups begin and end at tiles of rows, so that no tile is masked. Two kernels compute everything: `multiply_rows` has a row
tile and a block of columns of its group's weights in the vector memory, the contracted axis in full; `weight_gradients` sums the
products of the tiles of a group. The grid goes over tiles in groups only: others are neither read nor written.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

LANES = 128
NARROWEST = 256
"""Minimum number of columns of a block, except of a narrower array: a tile of rows is read again for each block of columns."""
SMALLEST_TILE = 16
"""Minimum number of rows in a tile: a register of bfloat16 numbers has 16 rows."""


class Blocks(NamedTuple):
    """Sizes of what is in the vector memory at once."""

    tile: int
    """Maximum number of rows in a tile."""
    weights: int
    """Maximum bytes of the block of weights that stays while the tiles of its group pass; there are two."""
    gradient: int
    """Maximum rows and columns of a block of the gradient of weights."""
    memory: int
    """Bytes that the compiler may use."""


SMALL = Blocks(tile=256, weights=4 << 20, gradient=640, memory=16 << 20)
LARGE = Blocks(tile=512, weights=8 << 20, gradient=1152, memory=48 << 20)
"""The columns of gpt-oss, 5,760, are 5 x 1,152 = 9 x 640."""


def blocks() -> Blocks:
    """Return the sizes for the device of the program: a TPU v4 has 16 MiB of vector memory, later ones at least 64."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = (jax.devices()[0] if device is None else device).device_kind
    return SMALL if kind.startswith("TPU v4") else LARGE


def tile_rows(rows: int) -> int:
    """Return the number of rows in a tile if a group has `rows` on average: a power of two and at most an eighth of them.

    The last tile of a group is half empty on average, so that at most a sixteenth of the products are of empty rows, unless the
    groups are smaller than eight of the smallest tiles.
    """
    return min(blocks().tile, max(SMALLEST_TILE, 1 << max(rows // 8, 1).bit_length() - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def grouped_product(
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
        interpret: True, or the options of Pallas's interpreter of TPUs: compute without a TPU.
    """
    return multiply_rows(x, kernels, biases, sizes, tile=tile, interpret=interpret)


def _forward(
    x: Array, kernels: Array, biases: Array, sizes: Array, tile: int, interpret: Any
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    return grouped_product(x, kernels, biases, sizes, tile, interpret), (x, kernels, biases, sizes)


def _backward(tile: int, interpret: Any, residuals: Any, d_y: Array) -> tuple[Array, Array, Array, None]:
    x, kernels, biases, sizes = residuals
    d_x = multiply_rows(d_y, kernels, None, sizes, tile=tile, transposed=True, interpret=interpret)
    d_kernels, d_biases = weight_gradients(x, d_y, sizes, tile=tile, dtype=kernels.dtype, interpret=interpret)
    return d_x.astype(x.dtype), d_kernels, d_biases.astype(biases.dtype), None


grouped_product.defvjp(_forward, _backward)


def multiply_rows(
    x: Float[Array, "R D"],
    kernels: Float[Array, "E _ _"],
    biases: Float[Array, "E F"] | None,
    sizes: Int[Array, " E"],
    *,
    tile: int,
    transposed: bool = False,
    interpret: Any = False,
) -> Float[Array, "R F"]:
    """Return x[r] . kernels[e] + biases[e], or x[r] . kernels[e]^T if `transposed`; see `grouped_product`.

    The grid goes over blocks of columns and, fastest, over tiles: consecutive tiles of a group share its block of weights.
    """
    (rows, depth), columns = x.shape, kernels.shape[1 if transposed else 2]
    block = _block(columns, blocks().weights // (depth * kernels.dtype.itemsize))
    ends = jnp.cumsum(sizes // tile)
    group = _owner(ends, rows // tile)

    def body(_: Any, x: Any, kernel: Any, bias: Any, y: Any) -> None:
        contracted = ((1,), (1 if transposed else 0,))
        sums = lax.dot_general(x[...], kernel[...], (contracted, ((), ())), preferred_element_type=jnp.float32)
        y[...] = (sums if bias is None else sums + bias[...].astype(jnp.float32)).astype(y.dtype)

    if transposed:
        weights = pl.BlockSpec((None, block, depth), lambda j, i, group: (group[i], j, 0))
    else:
        weights = pl.BlockSpec((None, depth, block), lambda j, i, group: (group[i], 0, j))
    bias_block = pl.BlockSpec((None, 1, block), lambda j, i, group: (group[i], 0, j))
    call = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(pl.cdiv(columns, block), ends[-1]),
            in_specs=[
                pl.BlockSpec((tile, depth), lambda j, i, group: (i, 0)),
                weights,
                None if biases is None else bias_block,
            ],
            out_specs=pl.BlockSpec((tile, block), lambda j, i, group: (i, j)),
        ),
        out_shape=jax.ShapeDtypeStruct((rows, columns), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=blocks().memory),
        interpret=interpret,
        name="grouped_product_rows",
    )
    return call(group, x, kernels, None if biases is None else biases[:, None])


def weight_gradients(
    x: Float[Array, "R D"], d_y: Float[Array, "R F"], sizes: Int[Array, " E"], *, tile: int, dtype: Any, interpret: Any = False
) -> tuple[Float[Array, "E D F"], Float[Array, "E F"]]:
    """Return the sums over the rows of each group of x[r]^T d_y[r] and of d_y[r], zeros for an empty group.

    The grid goes over blocks of columns, blocks of rows of the result and, fastest, the tiles; an empty group has one step, which
    writes its zeros.
    """
    (rows, depth), columns, groups = x.shape, d_y.shape[1], sizes.shape[0]
    block_d, block_f = _block(depth, blocks().gradient), _block(columns, blocks().gradient)
    num_d = pl.cdiv(depth, block_d)
    tiles = sizes // tile
    steps = jnp.maximum(tiles, 1)
    ends = jnp.cumsum(steps)
    group = _owner(ends, rows // tile + groups)
    # The tile of each step; that of an empty group is not used.
    at = jnp.arange(group.shape[0]) - (ends - steps)[group] + (jnp.cumsum(tiles) - tiles)[group]
    at = jnp.minimum(at, rows // tile - 1).astype(jnp.int32)

    def body(
        group: Any, _: Any, tiles: Any, x: Any, d_y: Any, d_kernel: Any, d_bias: Any, kernel_sum: Any, bias_sum: Any
    ) -> None:
        step, last = pl.program_id(2), pl.num_programs(2) - 1
        here = group[step]

        @pl.when((step == 0) | (group[jnp.maximum(step - 1, 0)] != here))
        def _begin() -> None:
            kernel_sum[...] = jnp.zeros_like(kernel_sum)
            bias_sum[...] = jnp.zeros_like(bias_sum)

        @pl.when(tiles[here] > 0)
        def _add() -> None:
            contracted = ((0,), (0,))
            kernel_sum[...] += lax.dot_general(x[...], d_y[...], (contracted, ((), ())), preferred_element_type=jnp.float32)
            bias_sum[...] += d_y[...].astype(jnp.float32).sum(0, keepdims=True)

        @pl.when((step == last) | (group[jnp.minimum(step + 1, last)] != here))
        def _end() -> None:
            d_kernel[...] = kernel_sum[...].astype(d_kernel.dtype)
            d_bias[...] = bias_sum[...]

    call = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(pl.cdiv(columns, block_f), num_d, ends[-1]),
            in_specs=[
                pl.BlockSpec((tile, block_d), lambda j, k, step, group, at, tiles: (at[step], k)),
                pl.BlockSpec((tile, block_f), lambda j, k, step, group, at, tiles: (at[step], j)),
            ],
            out_specs=[
                pl.BlockSpec((None, block_d, block_f), lambda j, k, step, group, at, tiles: (group[step], k, j)),
                pl.BlockSpec((None, None, 1, block_f), lambda j, k, step, group, at, tiles: (group[step], k, 0, j)),
            ],
            scratch_shapes=[pltpu.VMEM((block_d, block_f), jnp.float32), pltpu.VMEM((1, block_f), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((groups, depth, columns), dtype),
            # Equal sums for each block of rows: a block of a result may not be written a second time after others.
            jax.ShapeDtypeStruct((groups, num_d, 1, columns), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=blocks().memory
        ),
        interpret=interpret,
        name="grouped_product_weights",
    )
    d_kernels, d_biases = call(group, at, tiles.astype(jnp.int32), x, d_y)
    return d_kernels, d_biases[:, 0, 0]


def _block(size: int, largest: int) -> int:
    """Return the size of blocks of an axis: all of it if it is not larger, else a multiple of the lanes.

    Of the multiples from `NARROWEST` to `largest`, it is the one that pads the axis least, and of those the largest.
    """
    if size <= largest:
        return size
    smallest = min(NARROWEST, max(largest // LANES, 1) * LANES)
    return min(range(smallest, max(largest, smallest) + 1, LANES), key=lambda block: (pl.cdiv(size, block) * block, -block))


def _owner(ends: Int[Array, " E"], count: int) -> Int[Array, " count"]:
    """Return the group of each of `count` tiles or steps, given the end of each group; the last group after all ends."""
    passed = (ends <= jnp.arange(count)[:, None]).sum(1)
    return jnp.minimum(passed, ends.shape[0] - 1).astype(jnp.int32)
