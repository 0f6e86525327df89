"""The requests with which implementations of attention are compared with the definition: each feature, and several at once."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from zoo.attention.biases import Bias, Buckets, Dense, Relative
from zoo.attention.masks import Mask
from zoo.attention.request import Request


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A request to attention; lengths are odd and more than one tile long unless stated otherwise."""

    batch: int = 2
    queries: int = 577
    keys: int = 577
    heads: int = 2
    groups: int = 2
    """Key/value heads."""
    head: int = 8
    mask: Callable[["Case"], Mask] = lambda case: Mask()
    bias: Callable[["Case"], Bias] | None = None
    scale: float | None = None
    rate: float = 0.0
    seed: tuple[int, int] = (1, 2)
    sinks: bool = False

    def arrays(self, *shape: int) -> np.ndarray:
        """Return normally distributed numbers that depend only on the case's shape and on `shape`."""
        return np.random.default_rng([zlib.crc32(repr(shape).encode()), self.queries]).standard_normal(shape)

    def request(self) -> Request:
        """Return the request that the case makes, in float32."""
        q, k = (
            jax.ShapeDtypeStruct((self.batch, length, heads, self.head), jnp.float32)
            for length, heads in ((self.queries, self.heads), (self.keys, self.groups))
        )
        dropout = (self.rate, jax.ShapeDtypeStruct((self.batch, 2), jnp.uint32))
        sinks = jax.ShapeDtypeStruct((self.heads,), jnp.float32) if self.sinks else None
        bias = None if self.bias is None else self.bias(self)
        return Request.of(q, k, k, self.mask(self), bias, dropout, sinks)


def _segments(case: Case, length: int) -> Array:
    """Return documents of uneven length, followed by padding."""
    ends = np.array([[0.3, 0.5, 0.9], [0.1, 0.8, 1.0]])[: case.batch] * length
    ids = (np.arange(length)[None, :, None] >= ends[:, None, :]).sum(-1) + 1
    return jnp.asarray(np.where(ids > 3, 0, ids), jnp.int32)


def _ranks(case: Case) -> Array:
    """Return a factorization order with tokens that every query sees."""
    rng = np.random.default_rng(0)
    order = np.stack([rng.permutation(case.keys) for _ in range(case.batch)])
    return jnp.asarray(np.where(order % 5 == 0, -1, order), jnp.int32)


def _scattered(case: Case) -> Array:
    """Return the positions of the queries among the keys."""
    rng = np.random.default_rng(1)
    places = [np.sort(rng.choice(case.keys, case.queries, replace=False)) for _ in range(case.batch)]
    return jnp.asarray(np.stack(places), jnp.int32)


def _relative(case: Case, *, memory: int = 0, types: bool = False, scattered: bool = False) -> Relative:
    """Return a relative bias; `memory` keys come before those of the queries."""
    shape = (case.batch, case.queries, case.heads)
    extra: dict[str, Any] = {}
    if types:
        of_keys = np.arange(case.keys, dtype=np.int32)[None].repeat(case.batch, 0) % 7 // 3
        extra = {"q_s": case.arrays(*shape, 2), "query_types": of_keys[:, memory:], "key_types": of_keys}
    if scattered:
        extra["query_positions"] = _scattered(case)
    return Relative(
        q_r=case.arrays(*shape, case.head),
        r=case.arrays(case.heads, case.head, 2 * case.keys),
        first=case.keys - memory,
        **extra,
    )


def _explicit(case: Case) -> Array:
    allowed = case.arrays(case.batch, 1, case.queries, case.keys) > 0
    allowed[:, :, 2] = False
    return jnp.asarray(allowed)


def _lengths(case: Case) -> Array:
    return jnp.asarray([case.keys // 3, case.keys][: case.batch], jnp.int32)


def _dense(*leading: int) -> Callable[[Case], Bias]:
    return lambda case: Dense(values=case.arrays(*leading, case.queries, case.keys))


CASES: Mapping[str, Case] = {
    "full": Case(),
    "causal": Case(mask=lambda case: Mask(causal=True)),
    "window": Case(mask=lambda case: Mask(causal=True, window=100)),
    "window to both sides": Case(mask=lambda case: Mask(window=100)),
    "key lengths": Case(mask=lambda case: Mask(key_lengths=_lengths(case))),
    "packed segments": Case(
        mask=lambda case: Mask(causal=True, query_segments=_segments(case, case.queries), key_segments=_segments(case, case.keys))
    ),
    "positions": Case(
        queries=40,
        mask=lambda case: Mask(
            causal=True, query_positions=_scattered(case), key_positions=jnp.arange(case.keys)[None].repeat(case.batch, 0)
        ),
    ),
    "content ranks": Case(mask=lambda case: Mask(query_ranks=_ranks(case), key_ranks=_ranks(case))),
    "query ranks": Case(mask=lambda case: Mask(query_ranks=_ranks(case), key_ranks=_ranks(case), strict=True)),
    "explicit mask, rows of nothing": Case(mask=lambda case: Mask(allowed=_explicit(case))),
    "nothing allowed": Case(mask=lambda case: Mask(key_lengths=jnp.zeros(case.batch, jnp.int32))),
    "cross attention": Case(queries=45, mask=lambda case: Mask(key_lengths=_lengths(case))),
    "length 1": Case(queries=1, keys=1, mask=lambda case: Mask(causal=True)),
    "head 152": Case(head=152, mask=lambda case: Mask(causal=True)),
    "grouped heads": Case(heads=4, groups=2, mask=lambda case: Mask(causal=True)),
    "one key/value head": Case(heads=4, groups=1, mask=lambda case: Mask(key_lengths=_lengths(case))),
    "dropout": Case(rate=0.2, mask=lambda case: Mask(causal=True)),
    "dropout, grouped heads": Case(rate=0.2, heads=4, groups=2),
    "sinks": Case(sinks=True, mask=lambda case: Mask(causal=True, window=100)),
    "sinks, rows of nothing": Case(sinks=True, mask=lambda case: Mask(allowed=_explicit(case))),
    "sinks, grouped heads, dropout": Case(
        sinks=True, heads=4, groups=2, rate=0.2, mask=lambda case: Mask(causal=True, key_lengths=_lengths(case))
    ),
    "dense bias": Case(bias=_dense(1, 2)),
    "dense bias of each example, causal": Case(bias=_dense(2, 1), mask=lambda case: Mask(causal=True)),
    "bucket bias": Case(bias=lambda case: Buckets(table=case.arrays(32, case.heads)), scale=1.0),
    "bucket bias, one direction": Case(
        bias=lambda case: Buckets(table=case.arrays(32, case.heads), bidirectional=False),
        mask=lambda case: Mask(causal=True),
        scale=1.0,
        rate=0.1,
    ),
    "relative bias": Case(bias=_relative, mask=lambda case: Mask(query_ranks=_ranks(case), key_ranks=_ranks(case))),
    "relative bias, memory and types": Case(
        queries=150,
        bias=lambda case: _relative(case, memory=427, types=True),
        mask=lambda case: Mask(key_lengths=_lengths(case)),
    ),
    "relative bias, scattered queries": Case(
        queries=45,
        bias=lambda case: _relative(case, scattered=True),
        mask=lambda case: Mask(
            query_ranks=jnp.take_along_axis(_ranks(case), _scattered(case), axis=1), key_ranks=_ranks(case), strict=True
        ),
        rate=0.1,
    ),
}
