"""Work of a program: FLOPs of its matrix products and kernels, and the bytes that it reads and writes."""

import collections
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.flops.kernel_flops import KernelRun, kernel_flops
from benchmarks.hlo.hlo_parser import COLLECTIVES, ExecutedInstruction, Module
from benchmarks.hlo.instructions import HOST, Array, Computation, Instruction
from zoo.attention.recorded_calls import Call
from zoo.ops.ragged_product import Product

FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "while"),
    *("call", "conditional", "opt-barrier", "domain", "get-dimension-size", "add-dependency"),
}
"""Instructions that move no data."""


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
    """Targets of custom calls with unknown FLOPs: kernels of neither attention nor a product of groups."""
    unresolved: tuple[str, ...] = ()
    """Loops that multiply or exchange data, and whose count is not known."""
    runs: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Name of a kernel -> how often it runs."""
    operations: tuple[tuple[float, float], ...] = ()
    """FLOPs and bytes of each operation, times its count in a step; all kernels together are one."""

    @property
    def flops(self) -> float:
        return self.products + self.kernels


def device_work(
    module: Module, calls: Sequence[Call], devices: int, *, products: Sequence[Product] = (), on_chip: bool = False
) -> Work:
    """Return the work of a device; all `devices` share the FLOPs of the traced `calls` of attention.

    Args:
        products: traced products of groups of rows.
        on_chip: whether memory spaces other than 0 are on the device's chip, as on a TPU.
    """
    kernels: list[KernelRun] = []
    runs: collections.Counter[str] = collections.Counter()
    operations: list[tuple[float, float]] = []
    kernel_bytes = 0.0
    unresolved: set[str] = set()
    for operation in executed_operations(module, on_chip=on_chip):
        run = operation.run
        moved, dots = run.times * operation.bytes, run.times * operation.products
        for instruction in operation.kernels:
            # Copies of a kernel return arrays of the same types, in any memory space.
            types = tuple((array.dtype, array.shape) for array in instruction.arrays)
            name = instruction.attribute("custom_call_target")
            kernels.append(KernelRun(instruction.op_name, (name, instruction.op_name, types), run.computation, run.times))
            runs[_kernel_name(instruction)] += run.times  # pyright: ignore[reportArgumentType]
        if dots or operation.kernels or any(inner.opcode in COLLECTIVES for inner in run.instruction.inside()):
            unresolved.add(run.unresolved)
        if operation.kernels:
            kernel_bytes += moved
            moved = 0.0
        if dots or moved:
            operations.append((dots, moved))
    inside, others = kernel_flops(kernels, calls, devices, products)
    return Work(
        products=math.fsum(flops for flops, _ in operations),
        kernels=inside,
        bytes=math.fsum(moved for _, moved in operations) + kernel_bytes,
        unknown=tuple(sorted({str(run.kernel[0]) for run in others})),
        unresolved=tuple(sorted(unresolved - {""})),
        runs=dict(runs),
        operations=(*operations, (inside, kernel_bytes)),
    )


@dataclasses.dataclass(frozen=True)
class Operation:
    """One instruction of the program as it is executed, a fusion counting as one; work is that of one execution."""

    run: ExecutedInstruction
    products: float
    """FLOPs of matrix products."""
    bytes: float
    """Bytes read and written: see `Work.bytes`."""
    kernels: tuple[Instruction, ...]
    """Kernels in it, whose FLOPs are not among those of `products`."""


def executed_operations(module: Module, *, on_chip: bool = False) -> Iterator[Operation]:
    """Yield the operations of a program in its order; for `on_chip` see `device_work`."""
    for run in module.runs():
        products, kernels = 0.0, []
        for instruction in run.instruction.inside():
            products += _flops(instruction)
            if _gemm(instruction) is None and _KERNELS.search(instruction.attribute("custom_call_target")):
                kernels.append(instruction)
        yield Operation(run, products, _Traffic(on_chip).of(run.instruction), tuple(kernels))


def _kernel_name(call: Instruction) -> str:
    """Return the name of a Pallas kernel, or the target of another custom call."""
    match = re.search(r"(\w+)/pallas_call$", call.op_name)
    return match[1] if match else call.attribute("custom_call_target")


def least_bytes(module: Module, temporaries: int, cache: float = 0.0) -> float:
    """Return the bytes that a device moves to and from its memory at least, however much is cached.

    Each argument is read once and each result written once. The temporaries that exist at the same time, and that no cache has
    room for, are written and read again.

    Args:
        temporaries: largest number of bytes of temporaries at the same time.
        cache: bytes of the device's cache.
    """
    ends = (array for instruction in (*module.entry.parameters, module.entry.root) for array in instruction.arrays)
    arguments_and_results = sum((array.bytes for array in ends if array.space != HOST), 0.0)
    return arguments_and_results + 2 * max(0.0, temporaries - cache)


# --- FLOPs ----------------------------------------------------------------------------------------------------------------------


def _flops(instruction: Instruction) -> float:
    if instruction.opcode == "convolution":
        return _convolution(instruction)
    contracted = _gemm(instruction) if instruction.opcode != "dot" else instruction.integers("lhs_contracting_dims")
    if contracted is None:
        return 0.0
    left = instruction.operands[0].arrays[0]
    return 2.0 * instruction.arrays[0].elements * math.prod(left.shape[axis] for axis in contracted)


def _gemm(instruction: Instruction) -> Sequence[int] | None:
    """Return the contracted axes of the left operand of a library call for a matrix product; None for another call."""
    match = re.search(r'"lhs_contracting_dimensions":(\[[^\]]*\])', instruction.attributes)
    return [int(axis) for axis in json.loads(match[1])] if match and instruction.opcode == "custom-call" else None


def _convolution(instruction: Instruction) -> float:
    """Return the FLOPs of a convolution; programs for a TPU express matrix products as convolutions.

    Only window positions that fall on a stored element count. Positions in the padding or between dilated elements multiply
    nothing: XLA encodes batches of products that way.
    """
    left, right = (operand.arrays[0].shape for operand in instruction.operands[:2])
    lhs, kernel, result = re.split("_|->", instruction.attribute("dim_labels"))
    out = instruction.arrays[0].shape
    groups, batches = (int(instruction.attribute(f"{name}_group_count") or 1) for name in ("feature", "batch"))
    fused = left[lhs.index("f")] / groups * out[result.index("f")] * left[lhs.index("b")] / batches
    # The low side of the padding counts: how far a window begins before the array.
    window = {
        name: [int(value.partition("_")[0]) for value in values.split("x")]
        for name, values in re.findall(r"(\w+)=(\S+)", instruction.attribute("window"))
    }
    for axis, letter in enumerate(sorted(set(kernel) - {"i", "o"})):
        fused *= _places(
            left[lhs.index(letter)],
            right[kernel.index(letter)],
            out[result.index(letter)],
            *(window[name][axis] if name in window else default for name, default in _WINDOW.items()),
        )
    return 2.0 * fused


_WINDOW = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}
"""Fields of a window and their values where they are not printed."""


def _places(size: int, kernel: int, out: int, stride: int, pad: int, spread: int, dilation: int) -> int:
    """Count the pairs of a result position and a kernel position that meet an element."""
    at = np.arange(kernel)[:, None] * dilation + np.arange(out) * stride - pad
    return int(((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum())


_KERNELS = re.compile("cudnn|cublas|triton|mosaic|tpu_custom_call")
"""Targets of custom calls that multiply; others move or check data. A kernel that belongs to neither a call of attention nor a
product of groups is not counted, and the plan reports it."""


# --- bytes ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Traffic:
    """Counts the bytes that move between a device and its memory."""

    on_chip: bool

    def of(self, instruction: Instruction) -> float:
        """Return the bytes read and written by an instruction."""
        opcode, operands = instruction.opcode, instruction.operands
        if opcode in FREE or opcode.endswith(("-done", "-update")) or opcode in COLLECTIVES:
            return 0.0
        if instruction.attribute("custom_call_target") in _PLACEHOLDERS:
            return 0.0
        if opcode != "fusion":
            read = sum((self._read(instruction, place, operand) for place, operand in enumerate(operands)), 0.0)
            return read + self._written(instruction)
        inner = instruction.called[0]
        pairs = zip(inner.parameters, operands, strict=False)
        read = sum((self._read_inside(inner, parameter, operand) for parameter, operand in pairs), 0.0)
        return read + (self._written(inner.root) if self._size(instruction) else 0.0)

    def _read(self, user: Instruction, place: int, operand: Instruction) -> float:
        """Return the bytes that an instruction reads of an operand: a slice, or all; the target of an update is not read."""
        opcode = user.opcode.removesuffix("-start")
        if place == 0 and opcode in SLICES:
            return sum((array.bytes for array in _results(user)), 0.0) if self._size(operand) else 0.0
        return 0.0 if place == 0 and opcode in _UPDATES else self._size(operand)

    def _read_inside(self, inner: Computation, parameter: Instruction, operand: Instruction) -> float:
        """Return the bytes that a fusion reads of an operand: its slices if it only takes slices, and at most all of it."""
        size, read = self._size(operand), 0.0
        waiting = [(parameter, user) for user in inner.users[parameter]] if size else []
        while waiting:
            source, user = waiting.pop()
            if user.opcode == "bitcast":
                waiting += [(user, next_user) for next_user in inner.users[user]]
            elif user.opcode in (*SLICES, *_UPDATES) and user.operands[0] is source:
                read += user.bytes if user.opcode in SLICES else 0.0
            else:
                return size
        return min(size, read)

    def _written(self, instruction: Instruction) -> float:
        """Return the bytes that an instruction writes: an in-place update writes only the new part."""
        operands = instruction.operands
        if instruction.opcode == "tuple":
            return sum((self._written(operand) for operand in operands), 0.0)
        if instruction.opcode == "bitcast" and operands:
            return self._written(operands[0])
        opcode = instruction.opcode.removesuffix("-start")
        if opcode in _UPDATES and len(operands) > 1:
            return self._size(operands[_UPDATES[opcode]])
        return self._size(instruction)

    def _size(self, instruction: Instruction) -> float:
        device = (array for array in _results(instruction) if array.space != HOST and not (self.on_chip and array.space))
        return sum((array.bytes for array in device), 0.0)


def _results(instruction: Instruction) -> tuple[Array, ...]:
    """Return the arrays that an instruction makes, without the operands and the token that an asynchronous start also lists."""
    if not instruction.opcode.endswith("-start"):
        return instruction.arrays
    # A "copy-start" lists the copy before the original; all other instructions list their operands first.
    first = 0 if instruction.opcode == "copy-start" else len(instruction.operands)
    return instruction.arrays[first : first + 1]


_PLACEHOLDERS = ("AllocateBuffer", "ConcatBitcast")
"""Custom calls of TPU programs that only name a location of an array."""
SLICES = ("dynamic-slice", "gather", "slice")
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}
"""Instructions that change a part of their first operand in place -> the operand that is the new part."""
