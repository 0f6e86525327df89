"""What `cudnn` and `tokamax` share: both libraries offer `dot_product_attention` with the same arguments."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import backend
from jaxtyping import Array, Float

from zoo.attention.masks import Bias, Mask


def fused(
    call: Callable[..., Array],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Bias | None,
    *,
    scale: float,
    even: bool,
) -> Float[Array, "B T N H"]:
    """Attention by a library's `dot_product_attention`, `call`.

    Causal, its window and key lengths stay specifications, which the kernels turn into blocks that are skipped. Every other mask,
    and every bias, is made dense: [1 or B, 1 or N, T, S].

    Args:
        even: pad T and S to even lengths for the kernel.
    """
    t, s = q.shape[1], k.shape[1]
    in_order = mask.query_positions is None and mask.key_positions is None
    causal, window = (mask.causal, mask.window) if in_order else (False, None)
    rest = dataclasses.replace(mask, key_lengths=None)
    if in_order:
        rest = dataclasses.replace(rest, causal=False, window=None)
    lengths, allowed = mask.key_lengths, rest.dense(t, s)
    values = None if bias is None else bias.dense(t, s, scale).astype(q.dtype)

    # The zoo's rule for a row with nothing to attend to is zeros and zero gradient. Kernels average, or divide zero by zero, and
    # then even a zero cotangent comes out as NaN. So such a row is shown something, and what it makes of it is dropped.
    alive = mask.alive(t, s)
    if lengths is not None:
        lengths = jnp.maximum(lengths, 1).astype(jnp.int32)
    if allowed is not None and alive is not None:
        allowed = allowed | ~jnp.moveaxis(alive[..., None], 1, 2)

    def whole(array: Array | None, fill: Any) -> Array | None:
        """[.., T, S] in full, for neither library broadcasts these axes rightly, padded to what the kernel takes."""
        if array is None:
            return None
        array = jnp.broadcast_to(array, (*array.shape[:2], t, s))
        return jnp.pad(array, ((0, 0), (0, 0), (0, odd[0]), (0, odd[1])), constant_values=fill)

    odd = (t % 2, s % 2) if even else (0, 0)
    if odd[1] and lengths is None:
        lengths = jnp.full(q.shape[0], s, jnp.int32)
    out = call(
        _lengthen(q, odd[0]),
        _lengthen(k, odd[1]),
        _lengthen(v, odd[1]),
        bias=whole(values, 0),
        mask=whole(allowed, True),
        scale=scale,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0 if causal else window - 1),
    )[:, :t]
    # The log-sum-exp is inside the libraries' own VJP, out of reach: where only this is saved, the kernel runs forward again.
    out = checkpoint_name(out, "attention")
    return out if alive is None else jnp.where(alive[..., None], out, 0)


def capability() -> int:
    """Major compute capability of JAX's default device, 9 for Hopper; 0 where that is no NVIDIA GPU."""
    found = re.match(r"(\d+)\.", str(getattr(backend.get_default_device(), "compute_capability", "")))
    return int(found[1]) if found else 0


def _lengthen(x: Array, count: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, count), (0, 0), (0, 0)))
