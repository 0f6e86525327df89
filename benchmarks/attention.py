"""Time attention, forward and backward, at 12 heads of 64: `python -m benchmarks.attention`.

Ours are checked against float64 before they are timed. With torch installed (the group `parity`) its own attention is compared
with ours and timed in the same rounds: `scaled_dot_product_attention` with the flash kernel for full and causal attention; plain
tensors, which is what its users have, for T5's bias and XLNet's relative positions. Prints Markdown.
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
from zoo import attention as door
from zoo import positions
from zoo.masks import Bias, Buckets, Mask, Relative

HEADS, HEAD = 12, 64
TOKENS = 2048
"""Queries of a batch, over all its examples."""
OURS = ("xla", "blocked")
KINDS = {"full": "full", "causal": "causal", "t5": "bucket bias", "xlnet": "relative bias"}
"""What is timed -> the case of `conformance` that is checked first."""


def main() -> int:
    """The command; returns 1 if an implementation is wrong, which then is not timed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048])
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    rate = timing.begin()
    wrong = False
    for kind in asked.kinds:
        if bad := [name for name in OURS if not conformance.check(name, KINDS[kind]).ok]:
            print(f"{kind} is not timed: {', '.join(bad)} disagrees with float64 (python -m benchmarks.conformance)\n")
            wrong = True
            continue
        rows, ratios, timed = [], [], []
        for length in asked.lengths:
            made = programs(kind, length)
            _compare(made)
            seconds = timing.interleaved(made, asked.rounds)
            timed = list(seconds)
            middle = {name: float(np.median(each)) for name, each in seconds.items()}
            unit = middle["blocked"]
            ratios.append([middle[name] / unit for name in timed])
            cells = [
                f"{middle[name] / unit:.2f} ({each.min() / unit:.2f} .. {each.max() / unit:.2f})"
                for name, each in seconds.items()
            ]
            share = _flops(kind, length) / unit / rate
            rows.append(f"| {kind} {_examples(length)} x {length} | {' | '.join(cells)} | {share:.0%} |")
        means = np.exp(np.log(np.asarray(ratios)).mean(0))
        head = f"| time over blocked's median, of {asked.rounds} (least .. most)"
        print(f"{head} | {' | '.join(timed)} | blocked, of the matrix rate |")
        print(f"|---|{'---|' * (len(timed) + 1)}")
        print("\n".join(rows))
        print(f"| geometric mean | {' | '.join(f'{mean:.2f}' for mean in means)} | |\n", flush=True)
    return 1 if wrong else 0


def programs(kind: str, length: int) -> dict[str, Callable[[], Any]]:
    """Programs that return (output [B, T, N, H], gradients) of one kind of attention: each of ours, and torch's where it is."""
    rng = np.random.default_rng(0)
    examples = _examples(length)

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

    def program(impl: str) -> Callable[[], Any]:
        compiled = jax.jit(functools.partial(pull, impl))
        return lambda: jax.block_until_ready(compiled(q, k, v, numbers, cotangent))

    made = {name: program(name) for name in OURS}
    if importlib.util.find_spec("torch"):
        made["torch"] = _torch(kind, q, k, v, cotangent, bias)
    return made


def _torch(kind: str, q: Any, k: Any, v: Any, cotangent: Any, bias: Any) -> Callable[[], Any]:
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention import SDPBackend, sdpa_kernel  # pyright: ignore[reportMissingImports]

    def tensor(x: Any, *order: int) -> Any:
        return torch.tensor(np.asarray(x)).permute(order).contiguous()

    q, k, v, cotangent = (tensor(x, 0, 2, 1, 3) for x in (q, k, v, cotangent))
    trained, length, bucket = [q, k, v], q.shape[2], None
    if kind == "t5":
        distance = np.arange(length)[None] - np.arange(length)[:, None]
        buckets = positions.t5_bucket(jnp.asarray(distance), True, len(bias.table), bias.max_distance)
        bucket = torch.tensor(np.asarray(buckets), dtype=torch.long)
        trained.append(tensor(bias.table, 0, 1))
    if kind == "xlnet":
        trained += [tensor(bias.q_r, 0, 2, 1, 3), tensor(bias.r, 0, 1, 2)]
    for each in trained:
        each.requires_grad_(True)

    def shifted(x: Any) -> Any:
        # Dai et al. 2019, appendix B: by reshaping, as `transformers` does it.
        rows = x.reshape(*x.shape[:2], x.shape[3], x.shape[2])[:, :, 1:]
        return rows.reshape(*x.shape[:3], x.shape[3] - 1)[..., :length]

    def run() -> Any:
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
        return out.detach().numpy().swapaxes(1, 2), [each.grad for each in trained]

    return run


def _compare(made: dict[str, Callable[[], Any]]) -> None:
    """Refuse to time programs that do not compute the same: float32 through a softmax of 2,048 terms differs by far less."""
    out = {name: np.asarray(program()[0]) for name, program in made.items()}
    for name, each in out.items():
        difference = np.abs(each - out["blocked"]).max()
        if not difference < 1e-4:
            raise RuntimeError(f"{name} computes something else than blocked: their outputs differ by {difference:.1e}")


def _examples(length: int) -> int:
    return max(1, TOKENS // length)


def _flops(kind: str, length: int) -> float:
    """Of the 7 products of T x S x H, 2 forward and 5 backward, half of them where the mask is causal; a bias is not counted."""
    return 7 * 2 * _examples(length) * length**2 * HEADS * HEAD * (0.5 if kind == "causal" else 1)


if __name__ == "__main__":
    sys.exit(main())
