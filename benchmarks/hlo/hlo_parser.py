"""XLA's optimized programs parsed from their text: computations, their instructions, and how often each of them runs.

The text is parsed because no API reports what a program sends: XLA's cost analysis counts the body of a loop once and does not
look into kernels. The profiler reports times under the names of these instructions.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

from benchmarks.hlo.call_stacks import Frame, call_stacks

BYTES = {
    **{"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8},
    **{"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16, "token": 0, "opaque": 0},
}
"""Bytes of an element; dtypes that are not listed have 1 (the float8 types)."""


@dataclasses.dataclass(frozen=True)
class Array:
    """Type of an array."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0
    """Memory space that contains it, by XLA's number: 0 is the device's main memory, 1 on a TPU memory on the chip."""

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
        """Return the value of an attribute without quotes or braces around it; "" if it is missing."""
        match = re.search(rf'\b{name}=(?:"([^"]*)"|\{{{_NESTED}\}}|%?([^\s,{{}}]+))', self.attributes)
        return next(filter(None, match.groups()), "") if match else ""

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


@dataclasses.dataclass(frozen=True)
class ExecutedInstruction:
    """An instruction as it is executed."""

    instruction: Instruction
    computation: str
    """Name of the computation that contains it."""
    times: float
    """How often it runs in a step."""
    loop: str
    """Name of the body of the innermost loop that contains it; "" outside of loops."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A program."""

    computations: Mapping[str, Computation]
    entry: Computation

    @functools.cached_property
    def instructions(self) -> Mapping[str, Instruction]:
        """Return all instructions by name."""
        return {name: line for computation in self.computations.values() for name, line in computation.instructions.items()}

    @functools.cached_property
    def callers(self) -> Mapping[Instruction, Instruction]:
        """Return instruction -> the fusion, loop or conditional that runs the computation it is in."""
        callers = {computation: caller for caller in self.instructions.values() for computation in caller.called}
        return {line: caller for computation, caller in callers.items() for line in computation.instructions.values()}

    def runs(self) -> Iterator[ExecutedInstruction]:
        """Yield every instruction that is executed by itself, with its count; a fusion counts as one instruction."""
        yield from self._runs(self.entry, 1.0, "")

    def _runs(self, computation: Computation, times: float, loop: str) -> Iterator[ExecutedInstruction]:
        for instruction in computation.instructions.values():
            opcode, called = instruction.opcode, instruction.called
            if opcode == "while":
                trip_count = self.trip_count(instruction)
                # A loop of unknown count counts once, a lower bound; `unknown_loops` lists these loops.
                yield from self._runs(called[0], times * (1 if trip_count is None else trip_count), called[0].name)
            elif opcode == "conditional":
                # One branch runs: count the one with the most instructions, which likely has the most work.
                yield from max((list(self._runs(branch, times, loop)) for branch in called), key=len)
            elif opcode == "call" or (opcode.endswith("-start") and called and opcode not in COLLECTIVES):
                for inner in called:
                    yield from self._runs(inner, times, loop)
            else:
                yield ExecutedInstruction(instruction, computation.name, times, loop)

    def unknown_loops(self) -> list[str]:
        """Return the loops whose count is not known, by their names in JAX."""
        loops = [instruction for instruction in self.instructions.values() if instruction.opcode == "while"]
        return sorted({loop.op_name or loop.name for loop in loops if self.trip_count(loop) is None})

    def trip_count(self, loop: Instruction) -> int | None:
        """Return how often a loop runs; None if it is not known.

        The count is the one that XLA determined, or else the difference between the constant that the counter starts at and the
        constant that the condition compares it with: counters of JAX go up by one.
        """
        if trip_count := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(trip_count[1])
        test = self.computations[loop.attribute("condition")].root
        operands = test.operands
        if test.opcode == "fusion":
            outside, test = operands, test.called[0].root
            operands = [outside[int(line.literal)] if line.opcode == "parameter" else line for line in test.operands]
        if test.opcode != "compare" or test.attribute("direction") != "LT" or operands[0].opcode != "get-tuple-element":
            return None
        values, last = loop.operands[0], _integer(operands[1])
        if values.opcode != "tuple":
            return None
        start = values.operands[int(operands[0].attribute("index"))]
        while start.opcode in ("copy", "bitcast"):
            start = start.operands[0]
        first = _integer(start)
        return None if first is None or last is None else max(0, last - first)


def _integer(constant: Instruction) -> int | None:
    match = re.fullmatch(r"-?\d+", constant.literal) if constant.opcode == "constant" else None
    return None if match is None else int(match[0])


_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
COLLECTIVES = {f"{kind}{suffix}" for kind in _KINDS for suffix in ("", "-start")}
"""Operations that exchange data between devices. Those that only wait for one (`-done`) send nothing."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\))? ?(?:-> .*)?\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{(?:[^}]*S\((\d+)\))?[^}]*\})?")
_NESTED = r"([^{}]*(?:\{[^{}]*\}[^{}]*)*)"
_LAYOUT = re.compile(r"\{[\d,:A-Z()]*\}|/\*index=\d+\*/")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")


def parse_program(text: str) -> Module:
    """Parse a program as `jax.stages.Compiled.as_text` returns it: a name is defined in a line above those that use it.

    Raises:
        ValueError: the text is not a program.
    """
    computations: dict[str, Computation] = {}
    instructions: dict[str, Instruction] = {}
    head: list[str] = []
    stacks: Mapping[int, tuple[Frame, ...]] = {}
    entry = current = root = ""
    for line in text.splitlines():
        if not current:
            if (header := _HEADER.match(line)) and not line.startswith("HloModule"):
                if not computations:
                    stacks = call_stacks(head)
                current, instructions, root = header[2], {}, ""
                entry = current if header[1] else entry
            head.append(line)
        elif line.startswith("}"):
            computations[current] = Computation(current, instructions, instructions[root or list(instructions)[-1]])
            current = ""
        elif match := _LINE.match(line):
            instruction = _instruction(match[2], match[3], instructions, computations, stacks)
            instructions[instruction.name] = instruction
            root = instruction.name if match[1] else root
    if entry not in computations:
        raise ValueError("not a program: it has no entry")
    return Module(computations, computations[entry])


def _instruction(
    name: str,
    text: str,
    above: Mapping[str, Instruction],
    computations: Mapping[str, Computation],
    stacks: Mapping[int, tuple[Frame, ...]],
) -> Instruction:
    """Return the instruction of a line, whose operands are among those `above` it."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _closing(text, opening)
    inside, attributes = text[opening + 1 : closing], text[closing + 1 :]
    operands = tuple(above[operand] for operand in re.findall(r"%([\w.\-]+)", inside) if operand in above)
    names = (called for listed in _CALLED.findall(attributes) for called in re.findall(r"[\w.\-]+", listed))
    called = tuple(computations[called] for called in names if called in computations)
    frame = re.search(r"\bstack_frame_id=(\d+)", attributes)
    frames = stacks.get(int(frame[1]), ()) if frame else ()
    return Instruction(name, text[:opening], kind, operands, inside.strip(), attributes, called, frames)


def _closing(text: str, opening: int) -> int:
    """Return the index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text[opening:]):
        depth += 1 if parenthesis[0] == "(" else -1
        if not depth:
            return opening + parenthesis.start()
    raise ValueError(f"not a program: unbalanced parentheses in {text[:80]}")
