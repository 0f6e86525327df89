"""`cudnn`: NVIDIA's fused attention through `jax.nn.dot_product_attention`. bfloat16 and float16, without dropout."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name


def cudnn(q, k, v, mask, bias, seed, heads, *, scale, rate):
    """Local attention; causal, its window and key lengths are the kernel's own, any other mask and bias is made dense."""
    t, s = q.shape[1], k.shape[1]
    in_order = mask.query_positions is None and mask.key_positions is None
    causal = mask.causal and in_order
    window = mask.window if causal else None
    rest = mask
    if causal:
        rest = dataclasses.replace(rest, causal=False, window=None)
    allowed = rest.dense(t, s)
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=None if bias is None else jnp.broadcast_to(bias.dense(t, s, scale), (*_leading(bias, q), t, s)).astype(q.dtype),
        mask=None if allowed is None else jnp.broadcast_to(allowed, (*allowed.shape[:2], t, s)),
        scale=scale,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    out = checkpoint_name(out, "attention")
    if allowed is None:
        return out
    # The kernel averages the values where nothing is allowed; the zoo's rule is zeros, with zero gradient.
    alive = mask.dense(t, s).any(-1)  # [B or 1, N or 1, T]
    return jnp.where(jnp.moveaxis(alive, 1, 2)[..., None], out, 0)


def limits(request) -> str | None:
    """cuDNN's own limits (reference: JAX's `fused_attention_stablehlo`); None if a request is within them."""
    _, t, s, _, _, h = request.shape
    if request.dtype not in ("bfloat16", "float16"):
        return f"it takes bfloat16 and float16, and this is {request.dtype}"
    if h > 256 or h % 8:
        return f"it takes head sizes up to 256 that are multiples of 8, and this is {h}"
    dense = request.features - {"causal", "grouped heads"} - ({"window"} if "causal" in request.features else set())
    if dense and (t % 2 or s % 2):
        return f"with {', '.join(sorted(dense))} it takes even lengths, and these are {t} and {s}"
    return None


def _leading(bias, q) -> tuple[int, int]:
    values = getattr(bias, "values", None)
    return values.shape[:2] if values is not None else (q.shape[0], q.shape[2])
