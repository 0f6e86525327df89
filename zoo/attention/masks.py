"""Masks and biases of attention as small specifications, which become dense arrays only where an implementation needs them.

Every array field is optional and carries the letters of its axes (see `zoo.batch`): `attention` checks its shape and derives its
sharding from them. Fields are untyped because the same trees hold arrays, shapes and shardings.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.attention import tiles
from zoo.attention.tiles import Tile
from zoo.ops import positions

NARROW_WINDOW = 256
"""Queries and keys of a tile under a window that is narrower than this."""


def _axes(letters: str) -> Any:
    """Declare an array field with these axes; "-" is an axis that is no letter's."""
    return dataclasses.field(default=None, metadata={"axes": letters})


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """Base of masks and biases, which can be padded and sliced to what a tile of the scores needs.

    A slice is a specification of the same kind, for the queries and keys of the tile alone.
    """

    def arrays(self) -> Iterator[tuple[str, str, Any]]:
        """Yield (field, letters of its axes, array) for every array field that is set."""
        for field in dataclasses.fields(self):
            if "axes" in field.metadata and (array := getattr(self, field.name)) is not None:
                yield field.name, field.metadata["axes"], array

    def padded(self, t: int, s: int) -> Any:
        """Return the specification padded with zeros to `t` queries and `s` keys; the caller masks the padding."""
        size = {"T": t, "S": s}
        return self._map_arrays(
            lambda letters, x: jnp.pad(
                x, [(0, size.get(c, n) - n if n > 1 else 0) for c, n in zip(letters, x.shape, strict=True)]
            )
        )

    def tile_size(self, block_q: int, block_k: int, s: int) -> tuple[int, int]:
        """Return the numbers of queries and keys in a tile, given those that are best without this specification.

        `s` is the number of all keys.
        """
        return block_q, block_k

    def for_tiles(self, block_q: int, t: int, s: int) -> Any:
        """Return the form that tiles of `block_q` queries are sliced from, padded to `t` queries and `s` keys."""
        return self.padded(t, s)

    def missing_distances(self, t: int, s: int) -> str | None:
        """Return which distances `t` queries and `s` keys need and which there are; None if none are missing."""
        return None

    def slice_tile(self, tile: Tile) -> Any:
        """Return the specification of a tile."""
        tile = self._with_distances(tile)
        return self._map_arrays(lambda letters, x: tiles.take(x, letters, tile))

    def add_tile(self, sums: Any, update: Any, tile: Tile) -> Any:
        """Return `sums`, shaped like `numbers()`, with `update`, shaped like those of a tile, added at the tile's place."""
        tile, updates = self._with_distances(tile), {name: array for name, _, array in update.arrays()}
        new_sums = {name: tiles.add(x, updates[name], axes, tile) for name, axes, x in sums.arrays()}
        return dataclasses.replace(sums, **new_sums)

    def numbers(self) -> Any:
        """Return the specification with its floating-point arrays alone: those that have a gradient."""
        others = {name: None for name, _, x in self.arrays() if not jnp.issubdtype(x.dtype, jnp.floating)}
        return dataclasses.replace(self, **others)

    def with_numbers(self, numbers: Any) -> Any:
        """Return the specification with the floating-point arrays of another one."""
        return dataclasses.replace(self, **{name: x for name, _, x in numbers.arrays()})

    def _with_distances(self, tile: Tile) -> Tile:
        """Return the tile with its place along the axis of distances, D, if the specification has one."""
        return tile

    def _map_arrays(self, change: Any) -> Any:
        return dataclasses.replace(self, **{name: change(axes, x) for name, axes, x in self.arrays()})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(Spec):
    """The pairs of queries and keys that attend: those that every field which is set allows. `Mask()` is full attention.

    The examples have six queries, a row each, and six keys, a column each; x is a key that the query sees.
    """

    causal: bool = _static(False)
    """A query sees the keys whose position is at most its own::

        x . . . . .
        x x . . . .
        x x x . . .
        x x x x . .
        x x x x x .
        x x x x x x
    """
    window: int | None = _static(None)
    """A query sees the keys whose position differs from its own by less than this; with `causal`, the last `window` keys, its own
    included. Left: `window=2`; right: `window=3, causal=True`::

        x x . . . .        x . . . . .
        x x x . . .        x x . . . .
        . x x x . .        x x x . . .
        . . x x x .        . x x x . .
        . . . x x x        . . x x x .
        . . . . x x        . . . x x x
    """
    strict: bool = _static(False)
    """A query sees the keys of lower rank (XLNet's query stream), not those of its own rank too (its content stream). The ranks
    3, 0, 2, -1, 1, 4 of the example at `query_ranks`, with `strict=True`::

        . x x x x .
        . . . x . .
        . x . x x .
        . . . . . .
        . x . x . .
        x x x x x .
    """
    key_lengths: Any = _axes("B")
    """Number of real keys in each example; the keys after them are padding, which no query sees. With 4::

        x x x x . .
        x x x x . .
        x x x x . .
        x x x x . .
        x x x x . .
        x x x x . .
    """
    query_segments: Any = _axes("BT")
    """Segment of each query, which sees the keys of the same segment. Segment 0 is padding: it neither sees nor is seen. With the
    segments 1, 1, 1, 2, 2, 0 of queries and keys::

        x x x . . .
        x x x . . .
        x x x . . .
        . . . x x .
        . . . x x .
        . . . . . .
    """
    key_segments: Any = _axes("BS")
    """Segment of each key; see `query_segments`."""
    query_positions: Any = _axes("BT")
    """Positions of the queries for `causal` and `window`; None: 0 .. T-1. Decoding and scattered queries have others. With
    `causal=True` and the positions 1, 1, 3, 3, 5, 5::

        x x . . . .
        x x . . . .
        x x x x . .
        x x x x . .
        x x x x x x
        x x x x x x
    """
    key_positions: Any = _axes("BS")
    """Positions of the keys; None: 0 .. S-1."""
    query_ranks: Any = _axes("BT")
    """Rank of each query, its place in XLNet's factorization order: it sees the keys whose rank is at most its own. Keys that
    every query sees (memory, tokens that are not predicted) have rank -1. With the ranks 3, 0, 2, -1, 1, 4 of queries and keys::

        x x x x x .
        . x . x . .
        . x x x x .
        . . . x . .
        . x . x x .
        x x x x x x
    """
    key_ranks: Any = _axes("BS")
    """Rank of each key; see `query_ranks`."""
    allowed: Any = _axes("BNTS")
    """Any other rule as a dense array; True: the query sees the key. For example every second key::

        x . x . x .
        . x . x . x
        x . x . x .
        . x . x . x
        x . x . x .
        . x . x . x
    """

    def dense(self, t: int, s: int) -> Bool[Array, "#B #N T S"] | None:
        """Return the mask as an array that broadcasts to [B, N, T, S], True where a query sees a key; None if all see all."""
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
        """Return the most keys (before, after) its own index that a query may see; None if there is no bound.

        With explicit positions an index is no position, so there is no bound.
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
        """Return the padded mask with the arrays of keys in float32; `_cast_keys` says why."""
        return _cast_keys(self.padded(t, s), jnp.float32)

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(Spec):
    """A bias as a dense array, added to the scaled scores."""

    values: Any = _axes("BNTS")

    def prepare(self, t: int, s: int) -> "Dense":
        """Return the bias itself, which needs no preparation."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "#B #N T S"]:
        return self.values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distanced(Spec):
    """A bias with an axis D of distances query - key = first, first - 1, ..., for queries 0 .. T-1."""

    first: int = _static(0)
    """The largest distance, less M if M keys of memory precede the queries' own, so that query t is key M + t."""

    def missing_distances(self, t: int, s: int) -> str | None:
        count = next(array.shape[letters.index("D")] for _, letters, array in self.arrays() if "D" in letters)
        last = self.first - count + 1
        if self.first >= t - 1 and last <= 1 - s:
            return None
        return f"a bias of {t} queries over {s} keys needs the distances {t - 1} .. {1 - s}, and has {self.first} .. {last}"

    def padded(self, t: int, s: int) -> Any:
        """Pad the distances too: to those of the new queries and keys, and one more (see `positions.relative_shift`)."""
        bias = super().padded(t, s)
        front = max(0, t - 1 - self.first)

        def pad_distances(letters: str, x: Array) -> Array:
            back = {"D": max(0, self.first + s + 1 - x.shape[letters.index("D")])} if "D" in letters else {}
            return jnp.pad(x, [(front, back[c]) if c in back else (0, 0) for c in letters])

        return dataclasses.replace(bias._map_arrays(pad_distances), first=self.first + front)

    def slice_tile(self, tile: Tile) -> Any:
        return dataclasses.replace(super().slice_tile(tile), first=tile.size["T"] - 1)

    def _with_distances(self, tile: Tile) -> Tile:
        block_q, block_k = tile.size["T"], tile.size["S"]
        return tile.along("D", self.first - (tile.start["T"] + block_q - 1) + tile.start["S"], block_q + block_k)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets(Spec):
    """T5's relative position bias (Raffel et al. 2020, section 2.1): one learned number per head and bucket of distances."""

    table: Any = _axes("-N")
    bidirectional: bool = _static(True)
    max_distance: int = _static(128)

    def prepare(self, t: int, s: int, at: int | Int[Array, ""] = 0) -> "ByDistance":
        """Look up the bias of each distance, once before the scan over layers, which share it. The first query is key `at`."""
        relative = jnp.arange(t + s) - (t - 1) - at
        bucket = positions.t5_bucket(relative, self.bidirectional, self.table.shape[0], self.max_distance)
        # The gradient of an entry is a sum over thousands of pairs, for which bfloat16 is too coarse.
        table = self.table.astype(jnp.promote_types(self.table.dtype, jnp.float32))
        return ByDistance(values=table[bucket], first=t - 1)

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        return self.prepare(t, s).dense(t, s, scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ByDistance(Distanced):
    """A bias that depends on head and distance alone, so it stores a number for each distance instead of T x S."""

    values: Any = _axes("DN")
    """One number for each distance and head."""

    def prepare(self, t: int, s: int) -> "ByDistance":
        """Return the bias itself, which needs no preparation."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        values = self.values.T.astype(jnp.promote_types(self.values.dtype, jnp.float32))
        by_distance = jnp.broadcast_to(values[None, :, None, :], (1, values.shape[0], t, values.shape[1]))  # [1, N, T, D]
        return positions.relative_shift(by_distance, None, first=self.first, keys=s)

    def tile_size(self, block_q: int, block_k: int, s: int) -> tuple[int, int]:
        # The values are stored for every row of a tile.
        return block_q // 2, block_k

    def for_tiles(self, block_q: int, t: int, s: int) -> "Diagonals":
        """Return the bias as `Diagonals`, which a tile slices; otherwise every tile would shift rows."""
        bias = self.padded(t, s)
        last = t - block_q
        values = dataclasses.replace(bias, first=bias.first - last).dense(block_q, last + s, 1.0)
        return Diagonals(values=values[0], last=last)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagonals(Spec):
    """A bias by distance for tiles of a fixed number of rows; entry [n, i, d] belongs to row i of every tile."""

    values: Any = _axes("N-D")
    last: int = _static(0)
    """First query of the last tile; for that tile the first key is at d = 0."""

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        return self.values[None]

    def _with_distances(self, tile: Tile) -> Tile:
        return tile.along("D", self.last - tile.start["T"] + tile.start["S"], tile.size["S"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Relative(Distanced):
    """XLNet's query-dependent position and segment terms (Yang et al. 2019, section 2.3; Dai et al. 2019, section 3.3).

    Adds scale * (q_r[t] . r[:, distance(t, s)] + q_s[t, same or different type]) to the score of (t, s).
    """

    q_r: Any = _axes("BTN-")
    """Queries with the position bias added."""
    r: Any = _axes("N-D")
    """Projected encodings of the distances query - key = first, first - 1, ..., first - D + 1."""
    query_positions: Any = _axes("BT")
    """Index of each query among the keys, if the queries are scattered."""
    q_s: Any = _axes("BTN-")
    """Products of the queries, with the segment bias added, and the vectors "same segment" and "different segment"."""
    query_types: Any = _axes("BT")
    key_types: Any = _axes("BS")

    def prepare(self, t: int, s: int) -> "Relative":
        """Return the bias itself: it depends on the queries of each layer."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "B N T S"]:
        by_distance = _by_distance(self.q_r, self.r)
        query_positions = None if self.query_positions is None else self.query_positions[:, None]
        scores = positions.relative_shift(by_distance, query_positions, first=self.first, keys=s)
        if self.q_s is not None and self.query_types is not None and self.key_types is not None:
            different = self.query_types[:, None, :, None] != self.key_types[:, None, None, :]
            segment = jnp.moveaxis(self.q_s, 2, 1).astype(scores.dtype)  # [B, N, T, 2]
            scores = scores + jnp.where(different, segment[..., 1:], segment[..., :1])
        return scale * scores

    def tile_size(self, block_q: int, block_k: int, s: int) -> tuple[int, int]:
        if self.query_positions is None:
            return block_q, block_k
        # Scattered queries need every distance for any key, so a tile of them has all keys.
        return max(8, block_q * block_k // max(block_k, s)), s

    def missing_distances(self, t: int, s: int) -> str | None:
        # The positions of scattered queries are values, which are not available when shapes are checked.
        return super().missing_distances(t, s) if self.query_positions is None else None

    def padded(self, t: int, s: int) -> Any:
        # Scattered queries use the distances as they are. Some of padding keys may be missing, but those keys are masked.
        return (Distanced if self.query_positions is None else Spec).padded(self, t, s)

    def for_tiles(self, block_q: int, t: int, s: int) -> "Relative":
        # Not to a floating-point type: floating-point arrays have a gradient.
        return _cast_keys(self.padded(t, s), jnp.int16)

    def slice_tile(self, tile: Tile) -> Any:
        if self.query_positions is None:
            return super().slice_tile(tile)
        bias = Spec.slice_tile(self, tile)
        return dataclasses.replace(bias, query_positions=bias.query_positions - tile.start["S"])

    def _with_distances(self, tile: Tile) -> Tile:
        return super()._with_distances(tile) if self.query_positions is None else tile


def _cast_keys(spec: Any, dtype: Any) -> Any:
    """Cast the arrays of keys to another dtype that represents their values, so that comparisons with the queries' do not change.

    Queries and keys often share one array. A tile slices it twice, and XLA on CPU merges two equal slices into a function that it
    calls for every entry of the scores. Their exponentials are then not vectorized and take 8 times as long.
    """
    return spec._map_arrays(lambda letters, x: x.astype(dtype) if letters == "BS" else x)


@jax.custom_vjp
def _by_distance(q_r: Float[Array, "B T N H"], r: Float[Array, "N H D"]) -> Float[Array, "B N T D"]:
    """Return q_r . r; neither it nor its gradient transposes an array as large as the result, as jnp.einsum would on CPU."""
    acc_dtype = jnp.promote_types(q_r.dtype, jnp.float32)
    products = jax.lax.dot_general(q_r, r, (((3,), (1,)), ((2,), (0,))), preferred_element_type=acc_dtype)  # [N, B, T, D]
    return jnp.moveaxis(products, 0, 1)  # [B, N, T, D]


def _by_distance_forward(q_r: Array, r: Array) -> tuple[Array, tuple[Array, Array]]:
    return _by_distance(q_r, r), (q_r, r)


def _by_distance_backward(inputs: tuple[Array, Array], d: Float[Array, "B N T D"]) -> tuple[Array, Array]:
    q_r, r = inputs
    narrow = d.astype(q_r.dtype)
    d_q = jax.lax.dot_general(narrow, r, (((3,), (2,)), ((1,), (0,))), preferred_element_type=d.dtype)  # [N, B, T, H]
    d_r = jax.lax.dot_general(q_r, narrow, (((0, 1), (0, 2)), ((2,), (1,))), preferred_element_type=d.dtype)  # [N, H, D]
    return d_q.transpose(1, 2, 0, 3).astype(q_r.dtype), d_r.astype(r.dtype)  # [B, T, N, H], [N, H, D]


_by_distance.defvjp(_by_distance_forward, _by_distance_backward)

Bias = Dense | Buckets | ByDistance | Relative
