"""Losses as weighted sums; dividing by the weights happens once, in the step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_losses(
    unembed: Callable[[Array], Array],
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    *,
    vocabulary: int,
    smoothing: float = 0.0,
    chunk: int = 0,
) -> Float[Array, "B P"]:
    """Cross-entropy in nats of each prediction, float32, through `unembed(hidden) -> logits [B, P, rows >= vocabulary]`.

    `smoothing` mixes the target with the uniform distribution over the vocabulary (Szegedy et al. 2016, section 7). `chunk`
    positions have logits at a time, in the forward and the backward pass, so that memory is B * chunk * V instead of B * P * V;
    0 = all at once.
    """

    def losses(hidden: Array, targets: Array) -> Array:
        logits = unembed(hidden).astype(jnp.float32)
        # The log-normalizer over padding rows of the table is unchanged: their logits are -1e30.
        nats = jax.nn.logsumexp(logits, axis=-1)
        at_target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        if smoothing == 0:
            return nats - at_target
        real = jnp.arange(logits.shape[-1]) < vocabulary
        mean = jnp.where(real, logits, 0).sum(-1) / vocabulary
        return nats - (1 - smoothing) * at_target - smoothing * mean

    if chunk == 0 or chunk >= targets.shape[1]:
        return losses(hidden, targets)
    chunks = targets.shape[1] // chunk

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, chunk, *x.shape[2:]), 1, 0)

    _, by_chunk = jax.lax.scan(lambda _, xs: (None, jax.checkpoint(losses)(*xs)), None, (split(hidden), split(targets)))
    return jnp.moveaxis(by_chunk, 0, 1).reshape(targets.shape)
