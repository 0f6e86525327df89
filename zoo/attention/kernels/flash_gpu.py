"""`flash_gpu`: Pallas kernels for GPU that store nothing of size T x S: T5's bias, dropout, sinks, masks but explicit ones.

Triton compiles them. The forward pass is algorithm 1 of FlashAttention-2 (Dao 2023). The backward pass is its algorithm 2 as two
kernels, one for queries and one for keys, so that no sum needs atomic additions and every run gives the same bits.
`_flash_gpu_bodies` has what runs in the kernels. `Mask.block_states` says from which tile to which a kernel loops.

A bias by distance is read from the numbers of its distances. Its gradient is summed over the tiles that are as far from the
diagonal, by a third kernel for those near it and by the kernel for queries where the bias is constant; the gradient of the table
is the transpose of making tiles from it. XLNet's bias is read as a dense array, of a chunk of the queries at a time: Triton
cannot move each row of a tile by an amount of its own, as the terms of distance need.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Bool, Float, Int32, UInt32

from zoo.attention.biases import Bias, Buckets, ByDistance, Dense, Relative
from zoo.attention.kernels import _flash_common as common
from zoo.attention.kernels import _flash_gpu_bodies as bodies
from zoo.attention.kernels._dot_product_attention import capability
from zoo.attention.kernels._flash_gpu_bodies import Inputs, Plan, head_block
from zoo.attention.masks import NO_PAIR, Mask
from zoo.attention.query_chunks import in_chunks
from zoo.attention.request import RING, Request, kernel_call
from zoo.attention.totals import Totals, padded_lse
from zoo.ops import counter_rng
from zoo.ops.tile_sizes import tile_sizes
from zoo.sharding import target_platform

WARPS, STAGES = 4, 2
"""`Plan.warps` and `Plan.stages`; twice the warps with heads of more than MEDIUM_HEAD or tiles of more than 64, and a single
stage with a dense bias, of which more would make the assembler serialize the products."""
SMALLEST_HEAD, SMALL_HEAD, MEDIUM_HEAD, LARGEST_HEAD = 16, 64, 128, 256
"""Sizes of a head, which the kernels pad to a power of two: the smallest that the matrix units take, and the largest whose sums
fit the registers of a program: on an H100 the kernel for keys has 254 registers a thread with heads of 128, 240 with 256."""
PARTS = 2
"""`Plan.parts` with a bias, which needs registers too, or heads above SMALL_HEAD; twice that above MEDIUM_HEAD, else 1."""
PROGRAMS = 512
"""Programs that sum the gradient of a bias: about four for each of the 132 multiprocessors of an H100."""
PALLAS = {pl: ("BlockSpec",), plt: ("CompilerParams", "load")}
"""Module of Pallas -> what the kernels need of it; its interface still changes between versions of JAX."""


def flash_gpu(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Bias | None,
    seed: UInt32[Array, "B _"] | None,
    heads: UInt32[Array, " N"],
    sinks: Float[Array, " N"] | None = None,
    *,
    scale: float,
    rate: float,
    return_totals: bool = False,
    totals: Totals | None = None,
) -> Any:
    """Compute attention (see `ChunkKernel`). Scores, softmax and sums are float32. Without a GPU the kernels are interpreted."""
    block = tile_sizes(kernel_call("flash_gpu", q, k, mask, bias, rate))["block"]
    attend = functools.partial(_fused, heads=heads, sinks=sinks, scale=scale, rate=rate, block=block)
    if not isinstance(bias, Relative):
        return attend(q, k, v, mask, bias, seed, return_totals=return_totals, totals=totals)

    def attend_from(q: Array, k: Array, v: Array, mask: Mask, bias: Dense, first_query: Array) -> Array:
        return attend(q, k, v, mask, bias, None if seed is None else counter_rng.chunk_seeds(seed, first_query, 0))

    blocks = -(-PROGRAMS // (q.shape[0] * q.shape[2]))
    return in_chunks(attend_from, q, k, v, mask, bias, scale=scale, block=block, blocks=blocks)


def _fused(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Bias | None,
    seed: UInt32[Array, "B _"] | None,
    *,
    heads: UInt32[Array, " N"],
    sinks: Float[Array, " N"] | None,
    scale: float,
    rate: float,
    block: int,
    return_totals: bool = False,
    totals: Totals | None = None,
) -> Any:
    """Compute attention, of a chunk if the seeds have the indices of its start. A dense bias has the axes [B, N, T, S].

    Args:
        block: the number of queries and of keys in a tile.
    """
    (b, t, n, h), s = q.shape, k.shape[1]
    prepared = bias.prepare(t, s) if isinstance(bias, Buckets | ByDistance) else None
    num_q, num_k = -(-t // block), -(-s // block)
    padded_t, padded_s = num_q * block, num_k * block
    mask = common.pad_mask(mask, b, t, s, padded_t, padded_s)
    states = mask.block_states(block, block, padded_t, padded_s)
    before, after = (0, -1) if prepared is None else prepared.tile_offsets(block, num_q, num_k)
    num_tiles = before + 1 + after
    groups = min(b, -(-PROGRAMS // (n * max(1, num_tiles))))
    plan = Plan(
        block_q=block,
        block_k=block,
        num_q=num_q,
        num_k=num_k,
        shared=n // k.shape[2],
        diagonal=before,
        num_tiles=num_tiles,
        mask=common.without_arrays(mask),
        has_lengths=mask.key_lengths is not None,
        numbers=common.number_names(mask),
        rate=rate if seed is not None else 0.0,
        is_chunk=seed is not None and seed.shape[1] > 2,
        interpret=target_platform() != "gpu",
        first=0 if prepared is None else prepared.first,
        num_distances=0 if prepared is None else prepared.values.shape[0],
        constant_from=None if prepared is None else prepared.constant_from,
        examples=b,
        bias_groups=(groups, min(num_q, -(-PROGRAMS // (n * max(1, num_tiles) * groups)))),
        has_own_states=states.shape[0] > 1,
        warps=2 * WARPS if h > MEDIUM_HEAD or block > 64 else WARPS,
        stages=1 if isinstance(bias, Dense) else STAGES,
        parts=2 * PARTS if h > MEDIUM_HEAD else PARTS if bias is not None or h > SMALL_HEAD else 1,
    )
    operands = Operands.of(plan, mask, states, seed, heads)
    added = prepared
    if isinstance(bias, Dense):
        added = common.pad_axis(common.pad_axis(bias.values.astype(q.dtype), 2, padded_t), 3, padded_s)
    q, k, v = map(common.pad_axis, (q * jnp.asarray(scale, q.dtype), k, v), (1, 1, 1), (padded_t, padded_s, padded_s))
    padded_h = max(SMALLEST_HEAD, 1 << (h - 1).bit_length())
    q, k, v = (common.pad_axis(x, 3, padded_h) for x in (q, k, v))
    if return_totals:
        out, (*_, lse) = _forward(plan, q, k, v, added, common.sink_logits(sinks), operands, None)
        return Totals(out[:, :t, :, :h], lse[:, :, :t])
    if totals is not None:
        out = common.pad_axis(common.pad_axis(totals.out, 1, padded_t), 3, padded_h)
        totals = Totals(out, padded_lse(totals, padded_t))
    out: Any = _attend(plan, q, k, v, added, common.sink_logits(sinks), operands, totals)
    return out[:, :t, :, :h]


def unsupported_reason(request: Request) -> str | None:
    """Return why the kernels refuse a request; None if they do not."""
    h = request.shape[-1]
    largest, where = LARGEST_HEAD, ""
    if "relative bias" in request.features:
        if RING in request.features:
            return "in a ring it has no relative bias"
        largest, where = MEDIUM_HEAD, " with a relative bias"  # with larger ones the kernel for keys spills
    elif target_platform() == "gpu" and capability() < 9:
        largest, where = MEDIUM_HEAD, " on this GPU"  # larger ones need up to 176 KiB of shared memory, and an A100 has 163
    if missing := [name for module, names in PALLAS.items() for name in names if not hasattr(module, name)]:
        return f"Pallas of JAX {jax.__version__} has no {', no '.join(missing)}; install the version of constraints.txt"
    if h > largest:
        return f"it takes heads of up to {largest}{where}, and these are {h}"
    if request.dtype not in ("bfloat16", "float16", "float32"):
        return f"it takes bfloat16, float16 and float32, and this is {request.dtype}"
    return None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """The integers that the kernels read, none of which has a gradient; None: the call does not use them."""

    of_queries: Any
    """First block of keys of each block of queries, and the block after its last one, int32 [1 or B, I, 2]."""
    of_keys: Any
    """First and last blocks of queries of each block of keys, likewise, int32 [1 or B, J, 2]."""
    of_tiles: Any
    """First and last blocks of queries of the tiles at each distance from the diagonal, int32 [1 or B, tiles, 2]."""
    lengths: Any
    """Number of real keys of each example, int32 [B, 1]."""
    seed: Any
    """Seeds of dropout, uint32 [B, 2], or [B, 4] of a chunk."""
    heads: Any
    """Indices of the query heads among those of all devices, uint32 [N]."""
    query_numbers: Any
    """Arrays of the queries' numbers in the order of `Plan.numbers`, int32 [B, F, T]."""
    key_numbers: Any

    @classmethod
    def of(
        cls,
        plan: Plan,
        mask: Mask,
        states: Int32[Array, "_ I J"],
        seed: UInt32[Array, "B _"] | None,
        heads: UInt32[Array, " N"],
    ) -> "Operands":
        """Return the operands of a call; the mask is padded."""
        sizes = plan.num_q * plan.block_q, plan.num_k * plan.block_k
        numbers = [
            jnp.stack(common.number_arrays(plan.numbers, side, plan.examples, size), 1).astype(jnp.int32)
            if plan.numbers
            else None
            for side, size in zip(mask.sides(*sizes), sizes, strict=True)
        ]
        is_active = states != NO_PAIR
        return cls(
            of_queries=_active_ranges(is_active),
            of_keys=_active_ranges(jnp.swapaxes(is_active, 1, 2)),
            of_tiles=_active_ranges(_by_tile(plan, is_active)) if plan.num_tiles else None,
            lengths=common.key_lengths(mask, plan.examples)[:, None] if plan.has_lengths else None,
            seed=seed if plan.rate else None,
            heads=heads if plan.rate else None,
            query_numbers=numbers[0],
            key_numbers=numbers[1],
        )


def _active_ranges(is_active: Bool[Array, "B X Y"]) -> Int32[Array, "B X 2"]:
    """Return the first active entry of the last axis and the one after the last; equal numbers if there is none."""
    first = jnp.argmax(is_active, -1)
    last = is_active.shape[-1] - jnp.argmax(is_active[..., ::-1], -1)
    return jnp.stack([first, jnp.where(is_active.any(-1), last, first)], -1).astype(jnp.int32)


def _by_tile(plan: Plan, is_active: Bool[Array, "B I J"]) -> Bool[Array, "B tiles I"]:
    """Return which blocks of queries have an active tile at each distance from the diagonal."""
    j = jnp.arange(plan.num_tiles)[:, None] - plan.diagonal + jnp.arange(plan.num_q)  # [tiles, I]
    in_range = (j >= 0) & (j < plan.num_k)
    return in_range & is_active[:, jnp.arange(plan.num_q), jnp.clip(j, 0, plan.num_k - 1)]


# --- the kernels ----------------------------------------------------------------------------------------------------------------


Added = ByDistance | Array | None
"""A bias by distance, or a dense one, [B, N, T, S]."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    plan: Plan, q: Array, k: Array, v: Array, bias: Added, sinks: Array | None, operands: Operands, totals: Totals | None
) -> Array:
    return _forward(plan, q, k, v, bias, sinks, operands, totals)[0]


def _forward(
    plan: Plan, q: Array, k: Array, v: Array, bias: Added, sinks: Array | None, operands: Operands, totals: Totals | None
) -> tuple[Array, Any]:
    """Compute the output [B, T, N, H] and the residuals, of which the last is the log-sum-exp [B, N, T]; or take `totals`."""
    if totals is not None:
        return totals.out, (q, k, v, bias, sinks, operands, *totals)
    b, t, n, _ = q.shape
    queries, rows, keys = _queries(q, plan.block_q), _rows(plan.block_q), _keys(k, None, plan.shared)
    call = _kernel(
        plan,
        bodies.forward_body,
        "flash_forward",
        grid=(plan.num_q, n, b),
        in_specs=[
            _ranges(operands.of_queries),
            Inputs.blocks(plan, operands, _rows_of(bias, plan)),
            head_block(sinks),
            queries,
            keys,
            keys,
        ],
        out_specs=[queries, rows],
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, n, t), jnp.float32)],
    )
    out, lse = call(operands.of_queries, Inputs.of(operands, bias), sinks, q, k, v)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, bias, sinks, operands, out, lse)


def _backward(plan: Plan, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    """Compute the gradients of q, k, v, the bias and the sinks."""
    q, k, v, bias, sinks, operands, out, lse = residuals
    (b, t, n, h), s = q.shape, k.shape[1]
    delta = jnp.swapaxes((d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1), 1, 2)  # line 4: D, [B, N, T]
    inputs, dense = Inputs.of(operands, bias), _rows_of(bias, plan)
    arrays = q, k, v, d_out, lse, delta
    queries, rows, keys = _queries(q, plan.block_q), _rows(plan.block_q), _keys(k, None, plan.shared)
    far_block, far_shape = pl.BlockSpec((None, None, None, 2), lambda i, n, b: (b, n, i, 0)), (b, n, plan.num_q, 2)
    d_q, d_far, d_dense = _kernel(
        plan,
        bodies.backward_query_body,
        "flash_backward_queries",
        grid=(plan.num_q, n, b),
        in_specs=[_ranges(operands.of_queries), Inputs.blocks(plan, operands, dense), queries, keys, keys, queries, rows, rows],
        out_specs=[queries, far_block if plan.has_far_tiles else None, dense],
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct(far_shape, jnp.float32) if plan.has_far_tiles else None,
            None if dense is None else jax.ShapeDtypeStruct((b, n, t, s), q.dtype),
        ],
    )(operands.of_queries, inputs, *arrays)
    # Several query heads add to the gradient of a key: their parts are kept in float32.
    of_head = jax.ShapeDtypeStruct((b, s, n, h), k.dtype if plan.shared == 1 else jnp.float32)
    block = _keys(k, plan.block_k, plan.shared)
    queries, rows, of_keys = _queries(q, None), _rows(None, t), _keys(k, plan.block_k, 1)
    columns = None if dense is None else pl.BlockSpec((None, None, t, plan.block_k), lambda j, n, b: (b, n, 0, j))
    specs = Inputs.blocks(plan, operands, columns)
    d_k, d_v = _kernel(
        plan,
        bodies.backward_key_body,
        "flash_backward_keys",
        grid=(plan.num_k, n, b),
        in_specs=[_ranges(operands.of_keys), specs, queries, block, block, queries, rows, rows],
        out_specs=[of_keys, of_keys],
        out_shape=[of_head, of_head],
    )(operands.of_keys, inputs, *arrays)
    d_k, d_v = (x.reshape(b, s, n // plan.shared, plan.shared, h).sum(3).astype(k.dtype) for x in (d_k, d_v))
    d_bias = _bias_gradient(plan, bias, operands, inputs, arrays, d_far) if isinstance(bias, ByDistance) else d_dense
    return d_q, d_k, d_v, d_bias, common.sink_gradient(sinks, lse, delta), None, None


def _bias_gradient(
    plan: Plan, bias: ByDistance, operands: Operands, inputs: Inputs, arrays: tuple[Array, ...], d_far: Array | None
) -> ByDistance:
    """Compute the gradient of a bias from the sums of tiles near the diagonal, by a kernel, and of those far from it."""
    q, k, *_ = arrays
    (b, t, n, h), s = q.shape, k.shape[1]
    groups = plan.bias_groups[0] * plan.bias_groups[1]
    queries = pl.BlockSpec((b, t, None, h), lambda o, n, g: (0, 0, n, 0))
    keys = pl.BlockSpec((b, s, None, h), lambda o, n, g: (0, 0, n // plan.shared, 0))
    rows = pl.BlockSpec((b, None, t), lambda o, n, g: (0, n, 0))
    ranges = pl.BlockSpec((operands.of_tiles.shape[0], None, 2), lambda o, n, g: (0, o, 0))
    tile = plan.block_q, plan.block_k
    sums = _kernel(
        # It reads four blocks at a time, of which two stages do not fit the shared memory with the largest heads.
        dataclasses.replace(plan, stages=1) if h > MEDIUM_HEAD else plan,
        bodies.backward_bias_body,
        "flash_backward_bias",
        grid=(plan.num_tiles, n, groups),
        in_specs=[ranges, Inputs.blocks(plan, operands, all_examples=True), queries, keys, keys, queries, rows, rows],
        out_specs=pl.BlockSpec((None, None, None, *tile), lambda o, n, g: (g, n, o, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((groups, n, plan.num_tiles, *tile), jnp.float32),
    )(operands.of_tiles, inputs, *arrays)

    def tiles(bias: ByDistance) -> Array:
        return bias.square_tiles(plan.block_q, plan.num_q, plan.num_k)[0]

    (d_bias,) = jax.vjp(tiles, bias)[1](sums.sum(0))
    if d_far is None:
        return d_bias
    # All distances on a side have the same value there, so any of them takes the sum.
    d_values, index = d_bias.values, jnp.arange(plan.num_distances)[:, None]
    for side, of_heads in ((-1, d_far[..., 0]), (1, d_far[..., 1])):
        is_farthest = index == plan.index_of_distance(side * plan.num_distances)
        d_values += jnp.where(is_farthest, of_heads.sum((0, 2)), 0)
    return dataclasses.replace(d_bias, values=d_values)


_attend.defvjp(_forward, _backward)


# --- blocks of arrays, those that the program (i, n, b) of a grid reads or writes -----------------------------------------------


def _kernel(plan: Plan, body: Callable[..., None], name: str, **options: Any) -> Callable[..., Any]:
    return pl.pallas_call(
        functools.partial(body, plan),
        compiler_params=plt.CompilerParams(num_warps=plan.warps, num_stages=plan.stages),
        interpret=plan.interpret,
        name=name,
        **options,
    )


def _queries(q: Array, block: int | None) -> Any:
    """Return a block of queries of a head, [block, H]; None: all of them."""
    _, t, _, h = q.shape
    return pl.BlockSpec((None, block or t, None, h), lambda i, n, b: (b, i if block else 0, n, 0))


def _keys(k: Array, block: int | None, shared: int) -> Any:
    """Return a block of keys of a head that `shared` query heads share; None: all of them."""
    _, s, _, h = k.shape
    return pl.BlockSpec((None, block or s, None, h), lambda j, n, b: (b, j if block else 0, n // shared, 0))


def _rows(block: int | None, t: int = 0) -> Any:
    """Return a block of an array with a number for each query, [B, N, T]; None: all of `t`."""
    return pl.BlockSpec((None, None, block or t), lambda i, n, b: (b, n, i if block else 0))


def _rows_of(bias: Added, plan: Plan) -> Any:
    """Return a block of rows of a dense bias, [block, S]; None if there is none."""
    if bias is None or isinstance(bias, ByDistance):
        return None
    return pl.BlockSpec((None, None, plan.block_q, bias.shape[3]), lambda i, n, b: (b, n, i, 0))


def _ranges(ranges: Array) -> Any:
    """Return the range of blocks over which a program loops, [2]."""
    return pl.BlockSpec((None, None, 2), lambda i, n, b: (b if ranges.shape[0] > 1 else 0, i, 0))
