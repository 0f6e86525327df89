"""Masks: which pairs of queries and keys attend, by causality, a window, lengths, segments, positions, ranks or an array."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from zoo.attention.mask_bias_base import MaskOrBias, array_field, static_field
from zoo.attention.tiles import Tile

NARROW_WINDOW = 256
"""Queries and keys of a tile under a window that is narrower than this."""


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
        pairs = []
        if self.causal or self.window is not None:
            query = jnp.arange(t)[None] if self.query_positions is None else self.query_positions
            key = jnp.arange(s)[None] if self.key_positions is None else self.key_positions
            distance = query[:, None, :, None] - key[:, None, None, :]
            if self.causal:
                pairs.append(distance >= 0)
            if self.window is not None:
                pairs.append(jnp.abs(distance) < self.window)
        if self.key_lengths is not None:
            pairs.append(jnp.arange(s)[None, None, None, :] < self.key_lengths[:, None, None, None])
        if self.query_segments is not None and self.key_segments is not None:
            query, key = self.query_segments[:, None, :, None], self.key_segments[:, None, None, :]
            pairs.append((query == key) & (key != 0))
        if self.query_ranks is not None and self.key_ranks is not None:
            query, key = self.query_ranks[:, None, :, None], self.key_ranks[:, None, None, :]
            pairs.append(key < query if self.strict else key <= query)
        if self.allowed is not None:
            pairs.append(self.allowed)
        return functools.reduce(jnp.logical_and, pairs) if pairs else None

    @property
    def window_bounds(self) -> tuple[int | None, int | None]:
        """Return how many keys (before, after) its own index a query may see at most; None if there is no bound.

        With explicit positions an index is not a position, so there is no bound.
        """
        if self.query_positions is not None or self.key_positions is not None:
            return None, None
        behind = None if self.window is None else self.window - 1
        return behind, 0 if self.causal else behind

    def tile_size(self, block_q: int, block_k: int, s: int) -> tuple[int, int]:
        if self.causal:
            # Half of the scores of a tile on the diagonal are masked.
            block_k //= 2
        if self.window is not None:
            block_q, block_k = (min(size, max(NARROW_WINDOW, self.window)) for size in (block_q, block_k))
        return block_q, block_k

    def for_tiles(self, block_q: int, t: int, s: int) -> "Mask":
        """Return the padded mask with the arrays of keys in float32 (`zoo.ops.xla_cpu_workarounds.distinct`)."""
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
