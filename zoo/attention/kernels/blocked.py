"""`blocked`: exact attention in pure JAX that stores nothing of size T x S. Runs on every platform; tuned for CPU.

The forward pass is algorithm 1 of FlashAttention-2 (Dao 2023): the softmax is taken tile by tile, with a running maximum m and a
running sum l (Milakov and Gimelshein 2018; Rabe and Staats 2021). The backward pass is its algorithm 2, which computes each tile
again from the saved log-sum-exp (Dao et al. 2022). Comments give the lines of both. A tile is small enough to stay in cache.

Masks and biases slice themselves into tiles; the gradient of a bias is the VJP of its own `dense`.
"""
# ruff: noqa: E741 (l is the paper's symbol)

import dataclasses
import functools
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, UInt32

from zoo.attention.biases import Bias
from zoo.attention.kernels._flash_common import sink_gradient, sink_logits
from zoo.attention.masks import NO_PAIR, Mask
from zoo.attention.request import kernel_call
from zoo.attention.tiles import Tile, add, take
from zoo.attention.totals import MASKED, NO_KEY, Totals, padded_lse
from zoo.ops import counter_rng
from zoo.ops.reductions import row_max, row_sum
from zoo.ops.selects import batches_per_step
from zoo.ops.tile_sizes import Sizes, tile_sizes


def blocked(
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
    """Compute attention (see `ChunkKernel`). Scores, softmax and sums are float32."""
    b, t, n, h = q.shape
    s, groups = k.shape[1], k.shape[2]
    prepared = None if bias is None else bias.prepare(t, s)
    sizes = tile_sizes(kernel_call("blocked", q, k, mask, bias, rate))
    plan = Plan.of(sizes, b, t, s, n, groups, mask, prepared, scale, rate)
    padded_t, padded_s = plan.block_q * plan.num_q_blocks, plan.block_k * plan.num_k_blocks
    if padded_s > s:
        mask = mask.hide_keys_from(s, b)
    tiled_mask = mask.for_tiles(plan.block_q, padded_t, padded_s)
    tiled_bias = None if prepared is None else prepared.for_tiles(plan.block_q, padded_t, padded_s)

    def by_group(x: Float[Array, "B _ N H"]) -> Float[Array, "B _ _ _ H"]:  # [B, K, N/K, T, H]
        x = x.reshape(b, t, groups, n // groups, h).transpose(0, 2, 3, 1, 4)
        return jnp.pad(x, [(0, 0)] * 3 + [(0, padded_t - t), (0, 0)])

    q = by_group(q * jnp.asarray(scale, q.dtype))
    k, v = (jnp.pad(x.transpose(0, 2, 1, 3), [(0, 0)] * 2 + [(0, padded_s - s), (0, 0)]) for x in (k, v))  # [B, K, S, H]
    operands = q, k, v, tiled_mask, tiled_bias, seed, heads, sink_logits(sinks)
    if return_totals:
        out, (*_, lse) = _forward(plan, *operands, None)
    else:
        of_groups = None
        if totals is not None:
            lse = padded_lse(totals, padded_t).reshape(b, groups, n // groups, padded_t)
            of_groups = Totals(by_group(totals.out * jnp.asarray(1 - rate, totals.out.dtype)), lse)
        attended: Any = _attend(plan, *operands, of_groups)
        out, lse = attended, None
    out = out[:, :, :, :t].transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)  # [B, T, N, H]
    out = out if rate == 0 else out * jnp.asarray(1 / (1 - rate), out.dtype)
    return out if lse is None else Totals(out, lse.reshape(b, n, padded_t)[:, :, :t])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The static part of a call: how the scores are cut into tiles.

    A tile has `block_q` queries of every query head that shares one of its key/value heads, and `block_k` keys.
    """

    block_q: int
    block_k: int
    num_q_blocks: int
    num_k_blocks: int
    examples: int
    """Number of examples in a tile; more than one where sequences are short."""
    heads: int
    """Key/value heads in a tile; more than one where sequences are short."""
    scale: float
    rate: float

    @classmethod
    def of(
        cls, sizes: Sizes, b: int, t: int, s: int, n: int, groups: int, mask: Mask, bias: Any, scale: float, rate: float
    ) -> "Plan":
        """Return the plan of a call. `sizes` are the maximum numbers of queries and keys in a tile."""
        shared, max_q, max_k = n // groups, sizes["queries"], sizes["keys"]
        for spec in (mask, bias):
            if spec is not None:
                max_q, max_k = spec.tile_size(max_q, max_k, s)
        num_k_blocks, block_k = _even_blocks(s, max_k, 16)
        num_q_blocks, block_q = _even_blocks(t, max(8, max_q // shared), 8)
        capacity = sizes["queries"] * sizes["keys"] // (block_q * block_k * shared)
        heads = _largest_divisor(groups, capacity)
        examples = _largest_divisor(b, capacity // heads) if heads == groups else 1
        return cls(
            block_q=block_q,
            block_k=block_k,
            num_q_blocks=num_q_blocks,
            num_k_blocks=num_k_blocks,
            examples=examples,
            heads=heads,
            scale=scale,
            rate=rate,
        )

    def group_indices(self, q: Array) -> Array:
        """Return the indices of the groups of examples and heads that share a tile."""
        return jnp.arange(q.shape[0] // self.examples * (q.shape[1] // self.heads))

    def group_tile(self, q: Array, index: Int[Array, ""]) -> Tile:
        """Return the examples and heads of a group, with all queries and keys."""
        head_groups, shared = q.shape[1] // self.heads, q.shape[2]
        example, head = index // head_groups * self.examples, index % head_groups * self.heads
        return Tile(
            {"B": example, "K": head, "N": head * shared}, {"B": self.examples, "K": self.heads, "N": self.heads * shared}
        )

    def block_ranges(self, mask: Mask) -> tuple["Ranges | None", "Ranges | None"]:
        """Return (for each block of queries the blocks of keys that it may see, the reverse); None: all of them."""
        if not mask.has_rule or self.num_q_blocks == self.num_k_blocks == 1:
            return None, None
        states = mask.block_states(self.block_q, self.block_k, self.num_q_blocks * self.block_q, self.num_k_blocks * self.block_k)
        if states.shape[0] > 1:
            states = states.reshape(-1, self.examples, *states.shape[1:]).max(1)  # [groups of examples, I, J]
        active = states != NO_PAIR
        return Ranges.of(active), Ranges.of(jnp.swapaxes(active, 1, 2))

    def named_by_mean(self, mask: Mask, loops: int, limit: int) -> AbstractContextManager[Any]:
        """Return a name scope for a loop over blocks, with the mean of its trips in all `loops` of a group and their maximum.

        The bounds of the loop depend on the arrays of the mask; `zoo plan` reads what causality and the window leave.
        """
        pairs = self.num_q_blocks * self.num_k_blocks
        if mask.query_positions is None and mask.key_positions is None:
            starts = ((i * self.block_q, j * self.block_k) for i in range(self.num_q_blocks) for j in range(self.num_k_blocks))
            pairs = sum(self._may_see(mask, q, k) for q, k in starts)
        return jax.named_scope(f"mean_trips_{pairs / loops:g}_of_{limit}")

    def _may_see(self, mask: Mask, q: int, k: int) -> bool:
        """Return whether causality and the window leave a pair of the blocks that begin at query q and key k."""
        least, largest = q - (k + self.block_k - 1), q + self.block_q - 1 - k
        if mask.causal and largest < 0:
            return False
        return mask.window is None or (least < mask.window and (mask.causal or -largest < mask.window))

    def k_block_range(self, ranges: "Ranges | None", group: Tile, i: Int[Array, ""]) -> tuple[Any, Any]:
        """Return [start, stop) of the blocks of keys that queries of block i may see."""
        return (0, self.num_k_blocks) if ranges is None else ranges.at(group.start["B"] // self.examples, i)

    def q_block_range(self, ranges: "Ranges | None", group: Tile, j: Int[Array, ""]) -> tuple[Any, Any]:
        """Return [start, stop) of the blocks of queries that may see keys of block j."""
        return (0, self.num_q_blocks) if ranges is None else ranges.at(group.start["B"] // self.examples, j)

    def at_q_block(self, tile: Tile, i: Int[Array, ""]) -> Tile:
        return tile.along("T", i * self.block_q, self.block_q)

    def at_k_block(self, tile: Tile, j: Int[Array, ""]) -> Tile:
        return tile.along("S", j * self.block_k, self.block_k)

    def split_heads(self, x: Float[Array, "b k rows X"]) -> Float[Array, "b n T X"]:
        """Split the rows of each key/value head, N/K * T of them, into its query heads; the inverse of `merge_heads`."""
        return x.reshape(x.shape[0], -1, self.block_q, x.shape[-1])  # [b, n, T, X]

    def merge_heads(self, x: Float[Array, "b *n T X"]) -> Float[Array, "b k rows X"]:
        """Merge the query heads that share a key/value head into its rows."""
        return x.reshape(x.shape[0], self.heads, -1, x.shape[-1])  # [b, k, rows, X]

    def transposed(self, x: Float[Array, "b k H group T"]) -> Float[Array, "b k H rows"]:
        """Merge the axes of query heads of an array whose last axes are its rows."""
        return x.reshape(*x.shape[:3], -1)  # [b, k, H, rows]


class Ranges(NamedTuple):
    """The blocks of one side, from the first to the last one with a pair that attends, for each block of the other side."""

    start: Int[Array, "#G I"]
    stop: Int[Array, "#G I"]

    @classmethod
    def of(cls, active: Bool[Array, "#G I J"]) -> "Ranges":
        """Return the ranges along the last axis; a range without an active block is empty."""
        stop = active.shape[-1] - jnp.argmax(active[..., ::-1], -1)
        return cls(jnp.argmax(active, -1), jnp.where(active.any(-1), stop, 0))

    def at(self, group: Any, block: Int[Array, ""]) -> tuple[Any, Any]:
        """Return [start, stop) of a block, for a group of examples."""
        return self.start[group % self.start.shape[0], block], self.stop[group % self.stop.shape[0], block]


QUERIES, TRANSPOSED, KEYS, ROW_SUMS = "BK-T-", "BK--T", "BKS-", "BK-T"
"""Letters of the axes of q and the output [B, K, N/K, T, H], of both transposed [B, K, H, N/K, T], of k and v [B, K, S, H], and
of sums over rows [B, K, N/K, T]."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    plan: Plan, q: Array, k: Array, v: Array, mask: Mask, bias: Any, seed: Any, heads: Array, sinks: Any, totals: Any
) -> Array:
    return _forward(plan, q, k, v, mask, bias, seed, heads, sinks, totals)[0]


def _forward(
    plan: Plan, q: Array, k: Array, v: Array, mask: Mask, bias: Any, seed: Any, heads: Array, sinks: Any, totals: Any
) -> tuple[Array, Any]:
    """Compute the output and the residuals by algorithm 1 of FlashAttention-2, for each group of examples and heads.

    A sink is one more key, the first one, whose value is zero. With `totals`, the output and the log-sum-exp are those.
    """
    if totals is not None:
        return totals.out, (q, k, v, mask, bias, seed, heads, sinks, *totals)
    acc_dtype = jnp.promote_types(q.dtype, jnp.float32)
    key_blocks, _ = plan.block_ranges(mask)

    def one_group(_: None, index: Int[Array, ""]) -> tuple[None, Any]:
        group = plan.group_tile(q, index)

        def q_block(i: Int[Array, ""]) -> tuple[Array, Array]:  # line 3
            q_tile = plan.at_q_block(group, i)
            q_i = plan.merge_heads(take(q, QUERIES, q_tile))  # line 4

            def k_block(j: Int[Array, ""], carry: Any) -> Any:  # line 6
                m, l, acc = carry
                tile = plan.at_k_block(q_tile, j)
                s = plan.split_heads(dot(q_i, take(k, KEYS, tile), 3, 3))  # line 8
                if bias is not None:
                    s = s + bias.slice_tile(tile).dense(plan.block_q, plan.block_k, plan.scale)
                s = _masked(s, mask, tile)
                m_new = jnp.maximum(m, row_max(s))  # line 9, and the next three
                p = jnp.exp(s - m_new[..., None])
                alpha = jnp.exp(m - m_new)
                l = l * alpha + row_sum(p)
                p_dropped = plan.merge_heads(_dropped(p, seed, heads, tile, plan.rate)).astype(v.dtype)
                acc = acc * alpha[..., None] + plan.split_heads(dot(p_dropped, take(v, KEYS, tile), 3, 2))  # line 10
                return m_new, l, acc

            lead = (plan.examples, group.size["N"], plan.block_q)
            # Line 5. The floor under m lies above MASKED: every entry of a row without a visible key becomes exp(-9e29) = 0.
            m, l = jnp.full(lead, 0.1 * MASKED, acc_dtype), jnp.zeros(lead, acc_dtype)
            if sinks is not None:
                sink = take(sinks.astype(acc_dtype), "N", group)
                m, l = jnp.broadcast_to(sink[:, None], lead), jnp.ones(lead, acc_dtype)  # exp(sink - m) = 1
            start = (m, l, jnp.zeros((*lead, v.shape[-1]), acc_dtype))
            with plan.named_by_mean(mask, plan.num_q_blocks, plan.num_k_blocks):
                m, l, acc = lax.fori_loop(*plan.k_block_range(key_blocks, group, i), k_block, start)
            has_key = l > 0
            out = (acc / jnp.where(has_key, l, 1)[..., None]).astype(q.dtype)  # line 12
            # Line 13. For a row without a visible key, exp(s - lse) must be zero in the gradient too.
            return out, jnp.where(has_key, m + jnp.log(l), NO_KEY)

        return None, lax.map(q_block, jnp.arange(plan.num_q_blocks))

    groups = plan.group_indices(q)
    _, (out, lse) = lax.scan(one_group, None, groups, unroll=batches_per_step(groups.size))
    # [groups, blocks of queries, examples, heads, block_q, ...] -> [groups, examples, heads, blocks of queries, block_q, ...]
    out, lse = (jnp.moveaxis(x, 1, 3).reshape(q.shape[: x.ndim - 1]) for x in (out, lse))
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, mask, bias, seed, heads, sinks, out, lse)


def _backward(plan: Plan, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    """Compute the gradients by algorithm 2 of FlashAttention-2, for each group of examples and heads."""
    q, k, v, mask, bias, seed, heads, sinks, out, lse = residuals
    acc_dtype = lse.dtype
    _, query_blocks = plan.block_ranges(mask)
    delta = (d_out.astype(acc_dtype) * out.astype(acc_dtype)).sum(-1)  # line 4: D

    def one_group(d_bias: Any, index: Int[Array, ""]) -> tuple[Any, Any]:
        group = plan.group_tile(q, index)

        def k_block(carry: Any, j: Int[Array, ""]) -> tuple[Any, Any]:  # line 5
            k_tile = plan.at_k_block(group, j)
            k_j, v_j = take(k, KEYS, k_tile), take(v, KEYS, k_tile)  # line 6

            def q_block(i: Int[Array, ""], carry: Any) -> Any:  # line 8
                d_q, d_k, d_v, d_bias = carry
                tile = plan.at_q_block(k_tile, i)
                q_i, d_out_i = (plan.merge_heads(take(x, QUERIES, tile)) for x in (q, d_out))  # line 9
                q_t, d_out_t = (plan.transposed(take(x, TRANSPOSED, tile)) for x in (transposed_q, transposed_d_out))
                lse_i, delta_i = (plan.split_heads(plan.merge_heads(take(x, ROW_SUMS, tile)[..., None])) for x in (lse, delta))
                s, bias_vjp = plan.split_heads(dot(q_i, k_j, 3, 3)), None  # line 10
                if bias is not None:
                    bias_tile, shape = bias.slice_tile(tile), s.shape

                    def dense(numbers: Any) -> Array:
                        values = bias_tile.with_differentiable(numbers).dense(plan.block_q, plan.block_k, plan.scale)
                        return jnp.broadcast_to(values.astype(acc_dtype), shape)

                    bias_values, bias_vjp = jax.vjp(dense, bias_tile.differentiable())
                    s = s + bias_values
                p = jnp.exp(_masked(s, mask, tile) - lse_i)  # line 11
                p_dropped = _dropped(p, seed, heads, tile, plan.rate)
                d_p = _dropped(plan.split_heads(dot(d_out_i, v_j, 3, 3)), seed, heads, tile, plan.rate)  # line 13
                d_s = p * (d_p - delta_i)  # line 14
                if bias is not None and bias_vjp is not None:
                    d_bias = bias.add_tile(d_bias, bias_vjp(d_s)[0], tile)
                p_dropped, d_s = (plan.merge_heads(x).astype(q.dtype) for x in (p_dropped, d_s))
                d_k = d_k + dot(q_t, d_s, 3, 2)  # line 16
                d_v = d_v + dot(d_out_t, p_dropped, 3, 2)  # line 12
                d_q_i = dot(d_s, k_j, 3, 2).reshape(*d_q.shape[:3], plan.block_q, -1)  # line 15: [b, k, N/K, T, H]
                return add(d_q, d_q_i, QUERIES, Tile({"T": tile.start["T"]}, {"T": plan.block_q})), d_k, d_v, d_bias

            d_q, d_bias = carry
            d_k = d_v = jnp.zeros((plan.examples, plan.heads, k.shape[-1], plan.block_k), acc_dtype)  # line 7
            blocks = plan.q_block_range(query_blocks, group, j)
            with plan.named_by_mean(mask, plan.num_k_blocks, plan.num_q_blocks):
                d_q, d_k, d_v, d_bias = lax.fori_loop(*blocks, q_block, (d_q, d_k, d_v, d_bias))
            return (d_q, d_bias), (d_k, d_v)

        d_q = jnp.zeros((plan.examples, plan.heads, *q.shape[2:]), acc_dtype)  # line 3
        (d_q, d_bias), (d_k, d_v) = lax.scan(k_block, (d_q, d_bias), jnp.arange(plan.num_k_blocks))
        return d_bias, (d_q, d_k, d_v)

    # The gradients of keys and values are summed as [H, S]. As [S, H] they would need every tile of p and d_s transposed, instead
    # of q and d_out once.
    transposed_q, transposed_d_out = (x.transpose(0, 1, 4, 2, 3) for x in (q, d_out))  # [B, K, H, N/K, T]
    numbers: Any = None if bias is None else bias.differentiable()
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, acc_dtype), numbers)
    groups = plan.group_indices(q)
    d_bias, (d_q, d_k, d_v) = lax.scan(one_group, start, groups, unroll=batches_per_step(groups.size))
    # [groups, blocks of keys, examples, heads, H, block_k] -> [groups, examples, heads, blocks of keys, block_k, H]
    d_k, d_v = (x.transpose(0, 2, 3, 1, 5, 4).reshape(k.shape).astype(k.dtype) for x in (d_k, d_v))
    d_bias = jax.tree.map(lambda d, x: d.astype(x.dtype), d_bias, numbers)
    return d_q.reshape(q.shape).astype(q.dtype), d_k, d_v, None, d_bias, None, None, sink_gradient(sinks, lse, delta), None


_attend.defvjp(_forward, _backward)


def dot(x: Float[Array, "b k _ _"], y: Float[Array, "b k _ _"], i: int, j: int) -> Float[Array, "b k _ _"]:
    """Return the sums of products over axis i of x and axis j of y, in at least float32."""
    acc_dtype = jnp.promote_types(x.dtype, jnp.float32)
    return lax.dot_general(x, y, (((i,), (j,)), ((0, 1), (0, 1))), preferred_element_type=acc_dtype)


def _masked(s: Float[Array, "b n T S"], mask: Mask, tile: Tile) -> Float[Array, "b n T S"]:
    allowed = mask.slice_tile(tile).dense(*s.shape[2:])
    return s if allowed is None else jnp.where(allowed, s, MASKED)


def _dropped(p: Float[Array, "b n T S"], seed: Any, heads: Array, tile: Tile, rate: float) -> Float[Array, "b n T S"]:
    """Zero the entries that dropout removes, without scaling up the others.

    The hash of an entry's global coordinates decides, so every implementation drops the same entries.
    """
    if seed is None:
        return p
    t, s = ((tile.start[c] + jnp.arange(tile.size[c])).astype(jnp.uint32) for c in "TS")
    if seed.shape[1] > 2:
        t, s = t + seed[0, 2], s + seed[0, 3]
    return jnp.where(counter_rng.keep(take(seed, "B-", tile)[:, :2], rate, take(heads, "N", tile), t, s), p, 0)


def _even_blocks(length: int, limit: int, multiple: int) -> tuple[int, int]:
    """Return (number of blocks, length of a block): as few equal blocks as possible, whose length is a multiple of `multiple`."""
    blocks = -(-length // limit)
    return blocks, -(-length // (blocks * multiple)) * multiple


def _largest_divisor(number: int, limit: int) -> int:
    return max(d for d in range(1, max(1, min(number, limit)) + 1) if number % d == 0)
