"""The common part of `cudnn` and `tokamax`, whose libraries offer `dot_product_attention` with the same arguments."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend import backend
from jaxtyping import Array, Float

from zoo.attention.biases import Bias
from zoo.attention.masks import Mask


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
    """Compute attention by a library's `dot_product_attention`, which is `call`.

    Causality, a window and key lengths are passed as such, so that the kernels skip fully masked blocks. Every other mask and
    every bias becomes a dense array [1 or B, 1 or N, T, S].

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

    # In this project a query without a visible key has a zero output and a zero gradient. The kernels average all values for it
    # or divide zero by zero, which makes even the gradient of a zero cotangent NaN. So keys are unmasked for it, and its output
    # is zeroed afterwards.
    has_key = mask.has_visible_key(t, s)
    if lengths is not None:
        lengths = jnp.maximum(lengths, 1).astype(jnp.int32)
    if allowed is not None and has_key is not None:
        allowed = allowed | ~jnp.moveaxis(has_key[..., None], 1, 2)  # [B, N, T, S]

    def expand(array: Array | None, fill: Any) -> Array | None:
        """Broadcast to [.., T, S], which neither library does correctly, and pad to the lengths that the kernel supports."""
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
        bias=expand(values, 0),
        mask=expand(allowed, True),
        scale=scale,
        is_causal=causal,
        key_value_seq_lengths=lengths,
        local_window_size=None if window is None else (window - 1, 0 if causal else window - 1),
    )[:, :t]
    # The log-sum-exp is inside the libraries' own VJP and cannot be named. A policy that saves only the output therefore runs the
    # kernel's forward pass again.
    out = checkpoint_name(out, "attention")
    return out if has_key is None else jnp.where(has_key[..., None], out, 0)


def capability() -> int:
    """Return the major compute capability of JAX's default device, 9 for Hopper; 0 if it is not an NVIDIA GPU."""
    version = re.match(r"(\d+)\.", str(getattr(backend.get_default_device(), "compute_capability", "")))
    return int(version[1]) if version else 0


def _lengthen(x: Array, count: int) -> Array:
    return jnp.pad(x, ((0, 0), (0, count), (0, 0), (0, 0)))
