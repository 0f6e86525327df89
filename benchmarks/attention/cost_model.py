"""What an attention costs by its definition, what a compiled program takes, and how near a time is to what the machine can do."""

import collections
import re
from collections.abc import Mapping
from typing import Any

import jax

from benchmarks.attention.problems import Problem

FORMULAS = {
    "FLOPs": "2 N H products pairs, of the (query, key) pairs that the mask allows: all are B T S, causal B T (T + 1) / 2. "
    "Products are 2 forward, q k and w v, so that all pairs make 4 B T S N H, and 5 backward, q k again, dw, dv, dq and dk: 2.5 "
    "times as many. With a relative bias they are 3 and 8: also q_r r, again, dq_r and dr",
    "bytes": "the least traffic there can be: every input read once and every output written once, gradients and what they come "
    "from included",
    "of the matrix rate": "FLOP/s over the rate of matrix products of the same dtype, measured by the same process",
    "attainable": "the lower of the matrix rate and FLOPs / bytes times the measured copy rate (the roofline)",
    "memory": "arguments, outputs and temporaries of the compiled program",
    "time": "the device's own, by its profiler, where that gives one: seconds in which it is at work, a mean of several calls; "
    "else wall time, to the end of a call on the host: median of interleaved rounds. Rates follow from it. In table.csv and "
    "cells.jsonl clock says which it is, device or wall, seconds is always wall time and device_seconds the device's",
    "percentiles": "20th and 80th of the wall times of the rounds",
    "ratio": "wall time over that of xla in the same round: median, 20th and 80th percentile of the rounds",
}


def time_of(cell: Mapping[str, Any]) -> float:
    """Seconds of a timed cell, by its clock: see `FORMULAS`."""
    return cell["device_seconds" if cell.get("clock") == "device" else "seconds"]


def flops(problem: Problem, direction: str) -> int:
    """Of matrix products, see `FORMULAS`."""
    forward, backward = problem.feature.products
    pairs = sum(call.pairs for call in problem.calls)
    return 2 * problem.shape.head * problem.shape.heads * pairs * (forward + (backward if direction == "both" else 0))


def traffic(problem: Problem, direction: str) -> int:
    """Bytes of all inputs and outputs."""
    function, arguments = problem.program("xla", direction)
    return _bytes(arguments) + _bytes(jax.eval_shape(function, *arguments))


def predicted(impl: str, problem: Problem, direction: str) -> int:
    """Bytes of the scores that an implementation is known to hold at once, in float32; 0 where it holds none, or is not known."""
    if impl not in COPIES:
        return 0
    shape, copies = problem.shape, COPIES[impl][direction == "both"]
    return copies * 4 * shape.batch * shape.heads * shape.keys * max(call.queries for call in problem.calls)


COPIES = {"reference": (1, 2), "xla": (1, 2)}
"""Arrays [B, N, T, S] that are there at once at least, forward and with the backward pass."""


def required(compiled: Any) -> int | None:
    """Bytes that a compiled program needs at once; None where the backend does not say."""
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes - stats.alias_size_in_bytes


def kernels(text: str) -> str:
    """What a compiled program runs, by the names it has in the program's text, most often first.

    Custom calls and custom fusions (__cudnn$fmha..., __triton_gemm, mosaic_gpu..., tpu_custom_call, __ynn_fusion) by their own
    names; products that are in none of these as "dot"; "fusion" where there is nothing else.
    """
    matches = re.findall(r'custom_call_target="([^"]+)"|"kind":"(__[^"]+)"', text)
    names = collections.Counter(next(filter(None, pair)) for pair in matches)
    if bare := len(re.findall(r" = \S+ (?:dot|convolution)\(", text)) - names.get("__ynn_fusion", 0):
        names["dot"] = max(0, bare)
    return ", ".join(f"{count} {name}" for name, count in names.most_common() if count) or "fusion"


def rates(problem: Problem, direction: str, seconds: float, environment: Mapping[str, Any], peak: float | None) -> dict[str, Any]:
    """Columns that follow from a time.

    Args:
        environment: of the process that measured it.
        peak: published rate of the device for matrix products of the dtype, in FLOP/s.
    """
    work, moved = flops(problem, direction), traffic(problem, direction)
    # The environment's is that of all accelerators, and attention runs on one.
    devices = 1 if environment["backend"] == "cpu" else environment["devices"]
    matrix = environment["matrix_rate"][str(problem.trained["k"].dtype)] / devices
    attainable = min(matrix, work / moved * environment["copy_rate"])
    return {
        "tokens_per_s": problem.shape.batch * problem.shape.queries / seconds,
        "flops": work,
        "flops_per_s": work / seconds,
        "of_matrix_rate": work / seconds / matrix,
        "of_peak": None if peak is None else work / seconds / peak,
        "bytes": moved,
        "bytes_per_s": moved / seconds,
        "intensity": work / moved,
        "attainable": attainable,
        "of_attainable": work / seconds / attainable,
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
