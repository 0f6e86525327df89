"""The bodies of the kernels of `flash_tpu`, which compute a tile. Comments give the lines of FlashAttention-2's algorithms.

Masks and dropout are the functions that every implementation uses, `Mask.rule` and `counter_rng.is_kept`.
"""
# ruff: noqa: E741 (l is the paper's symbol)

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from zoo.attention.masks import ALL_PAIRS, SOME_PAIRS, Mask, Side
from zoo.ops import counter_rng

MASKED = -1e30
LANES = 128
"""Width of a vector register, to which lengths are padded."""


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


def forward_body(
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


def backward_body(plan: Plan, has_bias: bool, states: Any, fetch: Any, lengths: Any, seed: Any, heads: Any, *refs: Any) -> None:
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
