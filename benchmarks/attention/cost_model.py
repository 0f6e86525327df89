"""Cost model of attention: FLOPs and bytes by definition, needs of a compiled program, and rates against the machine's."""

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
    "bytes": "the minimum traffic: every input is read once and every output written once, including gradients and cotangents",
    "of the matrix rate": "FLOP/s over the rate of matrix products of the same dtype, measured by the same process",
    "attainable": "the lower of the matrix rate and FLOPs / bytes times the measured copy rate (the roofline)",
    "memory": "arguments, outputs and temporaries of the compiled program",
    "time": "device time, if the profiler reports it: the seconds in which the device is busy, mean of several calls; else wall "
    "time until the call ends on the host, median of interleaved rounds. Rates follow from it. In table.csv and cells.jsonl "
    "clock is device or wall, seconds is always the wall time, and device_seconds the device time",
    "percentiles": "20th and 80th of the wall times of the rounds",
    "ratio": "wall time over that of xla in the same round: median, 20th and 80th percentile of the rounds",
}


def problem_shape_text(key: Mapping[str, Any]) -> str:
    """Return examples and lengths: "16 x 128", or "4 x 128/512" for 128 queries over 512 keys."""
    lengths = f"{key['queries']}" if key["queries"] == key["keys"] else f"{key['queries']}/{key['keys']}"
    return f"{key['batch']} x {lengths}"


def heads_of(key: Mapping[str, Any]) -> str:
    """Return heads and their size: "12 x 64", or "12/3 x 64" for 3 key/value heads."""
    heads = f"{key['heads']}" if key["heads"] == key["groups"] else f"{key['heads']}/{key['groups']}"
    return f"{heads} x {key['head']}"


def time_of(cell: Mapping[str, Any]) -> float:
    """Return the seconds of a timed cell, by its clock: see `FORMULAS`."""
    return cell["device_seconds" if cell.get("clock") == "device" else "seconds"]


def attention_flops(problem: Problem, direction: str) -> int:
    """Return the FLOPs of matrix products: see `FORMULAS`."""
    forward, backward = problem.feature.products
    pairs = sum(call.pairs for call in problem.calls)
    return 2 * problem.shape.head * problem.shape.heads * pairs * (forward + (backward if direction == "both" else 0))


def minimal_traffic(problem: Problem, direction: str) -> int:
    """Return the bytes of all inputs and outputs."""
    function, arguments = problem.program("xla", direction)
    return _bytes(arguments) + _bytes(jax.eval_shape(function, *arguments))


def predicted_score_bytes(impl: str, problem: Problem, direction: str) -> int:
    """Return the bytes of the float32 scores that an implementation holds at once; 0 if it holds none, or is unknown."""
    if impl not in COPIES:
        return 0
    shape, copies = problem.shape, COPIES[impl][direction == "both"]
    return copies * 4 * shape.batch * shape.heads * shape.keys * max(call.queries for call in problem.calls)


COPIES = {"reference": (1, 2), "xla": (1, 2)}
"""Minimum number of arrays [B, N, T, S] held at once, forward and with the backward pass."""


def kernels_in_program(text: str) -> str:
    """Return the kernels of a compiled program, by their names in the program's text, the most frequent first.

    Custom calls and custom fusions (__cudnn$fmha..., __triton_gemm, mosaic_gpu..., tpu_custom_call, __ynn_fusion) have their own
    names. Products outside of these are called "dot"; a program with nothing else is called "fusion".
    """
    matches = re.findall(r'custom_call_target="([^"]+)"|"kind":"(__[^"]+)"', text)
    names = collections.Counter(next(filter(None, pair)) for pair in matches)
    if bare := len(re.findall(r" = \S+ (?:dot|convolution)\(", text)) - names.get("__ynn_fusion", 0):
        names["dot"] = max(0, bare)
    return ", ".join(f"{count} {name}" for name, count in names.most_common() if count) or "fusion"


def attention_rate_columns(
    problem: Problem, direction: str, seconds: float, environment: Mapping[str, Any], peak: float | None
) -> dict[str, Any]:
    """Return the columns that follow from a time.

    Args:
        environment: of the process that measured it.
        peak: published rate of the device for matrix products of the dtype, in FLOP/s.
    """
    work, moved = attention_flops(problem, direction), minimal_traffic(problem, direction)
    # The environment has the rate of all accelerators, and attention runs on one.
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
