"""The instructions of a compiled program and the computations that they form."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

from benchmarks.hlo.call_stacks import Frame

BYTES = {
    **{"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8},
    **{"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0},
}
"""Bytes of an element; dtypes that are not listed have 1 (the float8 types)."""


HOST = 5
"""XLA's number of the memory of the host."""


@dataclasses.dataclass(frozen=True)
class Array:
    """Type of an array."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0
    """Memory space that contains it, by XLA's number: 0 is the device's main memory, 1 on a TPU memory on the chip;
    see `HOST`."""

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> float:
        return float(self.elements * BYTES.get(self.dtype, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
    """A line of a computation; its name is unique in the program."""

    name: str
    opcode: str
    type: str
    """The type of its result, as printed."""
    operands: tuple["Instruction", ...] = dataclasses.field(repr=False)
    literal: str
    """Text between the parentheses: the value of a constant, the number of a parameter."""
    attributes: str
    """The attributes after the operands, as XLA prints them."""
    called: tuple["Computation", ...] = dataclasses.field(default=(), repr=False)
    """The computations that it runs; of a conditional its branches."""
    frames: tuple[Frame, ...] = ()
    """Where it was called in the source, innermost first, without frames of JAX and other libraries."""

    @functools.cached_property
    def arrays(self) -> tuple[Array, ...]:
        """Return the arrays of its result; those of a tuple, nested ones included, in order."""
        return tuple(
            Array(dtype, tuple(int(size.lstrip("<=")) for size in shape.split(",") if size), int(space or 0))
            for dtype, shape, space in _ARRAY.findall(self.type)
        )

    @property
    def bytes(self) -> float:
        return sum((array.bytes for array in self.arrays), 0.0)

    @property
    def shape(self) -> str:
        """Return the type of the instruction's result, without layouts."""
        return _LAYOUT.sub("", self.type)

    @property
    def op_name(self) -> str:
        """Return the path of JAX names that the instruction was lowered from, or that of a fusion's root; "" if there is none."""
        return self.attribute("op_name")

    @property
    def parts(self) -> tuple["Instruction", ...]:
        """Return the instructions in a fusion, its root last; for another instruction, only the instruction itself."""
        return tuple(self.called[0].instructions.values()) if self.opcode == "fusion" and self.called else (self,)

    def attribute(self, name: str) -> str:
        """Return the value of an attribute: see `attribute_of`."""
        return attribute_of(self.attributes, name)

    def integers(self, name: str) -> tuple[int, ...]:
        """Return the integers of an attribute."""
        return tuple(map(int, re.findall(r"\d+", self.attribute(name))))

    def inside(self) -> Iterator["Instruction"]:
        """Yield the instruction and all instructions inside it, if it is a fusion, recursively."""
        yield self
        for part in self.parts:
            if part is not self:
                yield from part.inside()

    def located(self) -> "Instruction":
        """Return the instruction; if XLA gave it no source location, the nearest one that has a location.

        The search goes through the instructions inside it and through its operands.
        """
        seen, waiting = set(), [self]
        while waiting:
            current = waiting.pop(0)
            if current in seen:
                continue
            if current.frames:
                return current
            seen.add(current)
            waiting += [*reversed(current.parts), *current.operands]
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction

    @functools.cached_property
    def users(self) -> dict[Instruction, list[Instruction]]:
        users: dict[Instruction, list[Instruction]] = {instruction: [] for instruction in self.instructions.values()}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Return the parameters in order of their numbers."""
        parameters = [instruction for instruction in self.instructions.values() if instruction.opcode == "parameter"]
        return sorted(parameters, key=lambda instruction: int(instruction.literal or 0))


def attribute_of(attributes: str, name: str) -> str:
    """Return the value of an attribute without quotes or braces around it; "" if it is missing."""
    match = re.search(rf'\b{name}=(?:"([^"]*)"|\{{{_NESTED}\}}|%?([^\s,{{}}]+))', attributes)
    return next(filter(None, match.groups()), "") if match else ""


_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{(?:[^}]*S\((\d+)\))?[^}]*\})?")
_NESTED = r"([^{}]*(?:\{[^{}]*\}[^{}]*)*)"
_LAYOUT = re.compile(r"\{[\d,:A-Z()]*\}|/\*index=\d+\*/")
