"""`cudnn`: NVIDIA's fused attention through `jax.nn.dot_product_attention`. bfloat16 and float16, without dropout."""

import functools

import jax
from jaxtyping import Array, Float, UInt32

from zoo.attention.biases import Bias
from zoo.attention.kernels._dot_product_attention import capability, fused
from zoo.attention.masks import Mask
from zoo.attention.request import Request


def cudnn(
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
    """Compute attention; see `zoo.attention.kernels.Kernel`."""
    # JAX refuses odd lengths in the backward pass even without a bias: it treats the placeholder of a missing bias as one.
    call = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return fused(call, q, k, v, mask, bias, scale=scale, even=True)


def unsupported_reason(request: Request) -> str | None:
    """Return why JAX's `fused_attention_stablehlo` refuses a request (read at 0.10.2 and 0.12.0); None if it does not."""
    h = request.shape[-1]
    if request.dtype not in ("bfloat16", "float16"):
        return f"it takes bfloat16 and float16, and this is {request.dtype}"
    # As in JAX, the GPU of this process decides; `benchmarks.plan.target_devices.simulate_target` can simulate another GPU.
    largest = 256 if capability() >= 9 else 128
    if h > largest or h % 8:
        return f"it takes head sizes up to {largest} on this GPU that are multiples of 8, and this is {h}"
    if "window" in request.features and "causal" not in request.features:
        return "its window needs causal attention"
    return None
