"""Bound on the speed of `blocked` on a CPU beside torch's flash kernel: `python -m benchmarks.micro.attention_products`.

XLA computes the matrix products of attention one after another, as `blocked` cuts them into tiles, without softmax, masks and
running sums: `blocked` takes at least their time. torch's kernel, `blocked` and the products are timed in the same rounds,
forward and backward, float32. Needs torch. Prints Markdown.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from benchmarks.attention import torch_attention
from benchmarks.attention.problems import FEATURES, Problem, Shape
from benchmarks.core import timing
from benchmarks.micro import script_setup
from zoo.attention.kernels.blocked import Plan, dot
from zoo.attention.request import kernel_call
from zoo.errors import BadInput
from zoo.ops.selects import batches_per_step
from zoo.ops.tile_sizes import tile_sizes

CASES = ((4, 512), (2, 1024), (1, 2048))
"""Rows, and tokens a row; 12 heads of 64."""


def print_attention_bounds() -> int:
    """Time attention and its matrix products beside torch's kernel, print a table, and return the exit code."""
    options = script_setup.start_measurement("attention_products", __doc__, rounds=9)
    print("| | B x T | `blocked` | its products alone | torch, share of the matrix rate |")
    print("|---|---|---:|---:|---:|")
    for feature in ("full", "causal"):
        for rows, length in CASES:
            problem = Problem.of(FEATURES[feature], Shape(rows, length, length, 12, 12, 64), "float32")
            peer = torch_attention.make_peer(torch_attention.SDPA, problem, "both")
            if isinstance(peer, str):
                raise BadInput(peer)
            function, arguments = problem.program("blocked", "both")
            programs = {"torch": peer[0], "blocked": _timed(jax.jit(function), *arguments), "products": _products(problem)}
            for program in programs.values():
                timing.warm_up(program)
            seconds, rates = timing.measured_with_rates(programs, ["float32"], rounds=options.rounds, budget=None)
            speeds = [np.quantile(seconds["torch"] / seconds[name], [0.5, 0.2, 0.8]) for name in list(programs)[1:]]
            cells = " | ".join("{:.2f} ({:.2f} to {:.2f})".format(*speed) for speed in speeds)
            flops = 2 * 7 * 12 * 64 * sum(call.pairs for call in problem.calls)
            share = flops / float(np.median(seconds["torch"])) / rates["float32"]
            print(f"| {feature} | {rows} x {length} | {cells} | {share:.0%} |", flush=True)
    print(f"\nSpeed over torch's flash kernel: medians of {options.rounds} rounds, 20th to 80th percentile.")
    return 0


def _timed(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(function(*arguments))


def _products(problem: Problem) -> Callable[[], Any]:
    """Return a program that computes the products of `blocked` in both passes, of the tiles that it does not skip."""
    (call,), (b, t, s, n, groups, _) = problem.calls, problem.shape
    sizes = tile_sizes(kernel_call("blocked", problem.trained["calls"][0]["q"], problem.trained["k"], call.mask, None, 0.0))
    plan = Plan.of(sizes, b, t, s, n, groups, call.mask, None, 1.0, 0.0)
    # [B, T, N, H] -> [groups of examples and heads, examples, heads, T, H]
    arrays = [problem.trained["calls"][0]["q"], problem.trained["k"], problem.trained["v"], problem.cotangents[0]]
    split = [x.transpose(0, 2, 1, 3).reshape(-1, plan.examples, plan.heads, x.shape[1], x.shape[3]) for x in arrays]
    tiles = [
        (i * plan.block_q, j * plan.block_k)
        for j in range(plan.num_k_blocks)
        for i in range(plan.num_q_blocks)
        if not call.mask.causal or j * plan.block_k < (i + 1) * plan.block_q
    ]

    def forward(q: Array, k: Array, v: Array, _: Array) -> Array:
        out = jnp.zeros_like(q)
        for i, j in tiles:
            q_i, k_j, v_j = q[:, :, i : i + plan.block_q], k[:, :, j : j + plan.block_k], v[:, :, j : j + plan.block_k]
            out = out.at[:, :, i : i + plan.block_q].add(dot(dot(q_i, k_j, 3, 3), v_j, 3, 2))
        return out

    def backward(q: Array, k: Array, v: Array, d_out: Array) -> Any:
        q_t, d_out_t = q.swapaxes(2, 3), d_out.swapaxes(2, 3)  # [examples, heads, H, T]
        d_q, d_k, d_v = jnp.zeros_like(q), jnp.zeros_like(k.swapaxes(2, 3)), jnp.zeros_like(v.swapaxes(2, 3))
        for i, j in tiles:
            queries, keys = slice(i, i + plan.block_q), slice(j, j + plan.block_k)
            p = dot(q[:, :, queries], k[:, :, keys], 3, 3)
            d_p = dot(d_out[:, :, queries], v[:, :, keys], 3, 3)
            d_k = d_k.at[:, :, :, keys].add(dot(q_t[..., queries], d_p, 3, 2))
            d_v = d_v.at[:, :, :, keys].add(dot(d_out_t[..., queries], p, 3, 2))
            d_q = d_q.at[:, :, queries].add(dot(d_p, k[:, :, keys], 3, 2))
        return d_q, d_k, d_v

    def over_groups(one_group: Callable[..., Any]) -> Callable[..., Any]:
        unroll = batches_per_step(len(split[0]))
        return jax.jit(lambda *x: lax.scan(lambda _, group: (None, one_group(*group)), None, x, unroll=unroll)[1])

    # Two programs: the compiler would take the scores of the backward pass from the forward pass.
    passes = [over_groups(forward), over_groups(backward)]
    return lambda: jax.block_until_ready([one_pass(*split) for one_pass in passes])


if __name__ == "__main__":
    sys.exit(script_setup.run_measurement(print_attention_bounds))
