"""XLNet's bias in the kernels of `flash_tpu`: terms of distance and of type (Yang et al. 2019, section 2.3).

Consecutive queries: a tile has the scores of `2 * block` distances, of which row a is needed from column `block - 1 - a` on. A
roll whose amount grows by one from row to row moves them into place. Its transpose would need amounts that fall, which the TPU
does not have, so the rows of a tile's gradient are reversed first: then they rise again.

Scattered queries: the scores of all distances are computed once for a block of queries, and each row is rolled by an amount of
its own. The keys of a tile are then a slice.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from zoo.attention.biases import Relative
from zoo.attention.kernels._flash_tpu_plan import LANES, Plan, as_column, dot, lane_sums, lanes

SUBLANES = 8
"""Rows of a vector register."""
HALF = LANES // 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Positions:
    """The arrays of a relative bias that have a gradient, or their blocks, specifications or gradients."""

    q_r: Any
    """[B, N, T, E]."""
    r: Any
    """Consecutive queries: [N, I + J, E, block], the distances in blocks. Scattered queries: [N, E, D]."""
    q_s: Any = None
    """[B, N, 2, T], float32: what equal and different types add; None without types."""
    q_r_reversed: Any = None
    """`q_r` with the rows of each block reversed, for the gradient of consecutive queries."""

    @classmethod
    def of(cls, bias: Relative, plan: Plan, scale: float, dtype: Any) -> "Positions":
        """Return the arrays of a bias, scaled and padded."""
        padded_t, factor = plan.num_q * plan.block_q, jnp.asarray(scale, dtype)
        q_r = jnp.swapaxes(bias.q_r.astype(dtype) * factor, 1, 2)  # [B, N, T, E]
        q_r = jnp.pad(q_r, ((0, 0), (0, 0), (0, padded_t - q_r.shape[2]), (0, 0)))
        if plan.position == "scattered":
            r = _columns(bias.r.astype(dtype), 0, num_distances(bias.first, plan.num_k * plan.block_k))
        else:
            blocks = plan.num_q + plan.num_k
            r = _columns(bias.r.astype(dtype), bias.first + 1 - padded_t, blocks * plan.block_k)
            r = jnp.swapaxes(r.reshape(*r.shape[:2], blocks, plan.block_k), 1, 2)  # [N, I + J, E, block]
        q_s = None
        if plan.has_types:
            q_s = jnp.transpose(bias.q_s.astype(jnp.float32) * scale, (0, 2, 3, 1))  # [B, N, 2, T]
            q_s = jnp.pad(q_s, ((0, 0), (0, 0), (0, 0), (0, padded_t - q_s.shape[3])))
        return cls(q_r=q_r, r=r, q_s=q_s)

    def operands(self, plan: Plan, *, backward: bool) -> "Positions":
        """Return the arrays that a kernel reads."""
        if plan.position == "scattered":
            return self
        flipped = reverse_blocks(self.q_r, plan.block_q) if backward else None
        return dataclasses.replace(self, r=(self.r, self.r), q_r_reversed=flipped)

    def specs(self, plan: Plan, spec: Callable[..., Any], *, backward: bool) -> "Positions":
        """Return the blocks of `operands`; `spec(shape, index)` makes one of a function of (b, n, i, fetched block of keys)."""
        e = self.q_r.shape[-1]
        queries = spec((1, 1, plan.block_q, e), lambda b, n, i, j: (b, n, i, 0))
        q_s = None if self.q_s is None else spec((1, 1, 2, plan.block_q), lambda b, n, i, j: (b, n, 0, i))
        if plan.position == "scattered":
            return Positions(q_r=queries, r=spec((1, *self.r.shape[1:]), lambda b, n, i, j: (n, 0, 0)), q_s=q_s)

        def distances_of(after: int) -> Any:
            return spec((1, 1, e, plan.block_k), lambda b, n, i, j: (n, plan.distances_of_tile(i, j) + after, 0, 0))

        return Positions(q_r=queries, r=(distances_of(0), distances_of(1)), q_s=q_s, q_r_reversed=queries if backward else None)

    def scratch(self, plan: Plan, *, backward: bool) -> dict[str, Any]:
        """Return the memory that the functions below keep for a block of queries."""
        memory: dict[str, Any] = {}
        if plan.has_types:
            memory["q_s"] = pltpu.VMEM((2, plan.block_q, LANES), jnp.float32)
        if plan.position == "scattered":
            rows = pltpu.VMEM((plan.block_q, self.r.shape[-1]), jnp.float32)
            memory |= {"rows": rows, "d_rows": rows} if backward else {"rows": rows}
        return memory

    def gradient_specs(self, plan: Plan, spec: Callable[..., Any], **once: Any) -> tuple["Positions", "Positions"]:
        """Return the blocks and shapes of what the backward kernel writes; `once` are the options of a block for a head."""
        b, n, t, e = self.q_r.shape
        zeros: Sequence[int] = (0,) * (self.r.ndim - 1)
        blocks = Positions(
            q_r=spec((1, 1, plan.block_q, e), lambda b, n, i, j: (b, n, i, 0)),
            r=spec((1, *self.r.shape[1:]), lambda b, n, i, j: (n, *zeros), **once),
            q_s=None if self.q_s is None else spec((1, 1, plan.block_q, LANES), lambda b, n, i, j: (b, n, i, 0)),
        )
        shapes = Positions(
            q_r=jax.ShapeDtypeStruct((b, n, t, e), jnp.float32),
            r=jax.ShapeDtypeStruct(self.r.shape, jnp.float32),
            q_s=None if self.q_s is None else jax.ShapeDtypeStruct((b, n, t, LANES), jnp.float32),
        )
        return blocks, shapes

    def gradient(self, plan: Plan, sums: "Positions") -> "Positions":
        """Return the gradient from what the backward kernel wrote."""
        q_r = sums.q_r if plan.position == "scattered" else reverse_blocks(sums.q_r, plan.block_q)
        q_s = sums.q_s
        if q_s is not None:
            q_s = jnp.swapaxes(q_s.reshape(*q_s.shape[:3], 2, HALF).sum(-1), 2, 3)  # [B, N, 2, T]
        return Positions(q_r=q_r.astype(self.q_r.dtype), r=sums.r.astype(self.r.dtype), q_s=q_s)


def num_distances(first: int, keys: int) -> int:
    """Return the number of distances that scattered queries need, a multiple of the lanes."""
    return -(-(first + keys) // LANES) * LANES


def reverse_blocks(x: Float[Array, "B N T E"], block: int) -> Float[Array, "B N T E"]:
    """Return the array with the rows of each block reversed."""
    b, n, t, e = x.shape
    return jnp.flip(x.reshape(b, n, t // block, block, e), 3).reshape(b, n, t, e)


def _columns(r: Float[Array, "N E D"], start: int, count: int) -> Float[Array, "N E {count}"]:
    """Return `count` columns from `start` on, which may be negative; those that are missing are zero."""
    front, first = max(0, -start), max(0, start)
    r = r[:, :, first : start + count]
    return jnp.pad(r, ((0, 0), (0, 0), (front, count - front - r.shape[2])))


# --- in the kernels -------------------------------------------------------------------------------------------------------------


def begin_queries(plan: Plan, bias: Positions, at: Any, b: Any, i: Any, scratch: dict[str, Any]) -> None:
    """Compute what all tiles of a block of queries share."""
    if plan.has_types:
        scratch["q_s"][0], scratch["q_s"][1] = as_column(bias.q_s[0, 0, :1]), as_column(bias.q_s[0, 0, 1:])
    if plan.position == "scattered":
        rows = scratch["rows"]
        rows[...] = dot(bias.q_r[0, 0], bias.r[0], 1, 0)
        # Distance position - key is in column first - position + key; it belongs in the column of the key.
        _roll_rows(plan, rows, lambda position: rows.shape[1] - plan.first + position, at, b, i)


def scores(plan: Plan, bias: Positions, j: Any, columns: Any, key_numbers: Any, scratch: dict[str, Any]) -> Array:
    """Return what the bias adds to a tile of the scores."""
    block_q, block_k = plan.block_q, plan.block_k
    if plan.position == "scattered":
        added = scratch["rows"][:, pl.ds(pl.multiple_of(j * block_k, LANES), block_k)]
    else:
        by_distance = jnp.concatenate([dot(bias.q_r[0, 0], r[0, 0], 1, 0) for r in bias.r], axis=1)  # [block, 2 * block]
        added = _by_key(by_distance)
    if plan.has_types:
        same, different = (lanes(scratch["q_s"][kind], block_k) for kind in (0, 1))
        added = added + jnp.where(_types_differ(plan, columns, key_numbers), different, same)
    assert added.shape == (block_q, block_k)
    return added


def begin_gradient(plan: Plan, d_bias: Positions, scratch: dict[str, Any]) -> None:
    """Set the sums over the tiles of a block of queries to zero."""
    d_bias.q_r[...] = jnp.zeros_like(d_bias.q_r)
    if plan.has_types:
        d_bias.q_s[...] = jnp.zeros_like(d_bias.q_s)
    if plan.position == "scattered":
        scratch["d_rows"][...] = jnp.zeros_like(scratch["d_rows"])


def add_gradient(
    plan: Plan,
    d_s: Array,
    bias: Positions,
    d_bias: Positions,
    i: Any,
    j: Any,
    columns: Any,
    key_numbers: Any,
    scratch: dict[str, Any],
) -> None:
    """Add a tile's part of the gradients, from those of its scores."""
    block_k = plan.block_k
    if plan.has_types:
        differ = _types_differ(plan, columns, key_numbers)
        same, different = lane_sums(jnp.where(differ, 0, d_s)), lane_sums(jnp.where(differ, d_s, 0))
        # The lower lanes have the sums of equal types, the upper ones those of different types.
        same, different = (x + pltpu.roll(x, HALF, 1) for x in (same, different))
        lower = lax.broadcasted_iota(jnp.int32, same.shape, 1) < HALF
        d_bias.q_s[0, 0] += jnp.where(lower, same, different)
    if plan.position == "scattered":
        scratch["d_rows"][:, pl.ds(pl.multiple_of(j * block_k, LANES), block_k)] = d_s
        return
    by_distance = _by_distance(_reverse_rows(d_s)).astype(bias.q_r.dtype)
    for half, r in enumerate(bias.r):
        part = by_distance[:, half * block_k : (half + 1) * block_k]
        d_bias.q_r[0, 0] += dot(part, r[0, 0], 1, 1)
        d_bias.r[0, plan.distances_of_tile(i, j) + half] += dot(bias.q_r_reversed[0, 0], part, 0, 0)


def end_queries(plan: Plan, bias: Positions, d_bias: Positions, at: Any, b: Any, i: Any, scratch: dict[str, Any]) -> None:
    """Add the gradients that are summed once for a block of queries."""
    if plan.position == "scattered":
        rows = scratch["d_rows"]
        _roll_rows(plan, rows, lambda position: rows.shape[1] + plan.first - position, at, b, i)
        by_distance = rows[...].astype(bias.q_r.dtype)
        d_bias.q_r[0, 0] = dot(by_distance, bias.r[0], 1, 1)
        d_bias.r[0] += dot(bias.q_r[0, 0], by_distance, 0, 0)


def _by_key(by_distance: Float[Array, "block distances"]) -> Float[Array, "block block"]:
    """Return the scores of a tile of consecutive queries: row a begins in column block - 1 - a of its scores by distance."""
    block = by_distance.shape[0]
    return pltpu.roll(by_distance, block + 1, 1, stride=1, stride_axis=0)[:, :block]


def _by_distance(reversed_rows: Float[Array, "block block"]) -> Float[Array, "block distances"]:
    """Return the transpose of `_by_key`, for a tile whose rows are reversed, and so are those of the result."""
    wide = jnp.concatenate([reversed_rows, jnp.zeros_like(reversed_rows)], axis=1)
    return pltpu.roll(wide, 0, 1, stride=1, stride_axis=0)


def _types_differ(plan: Plan, columns: Any, key_numbers: Any) -> Array:
    row = len(plan.numbers)
    return lanes(columns[row], plan.block_k) != key_numbers[0, row : row + 1]


def _roll_rows(plan: Plan, rows: Any, amount: Callable[[Any], Any], at: Any, b: Any, i: Any) -> None:
    """Roll each row of a block by an amount that depends on the position of its query."""

    def roll(row: Any, _: Any) -> Any:
        shift = lax.rem(amount(at[b, i * plan.block_q + row]), rows.shape[1])
        rows[pl.ds(row, 1), :] = pltpu.roll(rows[pl.ds(row, 1), :], shift, 1)
        return _

    lax.fori_loop(0, plan.block_q, roll, 0, unroll=SUBLANES)


def _reverse_rows(x: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """Return the rows in reverse order: a gather within each register, whose order is static."""
    order = SUBLANES - 1 - lax.broadcasted_iota(jnp.int32, (SUBLANES, x.shape[1]), 0)
    starts = range(x.shape[0] - SUBLANES, -1, -SUBLANES)
    return jnp.concatenate([jnp.take_along_axis(x[start : start + SUBLANES], order, axis=0) for start in starts], axis=0)
