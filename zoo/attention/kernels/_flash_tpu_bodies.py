"""The bodies of the kernels of `flash_tpu`, which compute a tile. Comments give the lines of FlashAttention-2's algorithms.

Masks and dropout are the functions that every implementation uses, `Mask.rule` and `counter_rng.is_kept`. The backward pass of a
relative bias is in `_flash_tpu_xlnet_bias`.
"""
# ruff: noqa: E741 (l is the paper's symbol)

from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from zoo.attention.kernels import _flash_tpu_xlnet_bias as relative
from zoo.attention.kernels._flash_common import allowed_pairs, iota
from zoo.attention.kernels._flash_tpu_plan import LANES, Plan, as_column, dot, lane_sums, lanes, when_active
from zoo.attention.totals import MASKED
from zoo.ops import counter_rng


def forward_body(
    plan: Plan,
    states: Any,
    fetch: Any,
    lengths: Any,
    seed: Any,
    heads: Any,
    at: Any,
    sinks: Any,
    q: Any,
    k: Any,
    v: Any,
    bias: Any,
    query_numbers: Any,
    key_numbers: Any,
    out: Any,
    lse: Any,
    m: Any,
    l: Any,
    acc: Any,
    columns: Any,
    hashes: Any,
    position_scratch: Any,
) -> None:
    """Compute a tile. Numbers of queries are [block_q, LANES] with equal lanes, so that no tile turns a row into a column.

    Only the lanes of `l` differ: each has the sum of its own keys, and they are added up after the last tile.
    """
    b, n, i, j = (pl.program_id(axis) for axis in range(4))
    block_q, block_k, h = plan.block_q, plan.block_k, q.shape[-1]

    @pl.when(j == 0)
    def _() -> None:
        # Line 5. The maximum lies above MASKED, so that a row without a visible key adds exp(-9e29) = 0. A sink is the first key,
        # whose exp(sink - m) = 1 the lanes share.
        m[...] = jnp.full_like(m, 0.1 * MASKED if sinks is None else sinks[n])
        l[...] = jnp.full_like(l, 0 if sinks is None else 1 / LANES)
        acc[...] = jnp.zeros_like(acc)
        for row in range(plan.num_rows):
            columns[row] = as_column(query_numbers[0, row : row + 1])
        if plan.rate:
            hashes[...] = hash_column(plan, seed, heads, b, n, i)
        if plan.position:
            relative.begin_queries(plan, bias, at, b, i, position_scratch)

    def tile(has_mask: bool) -> None:
        keys = iota((1, block_k), 1, j * block_k)
        s = dot(q[0, 0], k[0, 0], 1, 1)  # line 8
        if plan.position:
            s = s + relative.scores(plan, bias, j, columns, key_numbers, position_scratch)
        elif bias is not None:
            s = s + bias[0, 0]
        if has_mask:
            query = {name: lanes(columns[row], block_k) for row, name in enumerate(plan.numbers)}
            key = {name: key_numbers[0, row : row + 1] for row, name in enumerate(plan.numbers)}
            s = jnp.where(allowed_pairs(plan, query, key, iota(s.shape, 0, i * block_q), keys, lengths[b]), s, MASKED)
        m_old = m[...]
        m_new = jnp.maximum(m_old, s.max(-1, keepdims=True))  # line 9, and the next three
        p = jnp.exp(s - lanes(m_new, block_k))
        alpha = jnp.exp(m_old - m_new)
        l[...] = l[...] * alpha + lane_sums(p)
        m[...] = m_new
        if plan.rate:
            row = lax.bitcast_convert_type(lanes(hashes[...], block_k), jnp.uint32)
            p = jnp.where(counter_rng.is_kept(row, among_all(plan, seed, b, keys, 3), plan.rate), p, 0)
        acc[...] = acc[...] * lanes(alpha, h) + dot(p.astype(v.dtype), v[0, 0], 1, 0)  # line 10

    when_active(plan, states, b, i * plan.num_k + j, tile)

    @pl.when(j == plan.num_k - 1)
    def _() -> None:
        total = jnp.broadcast_to(l[...].sum(-1, keepdims=True), l.shape)
        has_key = total > 0
        total = jnp.where(has_key, total, 1)
        out[0, 0] = (acc[...] / (lanes(total, h) * (1 - plan.rate))).astype(out.dtype)  # line 12
        # Line 13. For a row without a visible key, exp(s - lse) must be zero in the gradient too.
        lse[0, 0] = jnp.where(has_key, m[...] + jnp.log(total), -MASKED)[:, :1].T


def backward_body(
    plan: Plan, has_bias: bool, states: Any, fetch: Any, lengths: Any, seed: Any, heads: Any, at: Any, *refs: Any
) -> None:
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
        for row in range(plan.num_rows):
            columns[row] = as_column(key_numbers[0, row : row + 1])

    def tile(has_mask: bool) -> None:
        queries, keys = iota((1, block_q), 1, i * block_q), iota((block_k, 1), 0, j * block_k)
        s = dot(k[0, 0], q[0, 0], 1, 1)  # line 10
        if tiles is not None:
            s = s + tiles[0, 0]
        if has_mask:
            query = {name: query_numbers[0, row : row + 1] for row, name in enumerate(plan.numbers)}
            key = {name: lanes(columns[row], block_q) for row, name in enumerate(plan.numbers)}
            s = jnp.where(allowed_pairs(plan, query, key, queries, iota(s.shape, 0, j * block_k), lengths[b]), s, MASKED)
        p = p_dropped = jnp.exp(s - lse[0, 0])  # line 11
        d_p = dot(v[0, 0], d_out[0, 0], 1, 1)  # line 13
        if plan.rate:
            row = counter_rng.row_hash(seed[b, 0], seed[b, 1], heads[n], among_all(plan, seed, b, queries, 2))
            is_kept = counter_rng.is_kept(row, among_all(plan, seed, b, keys, 3), plan.rate)
            p_dropped, d_p = (jnp.where(is_kept, x * (1 / (1 - plan.rate)), 0) for x in (p, d_p))
        d_s = p * (d_p - delta[0, 0])  # line 14
        if d_tiles is not None:
            d_tiles[0, plan.tile_of_bias(i, j)] += d_s
        d_s = d_s.astype(q.dtype)
        acc_v[...] += dot(p_dropped.astype(q.dtype), d_out[0, 0], 1, 0)  # line 12
        acc_k[...] += dot(d_s, q[0, 0], 1, 0)  # line 16
        d_q[0, 0, pl.ds(i * block_q, block_q), :] += dot(d_s, k[0, 0], 0, 0)  # line 15

    when_active(plan, states, b, j * plan.num_q + i, tile)

    @pl.when(i == plan.num_q - 1)
    def _() -> None:
        d_k[0, 0] = acc_k[...].astype(d_k.dtype)
        d_v[0, 0] = acc_v[...].astype(d_v.dtype)


def relative_backward_body(plan: Plan, states: Any, fetch: Any, lengths: Any, seed: Any, heads: Any, at: Any, *refs: Any) -> None:
    """Compute a tile for a relative bias: products by distance need their queries as rows, so this one is not transposed.

    The gradients of keys, values and distances stay in memory while those of a head are summed.
    """
    q, k, v, bias, query_numbers, key_numbers, d_out, lse, delta, d_q, d_k, d_v, d_bias = refs[:13]
    columns, hashes, of_rows, position_scratch = refs[13:]
    n, b, i, j = (pl.program_id(axis) for axis in range(4))
    block_q, block_k = plan.block_q, plan.block_k

    @pl.when((b == 0) & (i == 0) & (j == 0))
    def _() -> None:
        d_bias.r[...] = jnp.zeros_like(d_bias.r)

    @pl.when((i == 0) & (j == 0))
    def _() -> None:
        d_k[...] = jnp.zeros_like(d_k)
        d_v[...] = jnp.zeros_like(d_v)

    @pl.when(j == 0)
    def _() -> None:
        d_q[...] = jnp.zeros_like(d_q)
        of_rows[0], of_rows[1] = as_column(lse[0, 0]), as_column(delta[0, 0])
        for row in range(plan.num_rows):
            columns[row] = as_column(query_numbers[0, row : row + 1])
        if plan.rate:
            hashes[...] = hash_column(plan, seed, heads, b, n, i)
        relative.begin_queries(plan, bias, at, b, i, position_scratch)
        relative.begin_gradient(plan, d_bias, position_scratch)

    def tile(has_mask: bool) -> None:
        keys = iota((1, block_k), 1, j * block_k)
        s = dot(q[0, 0], k[0, 0], 1, 1)  # line 10
        s = s + relative.scores(plan, bias, j, columns, key_numbers, position_scratch)
        if has_mask:
            query = {name: lanes(columns[row], block_k) for row, name in enumerate(plan.numbers)}
            key = {name: key_numbers[0, row : row + 1] for row, name in enumerate(plan.numbers)}
            s = jnp.where(allowed_pairs(plan, query, key, iota(s.shape, 0, i * block_q), keys, lengths[b]), s, MASKED)
        p = p_dropped = jnp.exp(s - lanes(of_rows[0], block_k))  # line 11
        d_p = dot(d_out[0, 0], v[0, 0], 1, 1)  # line 13
        if plan.rate:
            row = lax.bitcast_convert_type(lanes(hashes[...], block_k), jnp.uint32)
            is_kept = counter_rng.is_kept(row, among_all(plan, seed, b, keys, 3), plan.rate)
            p_dropped, d_p = (jnp.where(is_kept, x * (1 / (1 - plan.rate)), 0) for x in (p, d_p))
        d_s = p * (d_p - lanes(of_rows[1], block_k))  # line 14
        relative.add_gradient(plan, d_s, bias, d_bias, i, j, columns, key_numbers, position_scratch)
        d_s = d_s.astype(q.dtype)
        block = pl.ds(j * block_k, block_k)
        d_v[0, 0, block, :] += dot(p_dropped.astype(q.dtype), d_out[0, 0], 0, 0)  # line 12
        d_k[0, 0, block, :] += dot(d_s, q[0, 0], 0, 0)  # line 16
        d_q[0, 0] += dot(d_s, k[0, 0], 1, 0)  # line 15

    when_active(plan, states, b, i * plan.num_k + j, tile)

    @pl.when(j == plan.num_k - 1)
    def _() -> None:
        relative.end_queries(plan, bias, d_bias, at, b, i, position_scratch)


def hash_column(plan: Plan, seed: Any, heads: Any, b: Any, n: Any, i: Any) -> Any:
    """Return the hashes of a block of queries as a column [block_q, LANES] of equal lanes, int32."""
    queries = among_all(plan, seed, b, iota((1, plan.block_q), 1, i * plan.block_q), 2)
    row = counter_rng.row_hash(seed[b, 0], seed[b, 1], heads[n], queries)
    return as_column(lax.bitcast_convert_type(row, jnp.int32))


def among_all(plan: Plan, seed: Any, b: Any, indices: Array, column: int) -> Array:
    """Return the indices, on which dropout depends, of queries (column 2 of the seeds) or keys (3) of a call or its chunk."""
    indices = indices.astype(jnp.uint32)
    return indices + seed[b, column] if plan.is_chunk else indices
