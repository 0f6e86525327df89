"""`reference`: attention by its definition, with dense scores, for comparison with every other implementation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from zoo.attention.biases import Bias
from zoo.attention.masks import Mask
from zoo.ops import counter_rng


def reference(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K V"],
    mask: Mask,
    bias: Bias | None,
    seed: UInt32[Array, "B 2"] | None,
    heads: UInt32[Array, " N"],
    sinks: Float[Array, " N"] | None = None,
    *,
    scale: float,
    rate: float,
) -> Float[Array, "B T N V"]:
    """Compute attention by its definition, with dense scores, in the dtype of the inputs but at least float32.

    Tests compare every other implementation with this one.
    """
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    t, s, groups = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    q_, k_, v_ = (
        q.astype(dtype),
        jnp.repeat(k.astype(dtype), groups, 2),
        jnp.repeat(v.astype(dtype), groups, 2),
    )  # k_, v_ [B, S, N, H]
    scores = scale * jnp.einsum("btnh,bsnh->bnts", q_, k_)
    if bias is not None:
        scores = scores + bias.dense(t, s, scale)
    allowed = mask.dense(t, s)
    allowed = jnp.ones((1, 1, t, s), bool) if allowed is None else allowed
    has_key = allowed.any(-1, keepdims=True)
    scores = jnp.where(allowed, scores, jnp.where(has_key, -jnp.inf, 0))
    if sinks is not None:
        sink = jnp.broadcast_to(sinks.astype(dtype)[:, None, None], (*scores.shape[:-1], 1))  # [B, N, T, 1]
        scores = jnp.concatenate([scores, sink], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., :s]
    weights = jnp.where(allowed & has_key, weights, 0)
    if seed is not None:
        keep = counter_rng.keep(seed, rate, heads, jnp.arange(t, dtype=jnp.uint32), jnp.arange(s, dtype=jnp.uint32))
        weights = jnp.where(keep, weights / (1 - rate), 0)
    return jnp.einsum("bnts,bsnh->btnh", weights, v_).astype(q.dtype)
