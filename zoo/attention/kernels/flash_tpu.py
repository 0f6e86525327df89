"""`flash_tpu`: Pallas kernels for TPU that store nothing of size T x S, with T5's bias, dropout and every mask but explicit ones.

The forward pass is algorithm 1 of FlashAttention-2 (Dao 2023), the backward pass its algorithm 2 as one kernel of five products
per tile. Comments give the lines of both. Masks and dropout are the functions that every implementation uses, `Mask.rule` and
`counter_rng.is_kept`, applied to a tile in the kernel. `Mask.block_states` says which tiles are skipped, and which need no mask.

A bias by distance is constant far from the diagonal, so that a head has few different tiles, whatever T is: XLA makes them from
the table, the kernel reads the one that it needs, the backward pass adds up their gradients, and the gradient of the table is the
transpose of making them.
"""
# ruff: noqa: E741 (l is the paper's symbol)

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
from jaxtyping import Array, Bool, Float, UInt32

from zoo.attention.attention import Request
from zoo.attention.biases import Bias, Buckets, ByDistance
from zoo.attention.masks import ALL_PAIRS, NO_PAIR, SOME_PAIRS, Mask, Side
from zoo.ops import counter_rng
from zoo.sharding import target_platform

MASKED = -1e30
LANES = 128
"""Width of a vector register, to which lengths are padded."""
BLOCK = 512
"""Maximum number of queries and keys in a tile. By the compiler's schedule for TPU v5e, tiles of 256 cost half as much again."""
LONGEST = 16384
"""Maximum number of queries: the backward pass keeps the gradient of those of a head in the vector memory."""


def flash_tpu(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Bias | None,
    seed: UInt32[Array, "B 2"] | None,
    heads: UInt32[Array, " N"],
    *,
    scale: float,
    rate: float,
) -> Float[Array, "B T N H"]:
    """Compute attention (see `Kernel`). Scores, softmax and sums are float32. Without a TPU the kernels are interpreted."""
    b, t, n, _ = q.shape
    s = k.shape[1]
    assert bias is None or isinstance(bias, Buckets | ByDistance)
    prepared = None if bias is None else bias.prepare(t, s)
    # The tiles of a bias are square.
    block_q, block_k = (_block(length if prepared is None else max(t, s)) for length in (t, s))
    num_q, num_k = -(-t // block_q), -(-s // block_k)
    padded_t, padded_s = num_q * block_q, num_k * block_k
    if padded_s > s:
        lengths = jnp.full(b, s) if mask.key_lengths is None else jnp.minimum(mask.key_lengths, s)
        mask = dataclasses.replace(mask, key_lengths=lengths)
    mask = mask.padded(padded_t, padded_s)
    tiles, diagonal = (None, 0) if prepared is None else prepared.square_tiles(block_q, num_q, num_k)
    plan = Plan(
        block_q=block_q,
        block_k=block_k,
        num_q=num_q,
        num_k=num_k,
        shared=n // k.shape[2],
        diagonal=diagonal,
        num_tiles=0 if tiles is None else tiles.shape[1],
        mask=Mask(causal=mask.causal, window=mask.window, strict=mask.strict),
        has_lengths=mask.key_lengths is not None,
        numbers=_number_names(mask),
        rate=rate if seed is not None else 0.0,
        interpret=target_platform() != "tpu",
    )
    operands = Operands.of(plan, mask, b, jnp.zeros((b, 2), jnp.uint32) if seed is None else seed, heads)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v))  # [B, N or K, T or S, H]
    q, k, v = (
        jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]), (0, 0)))
        for x, length in ((q, padded_t), (k, padded_s), (v, padded_s))
    )
    out: Any = _attend(plan, q, k, v, tiles, operands)
    return jnp.swapaxes(out[:, :, :t], 1, 2)  # [B, T, N, H]


def unsupported_reason(request: Request) -> str | None:
    """Return why the kernels refuse a request; None if they do not."""
    _, t, _, _, _, h = request.shape
    if request.dtype not in ("bfloat16", "float32"):
        return f"it takes bfloat16 and float32, and this is {request.dtype}"
    if t * max(h, LANES) > LONGEST * LANES:
        longest = LONGEST * LANES // max(h, LANES)
        return f"its backward pass takes up to {longest} queries of heads of {h}, and these are {t}"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The static part of a call."""

    block_q: int
    block_k: int
    num_q: int
    """Number of blocks of queries."""
    num_k: int
    shared: int
    """Query heads per key/value head."""
    diagonal: int
    """Number of the tile of the bias on the diagonal."""
    num_tiles: int
    """Number of different tiles of the bias; 0 = there is no bias."""
    mask: Mask
    """The fields of the mask that have no arrays."""
    has_lengths: bool
    numbers: tuple[str, ...]
    """Names of the numbers of queries and keys (fields of `Side`) that are arrays."""
    rate: float
    interpret: bool
    """Run the kernels by Pallas's interpreter."""

    @property
    def has_mask(self) -> bool:
        """Return whether any tile may have pairs that do not attend."""
        return self.mask.causal or self.mask.window is not None or self.has_lengths or bool(self.numbers)

    def tile_of_bias(self, i: Any, j: Any) -> Any:
        """Return the number of the bias's tile for a block of queries and one of keys."""
        return jnp.clip(j - i + self.diagonal, 0, self.num_tiles - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """The integers that the kernels read, none of which has a gradient."""

    states: Any
    """`Mask.block_states`, int32 [1 or B, I, J]."""
    lengths: Any
    """Number of real keys of each example, int32 [B]; zeros if the mask has none."""
    seed: Any
    """Seeds of dropout, uint32 [B, 2]."""
    heads: Any
    """Indices of the query heads among those of all devices, uint32 [N]."""
    query_numbers: Any
    """Arrays of the queries' numbers in the order of `Plan.numbers`, int32 [B, F, T]; None if there are none."""
    key_numbers: Any

    @classmethod
    def of(cls, plan: Plan, mask: Mask, b: int, seed: UInt32[Array, "B 2"], heads: UInt32[Array, " N"]) -> "Operands":
        """Return the operands of a call; the mask is padded."""
        padded_t, padded_s = plan.num_q * plan.block_q, plan.num_k * plan.block_k
        sides = mask.sides(padded_t, padded_s)

        def stacked(side: Side) -> Any:
            arrays = [jnp.broadcast_to(getattr(side, name), (b, getattr(side, name).shape[1])) for name in plan.numbers]
            return jnp.stack(arrays, 1).astype(jnp.int32) if arrays else None

        return cls(
            states=mask.block_states(plan.block_q, plan.block_k, padded_t, padded_s),
            lengths=jnp.zeros(b, jnp.int32) if mask.key_lengths is None else mask.key_lengths.astype(jnp.int32),
            seed=seed,
            heads=heads,
            query_numbers=stacked(sides[0]),
            key_numbers=stacked(sides[1]),
        )

    def scalars(self, states: Any) -> list[Any]:
        """Return the operands that the kernels read as scalars, given the states in the order of their grid."""
        return [_merge_last(states), _merge_last(_block_to_fetch(states)), self.lengths, self.seed, self.heads]


def _block(length: int) -> int:
    """Return the size of as few equal blocks as possible, a multiple of the lanes."""
    blocks = -(-length // BLOCK)
    return -(-length // (blocks * LANES)) * LANES


def _number_names(mask: Mask) -> tuple[str, ...]:
    """Return the names of the numbers that are arrays; positions that are indices are computed in the kernel."""
    names = {
        "position": (mask.causal or mask.window is not None) and (mask.query_positions, mask.key_positions) != (None, None),
        "segment": mask.query_segments is not None,
        "rank": mask.query_ranks is not None,
    }
    return tuple(name for name, is_array in names.items() if is_array)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q: Array, k: Array, v: Array, tiles: Array | None, operands: Operands) -> Array:
    return _forward(plan, q, k, v, tiles, operands)[0]


def _forward(plan: Plan, q: Array, k: Array, v: Array, tiles: Array | None, operands: Operands) -> tuple[Array, Any]:
    """Compute the output [B, N, T, H] and the residuals."""
    (b, n, t, h), block_q, block_k = q.shape, plan.block_q, plan.block_k
    keys = _spec((1, 1, block_k, h), lambda b, n, i, j, fetched: (b, n // plan.shared, fetched, 0), plan)
    queries = _spec((1, 1, block_q, h), lambda b, n, i, j, _: (b, n, i, 0), plan)
    specs = [
        queries,
        keys,
        keys,
        _spec((1, 1, block_q, block_k), lambda b, n, i, j, _: (n, plan.tile_of_bias(i, j), 0, 0), plan)
        if tiles is not None
        else None,
        _spec((1, len(plan.numbers), block_q), lambda b, n, i, j, _: (b, 0, i), plan) if plan.numbers else None,
        _spec((1, len(plan.numbers), block_k), lambda b, n, i, j, fetched: (b, 0, fetched), plan) if plan.numbers else None,
    ]
    wide = (block_q, LANES)
    scratch = [
        pltpu.VMEM(wide, jnp.float32),
        pltpu.VMEM(wide, jnp.float32),
        pltpu.VMEM((block_q, h), jnp.float32),
        pltpu.VMEM((len(plan.numbers), *wide), jnp.int32) if plan.numbers else None,
        pltpu.VMEM(wide, jnp.int32) if plan.rate else None,
    ]
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=5,
        grid=(b, n, plan.num_q, plan.num_k),
        in_specs=specs,
        out_specs=[queries, _spec((1, 1, 1, block_q), lambda b, n, i, j, _: (b, n, 0, i), plan)],
        scratch_shapes=scratch,
    )
    call = pl.pallas_call(
        functools.partial(_forward_body, plan),
        grid_spec=grid,
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((b, n, 1, t), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=plan.interpret,
        name="flash_forward",
    )
    out, lse = call(*operands.scalars(operands.states), q, k, v, tiles, operands.query_numbers, operands.key_numbers)
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, tiles, operands, out, lse)


def _spec(shape: Sequence[int], index: Callable[..., Any], plan: Plan) -> Any:
    """Return the block of an array at (b, n, i, j) of the forward grid; `index` also gets the block of keys to fetch."""

    def at(b: Any, n: Any, i: Any, j: Any, states: Any, fetch: Any, *_: Any) -> Any:
        example = 0 if fetch.shape[0] == 1 else b
        return index(b, n, i, j, fetch[example, i * plan.num_k + j])

    return pl.BlockSpec(tuple(shape), at)


def _forward_body(
    plan: Plan,
    states: Any,
    fetch: Any,
    lengths: Any,
    seed: Any,
    heads: Any,
    q: Any,
    k: Any,
    v: Any,
    tiles: Any,
    query_numbers: Any,
    key_numbers: Any,
    out: Any,
    lse: Any,
    m: Any,
    l: Any,
    acc: Any,
    columns: Any,
    hashes: Any,
) -> None:
    """Compute a tile. Numbers of queries are [block_q, LANES] with equal lanes, so that no tile turns a row into a column.

    Only the lanes of `l` differ: each has the sum of its own keys, and they are added up after the last tile.
    """
    b, n, i, j = (pl.program_id(axis) for axis in range(4))
    block_q, block_k, h = plan.block_q, plan.block_k, q.shape[-1]

    @pl.when(j == 0)
    def _() -> None:
        m[...] = jnp.full_like(
            m, 0.1 * MASKED
        )  # line 5; lies above MASKED, so that a row without a visible key adds exp(-9e29) = 0
        l[...] = jnp.zeros_like(l)
        acc[...] = jnp.zeros_like(acc)
        for number in range(len(plan.numbers)):
            columns[number] = jnp.broadcast_to(query_numbers[0, number : number + 1].T, columns.shape[1:])
        if plan.rate:
            queries = _iota((1, block_q), 1, i * block_q).astype(jnp.uint32)
            row = counter_rng.row_hash(seed[b, 0], seed[b, 1], heads[n], queries)
            hashes[...] = jnp.broadcast_to(lax.bitcast_convert_type(row, jnp.int32).T, hashes.shape)

    def tile(has_mask: bool) -> None:
        keys = _iota((1, block_k), 1, j * block_k)
        s = _dot(q[0, 0], k[0, 0], 1, 1)  # line 8
        if tiles is not None:
            s = s + tiles[0, 0]
        if has_mask:
            query = {name: _lanes(columns[number], block_k) for number, name in enumerate(plan.numbers)}
            key = {name: key_numbers[0, number : number + 1] for number, name in enumerate(plan.numbers)}
            s = jnp.where(_allowed(plan, query, key, _iota(s.shape, 0, i * block_q), keys, lengths[b]), s, MASKED)
        m_old = m[...]
        m_new = jnp.maximum(m_old, s.max(-1, keepdims=True))  # line 9, and the next three
        p = jnp.exp(s - _lanes(m_new, block_k))
        alpha = jnp.exp(m_old - m_new)
        l[...] = l[...] * alpha + sum(p[:, lane : lane + LANES] for lane in range(0, block_k, LANES))
        m[...] = m_new
        if plan.rate:
            row = lax.bitcast_convert_type(_lanes(hashes[...], block_k), jnp.uint32)
            p = jnp.where(counter_rng.is_kept(row, keys.astype(jnp.uint32), plan.rate), p, 0)
        acc[...] = acc[...] * _lanes(alpha, h) + _dot(p.astype(v.dtype), v[0, 0], 1, 0)  # line 10

    _when_active(plan, states, b, i * plan.num_k + j, tile)

    @pl.when(j == plan.num_k - 1)
    def _() -> None:
        total = jnp.broadcast_to(l[...].sum(-1, keepdims=True), l.shape)
        has_key = total > 0
        total = jnp.where(has_key, total, 1)
        out[0, 0] = (acc[...] / (_lanes(total, h) * (1 - plan.rate))).astype(out.dtype)  # line 12
        # Line 13. For a row without a visible key, exp(s - lse) must be zero in the gradient too.
        lse[0, 0] = jnp.where(has_key, m[...] + jnp.log(total), -MASKED)[:, :1].T


# --- the backward pass ----------------------------------------------------------------------------------------------------------


def _backward(plan: Plan, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    """Compute the gradients. The grid goes over heads, examples, blocks of keys and blocks of queries, the last one fastest."""
    q, k, v, tiles, operands, out, lse = residuals
    (b, n, t, h), s, block_q, block_k = q.shape, k.shape[2], plan.block_q, plan.block_k
    delta = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)[:, :, None]  # line 4: D, [B, N, 1, T]

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
        functools.partial(_backward_body, plan, has_bias),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=5,
            grid=(n, b, plan.num_k, plan.num_q),
            in_specs=specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary", "arbitrary")),
        interpret=plan.interpret,
        name="flash_backward",
    )
    # Tiles are transposed in the kernel, [keys, queries]: sums over keys are then rows, and one product transposes a tile back.
    transposed = None if tiles is None else jnp.swapaxes(tiles, 2, 3)
    numbers = operands.query_numbers, operands.key_numbers
    scalars = operands.scalars(jnp.swapaxes(operands.states, 1, 2))
    d_q, d_k, d_v, *d_tiles = call(*scalars, q, k, v, transposed, *numbers, d_out, lse, delta)
    d_k, d_v = (x.reshape(b, n // plan.shared, plan.shared, s, h).sum(2).astype(x.dtype) for x in (d_k, d_v))
    return d_q.astype(q.dtype), d_k, d_v, jnp.swapaxes(d_tiles[0], 2, 3) if has_bias else None, None


_attend.defvjp(_forward, _backward)


def _backward_body(plan: Plan, has_bias: bool, states: Any, fetch: Any, lengths: Any, seed: Any, heads: Any, *refs: Any) -> None:
    """Compute a transposed tile."""
    q, k, v, tiles, query_numbers, key_numbers, d_out, lse, delta, d_q, d_k, d_v = refs[:12]
    d_tiles = refs[12] if has_bias else None
    acc_k, acc_v, columns = refs[12 + has_bias :]
    n, b, j, i = (pl.program_id(axis) for axis in range(4))
    block_q, block_k = plan.block_q, plan.block_k

    @pl.when((j == 0) & (i == 0))
    def _() -> None:
        d_q[...] = jnp.zeros_like(d_q)  # line 3

    if d_tiles is not None:

        @pl.when((b == 0) & (j == 0) & (i == 0))
        def _() -> None:
            d_tiles[...] = jnp.zeros_like(d_tiles)

    @pl.when(i == 0)
    def _() -> None:
        acc_k[...] = jnp.zeros_like(acc_k)  # line 7
        acc_v[...] = jnp.zeros_like(acc_v)
        for number in range(len(plan.numbers)):
            columns[number] = jnp.broadcast_to(key_numbers[0, number : number + 1].T, columns.shape[1:])

    def tile(has_mask: bool) -> None:
        queries, keys = _iota((1, block_q), 1, i * block_q), _iota((block_k, 1), 0, j * block_k)
        s = _dot(k[0, 0], q[0, 0], 1, 1)  # line 10
        if tiles is not None:
            s = s + tiles[0, 0]
        if has_mask:
            query = {name: query_numbers[0, number : number + 1] for number, name in enumerate(plan.numbers)}
            key = {name: _lanes(columns[number], block_q) for number, name in enumerate(plan.numbers)}
            s = jnp.where(_allowed(plan, query, key, queries, _iota(s.shape, 0, j * block_k), lengths[b]), s, MASKED)
        p = p_dropped = jnp.exp(s - lse[0, 0])  # line 11
        d_p = _dot(v[0, 0], d_out[0, 0], 1, 1)  # line 13
        if plan.rate:
            row = counter_rng.row_hash(seed[b, 0], seed[b, 1], heads[n], queries.astype(jnp.uint32))
            is_kept = counter_rng.is_kept(row, keys.astype(jnp.uint32), plan.rate)
            p_dropped, d_p = (jnp.where(is_kept, x * (1 / (1 - plan.rate)), 0) for x in (p, d_p))
        d_s = p * (d_p - delta[0, 0])  # line 14
        if d_tiles is not None:
            d_tiles[0, plan.tile_of_bias(i, j)] += d_s
        d_s = d_s.astype(q.dtype)
        acc_v[...] += _dot(p_dropped.astype(q.dtype), d_out[0, 0], 1, 0)  # line 12
        acc_k[...] += _dot(d_s, q[0, 0], 1, 0)  # line 16
        d_q[0, 0, pl.ds(i * block_q, block_q), :] += _dot(d_s, k[0, 0], 0, 0)  # line 15

    _when_active(plan, states, b, j * plan.num_q + i, tile)

    @pl.when(i == plan.num_q - 1)
    def _() -> None:
        d_k[0, 0] = acc_k[...].astype(d_k.dtype)
        d_v[0, 0] = acc_v[...].astype(d_v.dtype)


# --- inside of both kernels -----------------------------------------------------------------------------------------------------


def _when_active(plan: Plan, states: Any, b: Any, index: Any, tile: Callable[[bool], None]) -> None:
    """Compute a tile with or without its mask, or skip it."""
    state = states[0 if states.shape[0] == 1 else b, index]
    if plan.has_mask:
        pl.when(state == SOME_PAIRS)(functools.partial(tile, True))
    pl.when(state == ALL_PAIRS)(functools.partial(tile, False))


def _allowed(
    plan: Plan, query: dict[str, Any], key: dict[str, Any], queries: Array, keys: Array, length: Any
) -> Bool[Array, "..."]:
    """Return which pairs of a tile attend, given its numbers and the indices of its queries and keys."""
    if plan.mask.causal or plan.mask.window is not None:
        query, key = {"position": queries, **query}, {"position": keys, **key}
    allowed = plan.mask.rule(Side(**query), Side(**key, index=keys), length if plan.has_lengths else None)
    assert allowed is not None
    return allowed


def _iota(shape: tuple[int, ...], axis: int, start: Any) -> Array:
    return start + lax.broadcasted_iota(jnp.int32, shape, axis)


def _lanes(x: Array, width: int) -> Array:
    """Return an array [rows, LANES] whose lanes are equal with `width` lanes."""
    copies = -(-width // LANES)
    x = jnp.concatenate([x] * copies, axis=1) if copies > 1 else x
    return x[:, :width]


def _dot(x: Array, y: Array, i: int, j: int) -> Float[Array, "_ _"]:
    """Return the sums of products over axis i of x and axis j of y, in float32."""
    return lax.dot_general(x, y, (((i,), (j,)), ((), ())), preferred_element_type=jnp.float32)
