"""Masks: which pairs of queries and keys attend, by causality, a window, lengths, segments, positions, ranks or an array."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32

from zoo.attention.mask_bias_base import MaskOrBias, array_field, static_field
from zoo.attention.tiles import Tile

NO_PAIR, SOME_PAIRS, ALL_PAIRS = range(3)
"""The states of a tile in `Mask.block_states`."""
NARROW_WINDOW = 256
"""Queries and keys of a tile under a window that is narrower than this."""


class Side(NamedTuple):
    """Integers of the queries or of the keys, which the rule of a mask compares; None: the mask does not use them."""

    index: Any = None
    """Index of each key, for `key_lengths`."""
    position: Any = None
    segment: Any = None
    rank: Any = None

    def map(self, change: Callable[[Array], Array]) -> "Side":
        """Return the numbers with every array changed."""
        return Side(*(None if array is None else change(array) for array in self))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(MaskOrBias):
    """The pairs of queries and keys that attend: those that every field which is set allows. `Mask()` is full attention.

    The examples have six queries, a row each, and six keys, a column each; x is a key that the query sees.
    """

    causal: bool = static_field(False)
    """A query sees the keys whose position is at most its own::

        x . . . . .
        x x . . . .
        x x x . . .
        x x x x . .
        x x x x x .
        x x x x x x
    """
    window: int | None = static_field(None)
    """A query sees the keys whose position differs from its own by less than this; with `causal`, the last `window` keys, its own
    included. Left: `window=2`; right: `window=3, causal=True`::

        x x . . . .        x . . . . .
        x x x . . .        x x . . . .
        . x x x . .        x x x . . .
        . . x x x .        . x x x . .
        . . . x x x        . . x x x .
        . . . . x x        . . . x x x
    """
    strict: bool = static_field(False)
    """A query sees the keys of lower rank (XLNet's query stream), not those of its own rank too (its content stream). The ranks
    3, 0, 2, -1, 1, 4 of the example at `query_ranks`, with `strict=True`::

        . x x x x .
        . . . x . .
        . x . x x .
        . . . . . .
        . x . x . .
        x x x x x .
    """
    key_lengths: Any = array_field("B")
    """Number of real keys in each example; the keys after them are padding, which no query sees. With 4::

        x x x x . .
        x x x x . .
        x x x x . .
        x x x x . .
        x x x x . .
        x x x x . .
    """
    query_segments: Any = array_field("BT")
    """Segment of each query, which sees the keys of the same segment. Segment 0 is padding: it neither sees nor is seen. With the
    segments 1, 1, 1, 2, 2, 0 of queries and keys::

        x x x . . .
        x x x . . .
        x x x . . .
        . . . x x .
        . . . x x .
        . . . . . .
    """
    key_segments: Any = array_field("BS")
    """Segment of each key; see `query_segments`."""
    query_positions: Any = array_field("BT")
    """Positions of the queries for `causal` and `window`; None: 0 .. T-1. Decoding and scattered queries have others. With
    `causal=True` and the positions 1, 1, 3, 3, 5, 5::

        x x . . . .
        x x . . . .
        x x x x . .
        x x x x . .
        x x x x x x
        x x x x x x
    """
    key_positions: Any = array_field("BS")
    """Positions of the keys; None: 0 .. S-1."""
    query_ranks: Any = array_field("BT")
    """Rank of each query, its place in XLNet's factorization order: it sees the keys whose rank is at most its own. Keys that
    every query sees (memory, tokens that are not predicted) have rank -1. With the ranks 3, 0, 2, -1, 1, 4 of queries and keys::

        x x x x x .
        . x . x . .
        . x x x x .
        . . . x . .
        . x . x x .
        x x x x x x
    """
    key_ranks: Any = array_field("BS")
    """Rank of each key; see `query_ranks`."""
    allowed: Any = array_field("BNTS")
    """Any other rule as a dense array; True: the query sees the key. For example every second key::

        x . x . x .
        . x . x . x
        x . x . x .
        . x . x . x
        x . x . x .
        . x . x . x
    """

    def dense(self, t: int, s: int) -> Bool[Array, "#B #N T S"] | None:
        """Return the mask as an array that broadcasts to [B, N, T, S], True where a query sees a key; None if all are True."""
        query, key = self.sides(t, s)
        length = None if self.key_lengths is None else self.key_lengths[:, None, None, None]
        allowed = self.rule(query.map(lambda x: x[:, None, :, None]), key.map(lambda x: x[:, None, None, :]), length)
        if allowed is None or self.allowed is None:
            return self.allowed if allowed is None else allowed
        return jnp.logical_and(allowed, self.allowed)

    def sides(self, t: int, s: int) -> tuple[Side, Side]:
        """Return the numbers of `t` queries and of `s` keys that the rule reads, [1 or B, T] and [1 or B, S]."""
        query = Side(segment=self.query_segments, rank=self.query_ranks)
        key = Side(segment=self.key_segments, rank=self.key_ranks)
        if self.causal or self.window is not None:
            query = query._replace(position=jnp.arange(t)[None] if self.query_positions is None else self.query_positions)
            key = key._replace(position=jnp.arange(s)[None] if self.key_positions is None else self.key_positions)
        if self.key_lengths is not None:
            key = key._replace(index=jnp.arange(s)[None])
        return query, key

    def rule(self, query: Side, key: Side, length: Int[Array, "..."] | None = None) -> Bool[Array, "..."] | None:
        """Return which pairs attend by all fields but `allowed`, from numbers that broadcast against each other; None: all do.

        This works on arrays of any shapes, such as the tile of a kernel: only the fields without arrays are read.

        Args:
            length: number of real keys, from `key_lengths`.
        """
        pairs = []
        if query.position is not None and key.position is not None:
            distance = query.position - key.position
            if self.causal:
                pairs.append(distance >= 0)
            if self.window is not None:
                pairs.append(jnp.abs(distance) < self.window)
        if length is not None:
            pairs.append(key.index < length)
        if query.segment is not None and key.segment is not None:
            pairs.append((query.segment == key.segment) & (key.segment != 0))
        if query.rank is not None and key.rank is not None:
            pairs.append(key.rank < query.rank if self.strict else key.rank <= query.rank)
        return functools.reduce(jnp.logical_and, pairs) if pairs else None

    def block_states(self, block_q: int, block_k: int, t: int, s: int) -> Int32[Array, "#B I J"]:
        """Return the state of each tile, which follows from the smallest and largest numbers of its queries and of its keys.

        `NO_PAIR`: no pair attends; `SOME_PAIRS`: the rule must be applied; `ALL_PAIRS`: every pair attends. Segments that are not
        sorted make ranges that overlap, which is right, and skips less.

        Args:
            t: number of queries, a multiple of `block_q`; the arrays are padded to it.
            s: number of keys, a multiple of `block_k`.
        """
        query, key = self.sides(t, s)
        low_q, high_q = (_over_blocks(query, extreme, block_q, 2) for extreme in (jnp.min, jnp.max))
        low_k, high_k = (_over_blocks(key, extreme, block_k, 1) for extreme in (jnp.min, jnp.max))
        any_pair = jnp.ones((1, t // block_q, s // block_k), bool)
        all_pairs = any_pair & (self.allowed is None)
        if low_q.position is not None:
            lowest, highest = low_q.position - high_k.position, high_q.position - low_k.position
            if self.causal:
                any_pair, all_pairs = any_pair & (highest >= 0), all_pairs & (lowest >= 0)
            if self.window is not None:
                any_pair &= (lowest < self.window) & (highest > -self.window)
                all_pairs &= (highest < self.window) & (lowest > -self.window)
        if self.key_lengths is not None:
            length = self.key_lengths[:, None, None]
            any_pair, all_pairs = any_pair & (low_k.index < length), all_pairs & (high_k.index < length)
        if low_q.segment is not None:
            # A block that is padding alone has the range 0 .. 0.
            any_pair &= (low_q.segment <= high_k.segment) & (low_k.segment <= high_q.segment) & (high_k.segment > 0)
            one_segment = (low_q.segment == high_q.segment) & (low_k.segment == high_k.segment)
            all_pairs &= one_segment & (low_q.segment == low_k.segment) & (low_k.segment != 0)
        if low_q.rank is not None:
            # A strict order of integers is the order of the keys' ranks plus 1.
            more = int(self.strict)
            any_pair &= low_k.rank + more <= high_q.rank
            all_pairs &= high_k.rank + more <= low_q.rank
        return jnp.where(any_pair, jnp.where(all_pairs, ALL_PAIRS, SOME_PAIRS), NO_PAIR).astype(jnp.int32)

    @property
    def has_rule(self) -> bool:
        """Return whether any field but `allowed` is set."""
        arrays = self.key_lengths, self.query_segments, self.query_ranks
        return self.causal or self.window is not None or any(array is not None for array in arrays)

    def hide_keys_from(self, s: int, b: int) -> "Mask":
        """Return the mask of `b` examples in which no query sees the keys from index `s` on, which pad the arrays."""
        lengths = jnp.full(b, s) if self.key_lengths is None else jnp.minimum(self.key_lengths, s)
        return dataclasses.replace(self, key_lengths=lengths)

    def tile_size(self, block_q: int, block_k: int, s: int) -> tuple[int, int]:
        if self.causal:
            # Half of the scores of a tile on the diagonal are masked.
            block_k //= 2
        if self.window is not None:
            block_q, block_k = (min(size, max(NARROW_WINDOW, self.window)) for size in (block_q, block_k))
        return block_q, block_k

    def for_tiles(self, block_q: int, t: int, s: int) -> "Mask":
        """Return the padded mask with the arrays of keys in float32 (`zoo.ops.selects.distinct`)."""
        return self.padded(t, s)._distinct_keys(jnp.float32)

    def slice_tile(self, tile: Tile) -> Any:
        mask, changes = super().slice_tile(tile), {}
        if self.key_lengths is not None:
            changes["key_lengths"] = mask.key_lengths - tile.start["S"]
        if self.causal or self.window is not None:
            for side, letter in (("query", "T"), ("key", "S")):
                if getattr(self, f"{side}_positions") is None:
                    changes[f"{side}_positions"] = tile.start[letter] + jnp.arange(tile.size[letter])[None]
        return dataclasses.replace(mask, **changes)

    def has_visible_key(self, t: int, s: int) -> Bool[Array, "#B T #N"] | None:
        """Return True for the queries that see any key; None if the mask has no arrays, so that every query sees its own key."""
        allowed = self.dense(t, s)
        if allowed is None or not any(self.arrays()):
            return None
        return jnp.moveaxis(allowed.any(-1), 1, 2)  # [B, T, N]


def _over_blocks(side: Side, reduce: Callable[..., Array], block: int, axis: int) -> Side:
    """Return the smallest or largest number of each block of queries or keys, with an axis for the blocks of the other side."""
    return side.map(lambda x: jnp.expand_dims(reduce(x.reshape(x.shape[0], -1, block), axis=-1), axis))
