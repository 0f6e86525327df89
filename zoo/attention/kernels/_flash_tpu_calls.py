"""The calls of the kernels of `flash_tpu`: their operands, and the blocks of the arrays that each step of a grid has in memory.

Keys are the fastest axis of a grid, except in the backward pass without a relative bias, whose tiles are transposed: there it is
the queries. A tile that is skipped keeps the blocks of another one, so that nothing is copied for it.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, UInt32

from zoo.attention.biases import Relative
from zoo.attention.kernels._flash_common import key_lengths, number_arrays, sink_gradient
from zoo.attention.kernels._flash_tpu_bodies import backward_body, forward_body, relative_backward_body
from zoo.attention.kernels._flash_tpu_plan import LANES, Plan
from zoo.attention.kernels._flash_tpu_xlnet_bias import Positions
from zoo.attention.masks import NO_PAIR, Mask, Side
from zoo.attention.totals import Totals


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """The integers that the kernels read, none of which has a gradient."""

    states: Any
    """`Mask.block_states`, int32 [1 or B, I, J]."""
    lengths: Any
    """Number of real keys of each example, int32 [B]; zeros if the mask has none."""
    seed: Any
    """Seeds of dropout, uint32 [B, 2], or [B, 4] of a chunk."""
    heads: Any
    """Indices of the query heads among those of all devices, uint32 [N]."""
    query_numbers: Any
    """Arrays of the queries' numbers in the order of `Plan.numbers`, then their types, int32 [B, F, T]; None: there are none."""
    key_numbers: Any
    at: Any
    """Index of each scattered query among the keys, int32 [B, T]; a zero if they are not scattered."""

    @classmethod
    def of(
        cls, plan: Plan, mask: Mask, bias: Relative | None, b: int, seed: UInt32[Array, "B _"], heads: UInt32[Array, " N"]
    ) -> "Operands":
        """Return the operands of a call; the mask is padded, the bias is not."""
        padded_t, padded_s = plan.num_q * plan.block_q, plan.num_k * plan.block_k
        sides = mask.sides(padded_t, padded_s)
        types = (bias.query_types, bias.key_types) if plan.has_types and bias is not None else (None, None)

        def stacked(side: Side, types: Any, length: int) -> Any:
            arrays = number_arrays(plan.numbers, side, b, length)
            if types is not None:
                arrays.append(jnp.pad(types, ((0, 0), (0, length - types.shape[1]))))
            return jnp.stack(arrays, 1).astype(jnp.int32) if arrays else None

        at = jnp.zeros((1, 1), jnp.int32)
        if plan.position == "scattered" and bias is not None:
            at = bias.query_positions.astype(jnp.int32)
            at = jnp.pad(at, ((0, 0), (0, padded_t - at.shape[1])))
        return cls(
            states=mask.block_states(plan.block_q, plan.block_k, padded_t, padded_s),
            lengths=key_lengths(mask, b),
            seed=seed,
            heads=heads,
            query_numbers=stacked(sides[0], types[0], padded_t),
            key_numbers=stacked(sides[1], types[1], padded_s),
            at=at,
        )

    def scalars(self, states: Any) -> list[Any]:
        """Return the operands that the kernels read as scalars, given the states in the order of their grid."""
        return [_merge_last(states), _merge_last(_block_to_fetch(states)), self.lengths, self.seed, self.heads, self.at]


SCALARS = 6
"""Number of `Operands.scalars`."""


def _merge_last(states: Array) -> Array:
    return states.reshape(states.shape[0], -1)


def _block_to_fetch(states: Array) -> Array:
    """Return the block of the last axis that is in memory while each tile is computed.

    A skipped tile keeps the block of the tile before it, or has that of the first tile which is not skipped, so nothing is
    copied for it.
    """
    active = states != NO_PAIR
    last = lax.cummax(jnp.where(active, jnp.arange(states.shape[-1]), -1), axis=2)
    return jnp.where(last < 0, jnp.argmax(active, -1, keepdims=True), last).astype(jnp.int32)


# --- the forward pass -----------------------------------------------------------------------------------------------------------


Added = Array | Positions | None
"""The arrays of a bias: the tiles of one by distance [N, tiles, block, block], or those of a relative one."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(
    plan: Plan, q: Array, k: Array, v: Array, bias: Added, sinks: Array | None, operands: Operands, totals: Totals | None
) -> Array:
    """Compute the output [B, N, T, H] of padded q, k and v of that layout, with the custom gradient below."""
    return forward(plan, q, k, v, bias, sinks, operands, totals)[0]


def forward(
    plan: Plan, q: Array, k: Array, v: Array, bias: Added, sinks: Array | None, operands: Operands, totals: Totals | None
) -> tuple[Array, Any]:
    """Compute the output [B, N, T, H] and the residuals, of which the last is the log-sum-exp [B, N, 1, T]; or take `totals`."""
    if totals is not None:
        return totals.out, (q, k, v, bias, sinks, operands, *totals)
    (b, n, t, h), block_q = q.shape, plan.block_q
    spec = functools.partial(_spec, plan)
    queries = spec((1, 1, block_q, h), lambda b, n, i, j: (b, n, i, 0))
    rows = spec((1, 1, 1, block_q), lambda b, n, i, j: (b, n, 0, i))
    wide = (block_q, LANES)
    scratch = [
        pltpu.VMEM(wide, jnp.float32),
        pltpu.VMEM(wide, jnp.float32),
        pltpu.VMEM((block_q, h), jnp.float32),
        *_columns_scratch(plan),
        bias.scratch(plan, backward=False) if isinstance(bias, Positions) else None,
    ]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=SCALARS,
        grid=(b, n, plan.num_q, plan.num_k),
        in_specs=[
            None if sinks is None else pl.BlockSpec(memory_space=pltpu.SMEM),
            *_input_specs(plan, spec, h, bias, backward=False),
        ],
        out_specs=[queries, rows],
        scratch_shapes=scratch,
    )
    call = pl.pallas_call(
        functools.partial(forward_body, plan),
        grid_spec=grid,
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, n, 1, t), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=plan.interpret,
        name=f"{plan.kernel}_forward",
    )
    added = bias.operands(plan, backward=False) if isinstance(bias, Positions) else bias
    numbers = operands.query_numbers, operands.key_numbers
    out, lse = call(*operands.scalars(operands.states), sinks, q, k, v, added, *numbers)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, bias, sinks, operands, out, lse)


def _spec(plan: Plan, shape: Sequence[int], index: Callable[..., Any], *, heads_first: bool = False, **options: Any) -> Any:
    """Return the block of an array at (b, n, i, j) of a grid over blocks of queries and, fastest, of keys.

    Args:
        index: a function of b, n, i and the block of keys that is in memory.
        heads_first: the grid's first axis is n, and its second b.
    """

    def at(b: Any, n: Any, i: Any, j: Any, states: Any, fetch: Any, *_: Any) -> Any:
        b, n = (n, b) if heads_first else (b, n)
        example = 0 if fetch.shape[0] == 1 else b
        return index(b, n, i, fetch[example, i * plan.num_k + j])

    return pl.BlockSpec(tuple(shape), at, **options)


def _input_specs(plan: Plan, spec: Callable[..., Any], h: int, bias: Added, *, backward: bool) -> list[Any]:
    """Return the blocks of q, k, v, the bias, and the numbers of queries and keys, in kernels whose tiles are not transposed."""
    queries = spec((1, 1, plan.block_q, h), lambda b, n, i, j: (b, n, i, 0))
    keys = spec((1, 1, plan.block_k, h), lambda b, n, i, j: (b, n // plan.shared, j, 0))
    added = None
    if isinstance(bias, Positions):
        added = bias.specs(plan, spec, backward=backward)
    elif bias is not None:
        added = spec((1, 1, plan.block_q, plan.block_k), lambda b, n, i, j: (n, plan.tile_of_bias(i, j), 0, 0))
    rows = plan.num_rows
    return [
        queries,
        keys,
        keys,
        added,
        spec((1, rows, plan.block_q), lambda b, n, i, j: (b, 0, i)) if rows else None,
        spec((1, rows, plan.block_k), lambda b, n, i, j: (b, 0, j)) if rows else None,
    ]


def _columns_scratch(plan: Plan) -> list[Any]:
    """Return the memory for the numbers and hashes of a block of queries as columns."""
    wide = (plan.block_q, LANES)
    return [
        pltpu.VMEM((plan.num_rows, *wide), jnp.int32) if plan.num_rows else None,
        pltpu.VMEM(wide, jnp.int32) if plan.rate else None,
    ]


# --- the backward pass ----------------------------------------------------------------------------------------------------------


def _backward(plan: Plan, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    """Compute the gradients of q, k, v, the bias and the sinks."""
    q, k, v, bias, sinks, operands, out, lse = residuals
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)[:, :, None]  # line 4: D, [B, N, 1, T]
    run = _backward_relative if plan.position else _backward_transposed
    d_q, d_k, d_v, d_bias = run(plan, q, k, v, bias, operands, d_out, lse, delta)
    b, n, s, h = d_k.shape
    d_k, d_v = (x.reshape(b, n // plan.shared, plan.shared, s, h).sum(2).astype(k.dtype) for x in (d_k, d_v))
    return d_q.astype(q.dtype), d_k, d_v, d_bias, sink_gradient(sinks, lse, delta), None, None


def _backward_transposed(
    plan: Plan, q: Array, k: Array, v: Array, tiles: Array | None, operands: Operands, d_out: Array, lse: Array, delta: Array
) -> tuple[Any, ...]:
    """Run the kernel; its grid goes over heads, examples, blocks of keys and blocks of queries, the last one fastest."""
    (b, n, t, h), s, block_q, block_k = q.shape, k.shape[2], plan.block_q, plan.block_k

    def spec(shape: Sequence[int], index: Callable[..., Any], **options: Any) -> Any:
        def at(n: Any, b: Any, j: Any, i: Any, states: Any, fetch: Any, *_: Any) -> Any:
            example = 0 if fetch.shape[0] == 1 else b
            return index(b, n, fetch[example, j * plan.num_q + i], j, i)

        return pl.BlockSpec(tuple(shape), at, **options)

    queries = spec((1, 1, block_q, h), lambda b, n, fetched, j, i: (b, n, fetched, 0))
    keys = spec((1, 1, block_k, h), lambda b, n, fetched, j, i: (b, n // plan.shared, j, 0))
    rows = spec((1, 1, 1, block_q), lambda b, n, fetched, j, i: (b, n, 0, fetched))
    count = len(plan.numbers)
    has_bias = tiles is not None
    specs = [
        queries,
        keys,
        keys,
        spec((1, 1, block_k, block_q), lambda b, n, fetched, j, i: (n, plan.tile_of_bias(i, j), 0, 0)) if has_bias else None,
        spec((1, count, block_q), lambda b, n, fetched, j, i: (b, 0, fetched)) if count else None,
        spec((1, count, block_k), lambda b, n, fetched, j, i: (b, 0, j)) if count else None,
        queries,
        rows,
        rows,
    ]
    of_keys = spec((1, 1, block_k, h), lambda b, n, fetched, j, i: (b, n, j, 0))
    # These stay in memory for many steps of the grid; a second buffer would hide little of the copy at their end.
    once: Any = {"pipeline_mode": pl.Buffered(1)}
    out_specs = [spec((1, 1, t, h), lambda b, n, fetched, j, i: (b, n, 0, 0), **once), of_keys, of_keys]
    per_head = jax.ShapeDtypeStruct((b, n, s, h), k.dtype)
    out_shape = [jax.ShapeDtypeStruct(q.shape, jnp.float32), per_head, per_head]
    if has_bias:
        out_specs.append(spec((1, plan.num_tiles, block_k, block_q), lambda b, n, fetched, j, i: (n, 0, 0, 0), **once))
        out_shape.append(jax.ShapeDtypeStruct(tiles.shape, jnp.float32))
    scratch = [
        pltpu.VMEM((block_k, h), jnp.float32),
        pltpu.VMEM((block_k, h), jnp.float32),
        pltpu.VMEM((count, block_k, LANES), jnp.int32) if count else None,
    ]
    call = pl.pallas_call(
        functools.partial(backward_body, plan, has_bias),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=SCALARS,
            grid=(n, b, plan.num_k, plan.num_q),
            in_specs=specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")),
        interpret=plan.interpret,
        name=f"{plan.kernel}_backward",
    )
    # Tiles are transposed in the kernel, [keys, queries]: sums over keys are then rows, and one product transposes a tile back.
    transposed = None if tiles is None else jnp.swapaxes(tiles, 2, 3)
    numbers = operands.query_numbers, operands.key_numbers
    scalars = operands.scalars(jnp.swapaxes(operands.states, 1, 2))
    d_q, d_k, d_v, *d_tiles = call(*scalars, q, k, v, transposed, *numbers, d_out, lse, delta)
    return d_q, d_k, d_v, jnp.swapaxes(d_tiles[0], 2, 3) if has_bias else None


def _backward_relative(
    plan: Plan, q: Array, k: Array, v: Array, bias: Positions, operands: Operands, d_out: Array, lse: Array, delta: Array
) -> tuple[Any, ...]:
    """Run the kernel; its grid goes over heads, examples, blocks of queries and blocks of keys, the last one fastest."""
    (b, n, _, h), s, block_q = q.shape, k.shape[2], plan.block_q
    spec = functools.partial(_spec, plan, heads_first=True)
    queries = spec((1, 1, block_q, h), lambda b, n, i, j: (b, n, i, 0))
    rows = spec((1, 1, 1, block_q), lambda b, n, i, j: (b, n, 0, i))
    once: Any = {"pipeline_mode": pl.Buffered(1)}
    of_keys = spec((1, 1, s, h), lambda b, n, i, j: (b, n, 0, 0), **once)
    sum_specs, sum_shapes = bias.gradient_specs(plan, spec, **once)
    per_head = jax.ShapeDtypeStruct((b, n, s, h), jnp.float32)
    call = pl.pallas_call(
        functools.partial(relative_backward_body, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=SCALARS,
            grid=(n, b, plan.num_q, plan.num_k),
            in_specs=[*_input_specs(plan, spec, h, bias, backward=True), queries, rows, rows],
            out_specs=[queries, of_keys, of_keys, sum_specs],
            scratch_shapes=[
                *_columns_scratch(plan),
                pltpu.VMEM((2, block_q, LANES), jnp.float32),
                bias.scratch(plan, backward=True),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(q.shape, jnp.float32), per_head, per_head, sum_shapes],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")),
        interpret=plan.interpret,
        name=f"{plan.kernel}_backward",
    )
    added, numbers = bias.operands(plan, backward=True), (operands.query_numbers, operands.key_numbers)
    d_q, d_k, d_v, sums = call(*operands.scalars(operands.states), q, k, v, added, *numbers, d_out, lse, delta)
    return d_q, d_k, d_v, bias.gradient(plan, sums)


attend.defvjp(forward, _backward)
