"""Biases, which are added to the scores: a dense array, T5's buckets of distances, XLNet's relative positions and types."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from zoo.attention.mask_bias_base import MaskOrBias, array_field, static_field
from zoo.attention.tiles import Tile
from zoo.ops import positions
from zoo.ops.products import distance_products


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(MaskOrBias):
    """A bias as a dense array, added to the scaled scores."""

    values: Any = array_field("BNTS")

    def prepare(self, t: int, s: int) -> "Dense":
        """Return the bias itself, which needs no preparation."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "#B #N T S"]:
        return self.values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distanced(MaskOrBias):
    """A bias with an axis D of distances query - key = first, first - 1, ..., for queries 0 .. T-1."""

    first: int = static_field(0)
    """The largest distance, minus M if M keys of memory come before those of the queries, so that query t is key M + t."""

    def missing_distances(self, t: int, s: int) -> str | None:
        count = next(array.shape[letters.index("D")] for _, letters, array in self.arrays() if "D" in letters)
        last = self.first - count + 1
        if self.first >= t - 1 and last <= 1 - s:
            return None
        return f"a bias of {t} queries over {s} keys needs the distances {t - 1} .. {1 - s}, and has {self.first} .. {last}"

    def padded(self, t: int, s: int) -> Any:
        """Also pad the distances, to those of the added queries and keys and one more (see `positions.relative_shift`)."""
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
class Buckets(MaskOrBias):
    """T5's relative position bias (Raffel et al. 2020, section 2.1): one learned number per head and bucket of distances."""

    table: Any = array_field("-N")
    bidirectional: bool = static_field(True)
    max_distance: int = static_field(128)

    def prepare(self, t: int, s: int, at: int | Int[Array, ""] = 0) -> "ByDistance":
        """Look up the bias of each distance, once before the scan over layers, which share it. The first query is key `at`."""
        relative = jnp.arange(t + s) - (t - 1) - at
        bucket = positions.t5_bucket(relative, self.bidirectional, self.table.shape[0], self.max_distance)
        # The gradient of an entry is a sum over thousands of pairs, for which bfloat16 is too coarse.
        table = self.table.astype(jnp.promote_types(self.table.dtype, jnp.float32))
        constant_from = self.max_distance if isinstance(at, int) and at == 0 else None
        return ByDistance(values=_look_up(table, bucket), first=t - 1, constant_from=constant_from)

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        return self.prepare(t, s).dense(t, s, scale)


@jax.custom_vjp
def _look_up(table: Float[Array, "buckets N"], bucket: Int[Array, " D"]) -> Float[Array, "D N"]:
    """Return the rows of a table. Its gradient is a matrix product: on a GPU the sums of a scatter have no fixed order.

    A NaN or infinity in the gradient of one distance reaches all buckets of its head.
    """
    return table[bucket]


def _look_up_forward(table: Array, bucket: Array) -> tuple[Array, Any]:
    return table[bucket], bucket[:, None] == jnp.arange(table.shape[0])


def _look_up_backward(is_bucket: Bool[Array, "D buckets"], d_values: Float[Array, "D N"]) -> tuple[Array, None]:
    product = jnp.einsum("db,dn->bn", is_bucket.astype(d_values.dtype), d_values, precision=jax.lax.Precision.HIGHEST)
    return product, None


_look_up.defvjp(_look_up_forward, _look_up_backward)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ByDistance(Distanced):
    """A bias that depends on head and distance alone, so it stores a number for each distance instead of T x S."""

    values: Any = array_field("DN")
    """One number for each distance and head."""
    constant_from: int | None = static_field(None)
    """A distance from which on all values are equal, on either side of the query; None = unknown."""

    def prepare(self, t: int, s: int) -> "ByDistance":
        """Return the bias itself, which needs no preparation."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        values = self.values.T.astype(jnp.promote_types(self.values.dtype, jnp.float32))
        by_distance = jnp.broadcast_to(values[None, :, None, :], (1, values.shape[0], t, values.shape[1]))  # [1, N, T, D]
        return positions.relative_shift(by_distance, None, first=self.first, keys=s)

    def tile_offsets(self, size: int, num_q: int, num_k: int) -> tuple[int, int]:
        """Return how many blocks before and after the diagonal tiles of size x size still differ from the next ones."""
        farthest = max(num_q, num_k) if self.constant_from is None else -(-(self.constant_from - 1) // size) + 1
        return min(num_q - 1, farthest), min(num_k - 1, farthest)

    def square_tiles(self, size: int, num_q: int, num_k: int) -> tuple[Float[Array, "N tiles size size"], int]:
        """Return the different tiles of [num_q * size, num_k * size] scores, and the number of that on the diagonal.

        Tile (i, j) of the scores has the number min(max(j - i + diagonal, 0), tiles - 1): all tiles that are as far from the
        diagonal have equal values, and so do all beyond `constant_from`.
        """
        before, after = self.tile_offsets(size, num_q, num_k)
        starts = [self.first - (size - 1) + offset * size for offset in range(-before, after + 1)]
        # Distances that are missing belong to pairs of padding, or have the value of the last one.
        front, back = max(0, -starts[0]), max(0, starts[-1] + 2 * size - self.values.shape[0])
        values = jnp.pad(self.values, ((front, back), (0, 0)), mode="edge")
        parts = jnp.stack([values[start + front : start + front + 2 * size] for start in starts], 1)  # [2 * size, tiles, N]
        rows = jnp.broadcast_to(parts.T[:, :, None], (*parts.T.shape[:2], size, 2 * size))  # [N, tiles, size, 2 * size]
        return positions.relative_shift(rows, None, first=size - 1, keys=size), before

    def slice_tile(self, tile: Tile) -> "ByDistance":
        # In the tile, distances count from another diagonal.
        return dataclasses.replace(super().slice_tile(tile), constant_from=None)

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
class Diagonals(MaskOrBias):
    """A bias by distance for tiles of a fixed number of rows; entry [n, i, d] belongs to row i of every tile."""

    values: Any = array_field("N-D")
    last: int = static_field(0)
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

    q_r: Any = array_field("BTN-")
    """Queries with the position bias added."""
    r: Any = array_field("N-D")
    """Projected encodings of the distances query - key = first, first - 1, ..., first - D + 1."""
    query_positions: Any = array_field("BT")
    """Index of each query among the keys, if the queries are scattered."""
    q_s: Any = array_field("BTN-")
    """Products of the queries, with the segment bias added, and the vectors "same segment" and "different segment"."""
    query_types: Any = array_field("BT")
    key_types: Any = array_field("BS")

    def prepare(self, t: int, s: int) -> "Relative":
        """Return the bias itself: it depends on the queries of each layer."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "B N T S"]:
        by_distance = distance_products(self.q_r, self.r)
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
        if self.query_positions is None:
            return super().missing_distances(t, s)
        # The positions of scattered queries are array values, which are unknown while shapes are checked: see `distances_exist`.
        count = self.r.shape[2]
        return None if count >= s else f"a bias over {s} keys needs {s} distances or more for each query, and has {count}"

    def distances_exist(self, s: int) -> Bool[Array, "B T"]:
        """Return whether the distances of each scattered query to all `s` keys exist; `dense` has NaN for those that do not."""
        last = self.first - self.r.shape[2] + 1
        return (self.query_positions <= self.first) & (self.query_positions - (s - 1) >= last)

    def padded(self, t: int, s: int) -> Any:
        # Scattered queries use the distances as they are. Some of padding keys may be missing, but those keys are masked.
        return (Distanced if self.query_positions is None else MaskOrBias).padded(self, t, s)

    def for_tiles(self, block_q: int, t: int, s: int) -> "Relative":
        # Not to a floating-point type: floating-point arrays have a gradient.
        return self.padded(t, s)._distinct_keys(jnp.int16)

    def slice_tile(self, tile: Tile) -> Any:
        if self.query_positions is None:
            return super().slice_tile(tile)
        bias = MaskOrBias.slice_tile(self, tile)
        return dataclasses.replace(bias, query_positions=bias.query_positions - tile.start["S"])

    def _with_distances(self, tile: Tile) -> Tile:
        return super()._with_distances(tile) if self.query_positions is None else tile


Bias = Dense | Buckets | ByDistance | Relative


def distance_flops(bias: Bias | None) -> float:
    """Return the FLOPs of the product q_r . r of a relative bias; 0 of any other."""
    return 2.0 * bias.q_r.size * bias.r.shape[2] if isinstance(bias, Relative) else 0.0
