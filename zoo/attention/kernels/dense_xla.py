"""`xla`: attention in plain jax.numpy, compiled by XLA, with every feature on all platforms. Stores the scores [B, N, T, S]."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, UInt32

from zoo.attention.biases import Bias
from zoo.attention.masks import Mask
from zoo.ops import counter_rng

MASKED = -1e30


def xla(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Bias | None,
    seed: UInt32[Array, "B 2"] | None,
    heads: UInt32[Array, " N"],
    sinks: Float[Array, " N"] | None = None,
    *,
    scale: float,
    rate: float,
) -> Float[Array, "B T N H"]:
    """Compute attention (see `Kernel`). Scores, softmax and sums are float32."""
    b, t, n, h = q.shape
    s, groups = k.shape[1], k.shape[2]
    # Scaling q costs T*H multiplications per head instead of T*S.
    scaled = (q * jnp.asarray(scale, q.dtype)).reshape(b, t, groups, n // groups, h)  # [B, T, K, N/K, H]
    scores = jnp.einsum("btkgh,bskh->bkgts", scaled, k, preferred_element_type=jnp.float32).reshape(b, n, t, s)
    if bias is not None:
        scores = scores + bias.dense(t, s, scale).astype(scores.dtype)
    allowed = mask.dense(t, s)
    if allowed is not None:
        scores = jnp.where(allowed, scores, MASKED)
    # The floor under the maximum m lies above MASKED: every entry of a row without a visible key becomes exp(-9e29) = 0.
    m = jnp.maximum(scores.max(-1, keepdims=True), 0.1 * MASKED)
    sink = None if sinks is None else sinks.astype(scores.dtype)[:, None, None]  # [N, 1, 1]
    m = jax.lax.stop_gradient(m if sink is None else jnp.maximum(m, sink))
    weights = jnp.exp(scores - m)
    total = weights.sum(-1)  # [B, N, T]
    if sink is not None:
        total = total + jnp.exp(sink - m)[..., 0]
    if seed is not None:
        keep = counter_rng.keep(seed, rate, heads, jnp.arange(t, dtype=jnp.uint32), jnp.arange(s, dtype=jnp.uint32))
        weights = jnp.where(keep, weights, 0.0)
    weights = weights.astype(v.dtype).reshape(b, groups, n // groups, t, s)  # [B, K, N/K, T, S]
    out = jnp.einsum("bkgts,bskh->btkgh", weights, v, preferred_element_type=jnp.float32).reshape(b, t, n, h)
    # Named before the division, whose gradient needs both; the quotient is cheap to compute again.
    out, total = checkpoint_name(out, "attention"), checkpoint_name(total, "attention_lse")
    # Normalizing the output costs H divisions per row instead of S.
    divisor = jnp.where(total > 0, total, 1.0) * (1 - rate)  # [B, N, T]
    return (out / jnp.moveaxis(divisor, 1, 2)[..., None]).astype(q.dtype)
