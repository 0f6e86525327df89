"""The bodies of the kernels of `flash_gpu`, which Triton compiles. Comments give the lines of FlashAttention-2's algorithms.

A program computes one block of queries, or of keys, of one head and example, and loops over the blocks of the other side. Masks
and dropout are the functions that every implementation uses, `Mask.rule` and `counter_rng.is_kept`.
"""
# ruff: noqa: E741 (l is the paper's symbol)

import dataclasses
import functools
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float

from zoo.attention.biases import ByDistance
from zoo.attention.kernels._flash_common import FlashPlan, allowed_pairs, iota
from zoo.attention.totals import MASKED
from zoo.ops import counter_rng

BEFORE, NEAR, AFTER = -1, 0, 1
"""Where the keys of a tile lie: so far before or after its queries that the bias is constant, or near them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(FlashPlan):
    """The static part of a call; the tiles of a bias by distance are square, and beyond the last ones it is constant."""

    first: int
    """The largest distance, query - key, of a bias by distance; it has the index 0."""
    num_distances: int
    constant_from: int | None
    """Distance from which on the bias is constant on either side of the query; None: unknown."""
    examples: int
    """Number of examples."""
    bias_groups: tuple[int, int]
    """Groups of examples, and parts of the blocks of queries, whose gradients of the bias are summed apart."""
    has_own_states: bool
    """True if each example has other tiles that are skipped."""
    warps: int
    stages: int
    """Blocks of keys that are copied to shared memory ahead."""
    parts: int
    """Parts of a block that the backward kernels for queries and for keys read one after the other: fewer scores are in
    registers at once."""

    @property
    def has_far_tiles(self) -> bool:
        """Return whether there are tiles beyond the last ones of the bias that differ."""
        before, after = self.diagonal, self.num_tiles - 1 - self.diagonal
        return self.num_tiles > 0 and (self.num_q - 1 > before or self.num_k - 1 > after)

    def index_of_distance(self, distance: Any) -> Any:
        """Return where the bias has the value of the distance key - query."""
        if self.constant_from is not None:
            distance = jnp.clip(distance, -self.constant_from, self.constant_from)
        # Distances that are missing belong to pairs of padding.
        return jnp.clip(distance + self.first, 0, self.num_distances - 1)

    def loops_over_keys(self, i: Any, ranges: Any) -> list[tuple[int, Any, Any]]:
        """Return the loops of a block of queries over blocks of keys: (where they lie, first block, block after the last).

        A loop has the same code for all of its tiles: a branch in it would make the assembler serialize the products.
        """
        start, stop = ranges[0], ranges[1]
        if not self.has_far_tiles:
            return [(NEAR, start, stop)]
        first = jnp.clip(i - self.diagonal, start, stop)
        last = jnp.clip(i + self.num_tiles - self.diagonal, first, stop)
        return [(BEFORE, start, first), (NEAR, first, last), (AFTER, last, stop)]

    def loops_over_queries(self, j: Any, ranges: Any) -> list[tuple[int, Any, Any]]:
        """Return the loops of a block of keys over blocks of queries, likewise."""
        start, stop = ranges[0], ranges[1]
        if not self.has_far_tiles:
            return [(NEAR, start, stop)]
        first = jnp.clip(j - (self.num_tiles - 1 - self.diagonal), start, stop)
        last = jnp.clip(j + self.diagonal + 1, first, stop)
        return [(AFTER, start, first), (NEAR, first, last), (BEFORE, last, stop)]


class Inputs(NamedTuple):
    """References to what all kernels read besides blocks of queries and keys; None: the call does not use it."""

    lengths: Any
    """Number of real keys of the example, [1]."""
    seed: Any
    """Both seeds of the example, [2], and of a chunk the indices of its first query and key, [4]."""
    head: Any
    """Index of the head among those of all devices, [1]."""
    values: Any
    """Bias of each distance, [D]."""
    dense: Any
    """Bias of the queries, or keys, of the program with all of the other side, [T, S]."""
    query_numbers: Any
    """Numbers of the mask that are arrays, [F, T]."""
    key_numbers: Any
    example: tuple[Any, ...] = ()
    """The example, if the references to its arrays have those of all examples."""

    @classmethod
    def of(cls, operands: Any, bias: Any) -> "Inputs":
        """Return the arrays of a call; their blocks are those of `blocks`."""
        values, dense = (bias.values.T.astype(jnp.float32), None) if isinstance(bias, ByDistance) else (None, bias)
        numbers = operands.query_numbers, operands.key_numbers
        return cls(operands.lengths, operands.seed, operands.heads, values, dense, *numbers)

    @classmethod
    def blocks(cls, plan: Plan, operands: Any, dense: Any = None, *, all_examples: bool = False) -> "Inputs":
        """Return the blocks of the arrays, of one example or of all, given that of a dense bias."""

        def spec(array: Any) -> Any:
            if array is None:
                return None
            shape = (array.shape[0] if all_examples else None, *array.shape[1:])
            return pl.BlockSpec(shape, lambda i, n, b: (0 if all_examples else b, *[0] * (array.ndim - 1)))

        return cls(
            lengths=spec(operands.lengths),
            seed=spec(operands.seed),
            head=head_block(operands.heads),
            values=pl.BlockSpec((None, plan.num_distances), lambda i, n, b: (n, 0)) if plan.num_tiles else None,
            dense=dense,
            query_numbers=spec(operands.query_numbers),
            key_numbers=spec(operands.key_numbers),
        )

    def numbers_of_queries(self, plan: Plan, block: Any) -> dict[str, Array]:
        return {name: self.query_numbers[(*self.example, row, block)] for row, name in enumerate(plan.numbers)}

    def numbers_of_keys(self, plan: Plan, block: Any) -> dict[str, Array]:
        return {name: self.key_numbers[(*self.example, row, block)] for row, name in enumerate(plan.numbers)}

    def length(self, plan: Plan) -> Any:
        """Return the number of real keys; None if the mask has none."""
        return self.lengths[(*self.example, 0)] if plan.has_lengths else None

    def row_hash(self, plan: Plan, queries: Array) -> Array:
        """Return the hashes of rows, on which dropout depends."""
        first, second = (self.seed[(*self.example, part)] for part in (0, 1))
        return counter_rng.row_hash(first, second, self.head[0], self._among_all(plan, queries, 2))

    def is_kept(self, plan: Plan, row: Array, keys: Array) -> Array:
        """Return which entries dropout keeps, from the hashes of their rows."""
        return counter_rng.is_kept(row, self._among_all(plan, keys, 3), plan.rate)

    def _among_all(self, plan: Plan, indices: Array, column: int) -> Array:
        """Return the indices, on which dropout depends, of queries (column 2 of the seeds) or keys (3) of a call or its chunk."""
        indices = indices.astype(jnp.uint32)
        return indices + self.seed[(*self.example, column)] if plan.is_chunk else indices


def head_block(numbers: Any) -> Any:
    """Return the BlockSpec of an array with one number for each query head: a block is one number. None if there is no array."""
    return None if numbers is None else pl.BlockSpec((1,), lambda i, n, b: (n,))


def forward_body(plan: Plan, ranges: Any, inputs: Inputs, sink: Any, q: Any, k: Any, v: Any, out: Any, lse: Any) -> None:
    """Compute a block of queries over the blocks of keys that it may see."""
    i = pl.program_id(0)
    rows = Rows.of(plan, inputs, i)
    q_i = q[...]

    def step(side: int, j: Any, carry: Any) -> Any:
        m, l, acc = carry
        keys, block = _indices(j, plan.block_k)
        s = rows.scores(dot(q_i, k[block, :], 1, 1), keys, block, side)  # line 8
        m_new = jnp.maximum(m, s.max(1))  # line 9, and the next three
        p = jnp.exp(s - m_new[:, None])
        alpha = jnp.exp(m - m_new)
        l = l * alpha + p.sum(1)
        if plan.rate:
            p = jnp.where(rows.is_kept(keys), p, 0.0)
        acc = acc * alpha[:, None] + dot(p.astype(v.dtype), v[block, :], 1, 0)  # line 10
        return m_new, l, acc

    # Line 5. The maximum begins above MASKED, so that a row without a visible key adds exp(-9e29) = 0. A sink is the first key,
    # whose exp(sink - m) is 1.
    m = jnp.full((plan.block_q,), 0.1 * MASKED if sink is None else sink[0], jnp.float32)
    l = jnp.full((plan.block_q,), 0.0 if sink is None else 1.0, jnp.float32)
    carry = m, l, jnp.zeros((plan.block_q, q.shape[-1]), jnp.float32)
    for side, first, last in plan.loops_over_keys(i, ranges):
        carry = lax.fori_loop(first, last, functools.partial(step, side), carry)
    m, l, acc = carry
    has_key = l > 0
    l = jnp.where(has_key, l, 1.0)
    out[...] = (acc / (l * (1 - plan.rate))[:, None]).astype(out.dtype)  # line 12
    # Line 13. For a row without a visible key, exp(s - lse) must be zero in the gradient too.
    lse[...] = jnp.where(has_key, m + jnp.log(l), -MASKED)


def backward_query_body(
    plan: Plan,
    ranges: Any,
    inputs: Inputs,
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    lse: Any,
    delta: Any,
    d_q: Any,
    d_far: Any,
    d_dense: Any,
) -> None:
    """Compute the gradient of a block of queries, and of the scores: sums where the bias is constant, all of a dense bias."""
    i = pl.program_id(0)
    rows = Rows.of(plan, inputs, i)
    q_i, d_out_i, lse_i, delta_i = q[...], d_out[...], lse[...], delta[...]

    def step(side: int, j: Any, carry: Any) -> Any:
        acc, *far = carry
        keys, block = _indices(j, plan.block_k // plan.parts)
        k_j = k[block, :]
        s = rows.scores(dot(q_i, k_j, 1, 1), keys, block, side)  # line 10
        d_p = dot(d_out_i, v[block, :], 1, 1)  # line 13
        d_s = rows.score_gradients(s, d_p, lse_i, delta_i, keys)
        narrow = d_s.astype(k.dtype)
        if d_dense is not None:
            d_dense[:, block] = narrow
        return acc + dot(narrow, k_j, 1, 0), *(total + d_s.sum(1) for total in far)  # line 15

    acc = jnp.zeros((plan.block_q, q.shape[-1]), jnp.float32)
    for side, first, last in plan.loops_over_keys(i, ranges):
        zero = () if side == NEAR else (jnp.zeros((plan.block_q,), jnp.float32),)
        acc, *far = lax.fori_loop(first * plan.parts, last * plan.parts, functools.partial(step, side), (acc, *zero))
        for total in far:
            d_far[0 if side == BEFORE else 1] = total.sum()
    d_q[...] = acc.astype(d_q.dtype)
    if d_dense is not None:

        def clear(j: Any, _: Any) -> None:
            d_dense[:, pl.ds(j * plan.block_k, plan.block_k)] = jnp.zeros((plan.block_q, plan.block_k), d_dense.dtype)

        lax.fori_loop(0, ranges[0], clear, None)
        lax.fori_loop(ranges[1], plan.num_k, clear, None)


def backward_key_body(
    plan: Plan,
    ranges: Any,
    inputs: Inputs,
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    lse: Any,
    delta: Any,
    d_k: Any,
    d_v: Any,
) -> None:
    """Compute the gradients of a block of keys and values. Its tiles are transposed, so that no product turns one."""
    j = pl.program_id(0)
    keys, block = _indices(j, plan.block_k)
    key = _columns(inputs.numbers_of_keys(plan, block))
    k_j, v_j = k[...], v[...]

    def step(side: int, i: Any, carry: Any) -> Any:
        acc_k, acc_v = carry
        queries, block = _indices(i, plan.block_q // plan.parts)
        q_i, d_out_i = q[block, :], d_out[block, :]
        s = dot(k_j, q_i, 1, 1)  # line 10
        if plan.num_tiles:
            s += bias_of_tile(plan, inputs.values, queries[None], keys[:, None], side)
        elif inputs.dense is not None:
            s += inputs.dense[block, :].T
        if plan.has_mask:
            query = _rows(inputs.numbers_of_queries(plan, block))
            s = jnp.where(allowed_pairs(plan, query, key, queries[None], keys[:, None], inputs.length(plan)), s, MASKED)
        p = p_dropped = jnp.exp(s - lse[block][None])  # line 11
        d_p = dot(v_j, d_out_i, 1, 1)  # line 13
        if plan.rate:
            is_kept = inputs.is_kept(plan, inputs.row_hash(plan, queries)[None], keys[:, None])
            p_dropped, d_p = (jnp.where(is_kept, x * (1 / (1 - plan.rate)), 0.0) for x in (p, d_p))
        d_s = p * (d_p - delta[block][None])  # line 14
        acc_v += dot(p_dropped.astype(q.dtype), d_out_i, 1, 0)  # line 12
        return acc_k + dot(d_s.astype(q.dtype), q_i, 1, 0), acc_v  # line 16

    zero = jnp.zeros((plan.block_k, k.shape[-1]), jnp.float32)
    carry = zero, zero
    for side, first, last in plan.loops_over_queries(j, ranges):
        carry = lax.fori_loop(first * plan.parts, last * plan.parts, functools.partial(step, side), carry)
    acc_k, acc_v = carry
    d_k[...] = acc_k.astype(d_k.dtype)
    d_v[...] = acc_v.astype(d_v.dtype)


def backward_bias_body(
    plan: Plan,
    ranges: Any,
    inputs: Inputs,
    q: Any,
    k: Any,
    v: Any,
    d_out: Any,
    lse: Any,
    delta: Any,
    d_tiles: Any,
) -> None:
    """Sum the gradients of the scores of all tiles that are as far from the diagonal, of a group of examples and of queries.

    The sums stay in registers, and the groups are added up by XLA: without atomic additions the result is the same in every run.
    """
    offset = pl.program_id(0) - plan.diagonal
    groups, parts = plan.bias_groups
    group, part = pl.program_id(2) // parts, lax.rem(pl.program_id(2), parts)
    per_group = -(-plan.examples // groups)

    def example(b: Any, acc: Any) -> Any:
        start, stop = (ranges[b if plan.has_own_states else 0, end] for end in (0, 1))
        of_example = inputs._replace(example=(b,))

        def step(i: Any, acc: Any) -> Any:
            j = i + offset
            keys, of_keys = _indices(j, plan.block_k)
            _, of_queries = _indices(i, plan.block_q)
            rows = Rows.of(plan, of_example, i)
            s = rows.scores(dot(q[b, of_queries, :], k[b, of_keys, :], 1, 1), keys, of_keys, NEAR)
            d_p = dot(d_out[b, of_queries, :], v[b, of_keys, :], 1, 1)
            return acc + rows.score_gradients(s, d_p, lse[b, of_queries], delta[b, of_queries], keys)

        count = stop - start
        return lax.fori_loop(start + count * part // parts, start + count * (part + 1) // parts, step, acc)

    last = jnp.minimum((group + 1) * per_group, plan.examples)
    zero = jnp.zeros((plan.block_q, plan.block_k), jnp.float32)
    d_tiles[...] = lax.fori_loop(group * per_group, last, example, zero)


class Rows(NamedTuple):
    """The parts that the tiles of a block of queries share."""

    plan: Plan
    inputs: Inputs
    queries: Array
    """Indices of the queries."""
    query: dict[str, Array]
    """Numbers of the queries, as columns."""
    hashes: Any
    """Hashes of the rows for dropout; None without it."""

    @classmethod
    def of(cls, plan: Plan, inputs: Inputs, i: Any) -> "Rows":
        """Return the rows of block `i` of the queries."""
        queries, block = _indices(i, plan.block_q)
        hashes = inputs.row_hash(plan, queries) if plan.rate else None
        return cls(plan, inputs, queries, _columns(inputs.numbers_of_queries(plan, block)), hashes)

    def scores(self, products: Array, keys: Array, block: Any, side: int) -> Array:
        """Return the scores of a tile, whose keys lie on this side: its products and bias, MASKED where no pair attends."""
        plan, s = self.plan, products
        if plan.num_tiles:
            s += bias_of_tile(plan, self.inputs.values, self.queries[:, None], keys[None], side)
        elif self.inputs.dense is not None:
            s += self.inputs.dense[:, block]
        if plan.has_mask:
            key, length = _rows(self.inputs.numbers_of_keys(plan, block)), self.inputs.length(plan)
            s = jnp.where(allowed_pairs(plan, self.query, key, self.queries[:, None], keys[None], length), s, MASKED)
        return s

    def is_kept(self, keys: Array) -> Array:
        """Return which entries of a tile dropout keeps."""
        return self.inputs.is_kept(self.plan, self.hashes[:, None], keys[None])

    def score_gradients(self, s: Array, d_p: Array, lse: Array, delta: Array, keys: Array) -> Array:
        """Return the gradients of the scores of a tile: lines 11 and 14 of the backward pass."""
        if self.plan.rate:
            d_p = jnp.where(self.is_kept(keys), d_p * (1 / (1 - self.plan.rate)), 0.0)
        return jnp.exp(s - lse[:, None]) * (d_p - delta[:, None])


def bias_of_tile(plan: Plan, values: Any, queries: Array, keys: Array, side: int) -> Array:
    """Return the bias of a tile of these queries and keys: far from the diagonal, one number."""
    if side == NEAR:
        return plt.load(values.at[plan.index_of_distance(keys - queries)])
    return values[plan.index_of_distance(side * plan.num_distances)]


def dot(x: Array, y: Array, i: int, j: int) -> Float[Array, "_ _"]:
    """Return the sums of products over axis i of x and axis j of y, in float32."""
    # By default a GPU rounds float32 operands to 10 bits.
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return lax.dot_general(x, y, (((i,), (j,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _indices(number: Any, block: int) -> tuple[Array, Any]:
    """Return the indices of a block of queries or of keys, and its slice."""
    return iota((block,), 0, number * block), pl.ds(number * block, block)


def _columns(numbers: dict[str, Array]) -> dict[str, Array]:
    return {name: array[:, None] for name, array in numbers.items()}


def _rows(numbers: dict[str, Array]) -> dict[str, Array]:
    return {name: array[None] for name, array in numbers.items()}
