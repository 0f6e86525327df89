"""Masks and biases as small specifications: attention's vocabulary of who sees whom, made dense only where it must be.

Every array field is optional and carries the letters of its axes (see `zoo.batch`): the attention door checks shapes by them and
knows how the array is sharded. Fields are untyped because the same trees hold arrays, shapes and shardings.
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

NARROW = 256
"""Queries and keys of a tile under a narrow window."""


def _axes(letters: str) -> Any:
    """An array field with these axes; "-" is an axis of its own."""
    return dataclasses.field(default=None, metadata={"axes": letters})


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What masks and biases share: each can be padded, and cut into the part that a tile of the scores needs.

    A part is a specification of the same kind, for the queries and keys of the tile alone.
    """

    def arrays(self) -> Iterator[tuple[str, str, Any]]:
        """(field, letters of its axes, array) of every array that is there."""
        for field in dataclasses.fields(self):
            if "axes" in field.metadata and (array := getattr(self, field.name)) is not None:
                yield field.name, field.metadata["axes"], array

    def padded(self, t: int, s: int) -> Any:
        """For `t` queries and `s` keys, with zeros behind what is there. Nobody looks at the new queries and keys."""
        to = {"T": t, "S": s}
        return self._replace(
            lambda letters, x: jnp.pad(x, [(0, to.get(c, n) - n if n > 1 else 0) for c, n in zip(letters, x.shape, strict=True)])
        )

    def tile_size(self, rows: int, columns: int, s: int) -> tuple[int, int]:
        """Queries and keys of a tile, of `s` keys in all, where `rows` and `columns` are right without this specification."""
        return rows, columns

    def for_tiles(self, rows: int, t: int, s: int) -> Any:
        """What tiles of `rows` queries are cut from: padded to `t` queries and `s` keys."""
        return self.padded(t, s)

    def lacks(self, t: int, s: int) -> str | None:
        """What is missing for `t` queries and `s` keys; None if nothing is."""
        return None

    def part(self, tile: Tile) -> Any:
        """The specification of a tile."""
        tile = self._reach(tile)
        return self._replace(lambda letters, x: tiles.take(x, letters, tile))

    def add_part(self, sums: Any, part: Any, tile: Tile) -> Any:
        """`sums`, of the shapes of this one's numbers, with those of a tile's part added where they belong."""
        tile, parts = self._reach(tile), {name: array for name, _, array in part.arrays()}
        grown = {name: tiles.add(x, parts[name], axes, tile) for name, axes, x in sums.arrays()}
        return dataclasses.replace(sums, **grown)

    def numbers(self) -> Any:
        """With floating-point arrays alone: what has a gradient."""
        others = {name: None for name, _, x in self.arrays() if not jnp.issubdtype(x.dtype, jnp.floating)}
        return dataclasses.replace(self, **others)

    def with_numbers(self, numbers: Any) -> Any:
        """With the floating-point arrays of another one."""
        return dataclasses.replace(self, **{name: x for name, _, x in numbers.arrays()})

    def _reach(self, tile: Tile) -> Tile:
        return tile

    def _replace(self, change: Any) -> Any:
        return dataclasses.replace(self, **{name: change(axes, x) for name, axes, x in self.arrays()})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask(Spec):
    """Which queries see which keys: the conjunction of everything that is given. `Mask()` is full attention."""

    causal: bool = _static(False)
    """A key's position is at most the query's."""
    window: int | None = _static(None)
    """Positions differ by less than this; with `causal`, the last `window` keys, the query's own included."""
    strict: bool = _static(False)
    """Ranks must be strictly lower (XLNet's query stream) instead of lower or equal (its content stream)."""
    key_lengths: Any = _axes("B")
    """Number of real keys; the rest, on the right, is padding."""
    query_segments: Any = _axes("BT")
    """Segment of each query: it sees the keys of its own segment. Segment 0 is padding: it neither sees nor is seen."""
    key_segments: Any = _axes("BS")
    query_positions: Any = _axes("BT")
    """Positions for `causal` and `window`, where they are not 0 .. T-1 (decoding, scattered queries)."""
    key_positions: Any = _axes("BS")
    query_ranks: Any = _axes("BT")
    """Place in XLNet's factorization order; -1 for a key that everyone sees (memory, unpredicted tokens)."""
    key_ranks: Any = _axes("BS")
    allowed: Any = _axes("BNTS")
    """Any other rule, dense: True = sees."""

    def dense(self, t: int, s: int) -> Bool[Array, "#B #N T S"] | None:
        """The mask as one array broadcastable to [B, N, T, S]; None where everything is allowed."""
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
    def reach(self) -> tuple[int | None, int | None]:
        """How many keys behind itself and ahead a query sees at most; None where indices, not being positions, do not tell."""
        if self.query_positions is not None or self.key_positions is not None:
            return None, None
        behind = None if self.window is None else self.window - 1
        return behind, 0 if self.causal else behind

    def tile_size(self, rows: int, columns: int, s: int) -> tuple[int, int]:
        if self.causal:
            # Half of a tile on the diagonal is thrown away.
            columns //= 2
        if self.window is not None:
            rows, columns = (min(size, max(NARROW, self.window)) for size in (rows, columns))
        return rows, columns

    def for_tiles(self, rows: int, t: int, s: int) -> "Mask":
        """With keys' numbers in float32; see `_unlike`."""
        return _unlike(self.padded(t, s), jnp.float32)

    def part(self, tile: Tile) -> Any:
        part, changes = super().part(tile), {}
        if self.key_lengths is not None:
            changes["key_lengths"] = part.key_lengths - tile.start["S"]
        if self.causal or self.window is not None:
            for side, letter in (("query", "T"), ("key", "S")):
                if getattr(self, f"{side}_positions") is None:
                    changes[f"{side}_positions"] = tile.start[letter] + jnp.arange(tile.size[letter])[None]
        return dataclasses.replace(part, **changes)

    def alive(self, t: int, s: int) -> Bool[Array, "#B T #N"] | None:
        """Which queries see any key; None where each sees itself, or everything."""
        allowed = self.dense(t, s)
        if allowed is None or not any(self.arrays()):
            return None
        return jnp.moveaxis(allowed.any(-1), 1, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(Spec):
    """An additive bias given in full, added after the scale."""

    values: Any = _axes("BNTS")

    def prepare(self, t: int, s: int) -> "Dense":
        """Itself: nothing to prepare."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "#B #N T S"]:
        return self.values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distanced(Spec):
    """A bias with an axis D of distances query - key = first, first - 1, ..., for queries 0 .. T-1."""

    first: int = _static(0)
    """The largest distance; where M keys of memory precede the queries' own, so that query t is key M + t, less M."""

    def lacks(self, t: int, s: int) -> str | None:
        reached = next(array.shape[letters.index("D")] for _, letters, array in self.arrays() if "D" in letters)
        last = self.first - reached + 1
        if self.first >= t - 1 and last <= 1 - s:
            return None
        return f"a bias of {t} queries over {s} keys needs the distances {t - 1} .. {1 - s}, and has {self.first} .. {last}"

    def padded(self, t: int, s: int) -> Any:
        """Also to the distances of the new queries and keys, and one more (see `positions.relative_shift`)."""
        whole = super().padded(t, s)
        front = max(0, t - 1 - self.first)

        def reaching(letters: str, x: Array) -> Array:
            back = {"D": max(0, self.first + s + 1 - x.shape[letters.index("D")])} if "D" in letters else {}
            return jnp.pad(x, [(front, back[c]) if c in back else (0, 0) for c in letters])

        return dataclasses.replace(whole._replace(reaching), first=self.first + front)

    def part(self, tile: Tile) -> Any:
        return dataclasses.replace(super().part(tile), first=tile.size["T"] - 1)

    def _reach(self, tile: Tile) -> Tile:
        rows, columns = tile.size["T"], tile.size["S"]
        return tile.along("D", self.first - (tile.start["T"] + rows - 1) + tile.start["S"], rows + columns)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets(Spec):
    """T5's relative position bias (Raffel et al. 2020, section 2.1): one learned number per head and bucket of distances."""

    table: Any = _axes("-N")
    bidirectional: bool = _static(True)
    max_distance: int = _static(128)

    def prepare(self, t: int, s: int, at: int | Int[Array, ""] = 0) -> "ByDistance":
        """The bias of a whole stack, looked up once before its scan: every layer shares it. The first query is key `at`."""
        relative = jnp.arange(t + s) - (t - 1) - at
        bucket = positions.t5_bucket(relative, self.bidirectional, self.table.shape[0], self.max_distance)
        # Its gradient is a sum over thousands of pairs, which bfloat16 could not take.
        table = self.table.astype(jnp.promote_types(self.table.dtype, jnp.float32))
        return ByDistance(values=table[bucket], first=t - 1)

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        return self.prepare(t, s).dense(t, s, scale)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class ByDistance(Distanced):
    """A bias that depends on head and distance alone: as many numbers as there are distances, instead of T x S."""

    values: Any = _axes("DN")
    """One number for each distance and head."""

    def prepare(self, t: int, s: int) -> "ByDistance":
        """Itself: nothing to prepare."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        values = self.values.T.astype(jnp.promote_types(self.values.dtype, jnp.float32))
        rows = jnp.broadcast_to(values[None, :, None, :], (1, values.shape[0], t, values.shape[1]))
        return positions.relative_shift(rows, None, first=self.first, keys=s)

    def tile_size(self, rows: int, columns: int, s: int) -> tuple[int, int]:
        # Its numbers are written out for every row of a tile.
        return rows // 2, columns

    def for_tiles(self, rows: int, t: int, s: int) -> "Diagonals":
        """As `Diagonals`, of which a tile takes a slice instead of shifting rows."""
        whole = self.padded(t, s)
        last = t - rows
        values = dataclasses.replace(whole, first=whole.first - last).dense(rows, last + s, 1.0)
        return Diagonals(values=values[0], last=last)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagonals(Spec):
    """A bias by distance for tiles of a fixed number of rows: entry [n, i, d] is of the queries that are row i of their tile."""

    values: Any = _axes("N-D")
    last: int = _static(0)
    """Where the last tile's rows begin: there the first key is at d = 0."""

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        return self.values[None]

    def _reach(self, tile: Tile) -> Tile:
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
    """Index of each query among the keys, where they are scattered."""
    q_s: Any = _axes("BTN-")
    """Products of the queries, segment bias added, with the vectors "same segment" and "different segment"."""
    query_types: Any = _axes("BT")
    key_types: Any = _axes("BS")

    def prepare(self, t: int, s: int) -> "Relative":
        """Itself: it depends on the queries of each layer."""
        return self

    def dense(self, t: int, s: int, scale: float) -> Float[Array, "B N T S"]:
        by_distance = _by_distance(self.q_r, self.r)
        places = None if self.query_positions is None else self.query_positions[:, None]
        total = positions.relative_shift(by_distance, places, first=self.first, keys=s)
        if self.q_s is not None and self.query_types is not None and self.key_types is not None:
            different = self.query_types[:, None, :, None] != self.key_types[:, None, None, :]
            segment = jnp.moveaxis(self.q_s, 2, 1).astype(total.dtype)
            total = total + jnp.where(different, segment[..., 1:], segment[..., :1])
        return scale * total

    def tile_size(self, rows: int, columns: int, s: int) -> tuple[int, int]:
        if self.query_positions is None:
            return rows, columns
        # Scattered queries need every distance for any key, so they meet all keys at once.
        return max(8, rows * columns // max(columns, s)), s

    def lacks(self, t: int, s: int) -> str | None:
        # Where queries are scattered, their places are not known here.
        return super().lacks(t, s) if self.query_positions is None else None

    def padded(self, t: int, s: int) -> Any:
        # Scattered queries take all distances there are: of padding keys, which are masked, they may lack some.
        return (Distanced if self.query_positions is None else Spec).padded(self, t, s)

    def for_tiles(self, rows: int, t: int, s: int) -> "Relative":
        # What is floating has a gradient.
        return _unlike(self.padded(t, s), jnp.int16)

    def part(self, tile: Tile) -> Any:
        if self.query_positions is None:
            return super().part(tile)
        part = Spec.part(self, tile)
        return dataclasses.replace(part, query_positions=part.query_positions - tile.start["S"])

    def _reach(self, tile: Tile) -> Tile:
        return super()._reach(tile) if self.query_positions is None else tile


def _unlike(spec: Any, dtype: Any) -> Any:
    """With the arrays of keys in another dtype, which takes their numbers and compares with the queries' as before.

    Queries and keys often have one array. A tile cuts it twice, and XLA on CPU makes one cut of two that are alike, a function
    that it calls for every entry of the scores: their exponentials are then not vectorized, and take 8 times as long.
    """
    return spec._replace(lambda letters, x: x.astype(dtype) if letters == "BS" else x)


@jax.custom_vjp
def _by_distance(q_r: Float[Array, "B T N H"], r: Float[Array, "N H D"]) -> Float[Array, "B N T D"]:
    """q_r . r, and its gradients, as products in which nothing as large as the result is turned: jnp.einsum would, on CPU."""
    wide = jnp.promote_types(q_r.dtype, jnp.float32)
    return jnp.moveaxis(jax.lax.dot_general(q_r, r, (((3,), (1,)), ((2,), (0,))), preferred_element_type=wide), 0, 1)


def _by_distance_forward(q_r: Array, r: Array) -> tuple[Array, tuple[Array, Array]]:
    return _by_distance(q_r, r), (q_r, r)


def _by_distance_backward(inputs: tuple[Array, Array], d: Float[Array, "B N T D"]) -> tuple[Array, Array]:
    q_r, r = inputs
    narrow = d.astype(q_r.dtype)
    d_q = jax.lax.dot_general(narrow, r, (((3,), (2,)), ((1,), (0,))), preferred_element_type=d.dtype)  # [N, B, T, H]
    d_r = jax.lax.dot_general(q_r, narrow, (((0, 1), (0, 2)), ((2,), (1,))), preferred_element_type=d.dtype)  # [N, H, D]
    return d_q.transpose(1, 2, 0, 3).astype(q_r.dtype), d_r.astype(r.dtype)


_by_distance.defvjp(_by_distance_forward, _by_distance_backward)

Bias = Dense | Buckets | ByDistance | Relative
