"""Masks and biases as small specifications: attention's vocabulary of who sees whom, made dense only where it must be.

Every array field is optional and carries the letters of its axes (see `zoo.batch`): the attention door checks shapes by them and
knows how the array is sharded. Fields are untyped because the same trees hold arrays, shapes and shardings.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from zoo import positions


def _axes(letters: str) -> Any:
    """An array field with these axes; "-" is an axis of its own."""
    return dataclasses.field(default=None, metadata={"axes": letters})


def _static(default: Any) -> Any:
    return dataclasses.field(default=default, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
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

    def alive(self, t: int, s: int) -> Bool[Array, "#B T #N"] | None:
        """Which queries see any key; None where each sees itself, or everything."""
        fields = [getattr(self, field.name) for field in dataclasses.fields(self) if "axes" in field.metadata]
        allowed = self.dense(t, s)
        if allowed is None or all(field is None for field in fields):
            return None
        return jnp.moveaxis(allowed.any(-1), 1, 2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """An additive bias given in full, added after the scale."""

    values: Any = _axes("BNTS")

    def prepare(self, t: int, s: int) -> "Dense":
        """Itself: nothing to prepare."""
        return self

    def dense(self, q: Array, t: int, s: int, scale: float) -> Float[Array, "#B #N T S"]:
        return self.values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Buckets:
    """T5's relative position bias (Raffel et al. 2020, section 2.1): one learned number per head and bucket of distances."""

    table: Any = _axes("-N")
    bidirectional: bool = _static(True)
    max_distance: int = _static(128)

    def prepare(self, t: int, s: int) -> Dense:
        """The bias of a whole stack, computed once before its scan: every layer shares it."""
        return Dense(values=self._values(t, s))

    def dense(self, q: Array, t: int, s: int, scale: float) -> Float[Array, "1 N T S"]:
        return self._values(t, s)

    def _values(self, t: int, s: int) -> Float[Array, "1 N T S"]:
        relative = jnp.arange(s)[None, :] - jnp.arange(t)[:, None]
        bucket = positions.t5_bucket(relative, self.bidirectional, self.table.shape[0], self.max_distance)
        return jnp.moveaxis(self.table[bucket], -1, 0)[None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Relative:
    """XLNet's query-dependent position and segment terms (Yang et al. 2019, section 2.3; Dai et al. 2019, section 3.3).

    Adds scale * (q_r[t] . r[distance(t, s)] + q_s[t, same or different type]) to the score of (t, s).
    """

    q_r: Any = _axes("BTN-")
    """Queries with the position bias added."""
    r: Any = _axes("-N-")
    """Projected encodings of the distances query - key = first, first - 1, ..., first - R + 1."""
    first: int = _static(0)
    query_positions: Any = _axes("BT")
    """Index of each query among the keys, where it is not 0 .. T-1 (memory in front, scattered queries)."""
    q_s: Any = _axes("BTN-")
    """Products of the queries, segment bias added, with the vectors "same segment" and "different segment"."""
    query_types: Any = _axes("BT")
    key_types: Any = _axes("BS")

    def prepare(self, t: int, s: int) -> "Relative":
        """Itself: it depends on the queries of each layer."""
        return self

    def dense(self, q: Array, t: int, s: int, scale: float) -> Float[Array, "B N T S"]:
        query = jnp.arange(t)[None] if self.query_positions is None else self.query_positions
        wide = jnp.promote_types(self.q_r.dtype, jnp.float32)
        by_distance = jnp.einsum("btnh,rnh->bntr", self.q_r, self.r, preferred_element_type=wide)
        total = positions.relative_shift(by_distance, query[:, None], first=self.first, keys=s)
        if self.q_s is not None and self.query_types is not None and self.key_types is not None:
            different = self.query_types[:, None, :, None] != self.key_types[:, None, None, :]
            segment = jnp.moveaxis(self.q_s, 2, 1).astype(total.dtype)
            total = total + jnp.where(different, segment[..., 1:], segment[..., :1])
        return scale * total
