"""`splash`: JAX's Pallas kernels for TPU. Causal, window, key lengths, segments and sinks, without bias and dropout."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as library
from jaxtyping import Array, Float, UInt32

from zoo.attention.biases import Bias
from zoo.attention.masks import Mask
from zoo.attention.request import Request, kernel_call
from zoo.ops.tile_sizes import Sizes, tile_sizes

LANES = 128
WINDOW_BLOCK = 512
"""Maximum number of queries and keys in a block where a window is smaller."""


def splash(
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
    """Compute attention; see `zoo.attention.kernels.Kernel`."""
    t, n, s = q.shape[1], q.shape[2], k.shape[1]
    kernel = library.make_splash_mha(
        mask=library.MultiHeadMask([_static(mask, t, s)] * n),
        block_sizes=_blocks(tile_sizes(kernel_call("splash", q, k, mask, bias, rate)), mask, t, s),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name="attention",
    )
    scaled = q * jnp.asarray(scale, q.dtype)  # the kernel has no scale of its own
    by_head = [jnp.swapaxes(x, 1, 2) for x in (scaled, k, v)]  # [B, N, T or S, H]
    sinks = None if sinks is None else _with_gradient_of_own_dtype(sinks)
    out: Any = jax.vmap(kernel, in_axes=(0, 0, 0, 0, None))(*by_head, _segments(mask, q.shape[0], t, s), sinks)
    out = jnp.swapaxes(out, 1, 2)  # [B, T, N, H]
    # For a query without a visible key the kernel averages all values, with finite factors of the gradient. Zeroing the output
    # zeroes the gradient too.
    has_key = mask.has_visible_key(t, s)
    return out if has_key is None else jnp.where(has_key[..., None], out, 0)


def unsupported_reason(request: Request) -> str | None:
    """Return why the kernels refuse a request (read at JAX 0.10.2 and 0.12.0, tried by compiling); None if they do not."""
    _, t, s, _, _, _ = request.shape
    if request.dtype not in ("bfloat16", "float32"):
        return f"it takes bfloat16 and float32, and this is {request.dtype}"
    if t % LANES or s % LANES:
        return f"it takes lengths that are multiples of 128, and these are {t} and {s}"
    return None


@jax.custom_vjp
def _with_gradient_of_own_dtype(sinks: Float[Array, " N"]) -> Float[Array, " N"]:
    """Return the sinks. The library computes their gradient in the dtype of q, which JAX 0.10.2 passes on."""
    return sinks


_with_gradient_of_own_dtype.defvjp(lambda sinks: (sinks, sinks), lambda sinks, gradient: (gradient.astype(sinks.dtype),))


def _static(mask: Mask, t: int, s: int) -> Any:
    """Return the part of a mask that depends on positions alone; the kernel skips the blocks that it masks completely."""
    if mask.window is not None:
        return library.LocalMask((t, s), (mask.window - 1, 0 if mask.causal else mask.window - 1), 0)
    return library.CausalMask((t, s)) if mask.causal else library.FullMask((t, s))


def _segments(mask: Mask, b: int, t: int, s: int) -> Any:
    """Return the rest of a mask as segments, where equal numbers attend to each other; None if there is none.

    Keys beyond the lengths get segment 0, which only queries without a visible key have.
    """
    if mask.key_lengths is None and mask.query_segments is None:
        return None
    query = jnp.ones((b, t), jnp.int32) if mask.query_segments is None else mask.query_segments
    key = jnp.ones((b, s), jnp.int32) if mask.key_segments is None else mask.key_segments
    if mask.key_lengths is not None:
        key = jnp.where(jnp.arange(s) < mask.key_lengths[:, None], key, 0)
    return library.SegmentIds(q=query, kv=key)


def _blocks(sizes: Sizes, mask: Mask, t: int, s: int) -> Any:
    """Return the sizes of blocks, which divide the lengths. Blocks that are larger than a window would be mostly masked."""
    largest = max(t, s) if mask.window is None else max(WINDOW_BLOCK, mask.window)

    def divisor(name: str, length: int) -> int:
        """Return the largest size of at most these rows that divides a length."""
        return next(size for size in range(min(sizes[name], largest, length) // LANES * LANES, 0, -LANES) if length % size == 0)

    kv, kv_dkv, q_dkv = divisor("keys", s), divisor("backward_keys", s), divisor("backward_queries", t)
    return library.BlockSizes(
        block_q=divisor("queries", t),
        block_kv=kv,
        block_kv_compute=divisor("compute", kv),
        block_q_dkv=q_dkv,
        block_kv_dkv=kv_dkv,
        block_kv_dkv_compute=divisor("backward_compute", kv_dkv),
        block_q_dq=q_dkv,
        block_kv_dq=kv_dkv,
    )  # a fused backward pass would hold S / block_kv copies of dq
