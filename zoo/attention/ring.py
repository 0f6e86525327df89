"""Attention in a ring: each device has its own positions, and the keys and values of all devices pass from one to the next.

A device adds up what its queries see of each chunk of keys, by the online softmax of `blocked`: a chunk is like one key whose
score is the log-sum-exp of its scores, and whose value is its output. The backward pass sends the keys and values round again
with their gradients, which are summed on the way and arrive where the keys belong (Liu et al. 2023, "Ring Attention with
Blockwise Transformers"). A fused kernel computes each chunk; see `ChunkKernel`.

Under a causal mask the first device would see one chunk and the last one all. So a row is cut into twice as many chunks as there
are devices, and device d has the chunks d and 2 N - 1 - d for the time of the call: then each step is two whole chunks of scores
for every device. Under a window that is not longer than a device's positions, a device needs its neighbours' nearest keys alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, UInt32

from zoo.attention.biases import distance_flops
from zoo.attention.kernels import ChunkKernel
from zoo.attention.kernels._flash_common import sink_gradient, sink_logits
from zoo.attention.local_arrays import batch_axes, operand_letters, repeated_heads, spec_by_letter
from zoo.attention.masks import Mask
from zoo.attention.ring_layout import Division, from_balanced, send, this_device, to_balanced
from zoo.attention.tiles import Tile
from zoo.attention.totals import Sums, Totals
from zoo.mesh_axes import BATCH, HEADS, POSITIONS
from zoo.ops import counter_rng
from zoo.sharding import constrain


class Queries(NamedTuple):
    """A chunk of the queries, with the arrays that a mask and a bias have for it, and all of those that they have for keys."""

    q: Float[Array, "B T N H"]
    mask: Mask
    bias: Any
    start: Int[Array, ""]
    """Index of the first query among all."""


class Keys(NamedTuple):
    """A chunk of the keys and values."""

    k: Float[Array, "B S K H"]
    v: Float[Array, "B S K H"]
    start: Int[Array, ""]


class Pair(NamedTuple):
    """A chunk of queries with one of keys, for a call of the kernel."""

    queries: Queries
    keys: Keys
    mask: Mask
    """The mask of these queries and keys alone."""
    is_first: Any
    """True if the queries are those of the device's first chunk, and False if not; or a traced boolean."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ring:
    """The static part of a call."""

    kernel: ChunkKernel
    division: Division
    scale: float
    rate: float
    scope: Callable[..., str]
    """Records a call of the kernel, given the FLOPs of its products of distances and fields of `Call` about the ring, and returns
    its name scope."""

    def send(self, tree: Any) -> Any:
        """Send arrays to the next device of the ring."""
        return send(tree, 1, self.division.devices)

    def keys_of(self, device: Any, arrays: Sequence[tuple[Array, Array]]) -> list[Keys]:
        """Return the chunks of the keys of a device, given their keys and values."""
        length, last = self.division.keys // self.division.num_chunks, 2 * self.division.devices - 1
        return [Keys(k, v, length * (last - device if chunk else device)) for chunk, (k, v) in enumerate(arrays)]

    def own_pairs(self, queries: Sequence[Queries], keys: Sequence[Keys]) -> list[Pair]:
        """Return the pairs of chunks of one device that see each other."""
        if self.division.layout == "contiguous":
            return [_pair(queries[0], keys[0], is_first=True)]
        pairs = [_pair(x, y, is_same=True, is_first=x is queries[0]) for x, y in zip(queries, keys, strict=True)]
        return [*pairs, _pair(queries[1], keys[0], is_earlier=True, is_first=False)]

    def pairs(self, queries: Sequence[Queries], keys: Sequence[Keys], device: Any, source: Any) -> list[Pair]:
        """Return the pairs of the chunks of a device's queries with those of the keys of another one, the source."""
        if self.division.layout == "contiguous":
            return [_pair(queries[0], keys[0], is_first=True)]
        # Every second chunk of queries is after every first chunk of keys. Of the other pairs, one has earlier keys: the first
        # chunks of devices that the source precedes, or the second chunks.
        is_first = source < device
        nearer = jax.tree.map(lambda x, y: jnp.where(is_first, x, y), *queries)
        key = jax.tree.map(lambda x, y: jnp.where(is_first, x, y), *keys)
        later = _pair(queries[1], keys[0], is_earlier=True, is_first=False)
        return [later, _pair(nearer, key, is_earlier=True, is_first=is_first)]

    def run(self, pair: Pair, seed: Any, heads: Array, **options: Any) -> Any:
        """Call the kernel on a pair of chunks."""
        q, _, bias, start = pair.queries
        k, v, first_key = pair.keys
        seed = None if seed is None else counter_rng.chunk_seeds(seed, start, first_key)
        if bias is not None:
            bias = bias.slice_tile(Tile({"T": start, "S": first_key}, {"T": q.shape[1], "S": k.shape[1]}))
        (b, t, n, h), s, all_devices = q.shape, k.shape[1], jax.sharding.get_abstract_mesh().size
        of_chunk = {"part": self.division.part, "chunk_flops": 4.0 * all_devices * b * n * h * t * s}
        with jax.named_scope(self.scope(all_devices * distance_flops(bias), ring=self.division.devices, **of_chunk)):
            return self.kernel(q, k, v, pair.mask, bias, seed, heads, scale=self.scale, rate=self.rate, **options)


def on_ring(
    ring: Ring,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Any,
    seed: UInt32[Array, "B 2"] | None,
    heads: UInt32[Array, " N"],
    sinks: Float[Array, " N"] | None,
) -> Float[Array, "B T N H"]:
    """Compute attention with a ring of the devices along `POSITIONS` of the context mesh; other axes are as in `local_arrays`.

    Lengths that the devices do not divide are padded.
    """
    (b, t), s, division = q.shape[:2], k.shape[1], ring.division
    padded_t, padded_s = (length * division.devices for length in (division.queries, division.keys))
    if bias is not None:
        bias = bias.prepare(t, s).padded(padded_t, padded_s)
    if padded_s > s:
        mask = mask.hide_keys_from(s, b)
    mask = mask.padded(padded_t, padded_s)
    q, k, v = (_padded(x, length) for x, length in ((q, padded_t), (k, padded_s), (v, padded_s)))
    k, v = (repeated_heads(x, jax.sharding.get_abstract_mesh().shape.get(HEADS, 1)) for x in (k, v))
    operands, tree = jax.tree.flatten((q, k, v, mask, bias, seed, heads, sinks))
    letters = operand_letters(mask, bias, seed, heads, *(() if sinks is None else (sinks,)))
    # What a mask has for keys, and a bias for distances, is on every device.
    by_letter = {"B": batch_axes(), "T": POSITIONS, "N": HEADS}
    letters[1:3] = "BTN-", "BTN-"
    specs = tuple(spec_by_letter(axes, array, by_letter) for axes, array in zip(letters, operands, strict=True))
    attend = _with_neighbours if division.layout == "neighbours" else _round

    def local(*operands: Array) -> Array:
        return attend(ring, *jax.tree.unflatten(tree, operands))

    # check_vma=False: see `local_arrays`.
    out = jax.shard_map(local, in_specs=specs, out_specs=specs[0], check_vma=False)(*operands)
    return out if padded_t == t else constrain(out, BATCH, None, HEADS, None)[:, :t]


def _padded(x: Float[Array, "B S N H"], length: int) -> Float[Array, "B {length} N H"]:
    """Return an array with zeros up to a length. XLA computes wrong gradients of positions that are divided unevenly."""
    if x.shape[1] == length:
        return x
    return jnp.pad(constrain(x, BATCH, None, HEADS, None), ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))


# --- a window that reaches the neighbours alone ---------------------------------------------------------------------------------


def _with_neighbours(
    ring: Ring, q: Array, k: Array, v: Array, mask: Mask, bias: None, seed: Any, heads: Array, sinks: Any
) -> Array:
    """Compute the output of a device's queries from its keys and the nearest ones of its neighbours.

    The first device has the last one's keys before its own, and the window hides them.
    """
    division, device = ring.division, this_device()
    nearest, total = division.nearest, division.keys * division.devices

    def extended(x: Array) -> Array:
        parts = [send(x[:, x.shape[1] - nearest :], 1, division.devices), x]
        return jnp.concatenate(parts if mask.causal else [*parts, send(x[:, :nearest], -1, division.devices)], 1)

    keys = Keys(extended(k), extended(v), device * division.keys - nearest)
    index = (keys.start + jnp.arange(keys.k.shape[1])) % total
    start = device * division.queries
    changes: dict[str, Any] = {name: array[:, index] for name, axes, array in mask.arrays() if axes == "BS"}
    changes |= {"query_positions": (start + jnp.arange(q.shape[1]))[None], "key_positions": index[None]}
    if mask.key_lengths is not None:
        changes["key_lengths"] = mask.key_lengths - keys.start
    pair = Pair(Queries(q, mask, None, start), keys, dataclasses.replace(mask, **changes), True)
    return ring.run(pair, seed, heads, sinks=sinks)


# --- a whole round --------------------------------------------------------------------------------------------------------------


def _round(ring: Ring, q: Array, k: Array, v: Array, mask: Mask, bias: Any, seed: Any, heads: Array, sinks: Any) -> Array:
    """Compute the output of a device's queries from the keys of all devices."""
    division, device = ring.division, this_device()
    count = division.num_chunks

    def chunks(x: Array, axis: int) -> list[Array]:
        return to_balanced(x, axis, division.devices) if count == 2 else [x]

    def chunks_of(spec: Any) -> list[Any]:
        if spec is None:
            return [None] * count
        parts = {
            name: chunks(x, axes.index("T")) for name, axes, x in spec.arrays() if "T" in axes and x.shape[axes.index("T")] > 1
        }
        return [dataclasses.replace(spec, **{name: part[chunk] for name, part in parts.items()}) for chunk in range(count)]

    keys = list(zip(chunks(k, 1), chunks(v, 1), strict=True))
    starts = [key.start for key in ring.keys_of(device, keys)] if count == 2 else [device * division.queries]
    queries = [Queries(*parts) for parts in zip(chunks(q, 1), chunks_of(mask), chunks_of(bias), starts, strict=True)]
    outs: Any = _attend(ring, queries, keys, seed, heads, sink_logits(sinks))
    return from_balanced(outs, division.devices) if count == 2 else outs[0]


def _pair(queries: Queries, keys: Keys, *, is_first: Any, is_same: bool = False, is_earlier: bool = False) -> Pair:
    """Return a pair of chunks with its mask.

    Args:
        is_same: both are the same positions: their indices in the chunk serve as positions.
        is_earlier: all keys are before all queries, so causality hides none.
    """
    mask = queries.mask.slice_tile(Tile({"T": queries.start, "S": keys.start}, {"T": queries.q.shape[1], "S": keys.k.shape[1]}))
    if is_same or (is_earlier and mask.window is None):
        mask = dataclasses.replace(mask, query_positions=None, key_positions=None)
    return Pair(queries, keys, dataclasses.replace(mask, causal=False) if is_earlier else mask, is_first)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    ring: Ring, queries: list[Queries], keys: list[tuple[Array, Array]], seed: Any, heads: Array, sinks: Any
) -> list[Array]:
    """Return the outputs of the chunks of a device's queries."""
    return _forward(ring, queries, keys, seed, heads, sinks)[0]


def _forward(
    ring: Ring, queries: list[Queries], keys: list[tuple[Array, Array]], seed: Any, heads: Array, sinks: Any
) -> tuple[list[Array], Any]:
    """Compute the outputs, and the residuals: no keys but a device's own."""
    device, last = this_device(), ring.division.devices - 1

    def visit(sums: list[Sums], pairs: list[Pair]) -> list[Sums]:
        for pair in pairs:
            totals = ring.run(pair, seed, heads, return_totals=True)
            for chunk, is_of_chunk in enumerate(_chunks_of(pair, len(queries))):
                if is_of_chunk is not False:
                    sums[chunk] = sums[chunk].add(totals, is_of_chunk)
        return sums

    def pairs(keys: Any, step: Any) -> list[Pair]:
        source = (device - step) % (last + 1)
        return ring.pairs(queries, ring.keys_of(source, keys), device, source)

    def step(carry: tuple[list[Sums], Any], number: Any) -> tuple[tuple[list[Sums], Any], None]:
        sums, keys = carry
        following = ring.send(keys)
        return (visit(list(sums), pairs(keys, number)), following), None

    own, keys = keys, ring.send(keys)
    sums = visit([Sums.of(chunk.q, sinks) for chunk in queries], ring.own_pairs(queries, ring.keys_of(device, own)))
    (sums, keys), _ = lax.scan(step, (sums, keys), jnp.arange(1, last))
    totals = [sum_.totals(chunk.q.dtype) for sum_, chunk in zip(visit(list(sums), pairs(keys, last)), queries, strict=True)]
    totals = [Totals(checkpoint_name(out, "attention"), checkpoint_name(lse, "attention_lse")) for out, lse in totals]
    return [out for out, _ in totals], (queries, own, seed, heads, sinks, totals)


def _backward(ring: Ring, residuals: Any, d_outs: list[Array]) -> tuple[Any, ...]:
    """Compute the gradients; those of keys and values travel with them, in float32 at least."""
    queries, own, seed, heads, sinks, totals = residuals
    device, last = this_device(), ring.division.devices - 1
    differentiable = [(chunk.q, None if chunk.bias is None else chunk.bias.differentiable()) for chunk in queries]

    def with_differentiable(arrays: Any) -> list[Queries]:
        return [
            chunk._replace(q=q, bias=None if bias is None else chunk.bias.with_differentiable(bias))
            for chunk, (q, bias) in zip(queries, arrays, strict=True)
        ]

    def gradients(make_pairs: Callable[..., list[Pair]], keys: Any) -> tuple[Any, Any]:
        """Return the parts that keys have in the gradients of queries and biases, and the gradients of keys and values."""
        cotangents: list[Array] = []

        def outs_of_pairs(arrays: Any, keys: Any) -> list[Array]:
            outs = []
            cotangents.clear()
            for pair in make_pairs(with_differentiable(arrays), keys):
                chosen, d_out = (_of_pair(pair, trees) for trees in (totals, d_outs))
                cotangents.append(d_out)
                outs.append(ring.run(pair, seed, heads, totals=chosen))
            return outs

        _, pull = jax.vjp(outs_of_pairs, differentiable, keys)
        return pull(list(cotangents))

    def visit(carry: tuple[Any, Any], keys: Any, make_pairs: Callable[..., list[Pair]]) -> tuple[Any, Any]:
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), carry, gradients(make_pairs, keys))

    def pairs(step: Any) -> Callable[..., list[Pair]]:
        source = (device - step) % (last + 1)
        return lambda queries, keys: ring.pairs(queries, ring.keys_of(source, keys), device, source)

    def step(carry: tuple[Any, Any, Any], number: Any) -> tuple[tuple[Any, Any, Any], None]:
        d_queries, d_keys, keys = carry
        following = ring.send(keys)
        d_queries, d_keys = visit((d_queries, ring.send(d_keys)), keys, pairs(number))
        return (d_queries, d_keys, following), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), (differentiable, own))
    keys = ring.send(own)
    d_queries, d_keys = visit(zeros, own, lambda queries, keys: ring.own_pairs(queries, ring.keys_of(device, keys)))
    (d_queries, d_keys, keys), _ = lax.scan(step, (d_queries, d_keys, keys), jnp.arange(1, last))
    d_queries, d_keys = visit((d_queries, ring.send(d_keys)), keys, pairs(last))
    d_queries, d_keys = jax.tree.map(lambda d, x: d.astype(x.dtype), (d_queries, ring.send(d_keys)), (differentiable, own))
    d_sinks = [
        sink_gradient(sinks, all_keys.lse, _delta(all_keys, d_out)) for all_keys, d_out in zip(totals, d_outs, strict=True)
    ]
    return (
        [Queries(d_q, None, d_bias, None) for d_q, d_bias in d_queries],  # pyright: ignore[reportArgumentType]
        d_keys,
        None,
        None,
        None if sinks is None else functools.reduce(jnp.add, d_sinks),
    )


_attend.defvjp(_forward, _backward)


def _delta(totals: Totals, d_out: Float[Array, "B T N H"]) -> Float[Array, "B N T"]:
    """Return the sum over each head of a query of its output times its gradient: D of FlashAttention-2."""
    return jnp.swapaxes((d_out.astype(totals.lse.dtype) * totals.out.astype(totals.lse.dtype)).sum(-1), 1, 2)


def _chunks_of(pair: Pair, count: int) -> list[Any]:
    """Return whether the queries of a pair are those of each chunk: True, False or a traced boolean."""
    if count == 1:
        return [True]
    return [pair.is_first, not pair.is_first if isinstance(pair.is_first, bool) else ~pair.is_first]


def _of_pair(pair: Pair, chunks: Sequence[Any]) -> Any:
    """Return what belongs to the queries of a pair, given a tree for each chunk."""
    if isinstance(pair.is_first, bool):
        return chunks[0 if pair.is_first else 1]
    return jax.tree.map(lambda x, y: jnp.where(pair.is_first, x, y), *chunks)
