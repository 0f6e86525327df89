"""Time attention, forward and backward, at 12 heads of 64: `python -m benchmarks.attention`.

Every implementation is checked against float64 before it is timed. With torch installed (the group `parity`) its own attention is
timed in the same rounds: `scaled_dot_product_attention` with the flash kernel for full and causal attention; plain tensors, which
is what its users have, for T5's bias and XLNet's relative positions. Prints Markdown.
"""

import argparse
import functools
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks import conformance, timing
from train.metrics import matrix_rate
from zoo import attention as door
from zoo import positions
from zoo.masks import Bias, Buckets, Mask, Relative

HEADS, HEAD = 12, 64
TOKENS = 2048
"""Queries of a batch, over all its examples."""
KINDS = {"full": "full", "causal": "causal", "t5": "bucket bias", "xlnet": "relative bias"}
"""What is timed -> the case of `conformance` that is checked first."""


def main() -> int:
    """The command; returns 1 if an implementation is wrong."""
    from zoo import runtime

    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    runtime.prepare()
    runtime.canary()
    rate = matrix_rate("float32")
    print(f"{timing.environment()}; matrix products {rate / 1e9:.0f} GFLOP/s\n")
    sound = True
    for kind in asked.kinds:
        names = [name for name in ("xla", "blocked") if conformance.check(name, KINDS[kind]).ok]
        sound &= len(names) == 2
        rows, ratios, timed = [], [], []
        for length in asked.lengths:
            seconds = timing.interleaved(programs(kind, length, names), asked.rounds)
            timed = list(seconds)
            middle = {name: float(np.median(each)) for name, each in seconds.items()}
            unit = middle["blocked"]
            ratios.append([middle[name] / unit for name in timed])
            cells = [
                f"{middle[name] / unit:.2f} ({each.min() / unit:.2f} .. {each.max() / unit:.2f})"
                for name, each in seconds.items()
            ]
            share = _flops(kind, length) / unit / rate
            rows.append(f"| {kind} {TOKENS // length} x {length} | {' | '.join(cells)} | {share:.0%} |")
        means = np.exp(np.log(np.asarray(ratios)).mean(0))
        head = f"| time over blocked's median, of {asked.rounds} (least .. most)"
        print(f"{head} | {' | '.join(timed)} | blocked, of the matrix rate |")
        print(f"|---|{'---|' * (len(timed) + 1)}")
        print("\n".join(rows))
        print(f"| geometric mean | {' | '.join(f'{mean:.2f}' for mean in means)} | |\n", flush=True)
    return 0 if sound else 1


def programs(kind: str, length: int, names: list[str]) -> dict[str, Callable[[], object]]:
    """Output and gradients of one kind of attention by each implementation, and by torch where it is."""
    rng = np.random.default_rng(0)
    examples = max(1, TOKENS // length)

    def normal(*shape: int) -> Float[Array, "..."]:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    q, k, v, cotangent = (normal(examples, length, HEADS, HEAD) for _ in range(4))
    bias: Bias | None = None
    if kind == "t5":
        bias = Buckets(table=normal(32, HEADS))
    if kind == "xlnet":
        bias = Relative(q_r=normal(*q.shape), r=normal(HEADS, HEAD, 2 * length), first=length)
    numbers = None if bias is None else bias.numbers()
    scale = 1.0 if kind == "t5" else None

    def pull(impl: str, q: Array, k: Array, v: Array, numbers: Any, cotangent: Array) -> Any:
        def value(q: Array, k: Array, v: Array, numbers: Any) -> Array:
            whole = None if bias is None else bias.with_numbers(numbers)
            return door.attention(q, k, v, mask=Mask(causal=kind == "causal"), bias=whole, scale=scale, impl=impl)

        out, backward = jax.vjp(value, q, k, v, numbers)
        return out, backward(cotangent)

    def program(impl: str) -> Callable[[], object]:
        compiled = jax.jit(functools.partial(pull, impl))
        return lambda: jax.block_until_ready(compiled(q, k, v, numbers, cotangent))

    made = {name: program(name) for name in names}
    if importlib.util.find_spec("torch"):
        made["torch"] = _torch(kind, q, k, v, cotangent, bias)
    return made


def _torch(kind: str, q: Any, k: Any, v: Any, cotangent: Any, bias: Any) -> Callable[[], object]:
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention import SDPBackend, sdpa_kernel  # pyright: ignore[reportMissingImports]

    def tensor(x: Any, *order: int) -> Any:
        return torch.tensor(np.asarray(x)).permute(order).contiguous()

    q, k, v, cotangent = (tensor(x, 0, 2, 1, 3) for x in (q, k, v, cotangent))
    trained, length, bucket = [q, k, v], q.shape[2], None
    if kind == "t5":
        distance = np.arange(length)[None] - np.arange(length)[:, None]
        bucket = torch.tensor(
            np.asarray(positions.t5_bucket(jnp.asarray(distance), True, 32, bias.max_distance)), dtype=torch.long
        )
        trained.append(tensor(bias.table, 0, 1))
    if kind == "xlnet":
        trained += [tensor(bias.q_r, 0, 2, 1, 3), tensor(bias.r, 0, 1, 2)]
    for each in trained:
        each.requires_grad_(True)

    def shifted(x: Any) -> Any:
        # Dai et al. 2019, appendix B: by reshaping, as `transformers` does it.
        rows = x.reshape(*x.shape[:2], x.shape[3], x.shape[2])[:, :, 1:]
        return rows.reshape(*x.shape[:3], x.shape[3] - 1)[..., :length]

    def run() -> object:
        for each in trained:
            each.grad = None
        if kind == "t5":
            out = torch.softmax(q @ k.transpose(-1, -2) + trained[3][bucket].permute(2, 0, 1)[None], -1) @ v
        elif kind == "xlnet":
            scores = q @ k.transpose(-1, -2) + shifted(trained[3] @ trained[4])
            out = torch.softmax(scores * HEAD**-0.5, -1) @ v
        else:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=kind == "causal")
        out.backward(cotangent)
        return out

    return run


def _flops(kind: str, length: int) -> float:
    """Of the 7 products of T x S x H, 2 forward and 5 backward, half of them where the mask is causal; a bias is not counted."""
    return 7 * 2 * TOKENS * length * HEADS * HEAD * (0.5 if kind == "causal" else 1)


if __name__ == "__main__":
    sys.exit(main())
