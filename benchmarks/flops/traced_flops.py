"""FLOPs of a step as it was traced, before XLA: what is computed again by design, and what attention leaves out.

They do not depend on the compiled program, so that a mistake in reading that program shows: it multiplies what was traced.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jax.interpreters import partial_eval

from benchmarks.flops.kernel_flops import RECOMPUTED, KernelRun, attention_passes, is_backward, kernel_flops, scope_of
from zoo.attention.recorded_calls import Call
from zoo.ops.ragged_product import Product

_MEAN = re.compile(r"\bmean_trips_([\d.]+)_of_(\d+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedWork:
    """FLOPs of all devices in a step."""

    products: float
    """FLOPs of matrix products outside of kernels."""
    kernels: float
    """In kernels, by their formulas."""
    recomputed: float
    """The part of both that computes values of the forward pass again."""
    optimizer: float
    """Products of a training step outside of the loss and its gradient."""
    skipped: float
    """FLOPs of the model's count, of all pairs of positions, that attention leaves out by causality and windows."""

    @property
    def flops(self) -> float:
        return self.products + self.kernels


@dataclasses.dataclass(frozen=True)
class _Operation:
    """A product or kernel, and how often it runs on all devices together."""

    path: str
    """Names of its scopes, as in a compiled program."""
    times: float
    flops: float
    """FLOPs of a product; 0 for a kernel."""
    kernel: tuple[Any, ...] = ()
    """Name and result types of a kernel."""
    share: float = 1.0
    """The share of the pairs of positions that the loops around it do not leave out."""


def traced_work(traced: Any, calls: Sequence[Call], devices: int, products: Sequence[Product] = ()) -> TracedWork:
    """Return the FLOPs of a traced program (`jax.stages.Traced`) that has these calls of attention and products of groups."""
    program = traced.jaxpr.jaxpr
    jaxpr, _ = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    operations = list(_operations(jaxpr, "", 1.0, 1.0))
    # A kernel runs on every device, on its part of the arrays.
    kernels = [KernelRun(row.path, row.kernel, "", row.times / devices) for row in operations if row.kernel]
    inside, _ = kernel_flops(kernels, calls, devices, products)
    by_scope = {call.scope: call for call in calls}
    # Products of groups that are computed again; their FLOPs are those of a device.
    grouped = {product.scope: product.flops * devices for product in products}
    repeats = (run for run in kernels if RECOMPUTED in run.origin)
    again = sum((run.times * grouped[scope] for run in repeats if (scope := scope_of(run.origin, grouped))), 0.0)
    skipped = 0.0
    for scope, passes in attention_passes(kernels, by_scope).items():
        call = by_scope[scope]
        again += call.flops * (passes.again + 0.5 * passes.backward) + call.distance_flops * (passes.again + passes.backward)
        skipped += (call.dense_flops - call.flops) * (passes.forward + 2 * passes.backward)
    for row in operations:
        flops, all_pairs = row.times * row.flops, 1 / row.share
        of_ring = by_scope.get(scope_of(row.path, by_scope) or "")
        if of_ring is not None and of_ring.chunk_flops:
            # Some chunks are never visited; each call stands for a part of them.
            all_pairs *= of_ring.dense_flops / of_ring.chunk_flops
        # Of the five products of the backward pass of `blocked`, the first computes the scores again.
        first = 0.2 if all_pairs != 1 and is_backward(row.path) else 0.0
        repeated = 1.0 if RECOMPUTED in row.path else first
        again += repeated * flops
        skipped += (1 - repeated) * flops * (all_pairs - 1)
    total = sum((row.times * row.flops for row in operations), 0.0)
    differentiated = sum((row.times * row.flops for row in operations if "jvp(" in row.path), 0.0)
    return TracedWork(
        products=total,
        kernels=inside * devices,
        recomputed=again,
        optimizer=total - differentiated if differentiated else 0.0,
        skipped=skipped,
    )


def _operations(jaxpr: Any, path: str, times: float, share: float) -> Iterator[_Operation]:
    """Yield the products and kernels of a program and of those that it calls."""
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        here = "/".join(filter(None, (path, str(equation.source_info.name_stack))))
        types = tuple((str(value.aval.dtype), value.aval.shape) for value in equation.outvars if hasattr(value.aval, "dtype"))
        match name:
            case "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                left = equation.invars[0].aval.shape
                yield _Operation(
                    here, times, 2.0 * math.prod(types[0][1]) * math.prod(left[axis] for axis in contracted), (), share
                )
            case "pallas_call":
                yield _Operation(here, times, 0.0, (str(params.get("name_and_src_info", "")), types))
            case _ if name.startswith("dot_product_attention"):
                yield _Operation(here, times, 0.0, (name, types))
            case "scan":
                yield from _operations(params["jaxpr"].jaxpr, here, times * params["length"], share)
            case "while":
                # Loops of a step that are not scans are those of `blocked`, or multiply nothing.
                mean = _MEAN.search(here)
                trips, limit = (float(mean[1]), int(mean[2])) if mean else (1.0, 1)
                yield from _operations(params["body_jaxpr"].jaxpr, here, times * trips, share * trips / limit)
            case "cond":
                branches = (list(_operations(branch.jaxpr, here, times, share)) for branch in params["branches"])
                yield from max(branches, key=lambda rows: sum(row.times * row.flops for row in rows))
            case "shard_map":
                # Its body has the arrays of one device.
                axes = next(value for key, value in params.items() if key.endswith("manual_axes"))
                copies = math.prod(size for axis, size in params["mesh"].shape.items() if axis in axes)
                yield from _operations(params["jaxpr"], here, times * copies, share)
            case _:
                for inner in _called(params.values()):
                    yield from _operations(inner, here, times, share)


def _called(values: Iterable[Any]) -> Iterator[Any]:
    """Yield the programs among the parameters of an operation."""
    for value in values:
        inner = getattr(value, "jaxpr", value)
        if hasattr(inner, "eqns"):
            yield inner
