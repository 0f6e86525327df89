"""A check of attention kernels on the device that runs them, before their numbers are used.

The first time that a process uses a kernel with some features, it runs a small call with the same features, forward and backward,
and compares it with the definition, as `zoo.runtime.jax_setup.check_cpu_compiler` compares the compiler of the CPU with numpy. A
kernel is written for one kind of device and compiled by a compiler that few programs test, and a wrong one would train a wrong
model without an error. The check is for a wrong kernel, not for a less precise one: `benchmarks.attention.conformance` measures
errors.
"""

import concurrent.futures
import dataclasses
import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo.attention.biases import Bias, ByDistance, Distanced
from zoo.attention.kernels import Kernel
from zoo.attention.kernels._flash_common import sink_logits
from zoo.attention.kernels.reference import reference
from zoo.attention.masks import Mask
from zoo.attention.request import RING, Request
from zoo.attention.tiles import Tile
from zoo.attention.totals import Sums
from zoo.errors import BadInput
from zoo.ops import counter_rng
from zoo.sharding import target_device_kind, target_platform

LENGTH = 128
"""Queries and keys of the call that is checked: the least that `splash` takes."""
BATCH, GROUPS, MOST_SHARED = 2, 2, 2
"""Examples, key/value heads, and at most this many query heads for each."""
NARROW = 48
"""Largest window of the call, so that it masks something."""
TOLERANCE = 0.05
"""Largest error, relative to the array's largest entry: 13 roundings to bfloat16. Correct kernels have at most 0.012 in bfloat16,
and planted mistakes have 0.19 (a scale that is 1.1 times too large) to 1.1 (tests/zoo/attention/test_kernel_check.py)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelError:
    """The largest error of a kernel's output and gradients, relative to the largest entry of the array, and where it is."""

    array: str
    error: float
    """NaN if the kernel returned NaN."""
    seconds: float
    """Time of the check, most of it for compilation."""


class FirstUses:
    """The kernels and features that this process has checked, and whether it checks any."""

    def __init__(self) -> None:
        self.enabled = True
        self._checked: set[tuple[Any, ...]] = set()

    def check(self, name: str, kernel: Kernel, request: Request, mask: Mask, bias: Bias | None) -> None:
        """Check a kernel, unless it has been checked with these features, and print what it took to stderr.

        A program for another device than that of this process cannot be run, and is not checked. Those of the CPU are checked by
        tests, and its compiler by `jax_setup.check_cpu_compiler`.

        Raises:
            BadInput: the kernel computes wrong numbers here.
        """
        key = name, request.features, request.dtype, request.shape[-1]
        if not self.enabled or key in self._checked or not _is_accelerator_here():
            return
        # JAX's state of a thread (the trace, the mesh, the default device) is that of the program that is being traced.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            result = thread.submit(measure_error, kernel, request, mask, bias).result()
        kind = target_device_kind()
        require_correct(name, request, kind, result)
        self._checked.add(key)
        if jax.process_index() == 0:
            error = f"largest error {result.error:.1e} of the largest entry, in {result.array}"
            print(f"attention {name} checked on {kind}: {error} ({result.seconds:.1f} s)", file=sys.stderr)


first_uses = FirstUses()


def require_correct(name: str, request: Request, kind: str, result: KernelError) -> None:
    """Refuse a kernel with a large error.

    Raises:
        BadInput: the error is above `TOLERANCE`, or is NaN.
    """
    if not result.error <= TOLERANCE:  # a NaN compares False
        features = f" with {', '.join(sorted(request.features))}" if request.features else ""
        wrong = f"{result.array} differs from the definition by {result.error:.2g} of its largest entry"
        fix = "choose another implementation, for example xla, with --model.compute.attention, and report this"
        raise BadInput(f"attention {name!r} computes wrong numbers on {kind} in {request.dtype}{features}: {wrong}; {fix}")


def measure_error(kernel: Kernel, request: Request, mask: Mask, bias: Bias | None) -> KernelError:
    """Compare a small call of a kernel with the definition in float32, output and gradients, on JAX's default device.

    Args:
        request: the features, the size of a head and the dtype of the call.
        mask: its mask, whose arrays are replaced by small ones; they may be traced.
        bias: likewise.
    """
    began = time.perf_counter()
    inputs, mask, bias, seed, heads = _small_call(request, mask, bias)
    kernels = {"": kernel} | ({" by chunks": in_two_chunks(kernel)} if RING in request.features else {})
    scale, rate = request.shape[-1] ** -0.5, 0.25 if seed is not None else 0.0
    dtype = jnp.dtype(request.dtype)

    @functools.partial(jax.jit, static_argnames=("kernel", "dtype"))
    def run(inputs: dict[str, Any], kernel: Any, dtype: Any) -> dict[str, Any]:
        def attend(differentiable: dict[str, Any]) -> Any:
            own = None if bias is None else bias.with_differentiable(differentiable["bias"])
            rest = (differentiable["sinks"],) if "sinks" in differentiable else ()
            q, k, v = (differentiable[name].astype(dtype) for name in "qkv")
            return kernel(q, k, v, mask, own, seed, heads, *rest, scale=scale, rate=rate)

        arrays = {name: array for name, array in inputs.items() if name != "cotangent"}
        out, pull = jax.vjp(attend, arrays)
        (gradients,) = pull(inputs["cotangent"].astype(out.dtype))
        named = {name: gradients[name] for name in arrays if name != "bias"}
        if bias is not None:
            named |= {name: array for name, _, array in gradients["bias"].arrays()}
        return {"out": out} | {f"d_{name}": array for name, array in named.items()}

    with jax.default_matmul_precision("highest"):
        exact = jax.device_get(run(inputs, reference, jnp.dtype(jnp.float32)))
    errors = {}
    for form, computed in kernels.items():
        results = jax.device_get(run(inputs, computed, dtype))
        for name, expected in exact.items():
            if form and name == "d_sinks":
                continue
            difference = np.abs(np.asarray(results[name], np.float32) - np.asarray(expected, np.float32)).max()
            errors[name + form] = float(difference) / max(float(np.abs(expected).max()), 1e-6)
    # A NaN is the worst.
    worst = max(errors, key=lambda name: (np.isnan(errors[name]), errors[name]))
    return KernelError(array=worst, error=errors[worst], seconds=time.perf_counter() - began)


def in_two_chunks(kernel: Any) -> Any:
    """Return a kernel that computes a call from two chunks of its keys by a `ChunkKernel`, like a ring; sinks are constants."""

    def attend(q: Any, k: Any, v: Any, mask: Mask, bias: Any, seed: Any, heads: Any, sinks: Any = None, **options: Any) -> Any:
        t, size = q.shape[1], k.shape[1] // 2
        bias = None if bias is None else bias.prepare(t, k.shape[1]).padded(t, k.shape[1])

        def chunk(arrays: Any, first: int, **more: Any) -> Any:
            q, k, v, bias = arrays
            tile = Tile({"T": jnp.int32(0), "S": jnp.int32(first)}, {"T": t, "S": size})
            parts = (None if spec is None else spec.slice_tile(tile) for spec in (mask, bias))
            seeds = None if seed is None else counter_rng.chunk_seeds(seed, 0, first)
            return kernel(q, *(x[:, first : first + size] for x in (k, v)), *parts, seeds, heads, **options, **more)

        arrays, sums = (q, k, v, bias), Sums.of(q, sink_logits(sinks))
        for first in (0, size):
            sums = sums.add(chunk(jax.lax.stop_gradient(arrays), first, return_totals=True), True)
        totals = jax.lax.stop_gradient(sums.totals(q.dtype))
        parts = [chunk(arrays, first, totals=totals) for first in (0, size)]
        # Each part equals the output, and has the gradient of its keys.
        return totals.out + sum(part - jax.lax.stop_gradient(part) for part in parts)

    return attend


def _is_accelerator_here() -> bool:
    """Return whether the program that is being traced is for an accelerator that this process has."""
    device = jax.devices()[0]
    return target_platform() != "cpu" and jax.default_backend() != "cpu" and target_device_kind() == device.device_kind


def _small_call(request: Request, mask: Mask, bias: Bias | None) -> tuple[Any, ...]:
    """Return the differentiable inputs and the cotangent of a small call, its mask, bias, seeds and heads."""
    random = np.random.default_rng(0)
    _, _, _, n, k, h = request.shape
    heads = GROUPS * min(n // k, MOST_SHARED)
    sizes = {"B": BATCH, "T": LENGTH, "S": LENGTH, "N": heads, "D": 2 * LENGTH}
    if mask.window is not None:
        mask = dataclasses.replace(mask, window=min(mask.window, NARROW))
    if isinstance(bias, Distanced):
        # All distances of the queries to the keys, 127 to -128.
        bias = dataclasses.replace(bias, first=LENGTH - 1)
    mask = _with_small_arrays(mask, sizes, random)
    bias = None if bias is None else _with_small_arrays(bias, sizes, random)

    def normal(*shape: int) -> np.ndarray:
        # Rounded, so that the definition in float32 computes with the same numbers.
        return random.standard_normal(shape, np.float32).astype(jnp.dtype(request.dtype)).astype(np.float32)

    inputs: dict[str, Any] = {
        "q": normal(BATCH, LENGTH, heads, h),
        "k": normal(BATCH, LENGTH, GROUPS, h),
        "v": normal(BATCH, LENGTH, GROUPS, h),
        "cotangent": normal(BATCH, LENGTH, heads, h),
    }
    if bias is not None:
        inputs["bias"] = bias.differentiable()
    if "sinks" in request.features:
        inputs["sinks"] = normal(heads)
    seed = jnp.asarray([[1, 2], [3, 4]], jnp.uint32) if "dropout" in request.features else None
    return inputs, mask, bias, seed, jnp.arange(heads, dtype=jnp.uint32)


def _with_small_arrays(spec: Any, sizes: dict[str, int], random: np.random.Generator) -> Any:
    """Return a mask or bias of the same kind whose arrays are small. Every query sees some keys but those of padding."""
    small = {}
    for name, letters, array in spec.arrays():
        # An axis of size 1 is broadcast; "-" is an axis of the parameters.
        shape = tuple(
            size if letter == "-" or size == 1 else sizes[letter] for letter, size in zip(letters, array.shape, strict=True)
        )
        small[name] = jnp.asarray(_small_array(spec, name, shape, random).astype(array.dtype))
    return dataclasses.replace(spec, **small)


def _small_array(spec: Any, name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Return the values of an array of a mask or bias."""
    index = np.broadcast_to(np.arange(shape[-1]), shape)
    integers = {
        "key_lengths": LENGTH - 40 * index,
        "segments": np.where(index < LENGTH - 8, 1 + index // 50, 0),
        "positions": index,
        "ranks": index * 37 % LENGTH,
        "types": index % 7 // 3,
    }
    kind = name if name in integers else name.rpartition("_")[2]
    if kind in integers:
        return integers[kind]
    values = random.standard_normal(shape, np.float32)
    if isinstance(spec, ByDistance) and spec.constant_from is not None:
        distances = np.clip(spec.first - np.arange(shape[0]), -spec.constant_from, spec.constant_from)
        values = values[np.clip(spec.first - distances, 0, shape[0] - 1)]
    return values > 0 if name == "allowed" else values
