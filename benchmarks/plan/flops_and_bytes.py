"""What a program computes and what it reads and writes: the FLOPs of its matrix products and kernels, the bytes of its arrays."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.hlo.module import SENT, Array, Computation, Instruction, Module, Run
from zoo.attention.attention import Call

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "while"),
    *("call", "conditional", "opt-barrier", "domain", "get-dimension-size", "add-dependency"),
}
"""Instructions that move nothing."""

BACKWARD = 2.5
"""A fused backward pass has five products where the forward pass has two (Dao et al. 2022, appendix B): the scores once more."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """Of one device, in a step."""

    products: float
    """FLOPs of matrix products in the program."""
    kernels: float
    """FLOPs inside kernels, which the compiler cannot see."""
    bytes: float
    """Read and written, each array once by each operation that has it; what stays on the chip (a TPU's) not counted."""
    unknown: tuple[str, ...]
    """Kernels whose FLOPs are not known: targets of custom calls that are of no call of attention."""

    @property
    def flops(self) -> float:
        return self.products + self.kernels


def work(module: Module, calls: Sequence[Call], devices: int, *, on_chip: bool = False) -> Work:
    """The work of a device; `calls` of attention are those traced, whose FLOPs all `devices` share.

    Args:
        on_chip: whether memory that is not the first of a device is on its chip, as a TPU's.
    """
    products = moved = 0.0
    kernels: list[Run] = []
    for run in module.runs():
        moved += run.times * _Traffic(module, on_chip).of(run)
        for instruction, computation in ((run.instruction, run.computation), *module.inside(run.instruction)):
            products += run.times * _flops(instruction, computation)
            if instruction.op == "custom-call" and _gemm(instruction) is None and _KERNELS.search(_called(instruction)):
                kernels.append(dataclasses.replace(run, instruction=instruction))
    inside, unknown = _inside(kernels, calls, devices)
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
    left = computation.given(instruction)[0].arrays[0]
    return 2.0 * instruction.arrays[0].elements * math.prod(left.shape[axis] for axis in contracted)


def _gemm(instruction: Instruction) -> Sequence[int] | None:
    """Contracted axes of the left operand of a call of a library of matrix products; None if it is no such call."""
    match = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.rest)
    return [int(axis) for axis in json.loads(match[1])] if match else None


def _convolution(instruction: Instruction, computation: Computation) -> float:
    """A TPU has its matrix products as convolutions. Places of a window outside of the array, or between its spread-out elements,
    are not multiplied: they are how a batch of products is written."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    operands = computation.given(instruction)
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
            # Of padding the low side: how far a window begins before the array.
            numbers[name] = [int(value.split("_")[0]) for value in values.split("x")]
    return numbers


def _places(size: int, kernel: int, out: int, stride: int, pad: int, spread: int, dilation: int) -> int:
    """Pairs of a place of the result and one of the kernel that meet an element."""
    at = np.arange(kernel)[:, None] * dilation + np.arange(out) * stride - pad
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


_KERNELS = re.compile("cudnn|cublas|triton|mosaic|tpu_custom_call")
"""Targets of custom calls that multiply; others move or check something. One that is of no call of attention is not counted, and
a plan says so."""


def _called(instruction: Instruction) -> str:
    match = re.search(r'custom_call_target="([^"]*)"', instruction.rest)
    return match[1] if match else ""


def _inside(kernels: Sequence[Run], calls: Sequence[Call], devices: int) -> tuple[float, tuple[str, ...]]:
    """(FLOPs in kernels, targets of kernels that belong to no call).

    Those of a call that are a part of the backward pass share its products; each of another is a forward pass. Layers that are
    unrolled are traced once, so they share a call: a backward pass is there as often as its most frequent kernel.
    """
    flops = {call.scope: call.flops / devices for call in calls}
    total, unknown = 0.0, set()
    backward: dict[tuple[str, str], dict[Any, float]] = {}
    for run in kernels:
        origin = run.instruction.origin
        scope = next((part for part in re.split(r"[/()]", origin) if part in flops), None)
        if scope is None:
            unknown.add(_called(run.instruction))
        elif _is_backward(origin, scope):
            alike = backward.setdefault((scope, run.computation.name), {})
            # Copies of a kernel give the same arrays, wherever those are put.
            kernel = origin, tuple((array.dtype, array.shape) for array in run.instruction.arrays)
            alike[kernel] = alike.get(kernel, 0.0) + run.times
        else:
            total += run.times * flops[scope]
    for (scope, _), alike in backward.items():
        total += BACKWARD * flops[scope] * max(alike.values())
    return total, tuple(sorted(unknown))


def _is_backward(origin: str, scope: str) -> bool:
    """Whether an operation is of a gradient, and no forward pass that is computed again for it."""
    before = origin[: origin.index(scope)]
    return "transpose(" in before and "rematted_computation" not in before


# --- bytes ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Traffic:
    """Counts what goes between a device and its memory."""

    module: Module
    on_chip: bool

    def of(self, run: Run) -> float:
        """Bytes read and written by an instruction."""
        instruction, computation = run.instruction, run.computation
        if instruction.op in FREE or instruction.op.endswith(("-done", "-update")) or instruction.op in SENT:
            return 0.0
        if instruction.op == "custom-call" and _called(instruction) in _NAMED:
            return 0.0
        operands = computation.given(instruction)
        if instruction.op != "fusion":
            read = sum((self._read(instruction, place, operand) for place, operand in enumerate(operands)), 0.0)
            return read + self._written(instruction, computation)
        inner = self.module.computations[instruction.called[0]]
        pairs = zip(inner.parameters, operands, strict=False)
        read = sum((self._read_inside(inner, parameter, operand) for parameter, operand in pairs), 0.0)
        return read + (self._written(inner.root, inner) if self._size(instruction) else 0.0)

    def _read(self, user: Instruction, place: int, operand: Instruction) -> float:
        """What an instruction reads of an operand: a slice, or all. Where a slice is put does not matter."""
        op = user.op.removesuffix("-start")
        if place == 0 and op in _SLICES:
            return sum((array.bytes for array in _given_by(user)), 0.0) if self._size(operand) else 0.0
        return 0.0 if place == 0 and op in _UPDATES else self._size(operand)

    def _read_inside(self, inner: Computation, parameter: Instruction, operand: Instruction) -> float:
        """What a fusion reads of an operand: where it only takes slices, those, and no more than all of it."""
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
        """What an instruction writes: an update in place only what is new."""
        operands = computation.given(instruction)
        if instruction.op == "tuple":
            return sum((self._written(operand, computation) for operand in operands), 0.0)
        if instruction.op == "bitcast" and operands:
            return self._written(operands[0], computation)
        op = instruction.op.removesuffix("-start")
        if op in _UPDATES and len(operands) > 1:
            return self._size(operands[_UPDATES[op]])
        return self._size(instruction)

    def _size(self, instruction: Instruction) -> float:
        return sum((array.bytes for array in _given_by(instruction) if not (self.on_chip and array.space)), 0.0)


def _given_by(instruction: Instruction) -> tuple[Array, ...]:
    """What an instruction makes. One that only begins something names also what it is made of, and a word to wait for."""
    if not instruction.op.endswith("-start"):
        return instruction.arrays
    # A copy comes before its original, all else after what it is made of.
    first = 0 if instruction.op == "copy-start" else len(instruction.operands)
    return instruction.arrays[first : first + 1]


_NAMED = ("AllocateBuffer", "ConcatBitcast")
"""Custom calls of a TPU's programs that only say where an array is."""
_SLICES = ("dynamic-slice", "gather", "slice")
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}
"""Instructions that change a part of their first operand in place -> which operand the part is."""


def _numbers(rest: str, name: str) -> list[int]:
    match = re.search(rf"\b{name}=\{{([\d,]*)\}}", rest)
    return [int(number) for number in match[1].split(",") if number] if match else []


def _number(rest: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\d+)", rest)
    return int(match[1]) if match else 1
