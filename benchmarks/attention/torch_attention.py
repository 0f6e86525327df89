"""torch's attention as a program of the sweep, with the same inputs and in the same rounds as the zoo's implementations.

It is `scaled_dot_product_attention` where torch has a fused kernel, on CPU its flash kernel for full and causal attention. For a
learned bias, whose gradient no fused kernel of torch computes, it is plain tensor code. Arrays have torch's layout,
[B, N, T, H], before the clock starts.
"""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.attention.problems import Call, Problem
from benchmarks.core.timing import Program
from zoo.attention.biases import Buckets
from zoo.ops import positions

SDPA, FLEX = "torch", "torch-flex"
NAMES = (SDPA, FLEX)

Peer = tuple[Program, Callable[[Any], list[np.ndarray]]]
"""A program, and a function from its results to arrays in the order and layout of ours: outputs, then gradients."""


def make_peer(name: str, problem: Problem, direction: str) -> Peer | str:
    """Return the program of a peer, or why there is none."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed; it comes with the group parity (CONTRIBUTING.md)"
    if problem.feature.rate:
        return "torch drops other weights than jax-zoo, so that outputs cannot be compared"
    if problem.feature.sinks:
        return "torch's attention takes no sinks"
    import torch  # pyright: ignore[reportMissingImports]

    on_gpu = jax.default_backend() == "gpu"
    if on_gpu and not torch.cuda.is_available():
        return "this torch has no CUDA"
    if name == SDPA:
        return _program(problem, direction, "cuda" if on_gpu else "cpu", _attend)
    if not on_gpu:
        return "FlexAttention is timed on a GPU only"
    if any(call.bias is not None for call in problem.calls):
        return "FlexAttention is not implemented here for a learned bias"
    return _program(problem, direction, "cuda", _flex)


Attend = Callable[[Any, Any, Any, Any], Any]
"""(q, k, v, differentiable arrays of the bias) -> output, all [B, N, T, H]."""


def _program(problem: Problem, direction: str, place: str, attend: Callable[..., Attend]) -> Peer:
    import torch  # pyright: ignore[reportMissingImports]

    dtype = getattr(torch, str(problem.trained["k"].dtype))

    def tensor(x: Any) -> Any:
        array = torch.tensor(np.asarray(x, np.float32))
        transposed = array.permute(0, 2, 1, 3).contiguous() if array.dim() == 4 else array  # [B, N, T, H]
        return transposed.to(device=place, dtype=dtype)

    def arrays(outputs: list[Any]) -> list[np.ndarray]:
        on_host = [array.detach().float().cpu().numpy() for array in outputs]
        return [array.swapaxes(1, 2) if array.ndim == 4 else array for array in on_host]

    leaves, tree = jax.tree.flatten(problem.trained)
    tensors = [tensor(leaf).requires_grad_(direction == "both") for leaf in leaves]
    trained, cotangents = jax.tree.unflatten(tree, tensors), [tensor(array) for array in problem.cotangents]
    scale = problem.shape.head**-0.5 if problem.feature.scale is None else problem.feature.scale
    calls = [attend(call, problem.shape.keys, scale, place) for call in problem.calls]

    def forward() -> list[Any]:
        pairs = zip(calls, trained["calls"], strict=True)
        return [call(inputs["q"], trained["k"], trained["v"], inputs["numbers"]) for call, inputs in pairs]

    def run() -> list[Any]:
        with contextlib.nullcontext() if direction == "both" else torch.no_grad():
            outputs = forward()
        if direction == "both":
            for leaf in tensors:
                leaf.grad = None
            torch.autograd.backward(outputs, cotangents)
            outputs += [leaf.grad for leaf in tensors]
        if place == "cuda":
            torch.cuda.synchronize()
        return outputs

    return run, arrays


def _attend(call: Call, keys: int, scale: float, place: str) -> Attend:
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention import SDPBackend, sdpa_kernel  # pyright: ignore[reportMissingImports]

    mask = jax.tree.map(jnp.asarray, call.mask)
    plain = not any(mask.arrays()) and dataclasses.replace(mask, causal=False) == type(mask)()
    allowed = None if plain else torch.tensor(np.asarray(mask.dense(call.queries, keys))).to(place)
    bias = call.bias

    if bias is None:

        def fused(q: Any, k: Any, v: Any, _: Any) -> Any:
            # The flash kernel is forced if it supports the mask directly; otherwise torch chooses.
            chosen = sdpa_kernel(SDPBackend.FLASH_ATTENTION) if plain and place == "cpu" else contextlib.nullcontext()
            with chosen:
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, attn_mask=allowed, is_causal=plain and mask.causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
                )

        return fused
    added = _buckets(bias, call.queries, keys, place) if isinstance(bias, Buckets) else _relative(bias, keys, scale, place)

    def by_hand(q: Any, k: Any, v: Any, numbers: Any) -> Any:
        scores = scale * (q @ k.transpose(-1, -2)) + added(numbers)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        return torch.softmax(scores, -1) @ v

    return by_hand


def _buckets(bias: Buckets, queries: int, keys: int, place: str) -> Callable[[Any], Any]:
    import torch  # pyright: ignore[reportMissingImports]

    distance = np.arange(keys)[None] - np.arange(queries)[:, None]
    bucket = positions.t5_bucket(jnp.asarray(distance), bias.bidirectional, len(bias.table), bias.max_distance)
    index = torch.tensor(np.asarray(bucket), dtype=torch.long).to(place)
    return lambda numbers: numbers.table[index].permute(2, 0, 1)[None]


def _relative(bias: Any, keys: int, scale: float, place: str) -> Callable[[Any], Any]:
    """Return the relative bias: by distance, and by type.

    The part by distance is shifted in place (Dai et al. 2019, appendix B), or gathered if the queries are scattered.
    """
    import torch  # pyright: ignore[reportMissingImports]

    differ = torch.tensor(np.asarray(bias.query_types)[:, None, :, None] != np.asarray(bias.key_types)[:, None, None, :]).to(
        place
    )
    index = None
    if bias.query_positions is not None:
        distance = np.asarray(bias.query_positions)[:, :, None] - np.arange(keys)
        index = torch.tensor(bias.first - distance, dtype=torch.long).to(place)[:, None]

    def added(numbers: Any) -> Any:
        by_distance = numbers.q_r @ numbers.r
        if index is None:
            # Entry (t, s) is number first - t + s of row t: in the flattened rows, take rows shorter by one from `first` on.
            b, n, t, d = by_distance.shape
            line = by_distance.reshape(b, n, t * d)[..., bias.first : bias.first + t * (d - 1)]  # [B, N, T (D - 1)]
            shifted = line.reshape(b, n, t, d - 1)[..., :keys]  # [B, N, T, S]
        else:
            shifted = torch.gather(by_distance, 3, index.expand(-1, by_distance.shape[1], -1, -1))
        by_type = torch.where(differ, numbers.q_s[..., 1:], numbers.q_s[..., :1])
        return scale * (shifted + by_type)

    return added


def _flex(call: Call, keys: int, scale: float, place: str) -> Attend:
    """Return FlexAttention with the mask as a BlockMask, compiled on a GPU. Untested on a GPU: none was available."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention import flex_attention as flex  # pyright: ignore[reportMissingImports]

    mask = jax.tree.map(jnp.asarray, call.mask)
    dense = mask.dense(call.queries, keys)
    blocks = None
    if dense is not None:
        allowed = torch.tensor(np.asarray(dense)).to(place)
        batch = allowed.shape[0]

        def sees(b: Any, h: Any, t: Any, s: Any) -> Any:
            return allowed[b if batch > 1 else 0, 0, t, s]

        blocks = flex.create_block_mask(sees, batch if batch > 1 else None, None, call.queries, keys, device=place)
    attend = torch.compile(flex.flex_attention) if place == "cuda" else flex.flex_attention

    def run(q: Any, k: Any, v: Any, _: Any) -> Any:
        return attend(q, k, v, block_mask=blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1])

    return run
