"""Work of a program: FLOPs of its matrix products and kernels, and the bytes that it reads and writes."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.hlo.module import COLLECTIVE_OPS, Array, Computation, Instruction, Module, Run
from zoo.attention.attention import Call

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "while"),
    *("call", "conditional", "opt-barrier", "domain", "get-dimension-size", "add-dependency"),
}
"""Instructions that move no data."""

BACKWARD = 2.5
"""A fused backward pass has five products, the forward pass two (Dao et al. 2022, appendix B): it computes the scores again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Work of one device in a step."""

    products: float
    """FLOPs of matrix products in the program."""
    kernels: float
    """FLOPs inside kernels, which the compiler cannot see."""
    bytes: float
    """Bytes read and written, each array once by each operation that has it; data that stays on a TPU's chip is not counted."""
    unknown: tuple[str, ...]
    """Targets of custom calls with unknown FLOPs: kernels that belong to no call of attention."""

    @property
    def flops(self) -> float:
        return self.products + self.kernels


def work(module: Module, calls: Sequence[Call], devices: int, *, on_chip: bool = False) -> Work:
    """Return the work of a device; all `devices` share the FLOPs of the traced `calls` of attention.

    Args:
        on_chip: whether memory spaces other than 0 are on the device's chip, as on a TPU.
    """
    products = moved = 0.0
    kernels: list[Run] = []
    for run in module.runs():
        moved += run.times * _Traffic(module, on_chip).of(run)
        for instruction, computation in ((run.instruction, run.computation), *module.inside(run.instruction)):
            products += run.times * _flops(instruction, computation)
            if instruction.op == "custom-call" and _gemm(instruction) is None and _KERNELS.search(_call_target(instruction)):
                kernels.append(dataclasses.replace(run, instruction=instruction))
    inside, unknown = _kernel_flops(kernels, calls, devices)
    return Work(products=products, kernels=inside, bytes=moved, unknown=unknown)


# --- FLOPs ----------------------------------------------------------------------------------------------------------------------


def _flops(instruction: Instruction, computation: Computation) -> float:
    if instruction.op == "dot":
        contracted = _numbers(instruction.rest, "lhs_contracting_dims")
        return _product(instruction, computation, contracted)
    if instruction.op == "convolution":
        return _convolution(instruction, computation)
    if instruction.op == "custom-call" and (gemm := _gemm(instruction)) is not None:
        return _product(instruction, computation, gemm)
    return 0.0


def _product(instruction: Instruction, computation: Computation, contracted: Sequence[int]) -> float:
    left = computation.operands_of(instruction)[0].arrays[0]
    return 2.0 * instruction.arrays[0].elements * math.prod(left.shape[axis] for axis in contracted)


def _gemm(instruction: Instruction) -> Sequence[int] | None:
    """Return the contracted axes of the left operand of a library call for a matrix product; None for another call."""
    match = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.rest)
    return [int(axis) for axis in json.loads(match[1])] if match else None


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """Return the FLOPs of a convolution, in which form a TPU has its matrix products.

    Window positions outside of the array, or between its dilated elements, are not multiplied: they encode a batch of products.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    operands = computation.operands_of(instruction)
    if labels is None or len(operands) < 2:
        return 0.0
    left, right = (operand.arrays[0].shape for operand in operands[:2])
    lhs, kernel, result = labels.groups()
    out = instruction.arrays[0].shape
    groups = _number(instruction.rest, "feature_group_count")
    batches = _number(instruction.rest, "batch_group_count")
    fused = left[lhs.index("f")] / groups * out[result.index("f")] * left[lhs.index("b")] / batches
    window = _window(instruction.rest)
    for axis, letter in enumerate(sorted(set(kernel) - {"i", "o"})):
        fused *= _places(
            left[lhs.index(letter)],
            right[kernel.index(letter)],
            out[result.index(letter)],
            *(window[name][axis] if axis < len(window[name]) else default for name, default in _WINDOW.items()),
        )
    return 2.0 * fused


_WINDOW = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}


def _window(rest: str) -> dict[str, list[int]]:
    text = re.search(r"window=\{([^}]*)\}", rest)
    numbers: dict[str, list[int]] = {name: [] for name in _WINDOW}
    for name, values in re.findall(r"(\w+)=(\S+)", text[1] if text else ""):
        if name in numbers:
            # The low side of the padding: how far a window begins before the array.
            numbers[name] = [int(value.split("_")[0]) for value in values.split("x")]
    return numbers


def _places(size: int, kernel: int, out: int, stride: int, pad: int, spread: int, dilation: int) -> int:
    """Count the pairs of a result position and a kernel position that meet an element."""
    at = np.arange(kernel)[:, None] * dilation + np.arange(out) * stride - pad
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


_KERNELS = re.compile("cudnn|cublas|triton|mosaic|tpu_custom_call")
"""Targets of custom calls that multiply; others move or check data. A kernel that belongs to no call of attention is not counted,
and the plan reports it."""


def _call_target(instruction: Instruction) -> str:
    match = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    return match[1] if match else ""


def _kernel_flops(kernels: Sequence[Run], calls: Sequence[Call], devices: int) -> tuple[float, tuple[str, ...]]:
    """Return (FLOPs in kernels, targets of kernels that belong to no call).

    The kernels of a call's backward pass share its products; each other kernel is a forward pass. Unrolled layers are traced
    once, so they share a call: the number of backward passes is the count of its most frequent kernel.
    """
    flops = {call.scope: call.flops / devices for call in calls}
    total, unknown = 0.0, set()
    backward: dict[tuple[str, str], dict[Any, float]] = {}
    for run in kernels:
        origin = run.instruction.origin
        scope = next((part for part in re.split(r"[/()]", origin) if part in flops), None)
        if scope is None:
            unknown.add(_call_target(run.instruction))
        elif _is_backward(origin, scope):
            alike = backward.setdefault((scope, run.computation.name), {})
            # Copies of a kernel return the same arrays, in whatever memory space.
            kernel = origin, tuple((array.dtype, array.shape) for array in run.instruction.arrays)
            alike[kernel] = alike.get(kernel, 0.0) + run.times
        else:
            total += run.times * flops[scope]
    for (scope, _), alike in backward.items():
        total += BACKWARD * flops[scope] * max(alike.values())
    return total, tuple(sorted(unknown))


def _is_backward(origin: str, scope: str) -> bool:
    """Return whether an operation belongs to a gradient, and not to a recomputed forward pass."""
    before = origin[: origin.index(scope)]
    return "transpose(" in before and "rematted_computation" not in before


# --- bytes ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Traffic:
    """Counts the bytes that move between a device and its memory."""

    module: Module
    on_chip: bool

    def of(self, run: Run) -> float:
        """Return the bytes read and written by an instruction."""
        instruction, computation = run.instruction, run.computation
        if instruction.op in FREE or instruction.op.endswith(("-done", "-update")) or instruction.op in COLLECTIVE_OPS:
            return 0.0
        if instruction.op == "custom-call" and _call_target(instruction) in _PLACEHOLDERS:
            return 0.0
        operands = computation.operands_of(instruction)
        if instruction.op != "fusion":
            read = sum((self._read(instruction, place, operand) for place, operand in enumerate(operands)), 0.0)
            return read + self._written(instruction, computation)
        inner = self.module.computations[instruction.called[0]]
        pairs = zip(inner.parameters, operands, strict=False)
        read = sum((self._read_inside(inner, parameter, operand) for parameter, operand in pairs), 0.0)
        return read + (self._written(inner.root, inner) if self._size(instruction) else 0.0)

    def _read(self, user: Instruction, place: int, operand: Instruction) -> float:
        """Return the bytes that an instruction reads of an operand: a slice, or all; the target of an update is not read."""
        op = user.op.removesuffix("-start")
        if place == 0 and op in _SLICES:
            return sum((array.bytes for array in _results(user)), 0.0) if self._size(operand) else 0.0
        return 0.0 if place == 0 and op in _UPDATES else self._size(operand)

    def _read_inside(self, inner: Computation, parameter: Instruction, operand: Instruction) -> float:
        """Return the bytes that a fusion reads of an operand: its slices if it only takes slices, and at most all of it."""
        size, read = self._size(operand), 0.0
        waiting = [(parameter, user) for user in inner.users[parameter.name]] if size else []
        while waiting:
            source, user = waiting.pop()
            if user.op == "bitcast":
                waiting += [(user, next_user) for next_user in inner.users[user.name]]
            elif user.op in (*_SLICES, *_UPDATES) and user.operands[0] == source.name:
                read += user.bytes if user.op in _SLICES else 0.0
            else:
                return size
        return min(size, read)

    def _written(self, instruction: Instruction, computation: Computation) -> float:
        """Return the bytes that an instruction writes: an in-place update writes only the new part."""
        operands = computation.operands_of(instruction)
        if instruction.op == "tuple":
            return sum((self._written(operand, computation) for operand in operands), 0.0)
        if instruction.op == "bitcast" and operands:
            return self._written(operands[0], computation)
        op = instruction.op.removesuffix("-start")
        if op in _UPDATES and len(operands) > 1:
            return self._size(operands[_UPDATES[op]])
        return self._size(instruction)

    def _size(self, instruction: Instruction) -> float:
        return sum((array.bytes for array in _results(instruction) if not (self.on_chip and array.space)), 0.0)


def _results(instruction: Instruction) -> tuple[Array, ...]:
    """Return the arrays that an instruction makes, without the operands and the token that an asynchronous start also lists."""
    if not instruction.op.endswith("-start"):
        return instruction.arrays
    # A copy is listed before its original, all other results after their operands.
    first = 0 if instruction.op == "copy-start" else len(instruction.operands)
    return instruction.arrays[first : first + 1]


_PLACEHOLDERS = ("AllocateBuffer", "ConcatBitcast")
"""Custom calls of TPU programs that only name a location of an array."""
_SLICES = ("dynamic-slice", "gather", "slice")
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}
"""Instructions that change a part of their first operand in place -> the operand that is the new part."""


def _numbers(rest: str, name: str) -> list[int]:
    match = re.search(rf"\b{name}=\{{([\d,]*)\}}", rest)
    return [int(number) for number in match[1].split(",") if number] if match else []


def _number(rest: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\d+)", rest)
    return int(match[1]) if match else 1
