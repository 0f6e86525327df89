"""Attention to some keys, and the online softmax that adds it to that to other keys (Milakov and Gimelshein 2018)."""
# ruff: noqa: E741 (l is the symbol of the papers)

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MASKED = -1e30
"""Score of a pair that does not attend."""
NO_KEY = 1e30
"""The log-sum-exp of a query without a visible key: exp(score - NO_KEY) is zero in its gradient."""


class Totals(NamedTuple):
    """The result of attention to some keys, from which that to more keys and the gradients of both follow."""

    out: Float[Array, "B T N H"]
    lse: Float[Array, "B N T"]
    """Logarithm of the sum of the exponentials of a query's scores, float32; `NO_KEY` of a query without a visible key."""


def padded_lse(totals: Totals, length: int) -> Float[Array, "B N {length}"]:
    """Return the log-sum-exp of as many queries, those that are added without a visible key: a bias may be large for them."""
    lse = totals.lse
    return jnp.pad(lse, ((0, 0), (0, 0), (0, length - lse.shape[2])), constant_values=NO_KEY)


class Sums(NamedTuple):
    """The running maximum, sum and output of the online softmax: those of `blocked`, where a chunk of keys is one key."""

    m: Float[Array, "B N T"]
    l: Float[Array, "B N T"]
    acc: Float[Array, "B T N H"]

    @classmethod
    def of(cls, q: Float[Array, "B T N H"], sinks: Float[Array, " N"] | None) -> "Sums":
        """Return the sums of queries before the first key; a sink is a key without a value."""
        dtype, (b, t, n, _) = jnp.promote_types(q.dtype, jnp.float32), q.shape
        m, l = jnp.full((b, n, t), 0.1 * MASKED, dtype), jnp.zeros((b, n, t), dtype)
        if sinks is not None:
            m, l = jnp.broadcast_to(sinks.astype(dtype)[:, None], m.shape), jnp.ones_like(l)
        return cls(m, l, jnp.zeros(q.shape, dtype))

    def add(self, totals: Totals, is_added: bool | Bool[Array, ""]) -> "Sums":
        """Return the sums with a chunk of keys added, if `is_added`."""
        has_key = (totals.lse < 0.1 * NO_KEY) & is_added
        lse = jnp.where(has_key, totals.lse, MASKED)
        m = jnp.maximum(self.m, lse)
        p, alpha = jnp.exp(lse - m), jnp.exp(self.m - m)
        out = totals.out.astype(self.acc.dtype)
        acc = self.acc * jnp.swapaxes(alpha, 1, 2)[..., None] + out * jnp.swapaxes(p, 1, 2)[..., None]
        return Sums(m, self.l * alpha + p, acc)

    def totals(self, dtype: Any) -> Totals:
        """Return the output and the log-sum-exp of all keys that were added."""
        has_key = self.l > 0
        l = jnp.where(has_key, self.l, 1)
        out = (self.acc / jnp.swapaxes(l, 1, 2)[..., None]).astype(dtype)
        return Totals(out, jnp.where(has_key, self.m + jnp.log(l), NO_KEY))
