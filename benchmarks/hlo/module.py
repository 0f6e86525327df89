"""XLA's optimized programs parsed from their text: computations, their instructions, and how often each of them runs.

The text is parsed because no API reports what a program sends: XLA's cost analysis counts the body of a loop once and does not
look into kernels.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

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


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    name: str
    op: str
    arrays: tuple[Array, ...]
    """The arrays it returns; those of a tuple, nested ones included, in order."""
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    literal: str
    """Text between the parentheses: the value of a constant, the number of a parameter."""
    rest: str
    """Attributes, as printed."""
    root: bool

    @property
    def bytes(self) -> float:
        return sum((array.bytes for array in self.arrays), 0.0)

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs."""
        return tuple(re.findall(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)", self.rest)) + tuple(
            name.strip().lstrip("%")
            for names in re.findall(r"branch_computations=\{([^}]*)\}", self.rest)
            for name in names.split(",")
        )

    @property
    def origin(self) -> str:
        """Return the path of JAX names that it was lowered from; "" if there is none."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return match[1] if match else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def root(self) -> Instruction:
        last = list(self.instructions.values())[-1]
        return next((instruction for instruction in self.instructions.values() if instruction.root), last)

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for name in dict.fromkeys(instruction.operands):
                users.get(name, []).append(instruction)
        return users

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        """Return the parameters in order of their numbers."""
        parameters = [instruction for instruction in self.instructions.values() if instruction.op == "parameter"]
        return sorted(parameters, key=lambda instruction: int(instruction.literal or 0))

    def operands_of(self, instruction: Instruction) -> list[Instruction]:
        """Return the operands of an instruction."""
        return [self.instructions[name] for name in instruction.operands if name in self.instructions]


@dataclasses.dataclass(frozen=True)
class Module:
    computations: Mapping[str, Computation]
    entry: str

    def runs(self) -> Iterator["Run"]:
        """Yield every instruction that is executed by itself, with its count; a fusion counts as one instruction."""
        yield from self._runs(self.computations[self.entry], 1.0, "")

    def _runs(self, computation: Computation, times: float, loop: str) -> Iterator["Run"]:
        for instruction in computation.instructions.values():
            if instruction.op == "while":
                body = _attribute(instruction.rest, "body")
                trip_count = self.trip_count(instruction, computation)
                # A loop of unknown count counts once, a lower bound; `unknown_loops` lists these loops.
                yield from self._runs(self.computations[body], times * (1 if trip_count is None else trip_count), body)
            elif instruction.op == "conditional":
                # One branch runs: count the one with the most instructions, which likely has the most work.
                branches = [list(self._runs(self.computations[name], times, loop)) for name in instruction.called]
                yield from max(branches, key=len)
            elif instruction.op == "call" or (
                instruction.op.endswith("-start") and instruction.called and instruction.op not in COLLECTIVE_OPS
            ):
                for name in instruction.called:
                    yield from self._runs(self.computations[name], times, loop)
            else:
                yield Run(instruction, computation, times, loop)

    def unknown_loops(self) -> list[str]:
        """Return the loops whose count is not known, by their names in JAX."""
        every = [
            (instruction, computation)
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
        ]
        loops = [(instruction, computation) for instruction, computation in every if instruction.op == "while"]
        return sorted(
            {
                instruction.origin or instruction.name
                for instruction, computation in loops
                if self.trip_count(instruction, computation) is None
            }
        )

    def trip_count(self, loop: Instruction, computation: Computation) -> int | None:
        """Return how often a loop of a computation runs; None if it is not known.

        The count is the one that XLA determined, or else the difference between the constant that the counter starts at and the
        constant that the condition compares it with: counters of JAX go up by one.
        """
        if trip_count := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest):
            return int(trip_count[1])
        condition = self.computations[_attribute(loop.rest, "condition")]
        test, operands = condition.root, condition.operands_of(condition.root)
        if test.op == "fusion":
            within = self.computations[test.called[0]]
            test, outside = within.root, operands
            operands = [
                outside[int(operand.literal)] if operand.op == "parameter" else operand for operand in within.operands_of(test)
            ]
        if test.op != "compare" or "direction=LT" not in test.rest or operands[0].op != "get-tuple-element":
            return None
        start = _beginning(loop, computation, int(_attribute(operands[0].rest, "index")))
        last = _integer(operands[1])
        return None if start is None or last is None else max(0, last - start)

    def inside(self, instruction: Instruction) -> Iterator[tuple[Instruction, Computation]]:
        """Yield all instructions inside a fusion, recursively; nothing for another instruction."""
        if instruction.op != "fusion":
            return
        for name in instruction.called:
            computation = self.computations[name]
            for inner in computation.instructions.values():
                yield inner, computation
                yield from self.inside(inner)


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction as it is executed."""

    instruction: Instruction
    computation: Computation
    times: float
    """How often it runs in a step."""
    loop: str
    """Name of the body of the innermost loop that contains it; "" outside of loops."""


_KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
COLLECTIVE_OPS = {f"{kind}{suffix}" for kind in _KINDS for suffix in ("", "-start")}
"""Operations that exchange data between devices. Those that only wait for one (`-done`) send nothing."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\))? ?(?:-> .*)?\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")


def parse(text: str) -> Module:
    """Parse a program as `Compiled.as_text` returns it.

    Raises:
        ValueError: the text is not a program.
    """
    computations: dict[str, Computation] = {}
    entry, current, instructions = "", "", {}
    for line in text.splitlines():
        if not current:
            if (header := _HEADER.match(line)) and not line.startswith("HloModule"):
                current, instructions = header[2], {}
                entry = current if header[1] else entry
        elif line.startswith("}"):
            computations[current] = Computation(current, instructions)
            current = ""
        elif match := _LINE.match(line):
            instructions[match[2]] = _instruction(match[2], match[3], bool(match[1]))
    if entry not in computations:
        raise ValueError("not a program: it has no entry")
    return Module(computations, entry)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    kind, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _closing(text, opening)
    inside, rest = text[opening + 1 : closing], text[closing + 1 :]
    arrays = tuple(
        Array(dtype, tuple(int(size.lstrip("<=")) for size in shape.split(",") if size), _space(layout))
        for dtype, shape, layout in _ARRAY.findall(kind)
    )
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(name, text[:opening], arrays, operands, inside.strip(), rest, root)


def _closing(text: str, opening: int) -> int:
    """Return the index of the parenthesis that closes the one at `opening`."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text[opening:]):
        depth += 1 if parenthesis[0] == "(" else -1
        if not depth:
            return opening + parenthesis.start()
    raise ValueError(f"not a program: unbalanced parentheses in {text[:80]}")


def _space(layout: str) -> int:
    match = re.search(r"S\((\d+)\)", layout)
    return int(match[1]) if match else 0


def _beginning(loop: Instruction, computation: Computation, index: int) -> int | None:
    """Return the constant that a loop's value with this index starts as; None if it is not a constant."""
    values = computation.operands_of(loop)[0]
    if values.op != "tuple":
        return None
    value = computation.instructions[values.operands[index]]
    while value.op in ("copy", "bitcast"):
        value = computation.operands_of(value)[0]
    return _integer(value)


def _integer(constant: Instruction) -> int | None:
    match = re.fullmatch(r"-?\d+", constant.literal) if constant.op == "constant" else None
    return None if match is None else int(match[0])


def _attribute(rest: str, name: str) -> str:
    match = re.search(rf"\b{name}=%?([\w.\-]+)", rest)
    if match is None:
        raise ValueError(f"not a program: {name} is missing from {rest[:80]}")
    return match[1]
