"""Attention of a chunk of the queries at a time, for kernels that read XLNet's bias as a dense array.

XLA computes the array of each chunk, and in the backward pass again, so that what is stored grows with the keys alone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from zoo.attention.biases import Dense, Relative
from zoo.attention.masks import Mask
from zoo.attention.tiles import Tile


def in_chunks(
    attend: Callable[..., Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Relative,
    *,
    scale: float,
    block: int,
    blocks: int,
) -> Float[Array, "B T N H"]:
    """Return attend(q, k, v, mask, dense bias, index of the first query), called for chunks of the queries.

    These are as few equal ones as possible, of up to `blocks` times `block` queries.
    """
    (b, t, n, h), s = q.shape, k.shape[1]
    num_blocks = -(-t // block)
    count = -(-num_blocks // blocks)
    size = block * -(-num_blocks // count)
    mask, bias = mask.padded(count * size, s), bias.padded(count * size, s)
    chunks = jnp.moveaxis(jnp.pad(q, ((0, 0), (0, count * size - t), (0, 0), (0, 0))).reshape(b, count, size, n, h), 1, 0)
    shared = k, v, bias.differentiable()

    def one_chunk(first: Array, q: Array, wide: Any) -> Array:
        k, v, numbers = jax.tree.map(lambda x, like: x.astype(like.dtype), wide, shared)
        tile = Tile({"T": first, "S": 0}, {"T": size, "S": s})
        values = bias.with_differentiable(numbers).slice_tile(tile).dense(size, s, scale)
        return attend(q, k, v, mask.slice_tile(tile), Dense(values=values), first)

    run = jax.checkpoint(one_chunk, policy=jax.checkpoint_policies.save_only_these_names("attention", "attention_lse"))
    # Their gradients are sums over the chunks.
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), shared)
    _, out = lax.scan(lambda _, x: (None, run(*x, wide)), None, (jnp.arange(count) * size, chunks))
    return jnp.moveaxis(out, 0, 1).reshape(b, count * size, n, h)[:, :t]
