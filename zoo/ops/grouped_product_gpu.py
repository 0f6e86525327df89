"""Pallas kernels for NVIDIA GPUs of products of consecutive groups of rows with a kernel (a weight matrix) for each group.

XLA:GPU computes `jax.lax.ragged_dot` and both of its gradients as products of all rows with every kernel, E times the products
that are needed (read in the compiled program at JAX 0.10.2). Triton compiles these kernels, which are the counterparts of those
in `grouped_product_tpu`. A program of `multiply_rows` has a tile of rows and a block of columns of its group's weights; one of
`weight_gradients` has a block of the gradient of a group's weights and loops over the rows of the group, so that no sum needs
atomic additions and every run gives the same bits.

Pallas's backend for Triton at JAX 0.10.2 has neither a grid whose size is an array nor arrays that index maps read. So the grid
of `multiply_rows` goes over as many tiles as there could be, of which those after all groups end at once, and kernels find a
group's weights by its number. The axes need not be multiples of the blocks: what is outside is masked.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float, Int

from zoo.ops import grouped_product
from zoo.ops.tile_sizes import KernelCall, tile_sizes

LARGEST_TILE = 128
"""Maximum number of rows in a tile."""
NEIGHBOURS = 8
"""Consecutive tiles of rows that are multiplied with a block of weights before the next block: together they read each block from
the cache. Eight tiles of 128 rows, 2,880 bfloat16 numbers each, are 5.6 MiB of the 50 of an H100."""


class Blocks(NamedTuple):
    """Sizes of blocks, and parameters of Triton."""

    columns: int
    """Columns of a block of the result, and rows of one of the gradient of weights."""
    step: int
    """Length of the contracted axis in one step of a loop; at most a tile in the gradient of weights."""
    warps: int
    stages: int
    """Steps whose blocks are in shared memory at once."""


def device_blocks(dtype: Any) -> Blocks:
    """Return the sizes of blocks for the device for which a program is compiled.

    Those of the table take 96 KiB of shared memory with 2 bytes, of which an H100 has room for two programs on a multiprocessor
    and an A10 for one. With 4 bytes and 128 columns an A100 would spill registers.
    """
    return Blocks(**tile_sizes(KernelCall(kernel="grouped_product_gpu", dtype=jnp.dtype(dtype).name)))


def choose_tile_rows(rows_per_group: int) -> int:
    """Return the number of rows in a tile of groups of an average size; see `grouped_product.choose_tile_rows`."""
    return grouped_product.choose_tile_rows(rows_per_group, LARGEST_TILE)


def multiply_rows(
    x: Float[Array, "R D"],
    kernels: Float[Array, "E _ _"],
    biases: Float[Array, "E F"] | None,
    sizes: Int[Array, " E"],
    *,
    tile: int,
    transposed: bool = False,
    interpret: bool = False,
) -> Float[Array, "R F"]:
    """Return x[r] . kernels[e] + biases[e], or x[r] . kernels[e]^T if `transposed`; see `grouped_product.grouped_product`.

    Of the grid's axes the first varies fastest: programs of consecutive tiles share a block of weights.
    """
    (rows, depth), columns = x.shape, kernels.shape[1 if transposed else 2]
    blocks = device_blocks(x.dtype)
    ends = jnp.cumsum(sizes // tile).astype(jnp.int32)
    group = grouped_product.group_of(ends, rows // tile)

    def body(group: Any, used: Any, x: Any, kernels: Any, biases: Any, y: Any) -> None:
        number = pl.program_id(2) * NEIGHBOURS + pl.program_id(0)
        column, row = pl.program_id(1) * blocks.columns, number * tile

        @pl.when(number < used[0])
        def _multiply() -> None:
            current = group[number]

            def step(i: Any, sums: Any) -> Any:
                at = i * blocks.step
                x_i = _load(x, (), (row, at), (tile, blocks.step))
                if transposed:
                    weights = _load(kernels, (current,), (column, at), (blocks.columns, blocks.step))
                else:
                    weights = _load(kernels, (current,), (at, column), (blocks.step, blocks.columns))
                return sums + _dot(x_i, weights, 1, int(transposed), interpret)

            zero = jnp.zeros((tile, blocks.columns), jnp.float32)
            sums = lax.fori_loop(0, pl.cdiv(depth, blocks.step), step, zero)
            if biases is not None:
                sums += _load(biases, (current,), (column,), (blocks.columns,)).astype(jnp.float32)[None]
            _store(y, (), (row, column), sums)

    return _call(
        body,
        blocks,
        "grouped_product_rows",
        grid=(NEIGHBOURS, pl.cdiv(columns, blocks.columns), pl.cdiv(rows // tile, NEIGHBOURS)),
        out_shape=jax.ShapeDtypeStruct((rows, columns), x.dtype),
        interpret=interpret,
    )(group, ends[-1:], x, kernels, biases)


def weight_gradients(
    x: Float[Array, "R D"], d_y: Float[Array, "R F"], sizes: Int[Array, " E"], *, tile: int, dtype: Any, interpret: bool = False
) -> tuple[Float[Array, "E D F"], Float[Array, "E F"]]:
    """Return the sums over the rows of each group of x[r]^T d_y[r] and of d_y[r], zeros for an empty group.

    Of the grid's axes the first varies fastest: programs of consecutive blocks of rows of the gradient share the rows of d_y.
    """
    depth, columns, groups = x.shape[1], d_y.shape[1], sizes.shape[0]
    blocks = device_blocks(x.dtype)
    size, rows = blocks.columns, min(tile, blocks.step)
    bounds = jnp.append(0, jnp.cumsum(sizes // rows)).astype(jnp.int32)

    def body(bounds: Any, x: Any, d_y: Any, d_kernels: Any, d_biases: Any) -> None:
        group = pl.program_id(2)
        at, column = pl.program_id(0) * size, pl.program_id(1) * size
        first, last = bounds[group], bounds[group + 1]

        def step(i: Any, sums: Any) -> Any:
            x_i = _load(x, (), (i * rows, at), (rows, size))
            return sums + _dot(x_i, _load(d_y, (), (i * rows, column), (rows, size)), 0, 0, interpret)

        sums = lax.fori_loop(first, last, step, jnp.zeros((size, size), jnp.float32))
        _store(d_kernels, (group,), (at, column), sums)

        # In a loop of its own, because in the other one a branch would make the assembler serialize the products.
        @pl.when(at == 0)
        def _sum_biases() -> None:
            def step(i: Any, sums: Any) -> Any:
                return sums + _load(d_y, (), (i * rows, column), (rows, size)).astype(jnp.float32)

            sums = lax.fori_loop(first, last, step, jnp.zeros((rows, size), jnp.float32))
            _store(d_biases, (group,), (column,), sums.sum(0))

    return _call(
        body,
        blocks,
        "grouped_product_weights",
        grid=(pl.cdiv(depth, size), pl.cdiv(columns, size), groups),
        out_shape=[
            jax.ShapeDtypeStruct((groups, depth, columns), dtype),
            jax.ShapeDtypeStruct((groups, columns), jnp.float32),
        ],
        interpret=interpret,
    )(bounds, x, d_y)


def _call(body: Any, blocks: Blocks, name: str, **options: Any) -> Any:
    parameters = plt.CompilerParams(num_warps=blocks.warps, num_stages=blocks.stages)
    return pl.pallas_call(body, compiler_params=parameters, name=name, **options)


def _inside(sizes: tuple[int, ...], starts: tuple[Any, ...], block: tuple[int, ...]) -> Any:
    """Return which entries of a block are inside an array of these sizes; None if its axes are multiples of the block's."""
    masks = [
        lax.broadcasted_iota(jnp.int32, block, axis) < size - start
        for axis, (size, start, length) in enumerate(zip(sizes, starts, block, strict=True))
        if size % length
    ]
    return None if not masks else masks[0] if len(masks) == 1 else masks[0] & masks[1]


def _load(array: Any, group: tuple[Any, ...], starts: tuple[Any, ...], block: tuple[int, ...]) -> Array:
    """Return a block of an array, or of a group's part of it, with zeros where it is outside."""
    inside = _inside(array.shape[len(group) :], starts, block)
    at = (*group, *(pl.ds(start, length) for start, length in zip(starts, block, strict=True)))
    return plt.load(array.at[at], mask=inside, other=None if inside is None else 0.0)


def _store(array: Any, group: tuple[Any, ...], starts: tuple[Any, ...], block: Array) -> None:
    """Write what is inside of a block of an array, or of a group's part of it."""
    at = (*group, *(pl.ds(start, length) for start, length in zip(starts, block.shape, strict=True)))
    plt.store(array.at[at], block.astype(array.dtype), mask=_inside(array.shape[len(group) :], starts, block.shape))


def _dot(x: Array, y: Array, i: int, j: int, interpret: bool) -> Float[Array, "_ _"]:
    """Return the sums of products over axis i of x and axis j of y, in float32.

    The matrix units round float32 operands to 11 bits. With three products of their halves the error is near 2^-22 of the
    absolute values (Ootomo and Yokota 2022, section 3), without leaving these units. The interpreter has another name for it.
    """
    precision = None
    if x.dtype == jnp.float32:
        precision = lax.Precision.HIGHEST if interpret else lax.DotAlgorithmPreset.TF32_TF32_F32_X3
    return lax.dot_general(x, y, (((i,), (j,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
