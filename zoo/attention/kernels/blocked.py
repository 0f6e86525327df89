"""`blocked`: exact attention in pure JAX that stores nothing of size T x S. Runs everywhere; made for CPU.

The softmax is taken tile by tile, with a running maximum and sum (Milakov and Gimelshein 2018; Rabe and Staats 2021), and the
gradient recomputes each tile from the saved log-sum-exp (Dao et al. 2022). A tile is small enough to stay in cache.
Masks and biases are cut to tiles by their own specifications; a bias has its gradient from its own `dense`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from zoo.attention.masks import Mask
from zoo.attention.tiles import Tile, add, take
from zoo.ops import counter_rng
from zoo.ops.reductions import row_max
from zoo.sharding import single_cpu

MASKED = -1e30
TOGETHER, WITHOUT_LOOP = 4, 16
"""Groups of examples and heads that one CPU has at a time, and how many may be all there are, without a loop over them. XLA
computes a batch of small products on one core: two have work where several batches do not wait for each other. Within a loop they
still wait: 8 and 16 groups take 0.7 and 0.8 of its time without one."""
ROWS, COLUMNS = 512, 1024
"""Queries and keys of a tile, at most: in float32 its scores are 2 MiB. With a quarter of them two cores wait a third longer, for
each other, at the end of every product."""


def blocked(q, k, v, mask, bias, seed, heads, *, scale, rate):
    """Local attention; q [B, T, N, H], k and v [B, S, K, H] -> [B, T, N, H]. Scores, softmax and sums are float32."""
    b, t, n, h = q.shape
    s, groups = k.shape[1], k.shape[2]
    bias = None if bias is None else bias.prepare(t, s)
    plan = Plan.of(b, t, s, n, groups, mask, bias, scale, rate)
    rows, columns = plan.rows * plan.row_blocks, plan.columns * plan.column_blocks
    if columns > s:
        lengths = jnp.full(b, s) if mask.key_lengths is None else jnp.minimum(mask.key_lengths, s)
        mask = dataclasses.replace(mask, key_lengths=lengths)
    mask, bias = (None if spec is None else spec.for_tiles(plan.rows, rows, columns) for spec in (mask, bias))
    q = (q * jnp.asarray(scale, q.dtype)).reshape(b, t, groups, n // groups, h).transpose(0, 2, 3, 1, 4)
    q = jnp.pad(q, [(0, 0)] * 3 + [(0, rows - t), (0, 0)])
    k, v = (jnp.pad(x.transpose(0, 2, 1, 3), [(0, 0)] * 2 + [(0, columns - s), (0, 0)]) for x in (k, v))
    out: Any = _attend(plan, q, k, v, mask, bias, seed, heads)
    out = out[:, :, :, :t].transpose(0, 3, 1, 2, 4).reshape(b, t, n, h)
    return out if rate == 0 else out * jnp.asarray(1 / (1 - rate), out.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The static part of a call: how the scores are cut into tiles."""

    rows: int
    columns: int
    row_blocks: int
    column_blocks: int
    examples: int
    """Examples of a tile, and key/value heads: more than one of them where sequences are short."""
    heads: int
    scale: float
    rate: float

    @classmethod
    def of(cls, b: int, t: int, s: int, n: int, groups: int, mask: Mask, bias: Any, scale: float, rate: float) -> "Plan":
        shared, tallest, widest = n // groups, ROWS, COLUMNS
        for spec in (mask, bias):
            if spec is not None:
                tallest, widest = spec.tile_size(tallest, widest, s)
        column_blocks, columns = _even(s, widest, 16)
        row_blocks, rows = _even(t, max(8, tallest // shared), 8)
        room = ROWS * COLUMNS // (rows * columns * shared)
        heads = _divisor(groups, room)
        examples = _divisor(b, room // heads) if heads == groups else 1
        return cls(
            rows=rows,
            columns=columns,
            row_blocks=row_blocks,
            column_blocks=column_blocks,
            examples=examples,
            heads=heads,
            scale=scale,
            rate=rate,
        )

    def groups(self, q: Array) -> Array:
        """Numbers of the groups of examples and heads that share a tile."""
        return jnp.arange(q.shape[0] // self.examples * (q.shape[1] // self.heads))

    def together(self, groups: int) -> int:
        """How many of the groups a step of the loop over them takes."""
        if not single_cpu():
            return 1
        return groups if 0 < groups <= WITHOUT_LOOP else TOGETHER

    def group(self, q: Array, number: Int[Array, ""]) -> Tile:
        """The examples and heads of a group, with all queries and keys."""
        of_heads, shared = q.shape[1] // self.heads, q.shape[2]
        example, head = number // of_heads * self.examples, number % of_heads * self.heads
        return Tile(
            {"B": example, "K": head, "N": head * shared}, {"B": self.examples, "K": self.heads, "N": self.heads * shared}
        )

    def columns_of(self, mask: Mask, group: Tile, i: Int[Array, ""]) -> tuple[Any, Any]:
        """The blocks of keys, from .. to, that queries of block i may see."""
        start, stop = _blocks_near(i * self.rows, self.rows, *mask.reach, self.columns, self.column_blocks)
        if mask.key_lengths is not None:
            stop = jnp.minimum(-(-take(mask.key_lengths, "B", group).max() // self.columns), stop)
        return start, stop

    def rows_of(self, mask: Mask, group: Tile, j: Int[Array, ""]) -> tuple[Any, Any]:
        """The blocks of queries, from .. to, that may see keys of block j."""
        behind, ahead = mask.reach
        start, stop = _blocks_near(j * self.columns, self.columns, ahead, behind, self.rows, self.row_blocks)
        if mask.key_lengths is not None:
            stop = jnp.where(j * self.columns < take(mask.key_lengths, "B", group).max(), stop, 0)
        return start, stop

    def rows_at(self, group: Tile, i: Int[Array, ""]) -> Tile:
        return group.along("T", i * self.rows, self.rows)

    def columns_at(self, tile: Tile, j: Int[Array, ""]) -> Tile:
        return tile.along("S", j * self.columns, self.columns)

    def open(self, x: Float[Array, "b k rows X"]) -> Float[Array, "b n T X"]:
        """Rows of a key/value head as rows of query heads; `shut` goes back."""
        return x.reshape(x.shape[0], -1, self.rows, x.shape[-1])

    def turned(self, x: Float[Array, "b k H group T"]) -> Float[Array, "b k H rows"]:
        """The same rows as columns."""
        return x.reshape(*x.shape[:3], -1)

    def shut(self, x: Float[Array, "b *n T X"]) -> Float[Array, "b k rows X"]:
        return x.reshape(x.shape[0], self.heads, -1, x.shape[-1])


QUERIES, TURNED, KEYS, ROW_SUMS = "BK-T-", "BK--T", "BKS-", "BK-T"
"""Axes of q and the output [B, K, N/K, T, H], turned [B, K, H, N/K, T], of k and v [B, K, S, H], and of sums [B, K, N/K, T]."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan: Plan, q: Array, k: Array, v: Array, mask: Mask, bias: Any, seed: Any, heads: Array) -> Array:
    return _forward(plan, q, k, v, mask, bias, seed, heads)[0]


def _forward(plan: Plan, q: Array, k: Array, v: Array, mask: Mask, bias: Any, seed: Any, heads: Array) -> tuple[Array, Any]:
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def group(_: None, number: Int[Array, ""]) -> tuple[None, Any]:
        these = plan.group(q, number)

        def rows(i: Int[Array, ""]) -> tuple[Array, Array]:
            at = plan.rows_at(these, i)
            q_i = plan.shut(take(q, QUERIES, at))

            def columns(j: Int[Array, ""], carry: Any) -> Any:
                top, total, out = carry
                tile = plan.columns_at(at, j)
                scores = plan.open(_dot(q_i, take(k, KEYS, tile), 3, 3))
                if bias is not None:
                    scores = scores + bias.part(tile).dense(plan.rows, plan.columns, plan.scale)
                scores = _masked(scores, mask, tile)
                higher = jnp.maximum(top, row_max(scores))
                weights = jnp.exp(scores - higher[..., None])
                shrink = jnp.exp(top - higher)
                total = total * shrink + _row_sum(weights)
                kept = plan.shut(_dropped(weights, seed, heads, tile, plan.rate)).astype(v.dtype)
                out = out * shrink[..., None] + plan.open(_dot(kept, take(v, KEYS, tile), 3, 2))
                return higher, total, out

            lead = (plan.examples, these.size["N"], plan.rows)
            # The floor under the maximum sends every entry of a row with nothing to attend to to exp(-inf) = 0.
            start = jnp.full(lead, 0.1 * MASKED, wide), jnp.zeros(lead, wide), jnp.zeros((*lead, v.shape[-1]), wide)
            top, total, out = lax.fori_loop(*plan.columns_of(mask, these, i), columns, start)
            alive = total > 0
            out = (out / jnp.where(alive, total, 1)[..., None]).astype(q.dtype)
            # Where nothing was attended to, exp(score - lse) must be zero in the gradient too.
            return out, jnp.where(alive, top + jnp.log(total), -MASKED)

        return None, lax.map(rows, jnp.arange(plan.row_blocks))

    groups = plan.groups(q)
    _, (out, lse) = lax.scan(group, None, groups, unroll=plan.together(groups.size))
    # [groups, row blocks, examples, heads, rows, ...] -> [groups, examples, heads, row blocks, rows, ...]
    out, lse = (jnp.moveaxis(x, 1, 3).reshape(q.shape[: x.ndim - 1]) for x in (out, lse))
    out, lse = checkpoint_name(out, "attention"), checkpoint_name(lse, "attention_lse")
    return out, (q, k, v, mask, bias, seed, heads, out, lse)


def _backward(plan: Plan, residuals: Any, d_out: Array) -> tuple[Any, ...]:
    q, k, v, mask, bias, seed, heads, out, lse = residuals
    wide = lse.dtype
    delta = (d_out.astype(wide) * out.astype(wide)).sum(-1)

    def group(d_bias: Any, number: Int[Array, ""]) -> tuple[Any, Any]:
        these = plan.group(q, number)

        def columns(carry: Any, j: Int[Array, ""]) -> tuple[Any, Any]:
            at = plan.columns_at(these, j)
            k_j, v_j = take(k, KEYS, at), take(v, KEYS, at)

            def rows(i: Int[Array, ""], carry: Any) -> Any:
                d_q, d_k, d_v, d_bias = carry
                tile = plan.rows_at(at, i)
                q_i, d_out_i = (plan.shut(take(x, QUERIES, tile)) for x in (q, d_out))
                q_t, d_out_t = (plan.turned(take(x, TURNED, tile)) for x in (turned_q, turned_d_out))
                lse_i, delta_i = (plan.open(plan.shut(take(x, ROW_SUMS, tile)[..., None])) for x in (lse, delta))
                scores, pull = plan.open(_dot(q_i, k_j, 3, 3)), None
                if bias is not None:
                    part, shape = bias.part(tile), scores.shape

                    def dense(numbers: Any) -> Array:
                        whole = part.with_numbers(numbers).dense(plan.rows, plan.columns, plan.scale)
                        return jnp.broadcast_to(whole.astype(wide), shape)

                    added, pull = jax.vjp(dense, part.numbers())
                    scores = scores + added
                weights = jnp.exp(_masked(scores, mask, tile) - lse_i)
                kept = _dropped(weights, seed, heads, tile, plan.rate)
                d_weights = _dropped(plan.open(_dot(d_out_i, v_j, 3, 3)), seed, heads, tile, plan.rate)
                d_scores = weights * (d_weights - delta_i)
                if bias is not None and pull is not None:
                    d_bias = bias.add_part(d_bias, pull(d_scores)[0], tile)
                kept, d_scores = (plan.shut(x).astype(q.dtype) for x in (kept, d_scores))
                d_k = d_k + _dot(q_t, d_scores, 3, 2)
                d_v = d_v + _dot(d_out_t, kept, 3, 2)
                d_q_i = _dot(d_scores, k_j, 3, 2).reshape(*d_q.shape[:3], plan.rows, -1)
                return add(d_q, d_q_i, QUERIES, Tile({"T": tile.start["T"]}, {"T": plan.rows})), d_k, d_v, d_bias

            d_q, d_bias = carry
            d_k = d_v = jnp.zeros((plan.examples, plan.heads, k.shape[-1], plan.columns), wide)
            d_q, d_k, d_v, d_bias = lax.fori_loop(*plan.rows_of(mask, these, j), rows, (d_q, d_k, d_v, d_bias))
            return (d_q, d_bias), (d_k, d_v)

        d_q = jnp.zeros((plan.examples, plan.heads, *q.shape[2:]), wide)
        (d_q, d_bias), (d_k, d_v) = lax.scan(columns, (d_q, d_bias), jnp.arange(plan.column_blocks))
        return d_bias, (d_q, d_k, d_v)

    # The gradients of keys and values are summed as [H, S]: as [S, H] every tile would have to be turned, not just q and d_out.
    turned_q, turned_d_out = (x.transpose(0, 1, 4, 2, 3) for x in (q, d_out))
    numbers: Any = None if bias is None else bias.numbers()
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, wide), numbers)
    groups = plan.groups(q)
    d_bias, (d_q, d_k, d_v) = lax.scan(group, start, groups, unroll=plan.together(groups.size))
    # [groups, column blocks, examples, heads, H, columns] -> [groups, examples, heads, column blocks, columns, H]
    d_k, d_v = (x.transpose(0, 2, 3, 1, 5, 4).reshape(k.shape).astype(k.dtype) for x in (d_k, d_v))
    d_bias = jax.tree.map(lambda d, x: d.astype(x.dtype), d_bias, numbers)
    return d_q.reshape(q.shape).astype(q.dtype), d_k, d_v, None, d_bias, None, None


_attend.defvjp(_forward, _backward)


def _dot(x: Float[Array, "b k _ _"], y: Float[Array, "b k _ _"], i: int, j: int) -> Float[Array, "b k _ _"]:
    """Sum of products over axis i of x and axis j of y, in at least float32."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return lax.dot_general(x, y, (((i,), (j,)), ((0, 1), (0, 1))), preferred_element_type=wide)


def _masked(scores: Float[Array, "b n T S"], mask: Mask, tile: Tile) -> Float[Array, "b n T S"]:
    allowed = mask.part(tile).dense(*scores.shape[2:])
    return scores if allowed is None else jnp.where(allowed, scores, MASKED)


def _dropped(weights: Float[Array, "b n T S"], seed: Any, heads: Array, tile: Tile, rate: float) -> Float[Array, "b n T S"]:
    """Weights after dropout, not scaled up: by the hash of their place, so that no two implementations drop differently."""
    if seed is None:
        return weights
    t, s = ((tile.start[c] + jnp.arange(tile.size[c])).astype(jnp.uint32) for c in "TS")
    return jnp.where(counter_rng.keep(take(seed, "B-", tile), rate, take(heads, "N", tile), t, s), weights, 0)


def _row_sum(weights: Float[Array, "b n T S"]) -> Float[Array, "b n T"]:
    """Sums of the rows, as a product with ones: XLA's own are slow on CPU (`zoo.ops.reductions`)."""
    return lax.dot_general(weights, jnp.ones(weights.shape[-1], weights.dtype), (((3,), (0,)), ((), ())))


def _blocks_near(first: Any, length: int, behind: int | None, ahead: int | None, size: int, blocks: int) -> tuple[Any, Any]:
    """Blocks of `size`, from .. to, that positions first .. first + length - 1 reach; `blocks` of them there are."""
    start = 0 if behind is None else jnp.maximum(first - behind, 0) // size
    stop = blocks if ahead is None else jnp.minimum((first + length - 1 + ahead) // size + 1, blocks)
    return start, stop


def _even(length: int, most: int, multiple: int) -> tuple[int, int]:
    """(blocks, length of a block): as few as `most` allows, of one length, which is a multiple."""
    blocks = -(-length // most)
    return blocks, -(-length // (blocks * multiple)) * multiple


def _divisor(number: int, most: int) -> int:
    return max(d for d in range(1, max(1, min(number, most)) + 1) if number % d == 0)
