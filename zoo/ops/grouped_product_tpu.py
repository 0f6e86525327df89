"""Pallas kernels for TPU of products of consecutive groups of rows with a kernel (a weight matrix) for each group.

XLA:TPU computes `jax.lax.ragged_dot` and the gradient of its rows with grouped kernels too, but emits the gradient of the weights
as a convolution over all rows for each group, E times the products that are needed (read in the compiled program at JAX 0.10.2
with libtpu 0.0.42.1). It also keeps the rows' products and their cotangents in float32, and transposes the weights in memory.
The kernels of `jax.experimental.pallas.ops.tpu.megablox` at JAX 0.10.2 have no bias and no option for the limit of vector memory,
and multiply a tile of rows that two groups share once for each, with a mask (read in `gmm.py`).

Here groups begin and end at tiles of rows, so that no tile is masked. Two kernels compute everything: `multiply_rows` has a row
tile and a block of columns of its group's weights in the vector memory, the contracted axis in full; `weight_gradients` sums the
products of the tiles of a group. The grid goes over tiles in groups only: others are neither read nor written.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from zoo.errors import BadInput
from zoo.ops import grouped_product
from zoo.ops.tile_sizes import KernelCall, table_sizes
from zoo.sharding import target_device_kind

LANES = 128
SUBLANES = 8
"""Minimum number of rows of float32 numbers that an array occupies in vector memory."""
MIN_COLUMNS = 256
"""Minimum number of columns of a block, except of a narrower array: a tile of rows is read again for each block of columns."""


class Blocks(NamedTuple):
    """Limits of what is in the vector memory at once."""

    tile: int
    """Maximum number of rows in a tile."""
    weight_bytes: int
    """Maximum bytes of the block of weights that stays while the tiles of its group pass, unless it has the fewest columns; there
    are two."""
    gradient: int
    """Maximum rows and columns of a block of the gradient of weights."""
    vmem_bytes: int
    """Bytes that the compiler may use."""


def blocks_of(kind: str) -> Blocks:
    """Return the limits for a `device_kind`.

    Large ones are for devices with more than 16 MiB of vector memory: libtpu 0.0.42.1 compiles blocks of 35 MiB for v5e, v5p, v6e
    and TPU7x, and for v4 refuses more than 16 MiB whatever the limit is. A gradient block divides the 5,760 columns of gpt-oss:
    they are 9 x 640 and 5 x 1,152.
    """
    return Blocks(**table_sizes(KernelCall(kernel="grouped_product_tpu", dtype=""), kind))


def device_blocks() -> Blocks:
    """Return the limits for the device for which a program is compiled."""
    return blocks_of(target_device_kind())


def choose_tile_rows(rows_per_group: int) -> int:
    """Return the number of rows in a tile of groups of an average size; see `grouped_product.choose_tile_rows`."""
    return grouped_product.choose_tile_rows(rows_per_group, device_blocks().tile)


class RowBlocks(NamedTuple):
    """Sizes of the blocks of `multiply_rows`."""

    tile: int
    """Number of rows in a tile."""
    columns: int
    """Number of columns in a block of the weights and of the result."""
    bytes: int
    """Bytes of vector memory that they take."""


def row_blocks(tile: int, depth: int, columns: int, dtype: Any, limits: Blocks) -> RowBlocks:
    """Return the sizes of blocks of `multiply_rows`: those of rows are halved until all fit into the vector memory.

    Counted are two copies of a tile of rows, of a block of weights with its bias and of a block of the result, because the next
    ones are copied while the current ones are used, and a block of sums in float32.

    Raises:
        BadInput: even the smallest tiles do not fit.
    """
    itemsize = jnp.dtype(dtype).itemsize
    block = _block(columns, limits.weight_bytes // (depth * itemsize))
    while True:
        copied = itemsize * (tile * depth + depth * block + tile * block) + 4 * SUBLANES * block
        used = 2 * copied + 4 * tile * block
        if used <= limits.vmem_bytes:
            return RowBlocks(tile, block, used)
        if tile <= grouped_product.MIN_TILE_ROWS:
            raise BadInput(
                f"products of experts over an axis of {depth} {jnp.dtype(dtype).name} numbers need {used / (1 << 20):.1f} MiB of "
                f"the vector memory of a device, which has {limits.vmem_bytes / (1 << 20):.1f}; choose --precision bfloat16, a "
                "smaller --model.ffn or --model.width, or a larger --mesh.tensor"
            )
        tile //= 2


class GradientBlocks(NamedTuple):
    """Sizes of the blocks of `weight_gradients`."""

    depth: int
    """Number of rows in a block of the result."""
    columns: int
    """Number of columns in a block of the result."""
    bytes: int
    """Bytes of vector memory that they take."""


def gradient_blocks(tile: int, depth: int, columns: int, dtype: Any, limits: Blocks) -> GradientBlocks:
    """Return the sizes of blocks of `weight_gradients`, which `limits` bound independently of the sizes of the arrays.

    Counted are two copies of a tile of x, of a tile of the cotangents and of a block of both results, the sums in float32, the
    product that is added to them, and a transposed tile of x.
    """
    itemsize = jnp.dtype(dtype).itemsize
    block_d, block_f = _block(depth, limits.gradient), _block(columns, limits.gradient)
    copied = itemsize * (tile * (block_d + block_f) + block_d * block_f) + 4 * SUBLANES * block_f
    used = 2 * copied + 2 * 4 * block_d * block_f + 4 * SUBLANES * block_f + itemsize * tile * block_d
    return GradientBlocks(block_d, block_f, used)


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
    """Return x[r] . kernels[e] + biases[e], or x[r] . kernels[e]^T if `transposed`; see `grouped_product.grouped_product`.

    The grid goes over blocks of columns and, fastest, over tiles: consecutive tiles of a group share its block of weights. Tiles
    that are too large with the full contracted axis are halved.
    """
    (rows, depth), columns = x.shape, kernels.shape[1 if transposed else 2]
    limits = device_blocks()
    tile, block, _ = row_blocks(tile, depth, columns, x.dtype, limits)
    ends = jnp.cumsum(sizes // tile)
    group = grouped_product.group_of(ends, rows // tile)

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
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=limits.vmem_bytes),
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
    limits = device_blocks()
    block_d, block_f, _ = gradient_blocks(tile, depth, columns, x.dtype, limits)
    num_d = pl.cdiv(depth, block_d)
    tiles = sizes // tile
    steps = _steps_of(tiles)
    ends = jnp.cumsum(steps)
    group = grouped_product.group_of(ends, rows // tile + groups)
    # The one of an empty group's step is not used.
    tile_of_step = jnp.arange(group.shape[0]) - (ends - steps)[group] + (jnp.cumsum(tiles) - tiles)[group]
    tile_of_step = jnp.minimum(tile_of_step, rows // tile - 1).astype(jnp.int32)

    def body(
        group: Any, _: Any, tiles: Any, x: Any, d_y: Any, d_kernel: Any, d_bias: Any, kernel_sum: Any, bias_sum: Any
    ) -> None:
        step, last = pl.program_id(2), pl.num_programs(2) - 1
        current_group = group[step]

        @pl.when(_is_first_step(group, step))
        def _begin() -> None:
            kernel_sum[...] = jnp.zeros_like(kernel_sum)
            bias_sum[...] = jnp.zeros_like(bias_sum)

        @pl.when(tiles[current_group] > 0)
        def _add() -> None:
            contracted = ((0,), (0,))
            kernel_sum[...] += lax.dot_general(x[...], d_y[...], (contracted, ((), ())), preferred_element_type=jnp.float32)
            bias_sum[...] += d_y[...].astype(jnp.float32).sum(0, keepdims=True)

        @pl.when((step == last) | (group[jnp.minimum(step + 1, last)] != current_group))
        def _end() -> None:
            d_kernel[...] = kernel_sum[...].astype(d_kernel.dtype)
            d_bias[...] = bias_sum[...]

    call = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(pl.cdiv(columns, block_f), num_d, ends[-1]),
            in_specs=[
                pl.BlockSpec((tile, block_d), lambda j, k, step, group, tile_of_step, tiles: (tile_of_step[step], k)),
                pl.BlockSpec((tile, block_f), lambda j, k, step, group, tile_of_step, tiles: (tile_of_step[step], j)),
            ],
            out_specs=[
                pl.BlockSpec((None, block_d, block_f), lambda j, k, step, group, _, tiles: (group[step], k, j)),
                pl.BlockSpec((None, None, 1, block_f), lambda j, k, step, group, _, tiles: (group[step], k, 0, j)),
            ],
            scratch_shapes=[pltpu.VMEM((block_d, block_f), jnp.float32), pltpu.VMEM((1, block_f), jnp.float32)],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((groups, depth, columns), dtype),
            # Equal sums for each block of rows: a block of a result may not be written a second time after others.
            jax.ShapeDtypeStruct((groups, num_d, 1, columns), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=limits.vmem_bytes
        ),
        interpret=interpret,
        name="grouped_product_weights",
    )
    d_kernels, d_biases = call(group, tile_of_step, tiles.astype(jnp.int32), x, d_y)
    return d_kernels, d_biases[:, 0, 0]


def _block(size: int, largest: int) -> int:
    """Return the size of blocks of an axis: all of it if it is not larger, else a multiple of the lanes.

    Of the multiples from `MIN_COLUMNS` to `largest`, it is the one that pads the axis least, and of those the largest.
    """
    if size <= largest:
        return size
    smallest = min(MIN_COLUMNS, max(largest // LANES, 1) * LANES)
    return min(range(smallest, max(largest, smallest) + 1, LANES), key=lambda block: (pl.cdiv(size, block) * block, -block))


def _steps_of(tiles: Int[Array, " E"]) -> Int[Array, " E"]:
    """Return the number of steps of each group in the sums over its tiles; an empty group has one, to write its zeros."""
    return jnp.maximum(tiles, 1)


def _is_first_step(group: Any, step: Any) -> Any:
    """Return whether a step is the first one of its group, in a kernel."""
    return (step == 0) | (group[jnp.maximum(step - 1, 0)] != group[step])
