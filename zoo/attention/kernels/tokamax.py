"""`tokamax`: OpenXLA's Mosaic kernels for Hopper and Blackwell GPUs. bfloat16 and float16, without dropout."""

import functools

from jaxtyping import Array, Float, UInt32

from zoo.attention.biases import Bias
from zoo.attention.kernels._dot_product_attention import capability, fused
from zoo.attention.masks import Mask
from zoo.attention.request import Request


def tokamax(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask,
    bias: Bias | None,
    seed: UInt32[Array, "B 2"] | None,
    heads: UInt32[Array, " N"],
    *,
    scale: float,
    rate: float,
) -> Float[Array, "B T N H"]:
    """Compute attention (see `Kernel`).

    The gradient of a bias is computed for every example and head, [B, N, T, S], before it is summed.
    """
    import tokamax as library

    # Not the default list of implementations: it silently falls back to Triton, whose causal gradient is wrong for block sizes
    # that its autotuner may choose (openxla/tokamax#1494), and then to plain XLA.
    # (Pyright mistakes this file for the library.)
    attend = library.dot_product_attention  # pyright: ignore[reportAttributeAccessIssue]
    call = functools.partial(attend, implementation="mosaic")
    return fused(call, q, k, v, mask, bias, scale=scale, even=False)


def unsupported_reason(request: Request) -> str | None:
    """Return why the library's Mosaic kernels refuse a request (read at 0.0.17); None if they do not."""
    h = request.shape[-1]
    # On Ampere the kernels have a forward pass only.
    if capability() < 9:
        return "it needs a Hopper or Blackwell GPU as JAX's default device"
    if request.dtype not in ("bfloat16", "float16"):
        return f"it takes bfloat16 and float16, and this is {request.dtype}"
    if h > 256 or h % 8:
        return f"it takes head sizes up to 256 that are multiples of 8, and this is {h}"
    return None
